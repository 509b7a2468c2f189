"""Disks of the simulated site over its hosts' NFC: backup, restore, and the faults of hosts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from vmhaul_lab.site import LabSite

from tests.support.disks import disk_ref, open_reader, open_writer, read_all, unwaited
from transports.base import Ability, Extent, ReadRequest, TransportMode
from transports.errors import (
    PeerIdentityError,
    PermanentTransportError,
    TransientTransportError,
    TransportUnavailableError,
)
from transports.network import Compression, NetworkOptions
from transports.registry import ModeOptions
from transports.vsphere.api import Vsphere
from transports.vsphere.model import NewDisk, PowerState, VmConfig, VmInfo, VmPlacement
from transports.wrappers import CountingReader, ReconnectingReader

pytestmark = pytest.mark.lab
MODES = [TransportMode.NBD, TransportMode.NBDSSL]
SMALL = ModeOptions(
    network=NetworkOptions(request_bytes=256 << 10, requests_in_flight=8, io_timeout_s=15)
)


def vm_named(vsphere: Vsphere, name: str) -> VmInfo:
    return next(vm for vm in vsphere.inventory().vms if vm.name == name)


@pytest.fixture
def frozen(vsphere: Vsphere) -> tuple[VmInfo, Any, Any]:
    """A running VM, a snapshot of it, and the frozen first disk."""
    vm = vm_named(vsphere, "vm01")
    vsphere.enable_change_tracking(vm.moref)
    snapshot = vsphere.create_snapshot(vm.moref, name="vmhaul-backup 1", description="", quiesce=False)
    return vm, snapshot, disk_ref(vm, snapshot.disks[0], snapshot)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("compression", list(Compression))
def test_a_frozen_disk_does_not_see_the_guest(
    vsphere: Vsphere, site: LabSite, frozen: Any, mode: TransportMode, compression: Compression
) -> None:
    vm, snapshot, disk = frozen
    live = site.disk(vm.name, 1)
    before = live.live_file.read_bytes()
    site.guest_write(live, 1 << 20, b"written after the snapshot" * 100)
    options = ModeOptions(network=NetworkOptions(compression=compression, io_timeout_s=15))
    reader = CountingReader(open_reader(vsphere, disk, mode, options))
    assert reader.capabilities.allocated_extents is Ability.NATIVE
    assert read_all(reader) == before
    assert reader.count.bytes == len(before)
    assert reader.count.busy_s > 0
    reader.close()
    vsphere.remove_snapshot(vm.moref, snapshot.moref)
    assert site.disk(vm.name, 1).live_file.read_bytes() != before


def test_allocation_covers_the_data(vsphere: Vsphere, site: LabSite, frozen: Any) -> None:
    vm, snapshot, disk = frozen
    content = site.disk(vm.name, 1).live_file.read_bytes()
    reader = open_reader(vsphere, disk, TransportMode.NBDSSL)
    extents = list(reader.allocated_extents(0, reader.size_bytes))
    reader.close()
    assert 0 < sum(extent.length for extent in extents) < disk.capacity_bytes
    at = 0
    for extent in [*extents, Extent(offset=disk.capacity_bytes, length=0)]:
        assert not any(content[at : extent.offset])
        at = extent.end
    tracked = vsphere.changed_areas(vm.moref, snapshot.moref, disk.disk_key, "*")
    assert {area.offset for area in tracked} <= {
        offset for extent in extents for offset in range(extent.offset, extent.end, 64 << 10)
    }


def test_a_vm_with_a_snapshot_of_somebody_else(vsphere: Vsphere, site: LabSite) -> None:
    vm = vm_named(vsphere, "vm01")
    foreign = vsphere.create_snapshot(vm.moref, name="before the update", description="", quiesce=False)
    site.guest_write(site.disk("vm01", 1), 3 << 20, b"x" * 4096)
    content = site.disk("vm01", 1).live_file.read_bytes()
    ours = vsphere.create_snapshot(vm.moref, name="vmhaul-backup 1", description="", quiesce=False)
    assert [s.name for s in vsphere.snapshots(vm.moref)] == ["before the update", "vmhaul-backup 1"]
    disk = disk_ref(vm, ours.disks[0], ours)
    assert disk.is_delta
    reader = open_reader(vsphere, disk, TransportMode.NBDSSL)
    assert list(reader.allocated_extents(0, reader.size_bytes)) == [
        Extent(offset=0, length=reader.size_bytes)
    ]
    assert read_all(reader) == content
    reader.close()
    vsphere.remove_snapshot(vm.moref, ours.moref)
    assert [s.moref for s in vsphere.snapshots(vm.moref)] == [foreign.moref]
    assert site.disk("vm01", 1).live_file.read_bytes() == content


def test_the_file_of_a_running_vm_is_refused(vsphere: Vsphere) -> None:
    vm = vm_named(vsphere, "vm01")
    with pytest.raises(PermanentTransportError, match="running VM writes to"):
        open_reader(vsphere, disk_ref(vm, vm.disks[0]), TransportMode.NBDSSL)


def test_disks_of_a_powered_off_vm_need_no_snapshot(vsphere: Vsphere, site: LabSite) -> None:
    odd = vm_named(vsphere, "odd")
    for disk in odd.disks:
        live = next(d for d in site.disks("odd") if d.key == disk.key)
        reader = open_reader(vsphere, disk_ref(odd, disk), TransportMode.NBDSSL)
        assert read_all(reader) == live.live_file.read_bytes()
        reader.close()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("kind", "params"),
    [
        ("nfc-36-after-51", {}),
        ("nfc-strict-records", {}),
        ("nfc-no-sha256", {}),
        ("nfc-refuse-43", {}),
        ("nfc-shuffle", {}),
        ("nfc-newest-first", {"requests": 4}),
        ("nfc-odd-fragments", {}),
        ("nfc-small-buffers", {"above_bytes": 64 << 10}),
        ("nfc-no-allocation", {}),
    ],
)
def test_hosts_of_all_kinds(
    vsphere: Vsphere, site: LabSite, frozen: Any, mode: TransportMode, kind: str, params: dict[str, Any]
) -> None:
    vm, _, disk = frozen
    site.control.fault(kind, count=0, **params)
    reader = open_reader(vsphere, disk, mode, SMALL)
    assert read_all(reader) == site.disk(vm.name, 1).live_file.read_bytes()
    reader.close()
    # Only TLS has records that a host could overlook.
    if kind != "nfc-strict-records" or mode is TransportMode.NBDSSL:
        assert site.control.faults()[0]["fired"] > 0
    assert all(host["record_stalls"] == 0 for host in site.control.stats()["hosts"].values())


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("fault", ["nfc-wrong-thumbprint", "nfc-wrong-sha256", "nfc-wrong-certificate"])
def test_hosts_that_are_not_who_they_should_be(
    vsphere: Vsphere, site: LabSite, frozen: Any, mode: TransportMode, fault: str
) -> None:
    site.control.fault(fault, count=0)
    if fault == "nfc-wrong-certificate" and mode is TransportMode.NBD:
        open_reader(vsphere, frozen[2], mode).close()  # there is no second TLS session to be wrong
        return
    with pytest.raises(PeerIdentityError):
        open_reader(vsphere, frozen[2], mode)


def test_a_host_without_encryption(vsphere: Vsphere, site: LabSite, frozen: Any) -> None:
    site.control.fault("nfc-no-ssl", count=0)
    with pytest.raises(TransportUnavailableError, match="mode nbd"):
        open_reader(vsphere, frozen[2], TransportMode.NBDSSL)


@pytest.mark.parametrize(
    "variant", ["duplicate", "overrun", "wrong-opid", "bad-magic", "truncated-zlib", "status"]
)
def test_bad_fragments_are_bridged_by_a_new_connection(
    vsphere: Vsphere, site: LabSite, frozen: Any, variant: str
) -> None:
    vm, _, disk = frozen
    compression = Compression.ZLIB if variant == "truncated-zlib" else Compression.NONE
    options = ModeOptions(network=replace(SMALL.network, compression=compression))
    site.control.fault("nfc-bad-fragment", count=1, skip=5, variant=variant)
    reader = ReconnectingReader(
        lambda: open_reader(vsphere, disk, TransportMode.NBD, options), 3, unwaited
    )
    assert read_all(reader) == site.disk(vm.name, 1).live_file.read_bytes()
    reader.close()
    assert (reader.reconnects, site.control.faults()[0]["fired"]) == (1, 1)


@pytest.mark.parametrize("mode", MODES)
def test_a_cut_in_the_middle_of_a_disk(
    vsphere: Vsphere, site: LabSite, frozen: Any, mode: TransportMode
) -> None:
    vm, _, disk = frozen
    site.control.fault("nfc-cut", count=1, after_bytes=3_000_000)
    site.control.fault("nfc-cut", count=1, after_bytes=8_000_000)
    content = site.disk(vm.name, 1).live_file.read_bytes()
    reader = ReconnectingReader(lambda: open_reader(vsphere, disk, mode, SMALL), 3, unwaited)
    step = 256 << 10
    requests = (
        ReadRequest(offset, memoryview(bytearray(step))) for offset in range(0, len(content), step)
    )
    seen = []
    for answer in reader.read_many(requests):
        assert bytes(answer.buffer) == content[answer.offset : answer.offset + step]
        seen.append(answer.offset)
    reader.close()
    assert sorted(seen) == list(range(0, len(content), step))
    assert reader.reconnects == 2
    assert [fault["fired"] for fault in site.control.faults()] == [1, 1]


def test_read_errors_and_busy_hosts_are_worth_another_try(
    vsphere: Vsphere, site: LabSite, frozen: Any
) -> None:
    vm, _, disk = frozen
    site.control.fault("nfc-read-error", count=1)
    reader = ReconnectingReader(
        lambda: open_reader(vsphere, disk, TransportMode.NBDSSL, SMALL), 3, unwaited
    )
    assert read_all(reader) == site.disk(vm.name, 1).live_file.read_bytes()
    reader.close()
    site.control.clear_faults()
    site.control.fault(
        "nfc-refuse-open", count=1, code=3, text="DiskLib error 16392: Failed to lock the file"
    )
    with pytest.raises(TransientTransportError, match="another reader"):
        open_reader(vsphere, disk, TransportMode.NBDSSL)
    open_reader(vsphere, disk, TransportMode.NBDSSL).close()


def test_tickets_are_used_once_each_and_connections_end(
    vsphere: Vsphere, site: LabSite, frozen: Any
) -> None:
    for _ in range(3):
        open_reader(vsphere, frozen[2], TransportMode.NBDSSL).close()
    stats = site.control.stats()
    assert stats["tickets_unused"] == 0
    assert sum(host["connections_total"] for host in stats["hosts"].values()) == 3


def test_a_disk_goes_on_while_sessions_are_dropped(
    vsphere: Vsphere, site: LabSite, frozen: Any
) -> None:
    vm, _, disk = frozen
    reader = ReconnectingReader(
        lambda: open_reader(vsphere, disk, TransportMode.NBDSSL, SMALL), 3, unwaited
    )
    buffer = bytearray(1 << 20)
    reader.read_into(0, memoryview(buffer))
    site.control.drop_sessions()
    site.control.fault("nfc-cut", count=1, after_bytes=1)
    reader.read_into(1 << 20, memoryview(buffer))
    reader.close()
    assert bytes(buffer) == site.disk(vm.name, 1).live_file.read_bytes()[1 << 20 : 2 << 20]


# ---- a whole VM, there and back


def restored(
    vsphere: Vsphere, site: LabSite, name: str, placement: VmPlacement
) -> tuple[str, list[str]]:
    """Back up a VM's configuration and copy its disks into a new VM; the new VM and the warnings."""
    vm = vm_named(vsphere, name)
    snapshot = vsphere.create_snapshot(vm.moref, name="vmhaul-backup 1", description="", quiesce=False)
    config = vsphere.vm_config(vm.moref, snapshot.moref)
    new = vsphere.create_vm(config, placement, mark="restore-1")
    assert vsphere.find_marked_vm("restore-1") == new
    kept = [disk for disk in snapshot.disks if not disk.backup_obstacle]
    orders = [
        NewDisk(disk_key=disk.key, capacity_bytes=disk.capacity_bytes, thin=disk.thin) for disk in kept
    ]
    made = vsphere.add_disks(new, config, orders, placement)
    assert vsphere.add_disks(new, config, orders, placement) == made
    target = vsphere.vm(new)
    for disk in kept:
        source = open_reader(vsphere, disk_ref(vm, disk, snapshot), TransportMode.NBDSSL)
        writer = open_writer(vsphere, disk_ref(target, made[disk.key]), TransportMode.NBDSSL)
        writer.write_from(0, memoryview(read_all(source)))
        writer.flush()
        writer.close()
        source.close()
    warnings = vsphere.finish_vm(new, config, placement)
    vsphere.remove_snapshot(vm.moref, snapshot.moref)
    return new, warnings


