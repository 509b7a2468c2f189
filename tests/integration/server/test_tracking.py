"""Change tracking on trial, as the server sees it: what is ordered, doubted, told and begun anew."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from backup_server.db.states import Result
from backup_server.db.tables import Event, RestorePointRow, Task
from backup_server.services import disk_plan, jobs, restore_points, tracking
from tests.fakes.server import Rig
from transports.errors import TransientTransportError

DAY = 86_400.0
WRONG = "1 of 16 blocks that change tracking called unchanged had changed, at byte 1048576"


def order(rig: Rig, session: dict[str, Any], disk_key: int = 2000) -> dict[str, Any]:
    [task] = rig.rows(Task, session_id=session["id"], disk_key=disk_key)
    return dict(task.order)


def on_disk(number: int) -> Any:
    return lambda task: WRONG if task.disk_key == 2000 + number else ""


def events(rig: Rig, name: str) -> list[str]:
    with rig.ctx.db.read() as s:
        return list(s.scalars(sa.select(Event.text).where(Event.name == name)))


def doubts(rig: Rig) -> list[bool]:
    return [bool(point.doubt) for point in rig.points()]


def next_day(rig: Rig) -> dict[str, Any]:
    rig.clock.advance(DAY)
    return rig.run()


def test_increments_are_sampled_and_a_still_disk_once_a_month(rig: Rig) -> None:
    rig.vcenter.add_vm("db01", disks=1)
    rig.job()
    full = rig.run()
    assert "sampled_blocks" not in order(rig, full)
    second = order(rig, next_day(rig))
    assert second["sampled_blocks"] == tracking.DEFAULT_SAMPLE_BLOCKS
    assert "sample_when_unchanged" not in second
    # The proxies sampled nothing since: a disk that never changes.
    with rig.ctx.db() as s:
        for row in s.scalars(sa.select(RestorePointRow)):
            row.disks = [{**disk, "sampled_blocks": None} for disk in row.disks]
    rig.clock.advance(27 * DAY)
    assert order(rig, rig.run())["sample_when_unchanged"] is True
    assert "sample_when_unchanged" not in order(rig, next_day(rig))


def test_the_job_says_how_many_blocks(rig: Rig) -> None:
    rig.vcenter.add_vm("db01", disks=1)
    assert rig.job()["sample_blocks"] == 16
    rig.run()
    jobs.edit(rig.ctx, "job1", {"sample_blocks": 3})
    assert order(rig, next_day(rig))["sampled_blocks"] == 3
    assert jobs.edit(rig.ctx, "job1", {"sample_blocks": 0})["sample_blocks"] == 0
    assert "sampled_blocks" not in order(rig, next_day(rig))


def test_a_mismatch_warns_doubts_and_begins_tracking_anew(rig: Rig) -> None:
    vm = rig.vcenter.add_vm("db01", disks=2)
    rig.job()
    rig.run()
    next_day(rig)
    next_day(rig)
    rig.proxies.mismatch = on_disk(1)
    session = next_day(rig)
    assert session["result"] == "warning"
    assert WRONG in session["vms"][0]["warnings"][0]
    # The full is what was on the disk; the point of today was read as a whole.
    assert doubts(rig) == [False, True, True, False]
    [said] = events(rig, "restore-point.in-doubt")
    assert all(point.id[:8] in said for point in rig.points()[1:3])
    shown = restore_points.get(rig.ctx, rig.points()[1].id)
    assert shown["doubt"].startswith("Hard disk 2 may miss changes: on ")
    assert rig.points()[3].disks[1]["tracking_wrong"] == WRONG
    assert rig.points()[3].disks[0]["tracking_wrong"] == ""

    rig.proxies.mismatch = lambda task: ""
    old_ids = [disk.tracking_uuid for disk in vm.disks]
    rig.vcenter.calls.clear()
    session = next_day(rig)
    assert session["result"] == "success"
    switched = [call for call in rig.vcenter.calls if call.endswith("_tracking") or "snapshot" in call]
    at = switched.index("disable_change_tracking")
    assert switched[at + 1] == "create_snapshot"
    assert switched.index("enable_change_tracking") > switched.index("remove_snapshot")
    assert switched.count("create_snapshot") == 2
    assert [disk.tracking_uuid for disk in vm.disks] != old_ids
    assert order(rig, session, 2001)["full_read_reason"] == disk_plan.TRACKING_RESET
    assert rig.vcenter.all_snapshots() == []
    assert rig.open_intents() == []
    assert events(rig, "change-tracking.reset")
    # It is believed again, and begun anew only once.
    rig.vcenter.calls.clear()
    session = next_day(rig)
    assert order(rig, session, 2001).get("full_read_reason") == ""
    assert "disable_change_tracking" not in rig.vcenter.calls
    assert doubts(rig) == [False, True, True, False, False, False]


def test_beneath_snapshots_tracking_is_not_touched_and_not_believed(rig: Rig) -> None:
    vm = rig.vcenter.add_vm("db01", disks=1)
    rig.job()
    rig.run()
    rig.proxies.mismatch = on_disk(0)
    next_day(rig)
    rig.proxies.mismatch = lambda task: ""
    rig.vcenter.snapshot_by_hand(vm, "before the update")
    rig.vcenter.calls.clear()
    for _ in range(2):
        session = next_day(rig)
        assert session["result"] == "warning"
        assert "cannot begin anew because the VM has snapshots" in session["reason"]
        assert order(rig, session)["full_read_reason"] == disk_plan.TRACKING_WRONG
    # Also what is read in full for another reason does not make tracking right.
    rig.clock.advance(DAY)
    rig.run(full=True)
    assert order(rig, next_day(rig))["full_read_reason"] == disk_plan.TRACKING_WRONG
    assert "disable_change_tracking" not in rig.vcenter.calls
    vm.snapshots.clear()
    assert order(rig, next_day(rig))["full_read_reason"] == disk_plan.TRACKING_RESET


def test_a_reset_that_fails_is_told_and_tried_again(rig: Rig) -> None:
    rig.vcenter.add_vm("db01", disks=1)
    rig.job()
    rig.run()
    rig.proxies.mismatch = on_disk(0)
    next_day(rig)
    rig.proxies.mismatch = lambda task: ""
    rig.vcenter.fail("disable_change_tracking", TransientTransportError("busy"))
    session = next_day(rig)
    assert "could not begin anew: busy" in session["reason"]
    assert order(rig, session)["full_read_reason"] == disk_plan.TRACKING_WRONG
    rig.clock.advance(DAY)
    rig.janitor.run_once()
    assert rig.open_intents() == []
    assert order(rig, next_day(rig))["full_read_reason"] == disk_plan.TRACKING_RESET


def test_a_mismatch_counts_although_another_disk_failed(rig: Rig) -> None:
    rig.vcenter.add_vm("db01", disks=2)
    rig.job()
    rig.run()
    next_day(rig)
    rig.proxies.mismatch = on_disk(0)
    rig.proxies.outcome = lambda task: (
        (Result.FAILED, "no space") if task.disk_key == 2001 else (Result.SUCCESS, "")
    )
    assert next_day(rig)["result"] == "failed"
    assert doubts(rig) == [False, True]
    rig.proxies.mismatch = lambda task: ""
    rig.proxies.outcome = lambda task: (Result.SUCCESS, "")
    rig.vcenter.calls.clear()
    next_day(rig)
    assert "disable_change_tracking" in rig.vcenter.calls


def test_copies_are_as_doubtful_as_their_sources(rig: Rig) -> None:
    rig.vcenter.add_vm("db01", disks=1)
    rig.job()
    rig.run()
    next_day(rig)
    source = rig.points()[1]
    with rig.ctx.db() as s:
        copied = {
            column.name: getattr(source, column.name) for column in RestorePointRow.__table__.columns
        }
        s.add(RestorePointRow(**{**copied, "id": "copy", "source_point_id": source.id}))
    rig.proxies.mismatch = on_disk(0)
    next_day(rig)
    assert {point.id: bool(point.doubt) for point in rig.points()}["copy"] is True


def _mismatch_day(rig: Rig) -> None:
    rig.proxies.mismatch = on_disk(0)
    next_day(rig)
    rig.proxies.mismatch = lambda task: ""


def _trusted_again(rig: Rig) -> None:
    """Within two runs tracking has begun anew, and with the third it is believed."""
    next_day(rig)
    next_day(rig)
    assert order(rig, next_day(rig)).get("full_read_reason") == ""


def test_a_server_that_dies_anywhere_in_a_reset_leaves_nothing_and_believes_nothing(rig: Rig) -> None:
    rig.vcenter.add_vm("db01", disks=1)
    rig.job()
    rig.run()
    _mismatch_day(rig)
    rig.plan.arm(0)
    next_day(rig)
    passed = rig.plan.passed
    first = passed.index("before disable_change_tracking")
    last = passed.index("after enable_change_tracking")
    # From when the helper's intent is written to when it is closed; what is before an effect is what was
    # after the one before it.
    points = [at for at in range(first - 1, last + 5) if passed[at - 1].startswith("after")]
    assert len(points) >= 6
    for at in points:
        _mismatch_day(rig)
        rig.plan.arm(at)
        session = next_day(rig)
        assert not rig.plan.is_armed
        assert session["result"] in ("success", "warning")
        # Never an increment by the tracking that was wrong.
        assert order(rig, session)["full_read_reason"]
        rig.clock.advance(DAY)
        rig.janitor.run_once()
        assert rig.vcenter.all_snapshots() == []
        assert rig.open_intents() == []
        _trusted_again(rig)
