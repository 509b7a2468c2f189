"""A VM's way through a backup session, on both databases."""

from __future__ import annotations

import pytest

from backup_server.db.states import Result
from backup_server.db.tables import Session, Task
from backup_server.services import disk_plan, jobs, restore_points, sessions
from tests.fakes.server import Rig
from tests.fakes.vsphere import GIB, FakeDisk
from transports.errors import (
    ObjectGoneError,
    PermanentTransportError,
    QuiesceFailedError,
    TransientTransportError,
)


def orders(rig: Rig, session: dict[str, object]) -> list[dict[str, object]]:
    tasks = rig.rows(Task, session_id=session["id"])
    return [task.order for task in sorted(tasks, key=lambda task: task.position)]


def test_two_runs_make_a_full_and_an_increment(rig: Rig) -> None:
    vm = rig.vcenter.add_vm("db01")
    rig.job()

    first = rig.run()
    assert (first["result"], first["reason"]) == ("success", "")
    assert first["counts"] == {
        "vms": 1, "tasks": 2, "tasks_done": 2, "waiting": 0, "active": 0,
        "success": 1, "warning": 0, "failed": 0, "cancelled": 0,
    }  # fmt: skip
    [shown] = first["vms"]
    assert (shown["kind"], shown["consistency"]) == ("full", "file-system-consistent")
    assert [order["full_read_reason"] for order in orders(rig, first)] == [disk_plan.NO_PREVIOUS] * 2
    assert vm.tracking
    assert rig.vcenter.all_snapshots() == []

    second = rig.run()
    assert second["vms"][0]["kind"] == "increment"
    old, new = rig.points()
    assert new.previous_id == old.id
    for order, disk in zip(orders(rig, second), old.disks, strict=True):
        assert order["previous_map_root"] == disk["map_root"]
        assert order["previous_change_id"] == disk["change_id"] != ""
        assert order["full_read_reason"] == ""
        assert order["datastore_is_vmfs"] is True
    assert set(rig.repository.points) == {old.id, new.id}
    assert rig.open_intents() == []


def test_point_holds_what_the_snapshot_said(rig: Rig) -> None:
    vm = rig.vcenter.add_vm("db01", disks=1)
    vm.disks.append(
        FakeDisk(key=2009, label="Hard disk 9", path="[ds1] x/y.vmdk", obstacle="independent disk")
    )
    rig.job()
    session = rig.run()
    [point] = rig.repository.points.values()
    assert point["vm"]["instance_uuid"] == vm.instance_uuid
    assert point["vm"]["vcenter_uuid"] == rig.vcenter.instance_uuid
    assert point["skipped_disks"] == ["Hard disk 9: independent disk"]
    assert [disk["disk_key"] for disk in point["disks"]] == [2000]
    assert point["nvram"] == "bnZyYW0="
    assert point["id"] == session["vms"][0]["restore_point_id"]
    assert restore_points.get(rig.ctx, "db01@latest")["size_bytes"] == 300


def test_snapshot_bears_our_mark_and_goes_before_the_commit(rig: Rig) -> None:
    rig.vcenter.add_vm("db01", disks=1)
    rig.job()
    session = jobs.run(rig.ctx, "job1")
    rig.engine.run_once()
    rig.engine.run_once()
    rig.engine.run_once()
    [snapshot] = rig.vcenter.all_snapshots()
    [intent] = rig.open_intents()
    assert snapshot.name == f"vmhaul-backup {intent.id}"
    assert rig.ctx.server_id in snapshot.description
    assert intent.object_ref == snapshot.moref
    seen: list[int] = []
    rig.vcenter.after["remove_snapshot"] = lambda: seen.append(len(rig.repository.points))
    rig.drive(session["id"])
    assert seen == [0]
    assert len(rig.repository.points) == 1


@pytest.mark.parametrize(
    ("change", "first_reason", "second_reason"),
    [
        ("grow", "capacity changed", ""),
        ("replace", disk_plan.DISK_REPLACED, ""),
        ("add", "", ""),
    ],
)
def test_changed_disks_get_a_full_of_their_own(
    rig: Rig, change: str, first_reason: str, second_reason: str
) -> None:
    vm = rig.vcenter.add_vm("db01")
    rig.job()
    rig.run()
    if change == "grow":
        vm.disks[0].capacity_bytes += GIB
    elif change == "replace":
        vm.disks[0] = FakeDisk(key=2000, label="Hard disk 1", path="[ds1] db01/new.vmdk")
    else:
        vm.disks.append(FakeDisk(key=2002, label="Hard disk 3", path="[ds2] db01/third.vmdk"))
    session = rig.run()
    found = orders(rig, session)
    assert first_reason in str(found[0]["full_read_reason"])
    assert bool(found[0]["previous_map_root"]) == (change != "replace")
    assert found[1]["full_read_reason"] == second_reason
    assert found[1]["previous_map_root"]
    if change == "add":
        assert (found[2]["previous_map_root"], found[2]["full_read_reason"]) == ("", disk_plan.DISK_NEW)
    assert session["vms"][0]["kind"] == "increment"
    assert session["result"] == "success"


