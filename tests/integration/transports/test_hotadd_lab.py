"""Disks attached to proxy VMs of the simulated site, found, read and written there, and taken away."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from vmhaul_lab.guestview import Appearance
from vmhaul_lab.images import DiskPlan
from vmhaul_lab.loops import loops_under
from vmhaul_lab.plan import VmPlan, quick_vms
from vmhaul_lab.proxies import LabProxy, ProxyPlan
from vmhaul_lab.site import LabSite

from transports import hotadd
from transports.base import DiskReader, DiskRef, Presented, ReadRequest, TransportMode
from transports.errors import (
    PermanentTransportError,
    TransientTransportError,
    TransportUnavailableError,
)
from transports.machine import Machine, own_vm_uuid
from transports.vsphere import connect
from transports.vsphere.api import Vsphere
from transports.vsphere.disk_slots import free_slots
from transports.vsphere.model import (
    DiskInfo,
    DiskToAttach,
    Endpoint,
    Login,
    Secret,
    SnapshotInfo,
)

pytestmark = pytest.mark.lab
MIB = 1 << 20

PROXIES = (
    ProxyPlan(name="proxy1"),
    ProxyPlan(name="proxy2", host="esx2.lab", swapped=True, enable_uuid=False),
    ProxyPlan(name="old", hardware="vmx-11"),
    ProxyPlan(name="twin1", uuid="42000000-1111-2222-3333-444444444444"),
    ProxyPlan(name="twin2", uuid="42000000-1111-2222-3333-444444444444"),
)


def vms() -> tuple[VmPlan, ...]:
    """Two to read, one that is off, and disks enough to fill every slot of a VM."""
    disks = tuple(DiskPlan(label=f"d{n}", capacity_bytes=64 << 10, layout="raw") for n in range(15))
    target = DiskPlan(label="target", capacity_bytes=4 * MIB, layout="raw")
    return (
        *quick_vms(1),
        VmPlan(name="target", power="off", disks=(target,)),
        *(VmPlan(name=f"many{n}", power="off", disks=disks) for n in range(4)),
    )


@pytest.fixture(scope="module")
def whole_site(tmp_path_factory: pytest.TempPathFactory, labvc_binary: Path) -> Iterator[LabSite]:
    directory = tmp_path_factory.mktemp("hotadd")
    with LabSite.quick(directory / "site", vms(), binary=labvc_binary, proxies=PROXIES) as made:
        yield made
    assert loops_under(directory) == []


@pytest.fixture
def site(whole_site: LabSite) -> Iterator[LabSite]:
    """One for all tests: each leaves it as it was."""
    yield whole_site
    for proxy in PROXIES:
        assert names(whole_site.proxy(proxy.name)) == ["sda"]
    assert not any(vm.snapshots or vm.consolidation_needed for vm in whole_site.control.vms())


@pytest.fixture
def vsphere(site: LabSite) -> Iterator[Vsphere]:
    endpoint = Endpoint(
        host=site.vcenter_host, port=site.vcenter_port, thumbprint_sha256=site.thumbprint_sha256
    )
    client = connect(
        endpoint, Login(username=site.user, password=Secret(site.password)), clock=time.time
    )
    try:
        yield client
    finally:
        client.close()


def moref(site: LabSite, name: str) -> str:
    return next(vm.moref for vm in site.control.vms() if vm.name == name)


def snapshot(vsphere: Vsphere, vm_moref: str) -> SnapshotInfo:
    return vsphere.create_snapshot(vm_moref, name="s", description="", quiesce=False)


def machine(proxy: LabProxy) -> Machine:
    return Machine(sys_path=str(proxy.sys_path), dev_path=str(proxy.dev_path))


def ref(disk: DiskInfo, vm_moref: str) -> DiskRef:
    return DiskRef(
        vm_moref=vm_moref,
        vm_name="vm",
        disk_key=disk.key,
        path=disk.path,
        capacity_bytes=disk.capacity_bytes,
        datastore=disk.datastore,
    )


@dataclass
class DirectPresenter:
    """Does at once what the backup server does by intents."""

    vsphere: Vsphere
    proxy_moref: str
    disk: DiskRef
    shown: list[DiskToAttach] = field(default_factory=list)

    def present(self, mode: TransportMode, *, write: bool) -> Presented:
        wanted = DiskToAttach(path=self.disk.path, write=write)
        self.shown.append(wanted)
        [found] = self.vsphere.attach_disks(self.proxy_moref, [wanted])
        return Presented(
            disk=self.disk,
            mode=mode,
            disk_uuid=found.disk_uuid,
            controller_bus=found.controller_bus,
            unit=found.unit,
        )

    def withdraw(self, mode: TransportMode) -> None:
        self.vsphere.detach_disks(self.proxy_moref, self.shown)


def sha256_of(reader: DiskReader) -> str:
    size = reader.size_bytes
    content = bytearray(size)
    requests = [ReadRequest(at, memoryview(content)[at : at + MIB]) for at in range(0, size, MIB)]
    for _ in reader.read_many(requests):
        pass
    return hashlib.sha256(content).hexdigest()


def names(proxy: LabProxy) -> list[str]:
    return sorted(path.name for path in (proxy.sys_path / "block").iterdir())


@pytest.mark.parametrize("appearance", [Appearance.AT_ONCE, Appearance.AFTER_SCAN])
@pytest.mark.parametrize("name", ["proxy1", "proxy2"])
def test_a_snapshot_is_read_as_it_was(
    site: LabSite, vsphere: Vsphere, name: str, appearance: Appearance
) -> None:
    proxy, proxy_moref, guest = site.proxy(name), moref(site, name), moref(site, "vm01")
    proxy.set_appearance(appearance)
    expected = [site.live_sha256(disk) for disk in site.disks("vm01")]
    taken = snapshot(vsphere, guest)
    for disk in site.disks("vm01"):
        site.guest_write(disk, 0, b"behind the snapshot")
    found = []
    for disk in taken.disks:
        presenter = DirectPresenter(vsphere, proxy_moref, ref(disk, guest))
        reader = hotadd.open_reader(presenter, machine(proxy), presenter.disk)
        found.append(sha256_of(reader))
        reader.close()
        assert names(proxy) == ["sda"]
    proxy.set_appearance(Appearance.AT_ONCE)
    assert found == expected
    vsphere.remove_snapshot(guest, taken.moref)
    assert not vsphere.consolidation_needed(guest)
    assert all(disk.base_file.exists() for disk in site.disks("vm01"))


def test_a_restore_is_written_to_the_file(site: LabSite, vsphere: Vsphere) -> None:
    proxy, target = site.proxy("proxy1"), moref(site, "target")
    disk = vsphere.vm(target).disks[0]
    presenter = DirectPresenter(vsphere, moref(site, "proxy1"), ref(disk, target))
    writer = hotadd.open_writer(presenter, machine(proxy), presenter.disk)
    assert writer.capabilities.reads_as_zero_when_new
    writer.write_from(MIB, memoryview(b"restored".ljust(512, b"!")))
    with pytest.raises(TransientTransportError, match="in use elsewhere"):
        vsphere.power_on(target)
    writer.flush()
    writer.close()
    assert site.guest_read(site.disk("target"), MIB, 8) == b"restored"


def test_the_disk_of_a_running_vm_is_not_written_to(site: LabSite, vsphere: Vsphere) -> None:
    guest = moref(site, "vm01")
    disk = vsphere.vm(guest).disks[0]
    presenter = DirectPresenter(vsphere, moref(site, "proxy1"), ref(disk, guest))
    with pytest.raises(TransientTransportError, match="in use elsewhere"):
        hotadd.open_writer(presenter, machine(site.proxy("proxy1")), presenter.disk)
    assert names(site.proxy("proxy1")) == ["sda"]


def test_several_disks_come_and_go_in_one_change_each(site: LabSite, vsphere: Vsphere) -> None:
    proxy_moref, guest = moref(site, "proxy1"), moref(site, "vm01")
    taken = snapshot(vsphere, guest)
    wanted = [DiskToAttach(path=disk.path, write=False) for disk in taken.disks]
    assert len(wanted) > 1
    site.control.reset_stats()
    attached = vsphere.attach_disks(proxy_moref, wanted)
    again = vsphere.attach_disks(proxy_moref, wanted)
    assert again == attached
    assert [one.path for one in attached] == [disk.path for disk in taken.disks]
    assert [one.capacity_bytes for one in attached] == [disk.capacity_bytes for disk in taken.disks]
    assert len({(one.controller_bus, one.unit) for one in attached}) == len(wanted)
    assert [one.disk_uuid for one in attached] == [disk.uuid for disk in taken.disks]
    assert site.control.stats()["soap_calls"]["ReconfigVM_Task"] == 1
    with pytest.raises(TransientTransportError):
        vsphere.remove_snapshot(guest, taken.moref)
    vsphere.detach_disks(proxy_moref, wanted)
    vsphere.detach_disks(proxy_moref, wanted)
    assert site.control.stats()["soap_calls"]["ReconfigVM_Task"] == 2
    vsphere.consolidate(guest)


def test_controllers_are_added_until_there_is_no_room(site: LabSite, vsphere: Vsphere) -> None:
    """An old VM takes 15 disks on each of four controllers; one of the slots is its own disk's."""
    proxy_moref = moref(site, "old")
    before = vsphere.attachable_vm(proxy_moref)
    assert [controller.bus for controller in before.controllers] == [0]
    assert before.hardware_version == 11
    assert before.new_controller_disks == 15
    paths = [disk.path for vm in many_vms(vsphere) for disk in vm]
    assert free_slots(before) == 59
    assert len(paths) >= 60
    wanted = [DiskToAttach(path=path, write=False) for path in paths]
    with pytest.raises(TransportUnavailableError, match="has 59 free SCSI slots and 60 are needed"):
        vsphere.attach_disks(proxy_moref, wanted[:60])
    attached = vsphere.attach_disks(proxy_moref, wanted[:59])
    assert {one.controller_bus for one in attached} == {0, 1, 2, 3}
    assert 7 not in {one.unit for one in attached}
    assert len(names(site.proxy("old"))) == 60
    with pytest.raises(TransportUnavailableError, match="has 0 free SCSI slots"):
        vsphere.attach_disks(proxy_moref, wanted[59:60])
    vsphere.detach_disks(proxy_moref, wanted)
    after = vsphere.attachable_vm(proxy_moref)
    assert after.disks == before.disks
    assert names(site.proxy("old")) == ["sda"]


