"""Windows of jobs: waiting for them, stopping in order when they close, going on in the next."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from backup_server.db.states import Result, SessionState, TaskState, change_state
from backup_server.db.tables import Job, Session, SessionVm, Task
from backup_server.errors import ConflictError, InvalidError
from backup_server.scheduler.due_jobs import DueJobs
from backup_server.scheduler.main import start_job
from backup_server.services import explanations, job_windows, jobs, results, sessions, tasks, unfinished
from proxy_worker.contracts.ids import Attempt, TaskId
from proxy_worker.contracts.messages import ResultReport, TaskOutcome
from tests.fakes.server import Rig
from tests.fakes.vsphere import GIB, FakeDisk, FakeVm
from transports.errors import TransientTransportError

NIGHT = {"text": "daily 22:00-06:00", "time_zone": "UTC"}
POLICY = results.RetryPolicy(attempts=3, wait_s=1)


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def hand_out(rig: Rig) -> list[Task]:
    """All pending tasks to the default proxy."""
    found = rig.rows(Task, state=TaskState.PENDING.value)
    with rig.ctx.db() as s:
        for task in found:
            change_state(
                s,
                Task,
                task.id,
                TaskState.PENDING,
                TaskState.RUNNING,
                proxy_id=rig.default_proxy().id,
                leased_until=rig.clock.now + timedelta(minutes=5),
            )
    return found


def report(rig: Rig, task: Task, outcome: TaskOutcome, **values: Any) -> results.Applied:
    said = ResultReport(
        task_id=TaskId(task.id), attempt=Attempt(0), outcome=outcome, reason="", **values
    )
    with rig.ctx.db() as s:
        return results.apply_result(s, rig.default_proxy().id, said, policy=POLICY, now=rig.clock.now)


def engine(rig: Rig, steps: int = 3) -> None:
    for _ in range(steps):
        rig.engine.run_once()


def finished(rig: Rig, session_id: str) -> dict[str, Any]:
    engine(rig, 4)
    shown = sessions.get(rig.ctx, session_id)
    assert shown["state"] == SessionState.FINISHED.value, shown
    return shown


def due_jobs(rig: Rig) -> DueJobs:
    return DueJobs(rig.ctx, start_job, lambda: True)


def test_a_run_by_hand_outside_of_the_window_is_refused_unless_it_is_to_be_ignored(rig: Rig) -> None:
    rig.vcenter.add_vm("db01", disks=1)
    rig.job(window=NIGHT)
    with pytest.raises(ConflictError, match="--ignore-window") as refused:
        jobs.run(rig.ctx, "job1")
    assert refused.value.details == {"opens_at": "2026-03-02T22:00:00Z"}
    assert rig.run(ignore_window=True)["result"] == "success"


def test_when_the_window_closes_the_session_ends_in_order(rig: Rig) -> None:
    for name in ("vm1", "vm2", "vm3"):
        rig.vcenter.add_vm(name, disks=2)
    rig.job(window=NIGHT)
    rig.clock.now = at("2026-03-03T05:50")
    session = jobs.run(rig.ctx, "job1")
    engine(rig)
    running = sorted(hand_out(rig), key=lambda task: task.position)
    first_vm = [task for task in running if task.title.startswith("backup vm1")]
    for task in first_vm:
        assert report(rig, task, TaskOutcome.SUCCESS, map_root="ab" * 32) is results.Applied.ENDED
    second_vm = [task for task in running if task.title.startswith("backup vm2")]
    report(rig, second_vm[0], TaskOutcome.SUCCESS, map_root="cd" * 32)
    engine(rig)
    assert len(rig.points()) == 1

    rig.clock.now = at("2026-03-03T06:00")
    engine(rig)
    told = rig.rows(Task, id=second_vm[1].id)[0]
    assert (told.state, told.cancel_requested) == ("running", True)
    for task in rig.rows(Task, state=TaskState.RUNNING.value):
        report(rig, task, TaskOutcome.CANCELLED)
    shown = finished(rig, session["id"])
    left = 6 - 3
    assert shown["result"] == "warning"
    assert shown["reason"] == f"the window closed; {left} of 6 disks are left (2 of 3 VMs)"
    assert shown["stop_reason"] == "the window closed"
    assert [vm["result"] for vm in shown["vms"]] == ["success", "cancelled", "cancelled"]
    assert rig.vcenter.all_snapshots() == []
    assert rig.open_intents() == []
    assert len(rig.points()) == 1
    assert rig.rows(Task, id=second_vm[1].id)[0].reason == "the window closed"


def stopped(rig: Rig, **job: Any) -> dict[str, Any]:
    """A session of one VM with one disk that was stopped at six."""
    rig.vcenter.add_vm("db01", disks=1)
    rig.job(window=NIGHT, **job)
    rig.clock.now = at("2026-03-03T05:59")
    session = jobs.run(rig.ctx, "job1")
    engine(rig)
    [task] = hand_out(rig)
    rig.clock.now = at("2026-03-03T06:00")
    engine(rig)
    report(rig, task, TaskOutcome.CANCELLED)
    return finished(rig, session["id"])


def test_what_is_left_goes_on_by_itself_when_the_window_opens(rig: Rig) -> None:
    ended = stopped(rig)
    [waiting] = rig.rows(Session, state=SessionState.QUEUED.value)
    assert waiting.retry_of == ended["id"]
    assert waiting.options["only_left"]
    assert sessions.get(rig.ctx, waiting.id)["waits_until"] == "2026-03-03T22:00:00Z"
    rig.clock.now = at("2026-03-03T21:59")
    engine(rig)
    assert rig.rows(Session, id=waiting.id)[0].state == SessionState.QUEUED.value
    rig.clock.now = at("2026-03-03T22:00")
    shown = rig.drive(waiting.id)
    assert (shown["result"], len(shown["vms"])) == ("success", 1)
    assert len(rig.points()) == 1


@pytest.mark.parametrize(
    ("window", "opens"),
    [
        ({"text": "daily 00:00-24:00"}, "2026-03-03T06:00:00Z"),
        (None, "2026-03-03T06:00:00Z"),
        ({"text": "daily 08:00-10:00"}, "2026-03-03T08:00:00Z"),
        ({"text": "daily 23:00-24:00"}, "2026-03-03T23:00:00Z"),
    ],
)
def test_what_is_left_waits_for_the_window_as_it_is_now(
    rig: Rig, window: dict[str, str] | None, opens: str
) -> None:
    stopped(rig)
    jobs.edit(rig.ctx, "job1", {"window": window})
    [waiting] = rig.rows(Session, state=SessionState.QUEUED.value)
    assert datetime.fromisoformat(waiting.options["not_before"]) == datetime.fromisoformat(opens)
    rig.clock.now = datetime.fromisoformat(opens)
    assert rig.drive(waiting.id)["result"] == "success"


def test_a_retry_of_what_is_left_takes_no_more_than_that(rig: Rig) -> None:
    stopped(rig, retries={"count": 1, "wait_s": 60})
    rig.vcenter.add_vm("other", disks=1)
    [waiting] = rig.rows(Session, state=SessionState.QUEUED.value)
    rig.clock.now = at("2026-03-03T22:00")
    rig.vcenter.fail("inventory", *[TransientTransportError("away")] * rig.settings.step_tries)
    assert rig.drive(waiting.id)["result"] == "failed"
    [retry] = rig.rows(Session, state=SessionState.QUEUED.value)
    rig.clock.advance(120)
    shown = rig.drive(retry.id)
    assert [vm["name"] for vm in shown["vms"]] == ["db01"]


def test_what_a_person_cancels_while_it_stops_does_not_go_on(rig: Rig) -> None:
    rig.vcenter.add_vm("db01", disks=1)
    rig.job(window=NIGHT)
    rig.job("second", after_job="job1")
    rig.clock.now = at("2026-03-03T05:59")
    session = jobs.run(rig.ctx, "job1")
    engine(rig)
    [task] = hand_out(rig)
    rig.clock.now = at("2026-03-03T06:00")
    engine(rig)
    sessions.cancel(rig.ctx, session["id"])
    report(rig, task, TaskOutcome.CANCELLED)
    assert finished(rig, session["id"])["result"] == "cancelled"
    assert rig.rows(Session, state=SessionState.QUEUED.value) == []


def test_a_schedule_that_comes_with_the_window_takes_up_what_is_left(rig: Rig) -> None:
    stopped(rig, schedule={"cron": "0 22 * * *", "time_zone": "UTC"})
    rig.vcenter.add_vm("aa01", disks=1)
    assert rig.rows(Session, state=SessionState.QUEUED.value) == []
    rig.clock.now = at("2026-03-03T22:00")
    due_jobs(rig).step()
    [session] = rig.rows(Session, state=SessionState.QUEUED.value)
    shown = rig.drive(session.id)
    assert [vm["name"] for vm in shown["vms"]] == ["db01", "aa01"]


def test_vms_that_a_stopped_session_left_come_first(rig: Rig) -> None:
    for name in ("vm1", "vm2"):
        rig.vcenter.add_vm(name, disks=1)
    rig.job(window=NIGHT, schedule={"cron": "0 22 * * *", "time_zone": "UTC"})
    rig.clock.now = at("2026-03-03T05:59")
    session = jobs.run(rig.ctx, "job1")
    engine(rig)
    one, two = sorted(hand_out(rig), key=lambda task: task.position)
    report(rig, one, TaskOutcome.SUCCESS, map_root="ab" * 32)
    rig.clock.now = at("2026-03-03T06:00")
    engine(rig)
    report(rig, two, TaskOutcome.CANCELLED)
    finished(rig, session["id"])
    rig.clock.now = at("2026-03-03T22:00")
    due_jobs(rig).step()
    [session_row] = rig.rows(Session, state=SessionState.QUEUED.value)
    assert [vm["name"] for vm in rig.drive(session_row.id)["vms"]] == ["vm2", "vm1"]


def test_due_times_outside_of_the_window_wait_for_its_opening(rig: Rig) -> None:
    rig.vcenter.add_vm("db01", disks=1)
    made = rig.job(window=NIGHT, schedule={"cron": "0 12,13 * * *", "time_zone": "UTC"})
    assert made["next_run_at"] == "2026-03-03T22:00:00Z"
    loop = due_jobs(rig)
    rig.clock.now = at("2026-03-03T13:30")
    loop.step()
    assert rig.rows(Session) == []
    rig.clock.now = at("2026-03-03T22:00:05")
    loop.step()
    loop.step()
    assert len(rig.rows(Session)) == 1
    assert jobs.get(rig.ctx, "job1")["next_run_at"] == "2026-03-04T22:00:00Z"


@pytest.mark.parametrize(("missed", "runs"), [("run-once", 1), ("skip", 0)])
def test_a_server_that_was_away_for_the_whole_window(rig: Rig, missed: str, runs: int) -> None:
    rig.vcenter.add_vm("db01", disks=1)
    rig.job(window=NIGHT, schedule={"cron": "0 23 * * *", "time_zone": "UTC", "missed": missed})
    loop = due_jobs(rig)
    rig.clock.now = at("2026-03-03T09:00")
    loop.step()
    assert rig.rows(Session) == []
    expected = "2026-03-03T22:00:00Z" if runs else "2026-03-03T23:00:00Z"
    shown = jobs.get(rig.ctx, "job1")
    assert shown["next_run_at"] == expected
    # What is to run once waits for the window; what is skipped was missed.
    skipped = [{"due_at": "2026-03-02T23:00:00Z", "why": "missed"}]
    assert shown["missed_runs"] == ([] if runs else skipped)
    rig.clock.now = at("2026-03-03T22:00:01")
    loop.step()
    assert len(rig.rows(Session)) == runs


def test_no_task_is_handed_out_outside_of_the_window(rig: Rig) -> None:
    """Also in the moment between the end of the window and the stop of the session."""
    rig.vcenter.add_vm("db01", disks=1)
    rig.job(window=NIGHT)
    rig.clock.now = at("2026-03-03T05:59")
    jobs.run(rig.ctx, "job1")
    engine(rig)
    [task] = rig.rows(Task)
    rig.clock.now = at("2026-03-03T06:00")
    with rig.ctx.db.read() as s:
        assert job_windows.closed_ids(s, {task.session_id}, rig.clock.now) == {task.session_id}
        early = at("2026-03-03T05:59")
        assert job_windows.closed_ids(s, {task.session_id}, early) == set()
    said = explanations.why(rig.ctx, task)
    assert said["waits"] == "the job's window is closed until 2026-03-03T22:00:00Z"
    assert said["not_before"] == "2026-03-03T22:00:00Z"


def test_a_longer_window_lets_a_session_that_runs_go_on(rig: Rig) -> None:
    rig.vcenter.add_vm("db01", disks=1)
    rig.job(window=NIGHT)
    rig.clock.now = at("2026-03-03T05:59")
    session = jobs.run(rig.ctx, "job1")
    engine(rig)
    jobs.edit(rig.ctx, "job1", {"window": {"text": "daily 22:00-08:00"}})
    rig.clock.now = at("2026-03-03T06:30")
    assert rig.drive(session["id"])["result"] == "success"


def test_a_retry_waits_for_the_window(rig: Rig) -> None:
    rig.vcenter.add_vm("db01", disks=1)
    rig.job(window=NIGHT, retries={"count": 1, "wait_s": 600})
    rig.proxies.outcome = lambda task: (Result.FAILED, "broken")
    rig.clock.now = at("2026-03-03T05:55")
    assert rig.run()["result"] == "failed"
    [waiting] = rig.rows(Session, state=SessionState.QUEUED.value)
    assert sessions.get(rig.ctx, waiting.id)["waits_until"] == "2026-03-03T22:00:00Z"


def test_a_stop_in_the_middle_of_preparing_leaves_nothing(rig: Rig) -> None:
    rig.vcenter.add_vm("db01", disks=1)
    rig.job(window=NIGHT)
    rig.clock.now = at("2026-03-03T05:59")
    session = jobs.run(rig.ctx, "job1")

    def close() -> None:
        rig.clock.now = at("2026-03-03T06:00")

    rig.vcenter.after["create_snapshot"] = close
    engine(rig, 6)
    shown = finished(rig, session["id"])
    assert (shown["result"], shown["vms"][0]["result"]) == ("warning", "cancelled")
    assert rig.vcenter.all_snapshots() == []
    [vm] = rig.rows(SessionVm)
    assert vm.reason == "the window closed"


def test_a_window_that_is_none_is_refused_with_the_reason(rig: Rig) -> None:
    with pytest.raises(InvalidError, match="no hour of the week open"):
        rig.job(window={"text": "not daily 00:00-24:00"})


def test_a_window_has_the_zone_of_the_schedule_and_can_be_taken_away(rig: Rig) -> None:
    made = rig.job(
        window={"text": "mon-fri 22:00-06:00"},
        schedule={"cron": "0 22 * * *", "time_zone": "Europe/Berlin"},
    )
    assert (made["window"]["time_zone"], made["window"]["text"]) == (
        "Europe/Berlin",
        "mon-fri 22:00-06:00",
    )
    assert jobs.edit(rig.ctx, "job1", {"description": "x"})["window"] == made["window"]
    assert jobs.edit(rig.ctx, "job1", {"window": None})["window"] is None
    assert rig.rows(Job)[0].window is None


# ---- going on from what was read ------------------------------------------------------------------


def next_order(rig: Rig) -> tuple[dict[str, Any], Task, Session]:
    """The order of the VM's first disk in the session that goes on, with its task."""
    [waiting] = rig.rows(Session, state=SessionState.QUEUED.value)
    rig.clock.now = at("2026-03-03T22:00")
    engine(rig)
    [task] = rig.rows(Task, session_id=waiting.id)
    return task.order, task, waiting


