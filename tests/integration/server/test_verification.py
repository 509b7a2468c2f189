"""Verification by schedule: when it runs, which share it reads, what becomes of what it finds."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest

from backup_server.db.tables import Event, Repository, Session
from backup_server.errors import ConflictError, InvalidError
from backup_server.scheduler.due_checks import DueChecks
from backup_server.services import repositories, restore_points, verification
from tests.fakes.server import Rig

DAY_S = 86_400
DAILY = {"cron": "0 12 * * *"}


def set_up(rig: Rig, **values: Any) -> dict[str, Any]:
    return repositories.edit(rig.ctx, "r1", {"verification": {"schedule": DAILY, **values}})


def due(rig: Rig) -> list[Session]:
    """One step of the scheduler's loop; what it queued."""
    DueChecks(rig.ctx, lambda: True).step()
    found: list[Session] = rig.rows(Session, kind="repository-check", state="queued")
    return found


def to_next_check(rig: Rig) -> None:
    [row] = rig.rows(Repository)
    rig.clock.advance((row.next_check_at - rig.clock.now).total_seconds())


def test_a_verification_runs_when_it_is_due_and_reads_its_share(rig: Rig) -> None:
    shown = set_up(rig)
    assert shown["next_check_at"] == "2026-03-03T12:00:00Z"
    assert shown["verification"]["read_data"] is True
    assert due(rig) == []
    to_next_check(rig)
    [session] = due(rig)
    assert session.options["trigger"] == "schedule"
    assert rig.drive(session.id)["result"] == "success"
    assert due(rig) == []
    shown = repositories.get(rig.ctx, "r1")
    assert shown["next_check_at"] == "2026-03-04T12:00:00Z"
    assert shown["last_check"]["result"] == "success"
    assert shown["last_check"]["confidence"] == "3% was read"


def test_thirty_days_read_everything_once(rig: Rig) -> None:
    set_up(rig)
    for _ in range(4):
        to_next_check(rig)
        [session] = due(rig)
        rig.drive(session.id)
    checked = rig.repository.checked
    assert [round(share * 30, 6) for share, _ in checked] == [1, 1, 1, 1]
    starts = [round((start or 0.0) * 30, 6) for _, start in checked]
    assert starts == [0, 1, 2, 3]


def test_an_own_share_and_the_end_of_the_order(rig: Rig) -> None:
    set_up(rig, sample_share=0.4)
    for _ in range(4):
        rig.drive(verification.start(rig.ctx, "r1")["id"])
    starts = [round(start or 0.0, 6) for _, start in rig.repository.checked]
    assert starts == [0, 0.4, 0.8, 0.2]
    rig.drive(verification.start(rig.ctx, "r1", read_data=True)["id"])
    rig.drive(verification.start(rig.ctx, "r1", sample_share=0.5)["id"])
    assert rig.repository.checked[4] == (1.0, None)
    assert round(rig.repository.checked[5][1] or 0.0, 6) == 0.6


def test_a_check_that_could_not_be_done_reads_the_same_share_again(rig: Rig) -> None:
    set_up(rig, sample_share=0.4)
    rig.repositories.fail("check", "transient", "the share is away")
    assert rig.drive(verification.start(rig.ctx, "r1")["id"])["result"] == "failed"
    rig.drive(verification.start(rig.ctx, "r1")["id"])
    assert rig.repository.checked == [(0.4, 0.0)]


def test_missed_verifications_run_once(rig: Rig) -> None:
    set_up(rig)
    rig.clock.advance(5 * DAY_S)
    assert len(due(rig)) == 1
    [row] = rig.rows(Repository)
    assert row.next_check_at > rig.clock.now


def test_one_at_a_time(rig: Rig) -> None:
    set_up(rig)
    repositories.check(rig.ctx, "r1")
    to_next_check(rig)
    assert len(due(rig)) == 1
    [event] = rig.rows(Event, name="verification.not-started")
    assert "under way" in event.text
    with pytest.raises(ConflictError):
        verification.start(rig.ctx, "r1")


def test_no_schedule_no_check(rig: Rig) -> None:
    set_up(rig)
    shown = repositories.edit(rig.ctx, "r1", {"verification": None})
    assert (shown["verification"], shown["next_check_at"]) == (None, None)
    rig.clock.advance(40 * DAY_S)
    assert due(rig) == []