def many_vms(vsphere: Vsphere) -> list[tuple[DiskInfo, ...]]:
    return [vm.disks for vm in vsphere.inventory().vms if vm.name.startswith("many")]


def test_a_vm_is_found_by_its_uuid_in_either_byte_order(site: LabSite, vsphere: Vsphere) -> None:
    for name in ("proxy1", "proxy2"):
        proxy = site.proxy(name)
        own = own_vm_uuid(machine(proxy))
        assert (own == proxy.uuid) == (name == "proxy1")
        assert vsphere.vms_by_bios_uuid(own) == [moref(site, name)]
        assert vsphere.attachable_vm(moref(site, name)).bios_uuid == proxy.uuid
    twins = vsphere.vms_by_bios_uuid(site.proxy("twin1").uuid)
    assert twins == sorted([moref(site, "twin1"), moref(site, "twin2")])
    assert vsphere.vms_by_bios_uuid("00000000-0000-0000-0000-000000000001") == []


def test_a_disk_that_the_vm_has_in_another_way_is_left_alone(site: LabSite, vsphere: Vsphere) -> None:
    proxy_moref = moref(site, "proxy1")
    own = vsphere.vm(proxy_moref).disks[0]
    with pytest.raises(TransportUnavailableError, match="attached to VM proxy1 already"):
        vsphere.attach_disks(proxy_moref, [DiskToAttach(path=own.path, write=False)])
    vsphere.detach_disks(proxy_moref, [DiskToAttach(path=own.path, write=False)])
    vsphere.detach_disks(proxy_moref, [DiskToAttach(path=own.path, write=True)])
    assert vsphere.vm(proxy_moref).disks[0] == own


def test_a_file_that_is_not_there_is_refused(site: LabSite, vsphere: Vsphere) -> None:
    own = vsphere.vm(moref(site, "vm01")).disks[0]
    missing = DiskToAttach(path=f"[{own.datastore}] vm01/none.vmdk", write=False)
    with pytest.raises(PermanentTransportError, match="the file is not on its datastore"):
        vsphere.attach_disks(moref(site, "proxy1"), [missing])
