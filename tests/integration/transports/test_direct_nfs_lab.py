"""Disks of the simulated site straight from its NFS datastores: frozen by vCenter, served by a real server."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest
from vmhaul_lab.images import DiskPlan
from vmhaul_lab.plan import DatastorePlan, VmPlan
from vmhaul_lab.site import LabSite

from tests.support.disks import disk_ref, open_reader, open_writer, read_all
from transports import registry
from transports.base import DiskRef, TransportMode
from transports.direct_nfs.library import writes_version_4_in_pieces
from transports.errors import TransientTransportError, TransportUnavailableError
from transports.registry import ModeOptions
from transports.vsphere import connect
from transports.vsphere.api import Vsphere
from transports.vsphere.model import (
    DiskInfo,
    Endpoint,
    Login,
    NewDisk,
    Secret,
    SnapshotInfo,
    VmInfo,
    VmPlacement,
)

pytestmark = pytest.mark.lab
MIB = 1 << 20
NFS = TransportMode.DIRECT_NFS


def on_export(
    vsphere: Vsphere, vm: VmInfo, disk: DiskInfo, snapshot: SnapshotInfo | None = None
) -> DiskRef:
    storage = vsphere.datastore(disk.datastore, vm.datacenter).storage
    return replace(disk_ref(vm, disk, snapshot), storage=storage)


@pytest.mark.parametrize("kind", ["NFS", "NFS41"])
def test_a_vm_there_and_back(tmp_path: Path, labvc_binary: Path, kind: str) -> None:
    store = DatastorePlan(name="nfs1", kind=kind, served=True)
    # libnfs 4.0 writes by version 4 in pieces of 3.5 KiB, each to stable storage.
    vm = VmPlan(name="vm01", disks=(DiskPlan(label="disk", capacity_bytes=4 * MIB, layout="raw"),))
    with LabSite.quick(tmp_path / "site", [vm], binary=labvc_binary, datastores=[store]) as site:
        endpoint = Endpoint(
            host=site.vcenter_host, port=site.vcenter_port, thumbprint_sha256=site.thumbprint_sha256
        )
        login = Login(username=site.user, password=Secret(site.password))
        vsphere = connect(endpoint, login, clock=time.time)
        try:
            reached_by_its_probe(vsphere)
            frozen_disk_is_read(vsphere, site)
            delta_is_refused(vsphere)
            restored_disk_is_written(vsphere, site)
            if kind == "NFS41":  # the other's address is not this machine's when its name space is gone
                gone_server_is_noticed(vsphere, site)
        finally:
            vsphere.close()


def only_vm(vsphere: Vsphere) -> VmInfo:
    return next(vm for vm in vsphere.inventory().vms if vm.name == "vm01")


def reached_by_its_probe(vsphere: Vsphere) -> None:
    [store] = vsphere.inventory().datastores
    assert store.storage is not None
    found = registry.probes()[NFS](ModeOptions(), store.storage)
    assert found is not None
    writable = store.storage.kind == "NFS" or not writes_version_4_in_pieces()
    assert (found.readable, found.writable, found.hops) == (True, writable, 0)
    assert bool(found.reason) == (not writable)


def frozen_disk_is_read(vsphere: Vsphere, site: LabSite) -> None:
    vm = only_vm(vsphere)
    before = site.disk("vm01").live_file.read_bytes()
    snapshot = vsphere.create_snapshot(vm.moref, name="vmhaul-backup 1", description="", quiesce=False)
    site.guest_write(site.disk("vm01"), MIB, b"written after the snapshot" * 100)
    disk = on_export(vsphere, vm, snapshot.disks[0], snapshot)
    for mode in (NFS, TransportMode.NBDSSL):
        reader = open_reader(vsphere, disk, mode)
        try:
            assert read_all(reader) == before
        finally:
            reader.close()
    vsphere.remove_snapshot(vm.moref, snapshot.moref)


def delta_is_refused(vsphere: Vsphere) -> None:
    """By what the task says of it, and by what lies on the export where the task says nothing."""
    vm = only_vm(vsphere)
    first = vsphere.create_snapshot(vm.moref, name="somebody's", description="", quiesce=False)
    second = vsphere.create_snapshot(vm.moref, name="vmhaul-backup 2", description="", quiesce=False)
    disk = on_export(vsphere, vm, second.disks[0], second)
    assert disk.is_delta
    for told in (disk, replace(disk, is_delta=False)):
        with pytest.raises(TransportUnavailableError, match="snapshot"):
            open_reader(vsphere, told, NFS)
    vsphere.remove_snapshot(vm.moref, second.moref)
    vsphere.remove_snapshot(vm.moref, first.moref)


def restored_disk_is_written(vsphere: Vsphere, site: LabSite) -> None:
    vm = only_vm(vsphere)
    config = vsphere.vm_config(vm.moref, None)
    placement = VmPlacement(name="again", datacenter="DC1", datastore="nfs1")
    new = vsphere.create_vm(config, placement, mark="restore-1")
    source = vm.disks[0]
    order = NewDisk(disk_key=source.key, capacity_bytes=source.capacity_bytes, thin=True)
    made = vsphere.add_disks(new, config, [order], placement)[source.key]
    content = site.disk("vm01").live_file.read_bytes()
    writer = open_writer(vsphere, on_export(vsphere, vsphere.vm(new), made), NFS)
    try:
        assert writer.size_bytes == len(content)
        writer.write_from(0, memoryview(content))
        writer.flush()
    finally:
        writer.close()
    assert site.disk("again").live_file.read_bytes() == content
    vsphere.destroy_marked_vm(new, "restore-1")


def gone_server_is_noticed(vsphere: Vsphere, site: LabSite) -> None:
    vm = only_vm(vsphere)
    snapshot = vsphere.create_snapshot(vm.moref, name="vmhaul-backup 3", description="", quiesce=False)
    disk = on_export(vsphere, vm, snapshot.disks[0], snapshot)
    reader = open_reader(vsphere, disk, NFS)
    try:
        site.hardware.stop_nfs()
        with pytest.raises(TransientTransportError):
            read_all(reader)
        with pytest.raises(TransportUnavailableError, match="does not answer"):
            open_reader(vsphere, disk, NFS)
    finally:
        reader.close()
    vsphere.remove_snapshot(vm.moref, snapshot.moref)
