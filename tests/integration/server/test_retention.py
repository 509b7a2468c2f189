"""Retention: shown, confirmed, carried out; what it must never take."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from backup_server.db.states import VmState
from backup_server.db.tables import Event, RestorePointRow, Session, SessionVm, Vcenter, new_id
from backup_server.errors import ConflictError, InvalidError
from backup_server.services import damage, jobs, restore_points, restores, retention, vcenters
from tests.fakes.server import Rig
from tests.support.statements import counted

DAY_S = 86_400


def nights(rig: Rig, count: int, job: str = "job1") -> None:
    """A backup each night."""
    for _ in range(count):
        assert rig.run(job)["result"] == "success"
        rig.clock.advance(DAY_S)


def ids(shown: dict[str, Any], action: str) -> list[str]:
    return [p["id"] for vm in shown["vms"] for p in vm["points"] if p["action"] == action]


def edit_row(rig: Rig, point_id: str, **values: Any) -> None:
    with rig.ctx.db() as s:
        s.execute(sa.update(RestorePointRow).where(RestorePointRow.id == point_id).values(**values))


def test_preview_says_what_stays_and_why_and_changes_nothing(rig: Rig) -> None:
    rig.vcenter.add_vm("db01", disks=1)
    rig.job(retention={"keep": 30})
    nights(rig, 9)
    points = [row.id for row in rig.points()]
    as_it_is = retention.preview(rig.ctx, "job1")
    assert (as_it_is["keep"], as_it_is["remove"]) == (9, 0)

    shown = retention.preview(rig.ctx, "job1", {"keep": 2, "weekly": 2, "monthly": 1})
    assert shown["retention"] == {"keep": 2, "weekly": 2, "monthly": 1}
    [vm] = shown["vms"]
    assert (vm["vm"], vm["repository"], vm["in_job"]) == ("db01", "r1", True)
    # From Monday the 2nd to Tuesday the 10th: Sunday the 8th stands for the first week.
    assert ids(shown, "keep") == [points[8], points[7], points[6]]
    assert [p["reason"] for p in vm["points"]][:4] == [
        "the newest good restore point always stays; weekly 2026-W11; monthly 2026-03",
        "one of the last 2",
        "weekly 2026-W10",
        "older than the last 2",
    ]
    assert shown["remove_bytes"] == 6 * 300
    assert [row.id for row in rig.points()] == points
    with pytest.raises(InvalidError, match="keep: n"):
        retention.preview(rig.ctx, "job1", {"weekly": 2})


def test_a_rule_that_removes_points_must_be_confirmed(rig: Rig) -> None:
    rig.vcenter.add_vm("db01", disks=1)
    rig.vcenter.add_vm("db02", disks=1)
    rig.job(retention={"keep": 5})
    nights(rig, 5)
    with pytest.raises(ConflictError, match="6 restore points of 2 VMs") as caught:
        jobs.edit(rig.ctx, "job1", {"retention": {"keep": 2}})
    assert caught.value.details == {"confirm": "confirm_removal", "points": 6, "vms": 2}
    assert jobs.get(rig.ctx, "job1")["retention"] == {"keep": 5}
    # What keeps as much needs no confirmation, nor does a change of something else.
    assert jobs.edit(rig.ctx, "job1", {"retention": {"days": 30, "keep": None}})
    jobs.edit(rig.ctx, "job1", {"retention": {"keep": 5}})
    jobs.edit(rig.ctx, "job1", {"description": "x"})
    changed = jobs.edit(rig.ctx, "job1", {"retention": {"keep": 2}}, confirm_removal=True)
    assert changed["retention"] == {"keep": 2}
    assert len(rig.points()) == 10  # nothing goes by the edit itself


def test_days_pass_for_a_vm_that_is_not_backed_up(rig: Rig) -> None:
    rig.vcenter.add_vm("db01", disks=1)
    rig.job(retention={"days": 3})
    nights(rig, 3)
    rig.clock.advance(30 * DAY_S)
    rig.janitor.run_once()
    [left] = rig.points()
    assert list(rig.repository.points) == [left.id]
    [prune] = rig.rows(Session, kind="prune", state="queued")
    assert rig.drive(prune.id)["result"] == "success"
    texts = [event.text for event in rig.rows(Event, name="retention.forget")]
    assert len(texts) == 2
    assert all("db01" in text and "older than 3 days" in text for text in texts)


def test_the_daily_pass_comes_once_a_day_and_leaves_disabled_jobs_alone(rig: Rig) -> None:
    rig.vcenter.add_vm("db01", disks=1)
    rig.job(retention={"keep": 9})
    nights(rig, 3)
    jobs.edit(rig.ctx, "job1", {"retention": {"keep": 1}, "enabled": False}, confirm_removal=True)
    assert retention.daily(rig.ctx)
    assert len(rig.points()) == 3
    jobs.edit(rig.ctx, "job1", {"enabled": True})
    assert not retention.daily(rig.ctx)
    assert len(rig.points()) == 3
    rig.clock.advance(DAY_S)
    assert retention.daily(rig.ctx)
    assert len(rig.points()) == 1


def test_a_repository_that_is_away_keeps_no_other_job_from_its_rule(rig: Rig) -> None:
    rig.vcenter.add_vm("db01", disks=1)
    for name in ("a", "b"):
        rig.job(name, retention={"keep": 9})
        nights(rig, 2, name)
        jobs.edit(rig.ctx, name, {"retention": {"keep": 1}}, confirm_removal=True)
    rig.repositories.fail("forget", "transient", "the share is away")
    assert retention.daily(rig.ctx)
    # The second job's call forgot what the first one had marked as well.
    assert sorted(row.job_name for row in rig.points()) == ["a", "b"]
    assert len(rig.repository.points) == 2


def test_points_in_use_and_immutable_ones_stay_and_say_why(rig: Rig) -> None:
    rig.vcenter.add_vm("db01", disks=1)
    rig.job(retention={"keep": 9})
    nights(rig, 4)
    first, second, third, _ = (row.id for row in rig.points())
    edit_row(rig, first, immutable_until=rig.clock.now + timedelta(days=5))
    edit_row(rig, third, immutable_until=rig.clock.now - timedelta(days=5))
    request = {"restore_point": second, "disk": 1, "path": "/restore/x.raw"}
    session = restores.restore_disk(rig.ctx, request)
    jobs.edit(rig.ctx, "job1", {"retention": {"keep": 1}}, confirm_removal=True)
    shown = retention.preview(rig.ctx, "job1")
    reasons = {p["id"]: p["reason"] for p in shown["vms"][0]["points"]}
    assert reasons[first].startswith("immutable until 2026-03-")
    assert reasons[second] == f"in use by session {session['id'][:8]}"
    assert retention.apply_job(rig.ctx, "job1") == {"removed": 1, "vms": 1}
    assert third not in {row.id for row in rig.points()}
    with pytest.raises(ConflictError, match="immutable until"):
        restore_points.remove(rig.ctx, first)


def _open_restores(rig: Rig, count: int) -> None:
    """VMs of which a session is not done, as a night has them."""
    with rig.ctx.db() as s:
        repository_id = s.scalars(sa.select(RestorePointRow.repository_id)).first()
        session = Session(
            id=new_id(),
            kind="restore",
            state="running",
            repository_id=repository_id,
            created_at=rig.clock.now,
        )
        s.add(session)
        s.flush()
        for number in range(count):
            s.add(
                SessionVm(
                    id=new_id(),
                    session_id=session.id,
                    position=number,
                    moref="",
                    instance_uuid=f"other-{number}",
                    name=f"other-{number}",
                    state=VmState.RUNNING.value,
                    restore_point_id=f"point-{number}",
                )
            )


def test_a_plan_asks_once_for_all_vms_who_needs_their_points(rig: Rig) -> None:
    rig.job(retention={"keep": 9})
    costs = []
    for name in ("a", "b"):
        for number in range(4):
            rig.vcenter.add_vm(f"{name}{number}", disks=1)
        assert rig.run("job1")["result"] == "success"
        _open_restores(rig, 10)
        with counted(rig.ctx.db.engine) as cost:
            retention.preview(rig.ctx, "job1")
        costs.append(cost.statements)
    assert costs[0] == costs[1]


def test_the_end_of_a_backup_reads_nothing_of_other_vms_that_are_open(rig: Rig) -> None:
    rig.vcenter.add_vm("db01", disks=1)
    rig.job(retention={"keep": 9})
    nights(rig, 2)
    first, _ = rig.points()
    _open_restores(rig, 50)
    restore = restores.restore_disk(
        rig.ctx, {"restore_point": first.id, "disk": 1, "path": "/restore/x.raw"}
    )
    with rig.ctx.db.read() as s:
        everything = restore_points.in_use(s, first.repository_id)
        assert len(everything) == 51
        of_it = restore_points.in_use(s, first.repository_id, of_vm=first.instance_uuid)
        assert of_it == {first.id: restore["id"]}
        with counted(rig.ctx.db.engine) as few:
            restore_points.in_use(s, "another repository")
        assert few.statements == 2


def test_what_goes_is_marked_and_forgotten_by_few_statements(rig: Rig) -> None:
    rig.vcenter.add_vm("db01", disks=1)
    rig.job(retention={"keep": 30})
    costs = []
    for nights_more in (3, 9):
        nights(rig, nights_more)
        jobs.edit(rig.ctx, "job1", {"retention": {"keep": 1}}, confirm_removal=True)
        with counted(rig.ctx.db.engine) as cost:
            assert retention.apply_job(rig.ctx, "job1")["removed"] == nights_more - (not costs)
        costs.append(cost.statements)
        jobs.edit(rig.ctx, "job1", {"retention": {"keep": 30}})
    assert len(rig.points()) == 1
    assert costs[1] - costs[0] <= 7, "one event for each point that goes, nothing else"


def test_a_damaged_point_does_not_count_as_the_newest_good_one(rig: Rig) -> None:
    rig.vcenter.add_vm("db01", disks=1)
    rig.job(retention={"keep": 9})
    nights(rig, 3)
    _, second, third = rig.points()
    lost = [
        {"point_id": third.id, "disk_key": 2000, "start_bytes": 0, "end_bytes": 4096, "reason": "gone"}
    ]
    with rig.ctx.db() as s:
        marked = damage.record(s, third.repository_id, lost, is_complete=False, now=rig.clock.now)
    assert marked == [third.id]
    jobs.edit(rig.ctx, "job1", {"retention": {"keep": 1}}, confirm_removal=True)
    retention.apply_job(rig.ctx, "job1")
    assert [row.id for row in rig.points()] == [second.id, third.id]
    shown = restore_points.get(rig.ctx, third.id)
    assert shown["damaged"]
    assert shown["disks"][0]["damage"]["extents"] == [[0, 4096]]


def test_points_of_a_vm_that_is_no_longer_in_the_job(rig: Rig) -> None:
    rig.vcenter.add_vm("db01", disks=1)
    old = rig.vcenter.add_vm("old", disks=1)
    rig.job(retention={"days": 2})
    nights(rig, 2)
    rig.vcenter.vms.pop(old.moref)
    vcenters.inventory(rig.ctx, "vc1", refresh=True)
    assert {p["vm"] for p in restore_points.list_all(rig.ctx, orphaned=True)["items"]} == {"old"}
    rig.clock.advance(10 * DAY_S)
    retention.apply_job(rig.ctx, "job1")
    kept = sorted(row.vm_name for row in rig.points())
    assert kept == ["db01", "old", "old"]
    shown = retention.preview(rig.ctx, "job1", vm="old")
    assert [vm["in_job"] for vm in shown["vms"]] == [False]

    with pytest.raises(ConflictError, match="2 restore points of 1 VMs"):
        jobs.edit(rig.ctx, "job1", {"retention": {"days": 2, "gone_days": 7}})
    jobs.edit(rig.ctx, "job1", {"retention": {"days": 2, "gone_days": 30}})
    assert retention.apply_job(rig.ctx, "job1")["removed"] == 0
    rig.clock.advance(30 * DAY_S)
    assert retention.apply_job(rig.ctx, "job1")["removed"] == 2
    assert [row.vm_name for row in rig.points()] == ["db01"]


def test_an_inventory_in_which_the_job_finds_nothing_makes_no_vm_a_gone_one(rig: Rig) -> None:
    """A lost permission looks like the end of every VM."""
    vm = rig.vcenter.add_vm("db01", disks=1)
    rig.job(retention={"days": 2, "gone_days": 1})
    nights(rig, 2)
    rig.vcenter.vms.pop(vm.moref)
    vcenters.inventory(rig.ctx, "vc1", refresh=True)
    rig.clock.advance(100 * DAY_S)
    retention.apply_job(rig.ctx, "job1")
    assert [row.vm_name for row in rig.points()] == ["db01"]
    assert restore_points.list_all(rig.ctx, orphaned=True)["items"] == []


def test_points_of_a_deleted_job_stay_and_are_orphaned(rig: Rig) -> None:
    rig.vcenter.add_vm("db01", disks=1)
    rig.job(retention={"days": 2})
    nights(rig, 2)
    jobs.remove(rig.ctx, "job1")
    rig.clock.advance(100 * DAY_S)
    retention.daily(rig.ctx)
    assert len(rig.points()) == 2
    assert len(restore_points.list_all(rig.ctx, orphaned=True)["items"]) == 2


def test_a_wider_rule_saves_points_from_a_session_that_began_before(rig: Rig) -> None:
    rig.vcenter.add_vm("db01", disks=1)
    rig.job(retention={"keep": 1})
    rig.run()
    session = jobs.run(rig.ctx, "job1")
    rig.engine.run_once()
    jobs.edit(rig.ctx, "job1", {"retention": {"keep": 3}})
    rig.drive(session["id"])
    assert len(rig.points()) == 2


@pytest.mark.parametrize(
    "value",
    [
        {"keep": 1, "weekly": -1},
        {"keep": 1, "week_start": "noon"},
        {"keep": 1, "gone_days": 0},
        {"keep": 1, "hourly": 3},
        {"weekly": 3},
        [],
    ],
)
def test_retention_that_makes_no_sense_is_refused(rig: Rig, value: Any) -> None:
    with pytest.raises(InvalidError, match="retention"):
        rig.job(retention=value)


def test_a_clock_that_was_years_ahead_costs_no_new_backup(rig: Rig) -> None:
    rig.vcenter.add_vm("db01", disks=1)
    rig.job(retention={"keep": 2})
    rig.clock.advance(3650 * DAY_S)
    nights(rig, 2)
    retention.daily(rig.ctx)
    ahead = {row.id for row in rig.points()}
    rig.clock.advance(-3652 * DAY_S)
    assert retention.daily(rig.ctx), "not in ten years"
    nights(rig, 3)
    left = {row.id for row in rig.points()}
    assert ahead < left
    assert len(left) == 4


def test_a_point_that_the_storage_keeps_unknown_to_us_is_not_hidden(rig: Rig) -> None:
    """Its repository was imported without a word on immutability, say."""
    rig.vcenter.add_vm("db01", disks=1)
    rig.job(retention={"keep": 9})
    nights(rig, 3)
    first, second, third = [row.id for row in rig.points()]
    until = rig.clock.now + timedelta(days=5)
    rig.repository.immutable_until_s[first] = until.timestamp()
    rig.repositories.fail("forget", "permanent", "a point is immutable")
    jobs.edit(rig.ctx, "job1", {"retention": {"keep": 1}}, confirm_removal=True)
    assert retention.daily(rig.ctx)
    assert [row.id for row in rig.points()] == [first, third]
    assert second not in rig.repository.points
    shown = restore_points.get(rig.ctx, first)
    assert shown["immutable_until"] is not None
    rig.repositories.fail("forget", "permanent", "another reason")
    with pytest.raises(ConflictError, match="another reason"):
        restore_points.remove(rig.ctx, third)


def test_a_clock_set_forward_removes_nothing_for_a_day(rig: Rig) -> None:
    rig.vcenter.add_vm("db01", disks=1)
    rig.job(retention={"days": 5})
    nights(rig, 3)
    assert retention.daily(rig.ctx)
    rig.clock.advance(3650 * DAY_S)
    rig.run()  # before the daily pass has seen the clock
    assert retention.daily(rig.ctx)
    rig.run()
    assert len(rig.points()) == 5
    [event] = rig.rows(Event, name="retention.held")
    assert "3650 days ago" in event.text
    # Put right: all is as it was.
    rig.clock.advance(-3650 * DAY_S)
    assert retention.daily(rig.ctx)
    assert len(rig.points()) == 5


def test_after_a_day_what_is_old_goes(rig: Rig) -> None:
    """The server was off for so long."""
    rig.vcenter.add_vm("db01", disks=1)
    rig.job(retention={"days": 5})
    nights(rig, 3)
    assert retention.daily(rig.ctx)
    rig.clock.advance(30 * DAY_S)
    assert retention.daily(rig.ctx)
    assert len(rig.points()) == 3
    rig.clock.advance(DAY_S)
    assert retention.daily(rig.ctx)
    assert len(rig.points()) == 1


def test_tags_that_could_not_be_read_make_no_vm_a_gone_one(rig: Rig) -> None:
    rig.vcenter.add_vm("db01", disks=1)
    rig.vcenter.add_vm("web01", disks=1)
    both = {"include": [{"type": "vm", "name": "db01"}, {"type": "vm", "name": "web01"}]}
    rig.job(retention={"keep": 9, "gone_days": 5}, selection=both)
    nights(rig, 2)
    by_tag = {"include": [{"type": "vm", "name": "db01"}, {"type": "tag", "name": "nightly/yes"}]}
    jobs.edit(rig.ctx, "job1", {"selection": by_tag})
    with rig.ctx.db() as s:
        row = s.scalars(sa.select(Vcenter)).one()
        row.inventory = {**(row.inventory or {}), "tags_known": False}
    rig.clock.advance(10 * DAY_S)
    assert retention.apply_job(rig.ctx, "job1") == {"removed": 0, "vms": 0}


def test_an_inventory_of_a_clock_that_was_ahead_is_read_anew(rig: Rig) -> None:
    rig.vcenter.add_vm("db01", disks=1)
    [vcenter] = rig.rows(Vcenter)
    rig.clock.advance(3650 * DAY_S)
    vcenters.load_inventory(rig.ctx, vcenter.id)
    rig.clock.advance(-3650 * DAY_S)
    rig.vcenter.add_vm("web01", disks=1)
    found = vcenters.load_inventory(rig.ctx, vcenter.id)
    assert {vm.name for vm in found.vms} == {"db01", "web01"}
