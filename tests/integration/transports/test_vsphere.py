"""The vSphere client against the simulated site: the sequence of a backup, and what goes wrong in it."""

from __future__ import annotations

import ipaddress
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from vmhaul_lab.site import LabSite

from transports.base import Extent
from transports.errors import (
    ChangeTrackingUnusableError,
    ObjectGoneError,
    OutOfSpaceError,
    PeerIdentityError,
    PermanentTransportError,
    QuiesceFailedError,
    SessionExpiredError,
    TransientTransportError,
)
from transports.vsphere import connect, probe
from transports.vsphere.api import Vsphere
from transports.vsphere.model import (
    CloneTicket,
    Endpoint,
    Login,
    PowerState,
    Secret,
    SnapshotInfo,
    VmInfo,
)

pytestmark = pytest.mark.lab
MIB = 1 << 20


def vm_named(vsphere: Vsphere, name: str) -> VmInfo:
    return next(vm for vm in vsphere.inventory().vms if vm.name == name)


def moref(site: LabSite, name: str) -> str:
    return next(vm.moref for vm in site.control.vms() if vm.name == name)


def snapshot(vsphere: Vsphere, vm_moref: str, *, quiesce: bool = False) -> SnapshotInfo:
    return vsphere.create_snapshot(
        vm_moref, name="vmhaul-backup 1", description='{"vmhaul": "test"}', quiesce=quiesce
    )


# ---- session


def test_probe_shows_what_is_to_be_confirmed(endpoint: Endpoint, site: LabSite) -> None:
    seen = probe(endpoint.host, endpoint.port)
    assert (seen.thumbprint_sha256, seen.thumbprint_sha1) == (
        site.thumbprint_sha256,
        site.thumbprint_sha1,
    )
    assert seen.certificate_pem.startswith("-----BEGIN CERTIFICATE-----")


def test_nobody_there() -> None:
    with pytest.raises(TransientTransportError, match="check address"):
        probe("127.0.0.1", 1)


def test_another_certificate_is_refused_before_the_password_is_sent(
    endpoint: Endpoint, login: Login, site: LabSite
) -> None:
    other = Endpoint(host=endpoint.host, port=endpoint.port, thumbprint_sha256=":".join(["AB"] * 32))
    site.control.reset_stats()
    with pytest.raises(PeerIdentityError, match="nothing was sent"):
        connect(other, login, clock=time.time)
    assert not site.control.stats()["soap_calls"]
    with pytest.raises(PeerIdentityError, match="none was confirmed"):
        connect(Endpoint(host=endpoint.host, port=endpoint.port), login, clock=time.time)


def test_a_wrong_password_is_told_without_the_password(endpoint: Endpoint, login: Login) -> None:
    wrong = Login(username=login.username, password=Secret("not-the-password"))
    with pytest.raises(PermanentTransportError, match="user name and password") as caught:
        connect(endpoint, wrong, clock=time.time)
    assert "not-the-password" not in str(caught.value) + repr(wrong)


def test_an_expired_session_is_renewed_silently(vsphere: Vsphere, site: LabSite) -> None:
    before = vsphere.inventory()
    site.control.drop_sessions()
    assert vsphere.vm(before.vms[0].moref).name == before.vms[0].name
    site.control.drop_sessions()
    assert vsphere.inventory().vms == before.vms
    site.control.drop_sessions()
    ticket = vsphere.nfc_ticket(moref(site, "odd"), 2000, write=False)
    assert ticket.service == "vpxa-nfc"


def test_a_change_is_made_once_when_the_session_expires_before_it(
    vsphere: Vsphere, site: LabSite
) -> None:
    vm = moref(site, "vm01")
    site.control.drop_sessions()
    made = snapshot(vsphere, vm)
    assert [found.moref for found in vsphere.snapshots(vm)] == [made.moref]


def test_sessions_that_expire_again_and_again(vsphere: Vsphere, site: LabSite) -> None:
    """Sessions dropped while several threads work: each request is renewed at most once at a time."""
    stop = threading.Event()

    def drop() -> None:
        while not stop.wait(0.15):
            site.control.drop_sessions()

    dropper = threading.Thread(target=drop)
    dropper.start()
    try:
        with ThreadPoolExecutor(4) as pool:
            names = list(pool.map(lambda _: _patiently_read(vsphere, moref(site, "vm01")), range(40)))
    finally:
        stop.set()
        dropper.join()
    assert names == ["vm01"] * 40