def test_tracking_reset_means_a_full_scan(rig: Rig) -> None:
    vm = rig.vcenter.add_vm("db01", disks=1)
    rig.job()
    rig.run()
    vm.disks[0].tracking_uuid = ""
    [order] = orders(rig, rig.run())
    assert order["full_read_reason"] == disk_plan.TRACKING_RESET
    assert order["previous_map_root"]
    assert order["previous_change_id"] == ""


def test_forced_full(rig: Rig) -> None:
    rig.vcenter.add_vm("db01", disks=1)
    rig.job()
    rig.run()
    session = rig.run(full=True)
    assert session["vms"][0]["kind"] == "full"
    [order] = orders(rig, session)
    assert (order["previous_map_root"], order["full_read_reason"]) == ("", disk_plan.FULL_ASKED)


def test_full_every_days(rig: Rig) -> None:
    rig.vcenter.add_vm("db01", disks=1)
    rig.job(full_every_days=2)
    assert rig.run()["vms"][0]["kind"] == "full"
    rig.clock.advance(86400)
    assert rig.run()["vms"][0]["kind"] == "increment"
    rig.clock.advance(86400)
    assert rig.run()["vms"][0]["kind"] == "full"


def test_change_tracking_is_not_switched_on_above_snapshots(rig: Rig) -> None:
    vm = rig.vcenter.add_vm("db01", disks=1)
    foreign = rig.vcenter.snapshot_by_hand(vm, "before the upgrade")
    rig.job()
    session = rig.run()
    assert session["result"] == "warning"
    assert "snapshots" in session["vms"][0]["warnings"][0]
    assert not vm.tracking
    assert vm.snapshots == [foreign]


def test_job_without_change_tracking(rig: Rig) -> None:
    vm = rig.vcenter.add_vm("db01", disks=1)
    rig.job(change_tracking=False)
    rig.run()
    [order] = orders(rig, rig.run())
    assert order["full_read_reason"] == disk_plan.TRACKING_OFF
    assert not vm.tracking


def test_quiescing_falls_back_with_a_warning(rig: Rig) -> None:
    rig.vcenter.add_vm("db01", disks=1)
    rig.job()
    rig.vcenter.fail("create_snapshot", QuiesceFailedError("VSS"), QuiesceFailedError("VSS timed out"))
    session = rig.run()
    assert session["result"] == "warning"
    assert session["vms"][0]["consistency"] == "crash-consistent"
    assert "VSS timed out" in session["vms"][0]["reason"]


def test_quiescing_required(rig: Rig) -> None:
    rig.vcenter.add_vm("db01", disks=1)
    rig.vcenter.add_vm("db02", disks=1, tools=False)
    rig.job(quiesce="require")
    rig.vcenter.fail("create_snapshot", QuiesceFailedError("VSS"), QuiesceFailedError("VSS timed out"))
    session = rig.run()
    reasons = {vm["name"]: (vm["result"], vm["reason"]) for vm in session["vms"]}
    assert reasons["db01"][0] == reasons["db02"][0] == "failed"
    assert "VSS timed out" in reasons["db01"][1]
    assert "Tools" in reasons["db02"][1]
    assert rig.vcenter.all_snapshots() == []
    assert rig.open_intents() == []


def test_powered_off_vm_needs_no_quiescing(rig: Rig) -> None:
    from transports.vsphere.model import PowerState

    rig.vcenter.add_vm("db01", disks=1, power_state=PowerState.OFF, tools=False)
    rig.job(quiesce="require")
    session = rig.run()
    assert session["result"] == "success"
    assert session["vms"][0]["consistency"] == "powered-off"


def test_windows_is_application_consistent(rig: Rig) -> None:
    rig.vcenter.add_vm("ad01", disks=1, guest_os="windows2019srv_64Guest")
    rig.job()
    assert rig.run()["vms"][0]["consistency"] == "application-consistent"