@pytest.mark.parametrize("name", ["vm01", "odd"])
def test_a_vm_comes_back_as_it_was(vsphere: Vsphere, site: LabSite, name: str) -> None:
    placement = VmPlacement(name="back again", datacenter="DC1", datastore="nfs-bulk")
    new, warnings = restored(vsphere, site, name, placement)
    assert warnings == []
    old, now = vm_named(vsphere, name), vsphere.vm(new)
    assert vsphere.find_marked_vm("restore-1") is None
    assert (now.name, now.power_state) == ("back again", PowerState.OFF)
    assert now.path == old.path
    assert now.resource_pool == old.resource_pool
    assert now.hardware_version == old.hardware_version
    assert now.instance_uuid != old.instance_uuid
    assert now.bios_uuid != old.bios_uuid
    kept = [disk for disk in old.disks if not disk.backup_obstacle]
    assert sorted((d.controller, d.capacity_bytes, d.thin, d.datastore) for d in now.disks) == sorted(
        (d.controller, d.capacity_bytes, d.thin, "nfs-bulk") for d in kept
    )
    files = {disk.key: disk.live_file for disk in site.disks() if disk.vm == "back again"}
    positions = {disk.controller: files[disk.key] for disk in now.disks}
    for disk in kept:
        original = next(d for d in site.disks(name) if d.key == disk.key)
        assert positions[disk.controller].read_bytes() == original.live_file.read_bytes()
    vsphere.power_on(new)
    vsphere.power_on(new)
    assert vsphere.vm(new).power_state is PowerState.ON


