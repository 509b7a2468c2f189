"""A site whose datastore is on LUNs that its proxy sees."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from vmhaul_lab.images import DiskPlan
from vmhaul_lab.lablun import LabLuns
from vmhaul_lab.plan import DatastorePlan, LunPlan, VmPlan
from vmhaul_lab.site import LabSite
from vmhaul_lab.vmfs import Lun

from tests.support.disks import disk_ref, read_all, unwaited
from tests.support.vmfs_readers import DissectReader
from transports import direct_san
from transports.base import DatastoreRef, DiskRef
from transports.machine import Machine
from transports.vsphere import connect
from transports.vsphere.api import Vsphere
from transports.vsphere.model import Endpoint, Login, Secret

MIB = 1 << 20
CAPACITY = 12 * MIB
PROXY = "proxy1"


def vm_plan(name: str, *, power: str = "on") -> VmPlan:
    """One disk of each allocation."""
    return VmPlan(
        name=name,
        power=power,
        disks=(
            DiskPlan(label="thin", capacity_bytes=CAPACITY, layout="raw"),
            DiskPlan(label="lazy", capacity_bytes=CAPACITY, layout="raw", thin=False),
            DiskPlan(label="eager", capacity_bytes=CAPACITY, layout="raw", thin=False, eager=True),
        ),
    )


@contextmanager
def san_site(
    directory: Path,
    binary: Path,
    vms: Sequence[VmPlan],
    *,
    luns: Sequence[LunPlan] = (LunPlan(),),
    version: int = 6,
    array: bool = False,
) -> Iterator[tuple[LabSite, LabLuns, Vsphere]]:
    stores = [DatastorePlan(name="san", luns=tuple(luns), vmfs_version=version)]
    with LabSite.quick(
        directory / "site", vms, binary=binary, proxies=[PROXY], datastores=stores, array=array
    ) as site:
        client = connect(
            Endpoint(
                host=site.vcenter_host, port=site.vcenter_port, thumbprint_sha256=site.thumbprint_sha256
            ),
            Login(username=site.user, password=Secret(site.password)),
            clock=time.time,
        )
        try:
            yield site, site.luns("san"), client
        finally:
            client.close()


def machine(site: LabSite) -> Machine:
    proxy = site.proxy(PROXY)
    return Machine(sys_path=str(proxy.sys_path), dev_path=str(proxy.dev_path))


def storage_of(client: Vsphere) -> DatastoreRef:
    (storage,) = [store.storage for store in client.inventory().datastores]
    assert storage is not None
    return storage


def frozen_disks(client: Vsphere, name: str) -> tuple[str, str, list[DiskRef]]:
    """(VM, snapshot, its disks) of a new snapshot."""
    vm = next(vm for vm in client.inventory().vms if vm.name == name)
    snapshot = client.create_snapshot(vm.moref, name="vmhaul-backup", description="", quiesce=False)
    disks = [disk_ref(vm, disk, snapshot) for disk in snapshot.disks]
    return vm.moref, snapshot.moref, [with_storage(disk, storage_of(client)) for disk in disks]


def with_storage(disk: DiskRef, storage: DatastoreRef) -> DiskRef:
    return replace(disk, storage=storage)


def digest_by_san(site: LabSite, disk: DiskRef) -> str:
    """What the product reads over SAN from the devices that the proxy shows."""
    reader = direct_san.open_reader(machine(site), disk, wait=unwaited)
    try:
        return hashlib.sha256(read_all(reader)).hexdigest()
    finally:
        reader.close()


def lun_reader(luns: LabLuns) -> DissectReader:
    return DissectReader([Lun(image=image, size_bytes=0) for image in luns.images])