def _patiently_read(vsphere: Vsphere, vm_moref: str) -> str:
    for _ in range(20):
        try:
            return vsphere.vm(vm_moref).name
        except (SessionExpiredError, ObjectGoneError, TransientTransportError):
            continue  # dropped twice within one request, or together with a view of the session
    raise AssertionError("never read")


def test_a_cloned_session_works_and_says_when_it_expired(
    vsphere: Vsphere, endpoint: Endpoint, site: LabSite
) -> None:
    ticket = vsphere.clone_ticket()
    assert ticket.reveal() not in repr(ticket)
    clone = connect(endpoint, CloneTicket(ticket=ticket), clock=time.time)
    try:
        vm = moref(site, "vm01")
        assert clone.vm(vm).name == "vm01"
        assert not clone.inventory().tags_known, "tags need a password"
        site.control.drop_sessions()
        with pytest.raises(SessionExpiredError, match="one-time ticket is spent"):
            clone.vm(vm)
    finally:
        clone.close()
    with pytest.raises((PermanentTransportError, SessionExpiredError)):
        connect(endpoint, CloneTicket(ticket=ticket), clock=time.time)


def test_a_closed_client_says_so(endpoint: Endpoint, login: Login) -> None:
    client = connect(endpoint, login, clock=time.time)
    client.close()
    client.close()
    with pytest.raises(SessionExpiredError, match="was closed"):
        client.about()


def test_the_session_is_kept_alive_in_the_background(
    endpoint: Endpoint, login: Login, site: LabSite
) -> None:
    client = connect(endpoint, login, clock=time.time, keep_alive_s=0.05)
    try:
        site.control.reset_stats()
        for _ in range(100):
            if site.control.stats()["soap_calls"].get("CurrentTime", 0) >= 2:
                break
            threading.Event().wait(0.05)
        assert site.control.stats()["soap_calls"]["CurrentTime"] >= 2
    finally:
        client.close()


def test_clock_and_version(vsphere: Vsphere, endpoint: Endpoint, login: Login) -> None:
    assert abs(vsphere.clock_offset_s()) < 5
    assert vsphere.about().api_type == "VirtualCenter"
    behind = connect(endpoint, login, clock=lambda: time.time() - 3600)
    try:
        assert 3590 < behind.clock_offset_s() < 3610
    finally:
        behind.close()


def test_missing_privileges_are_named(vsphere: Vsphere, endpoint: Endpoint, site: LabSite) -> None:
    assert vsphere.missing_privileges("backup") == []
    assert vsphere.missing_privileges("restore") == []
    assert vsphere.missing_privileges("hotadd") == []
    with pytest.raises(ValueError, match="backup, restore, hotadd"):
        vsphere.missing_privileges("cooking")
    weak = connect(
        endpoint,
        Login(username="weak@vsphere.local", password=Secret("weak-password")),
        clock=time.time,
    )
    try:
        assert weak.missing_privileges("backup") == ["VirtualMachine.State.CreateSnapshot"]
        with pytest.raises(PermanentTransportError, match=r"VirtualMachine\.State\.CreateSnapshot"):
            snapshot(weak, moref(site, "vm01"))
    finally:
        weak.close()


# ---- inventory


def test_inventory_has_what_jobs_select_by(vsphere: Vsphere) -> None:
    inventory = vsphere.inventory()
    assert inventory.datacenters == ("DC1",)
    assert inventory.clusters == ("Cluster1",)
    assert inventory.folders == ("DC1/Prod",)
    assert "DC1/Cluster1/Resources/Gold" in inventory.resource_pools
    assert {host.name for host in inventory.hosts} == {"esx1.lab", "esx2.lab"}
    assert {(store.name, store.kind) for store in inventory.datastores} == {
        ("vmfs-fast", "VMFS"),
        ("nfs-bulk", "NFS"),
    }
    first = next(vm for vm in inventory.vms if vm.name == "vm01")
    assert first.path == ("DC1", "vm", "Prod")
    assert (first.datacenter, first.cluster) == ("DC1", "Cluster1")
    assert first.resource_pool == "DC1/Cluster1/Resources/Gold"
    assert inventory.tags_known
    assert first.tags == ("Backup:gold", "Owner:db", "db", "gold")
    assert first.instance_uuid
    assert first.power_state is PowerState.ON
    assert [disk.label for disk in first.disks] == ["Hard disk 1", "Hard disk 2"]
    assert vsphere.datastore("vmfs-fast", "DC1").capacity_bytes > 0
    with pytest.raises(PermanentTransportError, match="no datastore named nowhere"):
        vsphere.datastore("nowhere", "DC1")