def stopped_after_reading(rig: Rig, **job: Any) -> Task:
    """As `stopped`, with an attempt whose end was heard."""
    rig.vcenter.add_vm("db01", disks=1)
    rig.job(window=NIGHT, **job)
    rig.clock.now = at("2026-03-03T05:59")
    session = jobs.run(rig.ctx, "job1")
    engine(rig)
    [task] = hand_out(rig)
    with rig.ctx.db() as s:
        s.get_one(Task, task.id).attempt = 1
    rig.clock.now = at("2026-03-03T06:00")
    engine(rig)
    said = ResultReport(
        task_id=TaskId(task.id), attempt=Attempt(1), outcome=TaskOutcome.CANCELLED, reason=""
    )
    with rig.ctx.db() as s:
        results.apply_result(s, rig.default_proxy().id, said, policy=POLICY, now=rig.clock.now)
    finished(rig, session["id"])
    return task


def test_the_next_session_goes_on_from_the_work_that_is_stored(rig: Rig) -> None:
    earlier = stopped_after_reading(rig)
    order, task, session = next_order(rig)
    assert order["continue_work"] == task.continues_task_id == earlier.id
    assert order["continue_change_id"] == earlier.order["current_change_id"] != ""
    assert order["sampled_blocks"] == 16
    assert rig.drive(session.id)["result"] == "success"