def test_a_vm_may_keep_its_identity(vsphere: Vsphere, site: LabSite) -> None:
    old = vm_named(vsphere, "odd")
    placement = VmPlacement(
        name="odd again",
        datacenter="DC1",
        folder="DC1/Prod",
        resource_pool="DC1/Cluster1/Resources/Silver",
        datastore="vmfs-fast",
        keep_identity=True,
    )
    config = vsphere.vm_config(old.moref, None)
    with pytest.raises(PermanentTransportError, match="VM odd still has the identity"):
        vsphere.create_vm(config, placement, mark="restore-2")
    # As if the original were gone: nobody has this one.
    gone = f"50{old.instance_uuid[2:-4]}dead"
    config = VmConfig(json=config.json.replace(old.instance_uuid.encode(), gone.encode()))
    new = vsphere.create_vm(config, placement, mark="restore-2")
    now = vsphere.vm(new)
    assert (now.bios_uuid, now.instance_uuid) == (old.bios_uuid, gone)
    assert now.path == ("DC1", "vm", "Prod")
    assert now.resource_pool == "DC1/Cluster1/Resources/Silver"
    vsphere.destroy_marked_vm(new, "restore-2")


def test_a_name_that_is_taken_is_refused(vsphere: Vsphere) -> None:
    vm = vm_named(vsphere, "vm02")
    config = vsphere.vm_config(vm.moref, None)
    with pytest.raises(PermanentTransportError, match="VM named vm02"):
        vsphere.create_vm(
            config, VmPlacement(name="vm02", datacenter="DC1", datastore="vmfs-fast"), mark="m"
        )


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"datastore": "nowhere"}, "no datastore named nowhere"),
        ({"folder": "DC1/Nowhere"}, "no VM folder DC1/Nowhere"),
        ({"resource_pool": "DC1/Cluster1/Resources/Lead"}, "no resource pool"),
        ({"host": "esx9.lab"}, "no host named esx9.lab"),
        ({"datacenter": "DC9"}, "DC9"),
    ],
)
def test_places_that_do_not_exist_are_named(
    vsphere: Vsphere, site: LabSite, wrong: dict[str, str], text: str
) -> None:
    config = vsphere.vm_config(vm_named(vsphere, "odd").moref, None)
    placement = replace(VmPlacement(name="new", datacenter="DC1", datastore="vmfs-fast"), **wrong)
    with pytest.raises(PermanentTransportError, match=text):
        vsphere.create_vm(config, placement, mark="m")
    assert "new" not in {vm.name for vm in site.control.vms()}