def test_a_single_vm_is_as_in_the_inventory(vsphere: Vsphere) -> None:
    inventory = vsphere.inventory()
    for vm in inventory.vms:
        alone = vsphere.vm(vm.moref)
        assert (alone.path, alone.disks, alone.host_moref) == (vm.path, vm.disks, vm.host_moref)
    with pytest.raises(ObjectGoneError, match="vm-4711"):
        vsphere.vm("vm-4711")


def test_disks_of_all_controllers_and_what_snapshots_leave_out(vsphere: Vsphere) -> None:
    odd = vm_named(vsphere, "odd")
    controllers = [disk.controller.split(" ")[0] for disk in odd.disks]
    assert sorted(controllers) == ["NVMe", "SATA", "SCSI", "SCSI", "SCSI"]
    assert [disk.thin for disk in sorted(odd.disks, key=lambda d: d.capacity_bytes)][-1] is False
    obstacles = [disk for disk in odd.disks if disk.backup_obstacle]
    assert [disk.capacity_bytes for disk in obstacles] == [MIB]
    assert "independent" in obstacles[0].backup_obstacle


# ---- snapshots


def test_snapshot_names_frozen_files_and_change_ids(vsphere: Vsphere, site: LabSite) -> None:
    vm = vm_named(vsphere, "vm01")
    vsphere.enable_change_tracking(vm.moref)
    vsphere.enable_change_tracking(vm.moref)
    made = snapshot(vsphere, vm.moref, quiesce=True)
    assert made.quiesced
    assert made.power_state is PowerState.ON
    assert [disk.path for disk in made.disks] == [disk.path for disk in vm.disks]
    assert all("/" in disk.change_id for disk in made.disks)
    now = vsphere.vm(vm.moref)
    assert now.has_snapshots
    assert all(a.path != b.path for a, b in zip(now.disks, vm.disks, strict=True))
    assert [disk.base_path for disk in now.disks] == [disk.path for disk in vm.disks]
    listed = vsphere.snapshots(vm.moref)
    assert [(s.moref, s.name, s.description) for s in listed] == [
        (made.moref, made.name, made.description)
    ]
    assert listed[0].disks == made.disks
    vsphere.remove_snapshot(vm.moref, made.moref)
    vsphere.remove_snapshot(vm.moref, made.moref)
    assert vsphere.snapshots(vm.moref) == []
    assert [disk.path for disk in vsphere.vm(vm.moref).disks] == [disk.path for disk in vm.disks]
    assert not vsphere.consolidation_needed(vm.moref)


def test_quiescing_needs_running_tools(vsphere: Vsphere, site: LabSite) -> None:
    made = snapshot(vsphere, moref(site, "odd"), quiesce=True)
    assert not made.quiesced, "the VM is off: vSphere skips quiescing without a word"
    assert made.power_state is PowerState.OFF


def test_a_snapshot_of_another_vm_is_left_alone(vsphere: Vsphere, site: LabSite) -> None:
    made = snapshot(vsphere, moref(site, "vm01"))
    with pytest.raises(PermanentTransportError, match="left alone"):
        vsphere.remove_snapshot(moref(site, "vm02"), made.moref)
    assert [s.moref for s in vsphere.snapshots(moref(site, "vm01"))] == [made.moref]


def test_change_tracking_is_not_switched_on_under_a_snapshot(vsphere: Vsphere, site: LabSite) -> None:
    vm = moref(site, "vm01")
    snapshot(vsphere, vm)
    with pytest.raises(PermanentTransportError, match="has snapshots"):
        vsphere.enable_change_tracking(vm)


