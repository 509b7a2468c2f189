"""Backup from storage snapshots: the VM snapshot lives for seconds, and nothing is left of anything."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa

from backup_server.db.states import Result
from backup_server.db.tables import Event, Intent, Proxy, Task
from backup_server.errors import ConflictError, ForbiddenError, UnavailableError
from backup_server.services import jobs, storage_snapshots, storage_systems
from proxy_worker.contracts.extents import unpack_extents
from tests.fakes.server import Rig
from tests.fakes.vsphere import GIB, FakeDisk
from tests.support.storage_rig import (
    HOST,
    LUN1,
    LUN2,
    begin,
    give_back,
    hand_out,
    nfs,
    present,
    vmfs,
    with_array,
    withdraw,
)
from transports.base import Extent, LunExtent, TransportMode
from transports.errors import (
    ChangeTrackingUnusableError,
    PermanentTransportError,
    TransientTransportError,
)


@pytest.fixture
def storage(rig: Rig) -> Rig:
    return with_array(rig)


def events(rig: Rig, name: str) -> list[str]:
    return [row.text for row in rig.rows(Event, name=name)]


def standard_reason(rig: Rig) -> str:
    [text] = events(rig, "storage-snapshot.not-used")
    return text


def nothing_left(rig: Rig) -> None:
    assert rig.open_intents() == []
    assert (rig.array.frozen, rig.array.shown) == ({}, {})
    assert rig.vcenter.all_snapshots() == []


def test_the_vm_snapshot_is_gone_before_a_task_may_begin(storage: Rig) -> None:
    storage.vcenter.add_vm("db01")
    storage.job(storage_snapshots=True)
    session_id, tasks = begin(storage)
    assert storage.vcenter.all_snapshots() == []
    [frozen] = storage.array.frozen.values()
    assert list(frozen) == ["vol1"]
    [held] = frozen.values()
    assert held, "the VM snapshot existed when the storage was frozen"
    [intent] = storage.open_intents()
    assert (intent.kind, intent.mark) == ("storage-snapshot", next(iter(storage.array.frozen)))
    for task in tasks:
        assert task.allowed_modes == ["storage-snapshot"]
        assert task.order["disk"]["snapshot_moref"] is None
        told = task.facts["storage_snapshot"]
        assert (told["system"], told["read_by"], told["vm_snapshot_gone"]) == (
            "array1", "direct-san", True,
        )  # fmt: skip
        assert told["proxies"] == [storage.default_proxy().id]
    session = storage.drive(session_id)
    assert (session["result"], session["reason"]) == ("success", "")
    assert session["vms"][0]["snapshot_s"] < 20
    nothing_left(storage)
    assert len(storage.points()) == 1


def test_what_changed_is_asked_while_the_vm_snapshot_exists(storage: Rig) -> None:
    storage.vcenter.add_vm("db01")
    storage.job(storage_snapshots=True)
    storage.run()
    storage.vcenter.areas = {2000: [Extent(offset=1 << 20, length=4096)], 2001: []}
    session_id, tasks = begin(storage)
    packed = [task.order["known_changes"] for task in tasks]
    assert unpack_extents(packed[0], size_bytes=GIB) == [Extent(offset=1 << 20, length=64 << 10)]
    assert unpack_extents(packed[1], size_bytes=GIB) == []
    session = storage.drive(session_id)
    assert session["vms"][0]["kind"] == "increment"
    nothing_left(storage)


def test_tracking_that_cannot_answer_is_a_full_scan(storage: Rig) -> None:
    storage.vcenter.add_vm("db01", disks=1)
    storage.job(storage_snapshots=True)
    storage.run()
    storage.vcenter.fail("changed_areas", ChangeTrackingUnusableError("the map is lost"))
    _, [task] = begin(storage)
    assert task.order["full_read_reason"] == task.read_mode_reason == "the map is lost"
    assert task.order.get("known_changes", "") == ""
    assert task.order["previous_map_root"]


def test_a_disk_is_shown_to_the_proxy_that_holds_its_task(storage: Rig) -> None:
    storage.vcenter.add_vm("db01")
    storage.vcenter.vms[next(iter(storage.vcenter.vms))].disks[1].path = "[ds2] db01/db01_1.vmdk"
    storage.job(storage_snapshots=True)
    session_id, tasks = begin(storage)
    for task in tasks:
        hand_out(storage, task)
    first, second = (present(storage, task) for task in tasks)
    assert first.mode is TransportMode.DIRECT_SAN
    assert first.disk.storage is not None
    [extent] = first.disk.storage.extents
    assert extent.lun.startswith("naa.clone.")
    assert first.disk.storage.vmfs_uuid == storage.vcenter.storage["ds1"].vmfs_uuid
    assert first.disk.path == "[ds1] db01/db01_0.vmdk"
    assert second.disk.storage is not None
    assert second.disk.storage.extents != first.disk.storage.extents
    assert {host for _, host in storage.array.shown.values()} == {HOST}
    assert present(storage, tasks[0]) == first, "the same answer again"
    withdraw(storage, tasks[0])
    withdraw(storage, tasks[0])
    assert len(storage.array.shown) == 1
    assert len([one for one in storage.open_intents() if one.kind == "storage-exposure"]) == 1
    storage.janitor.run_once()
    assert len(storage.array.shown) == 1, "the other attempt goes on"
    for task in tasks:
        give_back(storage, task)
    storage.janitor.run_once()
    assert storage.array.shown == {}, "an attempt that is over has nothing"
    assert storage.drive(session_id)["result"] == "success"
    nothing_left(storage)


def test_a_datastore_of_several_luns_is_shown_whole(storage: Rig) -> None:
    storage.vcenter.storage["ds1"] = vmfs("ds1", LUN2, LUN1)
    storage_systems.rescan(storage.ctx, "array1")
    storage.vcenter.add_vm("db01", disks=1)
    storage.job(storage_snapshots=True)
    _, [task] = begin(storage)
    hand_out(storage, task)
    shown = present(storage, task)
    [(volumes, _)] = storage.array.shown.values()
    assert volumes == ("vol2", "vol1")
    assert shown.disk.storage is not None
    assert all(isinstance(one, LunExtent) and one.partition == 1 for one in shown.disk.storage.extents)


def test_nfs_is_shown_below_the_snapshot_s_directory(rig: Rig) -> None:
    rig.array.export("/tank/vmware")
    with_array(rig)
    rig.vcenter.storage["ds1"] = nfs("ds1", "/tank/vmware/ds1")
    storage_systems.rescan(rig.ctx, "array1")
    rig.vcenter.add_vm("db01", disks=1)
    rig.job(storage_snapshots=True)
    session_id, [task] = begin(rig)
    hand_out(rig, task)
    shown = present(rig, task)
    assert shown.mode is TransportMode.DIRECT_NFS
    assert shown.disk.storage is not None
    assert shown.disk.storage.nfs_path == "/tank/vmware"
    [name] = rig.array.frozen
    assert shown.disk.path == f"[ds1] .snap/{name}/ds1/db01/db01_0.vmdk"
    give_back(rig, task)
    assert rig.drive(session_id)["result"] == "success"
    nothing_left(rig)


@pytest.mark.parametrize(
    ("attempt", "write", "error"),
    [(2, False, ForbiddenError), (1, True, ForbiddenError)],
)
def test_what_is_not_the_proxy_s_work_is_refused(
    storage: Rig, attempt: int, write: bool, error: type[Exception]
) -> None:
    from backup_server.services import presentations
    from proxy_worker.contracts.ids import Attempt, TaskId
    from proxy_worker.contracts.messages import PresentRequest

    storage.vcenter.add_vm("db01", disks=1)
    storage.job(storage_snapshots=True)
    _, [task] = begin(storage)
    hand_out(storage, task)
    question = PresentRequest(
        task_id=TaskId(task.id),
        attempt=Attempt(attempt),
        mode=TransportMode.STORAGE_SNAPSHOT,
        write=write,
    )
    with pytest.raises(error):
        presentations.present(storage.ctx, storage.default_proxy().id, question)
    assert storage.array.shown == {}


def test_a_proxy_that_may_not_read_and_an_array_that_refuses_are_said(storage: Rig) -> None:
    storage.vcenter.add_vm("db01", disks=1)
    storage.job(storage_snapshots=True)
    session_id, [task] = begin(storage)
    hand_out(storage, task)
    storage.array.fail("expose", TransientTransportError("busy"))
    with pytest.raises(UnavailableError, match="busy"):
        present(storage, task)
    storage.array.fail("expose", PermanentTransportError("no such host"))
    with pytest.raises(ConflictError, match="no such host"):
        present(storage, task)
    storage_systems.edit(storage.ctx, "array1", {"proxies": []})
    with pytest.raises(ConflictError, match="may not read"):
        present(storage, task)
    give_back(storage, task)
    storage.drive(session_id)
    nothing_left(storage)


def test_a_standard_task_is_shown_nothing(storage: Rig) -> None:
    storage.vcenter.add_vm("db01", disks=1)
    storage.job()
    _, [task] = begin(storage)
    hand_out(storage, task)
    with pytest.raises(ConflictError, match="not held"):
        present(storage, task)


# ---- the standard way ------------------------------------------------------------------------------


def mixed(rig: Rig) -> dict[str, Any]:
    rig.vcenter.datastores["local"] = 100 * GIB
    [vm] = rig.vcenter.vms.values()
    vm.disks.append(FakeDisk(key=2005, label="Hard disk 6", path="[local] db01/x.vmdk"))
    return {}


def another_mode(rig: Rig) -> dict[str, Any]:
    return {"modes": ["nbdssl"]}


def no_proxy(rig: Rig) -> dict[str, Any]:
    storage_systems.edit(rig.ctx, "array1", {"proxies": []})
    return {}


def no_reader(rig: Rig) -> dict[str, Any]:
    """Its only proxy does not read LUNs: without the VM snapshot its disks would wait for ever."""
    offer(rig, "storage-snapshot", "direct-nfs", "nbdssl")
    return {}


def offer(rig: Rig, *modes: str) -> None:
    with rig.ctx.db() as s:
        s.execute(sa.update(Proxy).values(facts={"modes": modes}, last_seen_at=rig.clock.now))


def switched_off(rig: Rig) -> dict[str, Any]:
    storage_systems.edit(rig.ctx, "array1", {"enabled": False})
    return {}


def windows_on_nfs(rig: Rig) -> dict[str, Any]:
    rig.array.export("/tank/vmware")
    rig.vcenter.storage["ds1"] = nfs("ds1", "/tank/vmware")
    storage_systems.rescan(rig.ctx, "array1")
    [vm] = rig.vcenter.vms.values()
    vm.guest_os = "windows2019srv_64Guest"
    return {}


@pytest.mark.parametrize(
    ("arrange", "reason"),
    [
        (mixed, "no registered storage system has datastore local"),
        (another_mode, "the job allows neither"),
        (no_proxy, "vmhaul storage edit array1 --proxy"),
        (no_reader, "offers storage-snapshot and direct-san"),
        (switched_off, "no registered storage system has datastore ds1"),
        (windows_on_nfs, "cannot be read by direct-nfs"),
    ],
)
def test_a_vm_that_is_not_fit_is_read_in_the_standard_way(
    storage: Rig, arrange: Any, reason: str
) -> None:
    storage.vcenter.add_vm("db01")
    storage.job(storage_snapshots=True, **arrange(storage))
    session_id, tasks = begin(storage)
    assert "create_snapshot" not in storage.array.calls
    assert len(storage.vcenter.all_snapshots()) == 1
    assert all(task.order["disk"]["snapshot_moref"] for task in tasks)
    assert reason in standard_reason(storage)
    for placed in planned(storage):
        assert placed["mode"] != "storage-snapshot"
        assert reason in placed["better"][0]["reason"] or "allow" in placed["better"][0]["reason"]
    assert storage.drive(session_id)["result"] == "success"
    nothing_left(storage)


def planned(rig: Rig) -> list[dict[str, Any]]:
    """Where the plan of job1 puts its disks."""
    return [disk["placement"] for vm in jobs.plan(rig.ctx, "job1")["vms"] for disk in vm["disks"]]


@pytest.mark.parametrize("modes", [[], ["direct-san"]], ids=["any mode", "how the clone is read"])
def test_a_plan_says_what_the_run_does(storage: Rig, modes: list[str]) -> None:
    storage.vcenter.add_vm("db01")
    offer(storage, "storage-snapshot", "direct-san", "nbdssl")
    storage.job(storage_snapshots=True, modes=modes)
    _, tasks = begin(storage)
    assert all(task.allowed_modes == ["storage-snapshot"] for task in tasks)
    found = planned(storage)
    assert len(found) == len(tasks)
    assert all((one["mode"], one["fallbacks"]) == ("storage-snapshot", []) for one in found)


def test_an_array_that_refuses_is_a_warning_and_the_standard_way(storage: Rig) -> None:
    storage.vcenter.add_vm("db01")
    storage.job(storage_snapshots=True)
    storage.array.fail("create_snapshot", PermanentTransportError("no space left"))
    session = storage.run()
    assert session["result"] == "warning"
    assert "no space left" in session["reason"]
    nothing_left(storage)
    assert len(storage.points()) == 1


def test_without_failover_it_is_the_vm_s_failure(storage: Rig) -> None:
    storage.vcenter.add_vm("db01", disks=1)
    storage.job(storage_snapshots=True, storage_failover=False)
    storage.array.fail("create_snapshot", PermanentTransportError("no space left"))
    session = storage.run()
    assert session["result"] == "failed"
    assert "no space left" in session["reason"]
    nothing_left(storage)


def test_without_failover_a_passing_trouble_is_tried_again(storage: Rig) -> None:
    storage.vcenter.add_vm("db01", disks=1)
    storage.job(storage_snapshots=True, storage_failover=False)
    storage.array.fail("create_snapshot", *[TransientTransportError("busy")] * 2)
    session = storage.run()
    assert session["result"] == "success"
    assert storage.array.calls.count("create_snapshot") == 3
    nothing_left(storage)


@pytest.mark.parametrize("failover", [True, False])
def test_a_retry_is_read_in_the_standard_way_where_that_is_allowed(
    storage: Rig, failover: bool
) -> None:
    storage.vcenter.add_vm("db01", disks=1)
    storage.job(storage_snapshots=True, storage_failover=failover, retries={"count": 1, "wait_s": 0})
    storage.proxies.outcome = lambda task: (Result.FAILED, "the clone did not appear")
    first = storage.run()
    assert first["result"] == "failed"
    storage.proxies.outcome = lambda task: (Result.SUCCESS, "")
    from backup_server.db.tables import Session

    [retry] = storage.rows(Session, retry_of=first["id"])
    assert storage.drive(retry.id)["result"] == "success"
    modes = [row.allowed_modes for row in storage.rows(Task, session_id=retry.id)]
    assert modes == ([[]] if failover else [["storage-snapshot"]])
    nothing_left(storage)


def test_a_vm_snapshot_that_somebody_removed_meanwhile_is_not_taken_for_held(storage: Rig) -> None:
    vm = storage.vcenter.add_vm("db01", disks=1)
    storage.job(storage_snapshots=True, storage_failover=False)
    storage.array.content = lambda volume: vm.snapshots.clear()
    session = storage.run()
    assert session["result"] == "failed"
    assert "removed by somebody else" in session["reason"]
    nothing_left(storage)


def test_a_vm_snapshot_that_stays_is_removed_when_the_disks_are_read(storage: Rig) -> None:
    storage.vcenter.add_vm("db01", disks=1)
    storage.job(storage_snapshots=True)
    storage.vcenter.fail("remove_snapshot", TransientTransportError("locked"))
    session = storage.run()
    assert session["result"] == "warning"
    assert "could not be removed at once" in session["reason"]
    nothing_left(storage)


# ---- leftovers -------------------------------------------------------------------------------------


def test_a_vm_snapshot_that_vsphere_removes_late_is_no_harm_to_what_the_storage_holds(
    storage: Rig,
) -> None:
    vm = storage.vcenter.add_vm("db01", disks=1)
    storage.job(storage_snapshots=True)
    storage.vcenter.fail("remove_snapshot", TransientTransportError("no answer in time"))
    session_id, _ = begin(storage)
    assert len(vm.snapshots) == 1
    vm.snapshots.clear()  # the removal that nobody waited for any more
    session = storage.drive(session_id)
    assert session["result"] == "warning", session["reason"]
    assert len(storage.points()) == 1
    nothing_left(storage)


def test_a_storage_snapshot_that_stays_is_a_warning_and_the_janitors(storage: Rig) -> None:
    storage.vcenter.add_vm("db01", disks=1)
    storage.job(storage_snapshots=True)
    storage.array.fail("delete_snapshot", TransientTransportError("busy"))
    session = storage.run()
    assert session["result"] == "warning"
    assert "busy" in session["reason"]
    [intent] = storage.open_intents()
    assert intent.problem == "busy"
    assert storage_systems.get(storage.ctx, "array1")["open_snapshots"] == [intent.mark]
    with pytest.raises(ConflictError, match="storage snapshots off"):
        storage_systems.remove(storage.ctx, "array1")
    jobs.edit(storage.ctx, "job1", {"storage_snapshots": False})
    with pytest.raises(ConflictError, match="janitor"):
        storage_systems.remove(storage.ctx, "array1")
    storage.janitor.run_once()
    nothing_left(storage)
    storage_systems.remove(storage.ctx, "array1")
    assert storage_systems.list_all(storage.ctx) == []


def test_a_clone_that_stays_is_removed_with_its_snapshot(storage: Rig) -> None:
    storage.vcenter.add_vm("db01", disks=1)
    storage.job(storage_snapshots=True)
    session_id, [task] = begin(storage)
    hand_out(storage, task)
    present(storage, task)
    storage.array.fail("hide", TransientTransportError("busy"))
    withdraw(storage, task)
    assert len(storage.array.shown) == 1
    give_back(storage, task)
    storage.drive(session_id)
    nothing_left(storage)


def test_a_clone_that_is_hidden_and_takes_space_still_goes_with_its_snapshot(storage: Rig) -> None:
    storage.vcenter.add_vm("db01", disks=1)
    storage.job(storage_snapshots=True)
    session_id, [task] = begin(storage)
    hand_out(storage, task)
    present(storage, task)
    storage.array.fail("eradicate", TransientTransportError("busy"))
    withdraw(storage, task)
    assert not storage.array.shown
    assert len(storage.array.destroyed) == 1
    give_back(storage, task)
    storage.drive(session_id)
    assert not storage.array.destroyed
    nothing_left(storage)


def test_the_sweep_takes_ours_and_nobody_else_s(storage: Rig) -> None:
    from transports.storage_systems.base import exposure_name, snapshot_name

    other_server = "0c9c2f5e-3f0e-4b8f-8e53-6a1d1c3f9a22"
    intent = "11111111-2222-4333-8444-555555555555"
    ours = snapshot_name(storage.ctx.server_id, intent)
    foreign = snapshot_name(other_server, intent)
    for name in (ours, foreign, "daily.0", "vmhaul-by-hand"):
        storage.array.frozen[name] = {"vol1": None}
    for name in (ours, foreign):
        storage.array.shown[exposure_name(name, "x")] = (("vol1",), HOST)
    storage.vcenter.add_vm("db01", disks=1)
    storage.job(storage_snapshots=True)
    session_id, _ = begin(storage)
    [running] = [one.mark for one in storage.open_intents()]
    storage.janitor.sweep()
    assert set(storage.array.frozen) == {foreign, "daily.0", "vmhaul-by-hand", running}
    assert set(storage.array.shown) == {exposure_name(foreign, "x")}
    storage.drive(session_id)
    storage.janitor.sweep()
    assert set(storage.array.frozen) == {foreign, "daily.0", "vmhaul-by-hand"}


def test_a_cancelled_session_leaves_nothing(storage: Rig) -> None:
    from backup_server.services import sessions

    storage.vcenter.add_vm("db01")
    storage.job(storage_snapshots=True)
    session_id, _ = begin(storage)
    sessions.cancel(storage.ctx, session_id)
    assert storage.drive(session_id)["result"] == "cancelled"
    nothing_left(storage)


def test_intents_of_a_session_tell_what_they_are(storage: Rig) -> None:
    storage.vcenter.add_vm("db01", disks=1)
    storage.job(storage_snapshots=True)
    storage.run()
    kinds = sorted(row.kind for row in storage.rows(Intent))
    assert kinds == ["snapshot", "storage-snapshot"]
    assert events(storage, "storage-snapshot.created")[0].endswith("storage snapshot made on array1")
    assert storage_snapshots.RETRIED not in " ".join(events(storage, "storage-snapshot.not-used"))