def test_only_marked_vms_are_deleted(vsphere: Vsphere, site: LabSite) -> None:
    odd = vm_named(vsphere, "odd")
    config = vsphere.vm_config(odd.moref, None)
    placement = VmPlacement(name="new", datacenter="DC1", datastore="vmfs-fast", host="esx2.lab")
    new = vsphere.create_vm(config, placement, mark="restore-3")
    for mark in ("restore-4", ""):
        with pytest.raises(PermanentTransportError, match="left alone"):
            vsphere.destroy_marked_vm(new, mark)
        with pytest.raises(PermanentTransportError, match="left alone"):
            vsphere.destroy_marked_vm(odd.moref, mark)
    vsphere.power_on(new)
    with pytest.raises(PermanentTransportError, match="not powered off"):
        vsphere.destroy_marked_vm(new, "restore-3")
    assert {vm.name for vm in site.control.vms()} == {"vm01", "vm02", "odd", "new"}


def test_a_marked_vm_is_deleted_with_its_files(vsphere: Vsphere, site: LabSite) -> None:
    odd = vm_named(vsphere, "odd")
    config = vsphere.vm_config(odd.moref, None)
    placement = VmPlacement(name="new", datacenter="DC1", datastore="vmfs-fast")
    new = vsphere.create_vm(config, placement, mark="restore-3")
    disk = odd.disks[0]
    vsphere.add_disks(
        new,
        config,
        [NewDisk(disk_key=disk.key, capacity_bytes=disk.capacity_bytes, thin=True)],
        placement,
    )
    file = next(d.live_file for d in site.disks() if d.vm == "new")
    assert file.exists()
    vsphere.destroy_marked_vm(new, "restore-3")
    vsphere.destroy_marked_vm(new, "restore-3")
    assert not file.exists()
    assert "new" not in {vm.name for vm in site.control.vms()}
    assert vsphere.find_marked_vm("restore-3") is None