def test_the_collector_keeps_what_was_read_until_the_next_session_has_ended(rig: Rig) -> None:
    earlier = stopped_after_reading(rig)
    repository_id = earlier.repository_id

    def needed() -> list[str]:
        with rig.ctx.db.read() as s:
            return unfinished.needed_work(s, repository_id, rig.clock.now)

    assert needed() == [earlier.id]
    _, _, session = next_order(rig)
    assert needed() == [earlier.id]
    rig.drive(session.id)
    assert needed() == []


def test_what_nobody_goes_on_from_is_kept_for_two_weeks(rig: Rig) -> None:
    earlier = stopped_after_reading(rig)
    for days, kept in ((13, [earlier.id]), (15, [])):
        with rig.ctx.db.read() as s:
            now = at("2026-03-03T06:00") + timedelta(days=days)
            assert unfinished.needed_work(s, earlier.repository_id, now) == kept


def grow(vm: FakeVm) -> None:
    vm.disks[0].capacity_bytes += GIB


def replace_disk(vm: FakeVm) -> None:
    vm.disks[0] = FakeDisk(key=2000, label="Hard disk 1", path="[ds1] db01/new.vmdk")


def reset_tracking(vm: FakeVm) -> None:
    vm.disks[0].tracking_uuid = ""


@pytest.mark.parametrize("change", [grow, replace_disk, reset_tracking])
def test_a_disk_that_is_not_what_it_was_is_read_anew(
    rig: Rig, change: Callable[[FakeVm], None]
) -> None:
    stopped_after_reading(rig)
    [vm] = rig.vcenter.vms.values()
    change(vm)
    order, task, _ = next_order(rig)
    assert (order.get("continue_work", ""), task.continues_task_id) == ("", None)