@pytest.mark.parametrize("as_task_error", [False, True])
@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ("ApplicationQuiesceFault", QuiesceFailedError),
        ("FilesystemQuiesceFault", QuiesceFailedError),
        ("TaskInProgress", TransientTransportError),
        ("InvalidState", TransientTransportError),
        ("TooManySnapshotLevels", PermanentTransportError),
        ("NoDiskSpace", OutOfSpaceError),
        ("NoPermission", PermanentTransportError),
        ("ManagedObjectNotFound", ObjectGoneError),
    ],
)
def test_faults_of_snapshots_say_what_can_be_done(
    vsphere: Vsphere, site: LabSite, fault: str, error: type[Exception], as_task_error: bool
) -> None:
    vm = moref(site, "vm01")
    site.control.fault(
        "soap-fault", method="CreateSnapshot_Task", fault=fault, as_task_error=as_task_error
    )
    with pytest.raises(error) as caught:
        snapshot(vsphere, vm, quiesce=True)
    assert type(caught.value) is error
    assert vm in str(caught.value)
    assert site.control.faults()[0]["fired"] == 1
    assert snapshot(vsphere, vm).name == "vmhaul-backup 1"


@pytest.mark.parametrize("as_task_error", [False, True])
def test_a_snapshot_that_somebody_else_removed_is_gone(
    vsphere: Vsphere, site: LabSite, as_task_error: bool
) -> None:
    vm = moref(site, "vm01")
    made = snapshot(vsphere, vm)
    site.control.fault(
        "soap-fault",
        method="RemoveSnapshot_Task",
        fault="ManagedObjectNotFound",
        as_task_error=as_task_error,
    )
    vsphere.remove_snapshot(vm, made.moref)
    assert site.control.faults()[0]["fired"] == 1


@pytest.mark.parametrize("fault", ["TaskInProgress", "FileLocked", "SnapshotLocked"])
def test_a_busy_removal_is_worth_another_try(vsphere: Vsphere, site: LabSite, fault: str) -> None:
    vm = moref(site, "vm01")
    made = snapshot(vsphere, vm)
    site.control.fault("soap-fault", method="RemoveSnapshot_Task", fault=fault, as_task_error=True)
    with pytest.raises(TransientTransportError):
        vsphere.remove_snapshot(vm, made.moref)
    vsphere.remove_snapshot(vm, made.moref)
    assert vsphere.snapshots(vm) == []


def test_disks_that_were_left_behind_are_consolidated(vsphere: Vsphere, site: LabSite) -> None:
    vm = vm_named(vsphere, "vm01")
    site.control.fault("snapshot-stuck")
    made = snapshot(vsphere, vm.moref)
    vsphere.remove_snapshot(vm.moref, made.moref)
    assert vsphere.snapshots(vm.moref) == []
    assert vsphere.consolidation_needed(vm.moref)
    assert vsphere.vm(vm.moref).consolidation_needed
    vsphere.consolidate(vm.moref)
    assert not vsphere.consolidation_needed(vm.moref)
    assert vsphere.vm(vm.moref).disks == vm.disks


def test_a_cancelled_snapshot_is_told_of_when_it_was_made_all_the_same(
    vsphere: Vsphere, site: LabSite
) -> None:
    vm = moref(site, "vm01")
    made = vsphere.create_snapshot(
        vm, name="vmhaul-backup 2", description="", quiesce=False, cancelled=lambda: True
    )
    assert [s.moref for s in vsphere.snapshots(vm)] == [made.moref]


# ---- change tracking


def test_changes_are_told_to_the_end_in_pages(vsphere: Vsphere, site: LabSite) -> None:
    vm = moref(site, "vm01")
    vsphere.enable_change_tracking(vm)
    first = snapshot(vsphere, vm)
    key = first.disks[0].key
    vsphere.remove_snapshot(vm, first.moref)
    for offset in (0, 5 * MIB + 100, 16 * MIB - 512):
        site.guest_write(site.disk("vm01", 1), offset, b"x" * 512)
    second = snapshot(vsphere, vm)
    site.control.reset_stats()
    areas = vsphere.changed_areas(vm, second.moref, key, first.disks[0].change_id)
    assert areas == [
        Extent(offset=0, length=64 << 10),
        Extent(offset=5 * MIB, length=64 << 10),
        Extent(offset=16 * MIB - (64 << 10), length=64 << 10),
    ]
    assert site.control.stats()["soap_calls"]["QueryChangedDiskAreas"] == 4
    assert vsphere.changed_areas(vm, second.moref, key, second.disks[0].change_id) == []
    everything = vsphere.changed_areas(vm, second.moref, key, "*")
    assert sum(area.length for area in everything) > 0