def test_failed_disk_commits_nothing(rig: Rig) -> None:
    rig.vcenter.add_vm("db01")
    rig.vcenter.add_vm("db02")
    rig.job()
    rig.proxies.outcome = lambda task: (
        (Result.FAILED, "connection lost for good")
        if task.title == "backup db01 / Hard disk 2"
        else (Result.SUCCESS, "")
    )
    session = rig.run()
    assert session["result"] == "failed"
    assert "db01: Hard disk 2: connection lost for good" in session["reason"]
    results = {vm["name"]: vm["result"] for vm in session["vms"]}
    assert results == {"db01": "failed", "db02": "success"}
    assert [point.vm_name for point in rig.points()] == ["db02"]
    assert rig.vcenter.all_snapshots() == []


def test_vm_deleted_before_its_turn(rig: Rig) -> None:
    vm = rig.vcenter.add_vm("db01")
    rig.job()
    session = jobs.run(rig.ctx, "job1")
    rig.engine.run_once()  # the session has its VMs now
    del rig.vcenter.vms[vm.moref]
    session = rig.drive(session["id"])
    assert session["vms"][0]["result"] == "failed"
    assert "no longer exists" in session["vms"][0]["reason"]


def test_vm_deleted_while_its_disks_are_read(rig: Rig) -> None:
    vm = rig.vcenter.add_vm("db01")
    rig.job()
    session = jobs.run(rig.ctx, "job1")
    for _ in range(3):
        rig.engine.run_once()
    assert vm.snapshots
    del rig.vcenter.vms[vm.moref]
    rig.proxies.outcome = lambda task: (Result.FAILED, "the disk is gone")
    session = rig.drive(session["id"])
    assert "deleted" in session["vms"][0]["reason"]
    assert rig.open_intents() == []
    assert rig.points() == []


def test_vm_that_the_job_names_and_that_does_not_exist(rig: Rig) -> None:
    rig.vcenter.add_vm("db01")
    rig.job(
        selection={"include": [{"type": "vm", "name": "db01"}, {"type": "vm", "name": "db02"}]},
        retries={"count": 3, "wait_s": 0},
    )
    session = rig.run()
    assert session["result"] == "failed"
    assert {vm["name"]: vm["result"] for vm in session["vms"]} == {"db01": "success", "db02": "failed"}
    # Trying again would not bring it back.
    assert len(rig.rows(Session)) == 1


def test_commit_is_tried_again_and_is_one_point(rig: Rig) -> None:
    rig.vcenter.add_vm("db01", disks=1)
    rig.job()
    rig.repositories.fail("commit", "transient", "busy")
    rig.repositories.fail("commit", "dead", "")
    session = rig.run()
    assert session["result"] == "success"
    assert len(rig.points()) == len(rig.repository.points) == 1


def test_full_repository_fails_the_vm(rig: Rig) -> None:
    rig.vcenter.add_vm("db01", disks=1)
    rig.job()
    rig.repositories.fail("commit", "permanent", "no space left on device")
    session = rig.run()
    assert session["result"] == "failed"
    assert "no space left" in session["reason"]
    assert rig.points() == []
    assert rig.vcenter.all_snapshots() == []


def test_full_datastore_begins_no_snapshot(rig: Rig) -> None:
    rig.vcenter.add_vm("db01", disks=1)
    rig.vcenter.datastores["ds1"] = 1000
    rig.job()
    session = rig.run()
    assert "1000 bytes free" in session["vms"][0]["reason"]
    assert "create_snapshot" not in rig.vcenter.calls


def test_snapshot_that_stays_is_a_warning_and_the_janitors(rig: Rig) -> None:
    rig.vcenter.add_vm("db01", disks=1)
    rig.job()
    rig.vcenter.fail("remove_snapshot", *[TransientTransportError("file locked")] * 3)
    session = rig.run()
    assert session["result"] == "warning"
    assert "file locked" in session["vms"][0]["reason"]
    assert len(rig.points()) == 1
    [intent] = rig.open_intents()
    assert intent.problem == "file locked"
    rig.janitor.run_once()
    assert rig.open_intents() == []
    assert rig.vcenter.all_snapshots() == []
    # The line in the session shows since when the snapshot is gone.
    assert sessions.get(rig.ctx, session["id"])["vms"][0]["snapshot_s"] > 0


def test_consolidation_is_made_and_its_failure_is_a_warning(rig: Rig) -> None:
    vm = rig.vcenter.add_vm("db01", disks=1, consolidation_needed=True)
    rig.job()
    assert rig.run()["result"] == "success"
    assert not vm.consolidation_needed
    vm.consolidation_needed = True
    rig.vcenter.fail("consolidate", TransientTransportError("locked"))
    session = rig.run()
    assert session["result"] == "warning"
    assert "consolidation" in session["reason"]