def test_without_change_tracking_nothing_is_taken_over(rig: Rig) -> None:
    stopped_after_reading(rig)
    jobs.edit(rig.ctx, "job1", {"change_tracking": False})
    assert next_order(rig)[1].continues_task_id is None


def test_what_a_silent_proxy_read_is_not_trusted(rig: Rig) -> None:
    """Nobody knows when it stopped reading, and so of which moment its last blocks are."""
    rig.vcenter.add_vm("db01", disks=1)
    rig.job(window=NIGHT)
    rig.clock.now = at("2026-03-03T05:59")
    session = jobs.run(rig.ctx, "job1")
    engine(rig)
    hand_out(rig)
    rig.clock.now = at("2026-03-03T06:10")
    engine(rig)
    with rig.ctx.db() as s:
        s.execute(sa.update(Task).values(attempt=1))
        tasks.expire_leases(s, now=rig.clock.now, policy=POLICY)
    finished(rig, session["id"])
    assert next_order(rig)[1].continues_task_id is None


def test_what_was_read_while_somebody_removed_the_snapshot_is_not_trusted(rig: Rig) -> None:
    rig.vcenter.add_vm("db01", disks=1)
    rig.job(window=NIGHT)
    rig.clock.now = at("2026-03-03T05:59")
    session = jobs.run(rig.ctx, "job1")
    engine(rig)
    [task] = hand_out(rig)
    [vm] = rig.vcenter.vms.values()
    vm.snapshots.clear()
    rig.clock.now = at("2026-03-03T06:00")
    engine(rig)
    with rig.ctx.db() as s:
        s.execute(sa.update(Task).values(attempt=1))
    said = ResultReport(
        task_id=TaskId(task.id), attempt=Attempt(1), outcome=TaskOutcome.CANCELLED, reason=""
    )
    with rig.ctx.db() as s:
        results.apply_result(s, rig.default_proxy().id, said, policy=POLICY, now=rig.clock.now)
    finished(rig, session["id"])
    assert next_order(rig)[1].continues_task_id is None


def test_a_full_that_a_person_asks_for_reads_everything(rig: Rig) -> None:
    stopped_after_reading(rig)
    rig.clock.now = at("2026-03-03T22:00")
    session = jobs.run(rig.ctx, "job1", full=True)
    engine(rig)
    [task] = rig.rows(Task, session_id=session["id"])
    assert task.continues_task_id is None