def test_an_untracked_disk_is_read_as_a_whole(vsphere: Vsphere, site: LabSite) -> None:
    vm = moref(site, "vm01")
    made = snapshot(vsphere, vm)
    with pytest.raises(ChangeTrackingUnusableError, match="no change id"):
        vsphere.changed_areas(vm, made.moref, made.disks[0].key, "*")


def test_lost_power_starts_tracking_anew(vsphere: Vsphere, site: LabSite) -> None:
    vm = moref(site, "vm01")
    vsphere.enable_change_tracking(vm)
    first = snapshot(vsphere, vm)
    vsphere.remove_snapshot(vm, first.moref)
    site.control.power_loss("vm01")
    second = snapshot(vsphere, vm)
    with pytest.raises(ChangeTrackingUnusableError):
        vsphere.changed_areas(vm, second.moref, first.disks[0].key, first.disks[0].change_id)


@pytest.mark.parametrize(
    ("key", "reason", "queries"),
    [
        ("vim.hostd.vmsvc.cbt.noTrack", "off", 1),
        ("vim.hostd.vmsvc.cbt.cannotGetChanges", "cannot tell", 1),
        ("", "locked or damaged", 3),
    ],
)
def test_file_faults_of_change_tracking(
    vsphere: Vsphere, site: LabSite, key: str, reason: str, queries: int
) -> None:
    vm = moref(site, "vm01")
    vsphere.enable_change_tracking(vm)
    made = snapshot(vsphere, vm)
    site.control.fault("cbt-fault", count=0, fault_key=key)
    with pytest.raises(ChangeTrackingUnusableError, match=reason):
        vsphere.changed_areas(vm, made.moref, made.disks[0].key, "*")
    assert site.control.faults()[0]["fired"] == queries


def test_a_passing_lock_on_tracking_data_is_waited_for(vsphere: Vsphere, site: LabSite) -> None:
    vm = moref(site, "vm01")
    vsphere.enable_change_tracking(vm)
    made = snapshot(vsphere, vm)
    wanted = vsphere.changed_areas(vm, made.moref, made.disks[0].key, "*")
    site.control.fault("cbt-fault", count=1, fault_key="")
    assert vsphere.changed_areas(vm, made.moref, made.disks[0].key, "*") == wanted


def test_a_gap_in_the_pages_is_not_believed(vsphere: Vsphere, site: LabSite) -> None:
    vm = moref(site, "vm01")
    vsphere.enable_change_tracking(vm)
    made = snapshot(vsphere, vm)
    site.control.fault("cbt-gap")
    with pytest.raises(ChangeTrackingUnusableError, match="when asked at 0"):
        vsphere.changed_areas(vm, made.moref, made.disks[0].key, "*")


def test_a_bad_change_id_is_read_as_a_whole(vsphere: Vsphere, site: LabSite) -> None:
    vm = moref(site, "vm01")
    vsphere.enable_change_tracking(vm)
    made = snapshot(vsphere, vm)
    epoch = made.disks[0].change_id.rsplit("/", 1)[0]
    for wrong in (f"{epoch}/999", "00 11/1", epoch):
        with pytest.raises(ChangeTrackingUnusableError):
            vsphere.changed_areas(vm, made.moref, made.disks[0].key, wrong)


# ---- configuration


def test_configuration_has_names_for_morefs(vsphere: Vsphere, site: LabSite) -> None:
    vm = moref(site, "vm01")
    made = snapshot(vsphere, vm)
    config = vsphere.vm_config(vm, made.moref)
    document = json.loads(config.json)
    assert document["name"] == "vm01"
    assert document["place"] == {
        "datacenter": "DC1",
        "cluster": "Cluster1",
        "folder": "DC1/Prod",
        "resource_pool": "DC1/Cluster1/Resources/Gold",
        "host": "esx1.lab",
    }
    assert "VM Network" in document["networks"].values()
    labels = [
        device.get("deviceInfo", {}).get("label") for device in document["config"]["hardware"]["device"]
    ]
    assert "Hard disk 2" in labels


def test_addresses_of_a_host(vsphere: Vsphere) -> None:
    [host, *_] = vsphere.inventory().hosts
    found = vsphere.host_addresses(host.moref)
    assert found
    assert all(ipaddress.ip_address(one.address) for one in found)
    with pytest.raises(ObjectGoneError):
        vsphere.host_addresses("host-0")