def test_what_is_found_lost_is_said_of_its_restore_points(rig: Rig) -> None:
    rig.vcenter.add_vm("db01", disks=1)
    rig.job()
    rig.run()
    rig.run()
    first, second = rig.points()
    lost = {"point_id": first.id, "disk_key": 2000, "reason": "pack is gone"}
    rig.repository.problems = ["pack is gone"]
    rig.repository.damage = [
        {**lost, "start_bytes": 4096, "end_bytes": 8192},
        {**lost, "start_bytes": 0, "end_bytes": 4096},
        {**lost, "start_bytes": 1 << 20, "end_bytes": 2 << 20},
    ]
    rig.repository.beyond_repair = rig.repository.damage
    shown = rig.drive(verification.start(rig.ctx, "r1")["id"])
    assert (shown["result"], shown["report"]["damaged_points"]) == ("failed", 1)
    assert "damage" not in shown["report"]
    point = restore_points.get(rig.ctx, first.id)
    assert point["damaged"]
    found = point["disks"][0]["damage"]
    assert found["extents"] == [[0, 8192], [1 << 20, 2 << 20]]
    assert (found["bytes"], found["reason"]) == (8192 + (1 << 20), "pack is gone")
    assert datetime.fromisoformat(found["found_at"]) <= rig.clock.now
    assert not restore_points.get(rig.ctx, second.id)["damaged"]

    # The repair that follows finds it nowhere. A share that does not come upon it says nothing of it;
    # reading all data does.
    [repair] = rig.rows(Session, kind="repair")
    rig.drive(repair.id)
    assert restore_points.get(rig.ctx, first.id)["damaged"]
    rig.repository.problems, rig.repository.damage = [], []
    rig.drive(verification.start(rig.ctx, "r1")["id"])
    assert restore_points.get(rig.ctx, first.id)["damaged"]
    rig.drive(verification.start(rig.ctx, "r1", read_data=True)["id"])
    assert not restore_points.get(rig.ctx, first.id)["damaged"]


@pytest.mark.parametrize(
    "value",
    [
        {},
        {"schedule": {"cron": "noon"}},
        {"schedule": DAILY, "sample_share": 0},
        {"schedule": DAILY, "sample_share": 2},
        {"schedule": DAILY, "read_data": "yes"},
        {"schedule": DAILY, "often": True},
        7,
    ],
)
def test_settings_that_make_no_sense_are_refused(rig: Rig, value: Any) -> None:
    with pytest.raises(InvalidError, match="verification"):
        repositories.edit(rig.ctx, "r1", {"verification": value})


@pytest.mark.parametrize(
    ("asked", "read"),
    [
        ({}, 0.0),
        ({"read_data": True}, 1.0),
        ({"sample_share": 0.1}, 0.1),
        ({"read_data": True, "sample_share": 0.1}, 0.1),
        ({"read_data": True, "sample_share": 0.0}, 1.0),
    ],
)
def test_what_a_check_reads(rig: Rig, asked: dict[str, Any], read: float) -> None:
    rig.drive(repositories.check(rig.ctx, "r1", **asked)["id"])
    assert rig.repository.checked == [(read, None)]


def test_a_repository_shows_what_it_holds(rig: Rig) -> None:
    rig.vcenter.add_vm("db01", disks=1)
    rig.job()
    rig.run()
    shown = repositories.get(rig.ctx, "r1")
    assert (shown["stored_bytes"], shown["packs"], shown["keys"]) == (1000, 3, 1)
    assert shown["read_bytes"] == 1000
    [disk] = rig.points()[0].disks
    assert shown["logical_bytes"] == disk["capacity_bytes"]
    assert shown["reduction"] == disk["capacity_bytes"] / 1000
    assert (shown["last_check"], shown["last_prune"]) == (None, None)
    rig.drive(repositories.prune(rig.ctx, "r1")["id"])
    last = repositories.list_all(rig.ctx)[0]["last_prune"]
    assert (last["result"], last["removed_bytes"]) == ("success", 10)


def test_facts_that_cannot_be_had_spoil_no_session(rig: Rig) -> None:
    rig.vcenter.add_vm("db01", disks=1)
    rig.job()
    rig.repositories.fail("facts", "transient", "the share is away")
    assert rig.run()["result"] == "success"
    assert repositories.get(rig.ctx, "r1")["restore_points"] == 1


def test_a_clock_that_was_ahead_keeps_no_verification_waiting(rig: Rig) -> None:
    set_up(rig)
    rig.clock.advance(3650 * DAY_S)
    assert len(due(rig)) == 1
    rig.clock.advance(-3650 * DAY_S)
    due(rig)
    assert rig.rows(Repository)[0].next_check_at.year == rig.clock.now.year