def test_transient_errors_are_tried_again(rig: Rig) -> None:
    rig.vcenter.add_vm("db01", disks=1)
    rig.job()
    rig.vcenter.fail("inventory", TransientTransportError("away"))
    rig.vcenter.fail("create_snapshot", *[TransientTransportError("TaskInProgress")] * 3)
    rig.vcenter.fail("vm_config", TransientTransportError("timed out"))
    session = rig.run()
    assert session["result"] == "success"
    assert rig.vcenter.calls.count("create_snapshot") == 4
    assert rig.vcenter.most_snapshots == 1


def test_tries_come_to_an_end(rig: Rig) -> None:
    rig.vcenter.add_vm("db01", disks=1)
    rig.job()
    rig.vcenter.fail("create_snapshot", *[TransientTransportError("TaskInProgress")] * 20)
    session = rig.run()
    assert session["result"] == "failed"
    assert "TaskInProgress" in session["reason"]
    assert rig.vcenter.calls.count("create_snapshot") == rig.settings.step_tries
    assert rig.open_intents() == []
    texts = [item["text"] for item in sessions.events(rig.ctx, session["id"])]
    assert not [text for text in texts if "snapshot removed" in text], "there was none"


def test_wrong_password_ends_the_session_with_the_reason(rig: Rig) -> None:
    rig.vcenter.add_vm("db01", disks=1)
    rig.job(retries={"count": 3, "wait_s": 0})
    rig.ctx.vcenters.close()
    rig.vcenter.password = "another"
    session = rig.run()
    assert session["result"] == "failed"
    assert "password" in session["reason"]
    # A login that was refused is not tried again: accounts get locked by that.
    assert len(rig.rows(Session)) == 1


def test_lost_vcenter_is_retried_as_a_session(rig: Rig) -> None:
    rig.vcenter.add_vm("db01", disks=1)
    rig.job(retries={"count": 1, "wait_s": 60})
    rig.vcenter.fail("inventory", *[TransientTransportError("away")] * 5)
    session = rig.run()
    assert session["result"] == "failed"
    [retry] = rig.rows(Session, retry_of=session["id"])
    assert rig.drive(retry.id)["result"] == "success"


def test_only_failed_vms_are_retried(rig: Rig) -> None:
    rig.vcenter.add_vm("db01", disks=1)
    rig.vcenter.add_vm("db02", disks=1)
    rig.job(retries={"count": 2, "wait_s": 300})
    rig.proxies.outcome = lambda task: (
        (Result.FAILED, "no") if "db02" in task.title else (Result.SUCCESS, "")
    )
    session = rig.run()
    [retry] = rig.rows(Session, retry_of=session["id"])
    assert retry.attempt == 2
    began = rig.clock.now
    second = rig.drive(retry.id)
    assert [vm["name"] for vm in second["vms"]] == ["db02"]
    assert (rig.clock.now - began).total_seconds() >= 300
    [last] = rig.rows(Session, retry_of=retry.id)
    rig.proxies.outcome = lambda task: (Result.SUCCESS, "")
    assert rig.drive(last.id)["result"] == "success"
    assert len(rig.rows(Session)) == 3
    assert sorted(point.vm_name for point in rig.points()) == ["db01", "db02"]


def test_retries_come_to_an_end(rig: Rig) -> None:
    rig.vcenter.add_vm("db01", disks=1)
    rig.job(retries={"count": 1, "wait_s": 0})
    rig.proxies.outcome = lambda task: (Result.FAILED, "no")
    session = rig.run()
    [retry] = rig.rows(Session, retry_of=session["id"])
    rig.drive(retry.id)
    assert len(rig.rows(Session)) == 2


def test_new_run_takes_the_place_of_a_waiting_retry(rig: Rig) -> None:
    rig.vcenter.add_vm("db01", disks=1)
    rig.job(retries={"count": 1, "wait_s": 3600})
    rig.proxies.outcome = lambda task: (Result.FAILED, "no")
    session = rig.run()
    rig.proxies.outcome = lambda task: (Result.SUCCESS, "")
    assert rig.run()["result"] == "success"
    [retry] = rig.rows(Session, retry_of=session["id"])
    assert retry.result == "cancelled"


def test_run_only_failed_by_hand(rig: Rig) -> None:
    from backup_server.errors import ConflictError

    rig.vcenter.add_vm("db01", disks=1)
    rig.vcenter.add_vm("db02", disks=1)
    rig.job()
    with pytest.raises(ConflictError):
        jobs.run(rig.ctx, "job1", only_failed=True)
    rig.proxies.outcome = lambda task: (
        (Result.FAILED, "no") if "db02" in task.title else (Result.SUCCESS, "")
    )
    rig.run()
    rig.proxies.outcome = lambda task: (Result.SUCCESS, "")
    session = rig.run(only_failed=True)
    assert [vm["name"] for vm in session["vms"]] == ["db02"]


def test_datastore_limit_of_open_snapshots(rig: Rig) -> None:
    for n in range(7):
        rig.vcenter.add_vm(f"vm{n}", disks=1)
    rig.job()
    session = rig.run()
    assert session["counts"]["success"] == 7
    assert rig.vcenter.most_snapshots == rig.settings.snapshots_per_datastore == 4


def test_vm_is_in_one_session_at_a_time(rig: Rig) -> None:
    rig.vcenter.add_vm("db01", disks=1)
    rig.job("a")
    rig.job("b")
    first = jobs.run(rig.ctx, "a")
    second = jobs.run(rig.ctx, "b")
    for _ in range(4):
        rig.engine.run_once()
    assert len(rig.vcenter.all_snapshots()) == 1
    rig.drive(first["id"])
    assert rig.drive(second["id"])["result"] == "success"
    assert rig.vcenter.most_snapshots == 1


def test_nothing_selected_is_a_failure(rig: Rig) -> None:
    rig.job(selection={"include": [{"type": "folder", "name": "DC0/Nowhere"}]})
    session = rig.run()
    assert session["result"] == "failed"
    assert "matches no VM" in session["reason"]


def test_own_leftover_snapshot_is_removed_first(rig: Rig) -> None:
    vm = rig.vcenter.add_vm("db01", disks=1)
    rig.job()
    description = f'{{"vmhaul": "{rig.ctx.server_id}", "intent": "old", "session": "old"}}'
    rig.vcenter.snapshot_by_hand(vm, "vmhaul-backup old", description)
    assert rig.run()["result"] == "success"
    assert vm.snapshots == []
    assert vm.tracking


# -- cancelling


def test_cancel_while_queued(rig: Rig) -> None:
    rig.vcenter.add_vm("db01", disks=1)
    rig.job()
    session = jobs.run(rig.ctx, "job1")
    sessions.cancel(rig.ctx, session["id"])
    assert rig.drive(session["id"])["result"] == "cancelled"
    assert "create_snapshot" not in rig.vcenter.calls


def test_cancel_while_the_snapshot_is_made(rig: Rig) -> None:
    rig.vcenter.add_vm("db01", disks=1)
    rig.job()
    session = jobs.run(rig.ctx, "job1")
    rig.vcenter.after["create_snapshot"] = lambda: sessions.cancel(rig.ctx, session["id"])  # type: ignore[assignment, return-value]
    shown = rig.drive(session["id"])
    assert shown["result"] == "cancelled"
    assert shown["counts"]["tasks"] == 0
    assert rig.vcenter.all_snapshots() == []
    assert rig.open_intents() == []


def test_cancel_while_disks_are_read(rig: Rig) -> None:
    rig.vcenter.add_vm("db01", disks=1)
    rig.vcenter.add_vm("db02", disks=1)
    rig.job()
    session = jobs.run(rig.ctx, "job1")
    for _ in range(3):
        rig.engine.run_once()
    assert rig.vcenter.all_snapshots()
    sessions.cancel(rig.ctx, session["id"])
    shown = rig.drive(session["id"])
    assert shown["result"] == "cancelled"
    assert {vm["result"] for vm in shown["vms"]} == {"cancelled"}
    assert rig.vcenter.all_snapshots() == []
    assert rig.points() == []


def test_gone_vm_error_in_the_middle_of_preparing(rig: Rig) -> None:
    rig.vcenter.add_vm("db01", disks=1)
    rig.job()
    rig.vcenter.fail("vm_config", ObjectGoneError("no such VM"))
    session = rig.run()
    assert "no longer exists" in session["reason"]
    assert rig.vcenter.all_snapshots() == []


def test_refused_removal_goes_to_the_janitor_at_once(rig: Rig) -> None:
    rig.vcenter.add_vm("db01", disks=1)
    rig.job()
    rig.vcenter.fail("remove_snapshot", PermanentTransportError("no rights"))
    session = rig.run()
    assert session["result"] == "warning"
    assert len(rig.points()) == 1
    assert rig.vcenter.calls.count("remove_snapshot") == 1
