"""Repair sessions over the real services, with fakes around them."""

from __future__ import annotations

from typing import Any

import pytest

from backup_server.db.tables import RestorePointRow, Session, Task
from backup_server.errors import ConflictError, InvalidError
from backup_server.services import damage, jobs, repairs, repositories
from backup_server.services.disk_plan import BASE_DAMAGED
from tests.fakes.server import Rig
from transports.vsphere.model import Secret

OFFSITE = "/backup/r2"


@pytest.fixture
def site(rig: Rig) -> Rig:
    """A VM with one restore point, and the copy of it."""
    repositories.add(rig.ctx, name="r2", location=OFFSITE, password=Secret("offsite password"))
    rig.vcenter.add_vm("db01", disks=1)
    rig.job()
    data = {"name": "offsite", "kind": "copy", "source_repository": "r1", "repository": "r2"}
    jobs.create(rig.ctx, {**data, "retries": {"count": 0, "wait_s": 0}})
    rig.run()
    rig.run("offsite")
    return rig


def lost(rig: Rig) -> dict[str, Any]:
    """A block of the point in r1, as check and repair tell of it."""
    [point] = [row for row in rig.points() if row.source_point_id is None]
    return {
        "point_id": point.id,
        "disk_key": point.disks[0]["disk_key"],
        "start_bytes": 0,
        "end_bytes": 1 << 20,
        "reason": "block ab is lost",
    }


def mark(rig: Rig) -> None:
    """As a check leaves it."""
    row_id = repositories.get(rig.ctx, "r1")["id"]
    with rig.ctx.db() as s:
        damage.record(s, row_id, [lost(rig)], is_complete=True, now=rig.clock())


def is_marked(rig: Rig) -> list[bool]:
    return [damage.is_damaged(row) for row in rig.points() if row.source_point_id is None]


def test_a_sound_repository(site: Rig) -> None:
    session = site.drive(repairs.start(site.ctx, "r1")["id"])
    assert (session["kind"], session["result"]) == ("repair", "success")
    assert session["reason"] == "nothing is damaged"
    assert session["report"]["asked"] == ["r2"]


def test_damage_is_brought_back_from_the_copy_and_unmarked(site: Rig) -> None:
    mark(site)
    site.repository.damage = [lost(site)]
    assert is_marked(site) == [True]
    session = site.drive(repairs.start(site.ctx, "r1")["id"])
    assert session["result"] == "success"
    assert "1 blocks brought back (1 from r2)" in session["reason"]
    assert is_marked(site) == [False]
    [call] = site.repository.repairs
    offsite = site.repositories.at[OFFSITE]
    assert call["copies"] == [
        {
            "name": "r2",
            "location": OFFSITE,
            "repository_id": offsite.repository_id,
            "key": offsite.master_key,
            "storage_secrets": {},
        }
    ]


def test_the_original_is_asked_for_a_copy(site: Rig) -> None:
    session = site.drive(repairs.start(site.ctx, "r2")["id"])
    assert session["report"]["asked"] == ["r1"]


def test_what_stays_lost_is_named_and_marked(site: Rig) -> None:
    site.repository.damage = site.repository.beyond_repair = [lost(site)]
    session = site.drive(repairs.start(site.ctx, "r1", sources=[])["id"])
    assert session["result"] == "failed"
    assert "block ab is lost" in session["reason"]
    assert session["report"]["damaged_points"] == 1
    assert is_marked(site) == [True]
    assert site.repository.repairs[0]["copies"] == []


def test_a_trial_run_marks_nothing(site: Rig) -> None:
    site.repository.damage = [lost(site)]
    session = site.drive(repairs.start(site.ctx, "r1", dry_run=True)["id"])
    assert "could be brought back" in session["reason"]
    assert is_marked(site) == [False]
    assert site.repository.damage


def test_from_live_reads_everything_again(site: Rig) -> None:
    site.repository.damage = site.repository.beyond_repair = [lost(site)]
    site.drive(repairs.start(site.ctx, "r1", from_live=True)["id"])
    [session] = [row for row in site.rows(Session, kind="backup") if row.options["trigger"] == "repair"]
    assert session.options["full"] is True
    assert site.drive(session.id)["result"] == "success"


def test_a_check_that_finds_damage_begins_a_repair(site: Rig) -> None:
    site.repository.damage = [lost(site)]
    site.repository.problems = ["block ab is lost"]
    site.drive(repositories.check(site.ctx, "r1", read_data=True)["id"])
    [session] = site.rows(Session, kind="repair")
    assert session.options["trigger"] == "check"
    assert site.drive(session.id)["result"] == "success"
    assert is_marked(site) == [False]


def test_the_next_backup_builds_on_nothing_that_is_damaged(site: Rig) -> None:
    mark(site)
    session = site.run()
    [task] = site.rows(Task, session_id=session["id"])
    assert task.order["previous_map_root"] == ""
    assert task.order["full_read_reason"] == BASE_DAMAGED
    [newest] = [row for row in site.points() if row.session_id == session["id"]]
    assert (newest.kind, newest.previous_id) == ("full", None)
    assert site.run()["result"] == "success"
    assert [row.kind for row in site.points() if row.source_point_id is None][-1] == "increment"


def test_it_waits_for_others_and_others_wait_for_it(site: Rig) -> None:
    backup_id = jobs.run(site.ctx, "job1")["id"]
    for _ in range(2):
        site.engine.run_once()
    repair_id = repairs.start(site.ctx, "r1")["id"]
    site.engine.run_once()
    assert [row.state for row in site.rows(Session, id=repair_id)] == ["queued"]
    with pytest.raises(ConflictError, match="under way"):
        repairs.start(site.ctx, "r1")
    assert site.drive(backup_id)["result"] == "success"
    assert site.drive(repair_id)["result"] == "success"


def test_a_repository_that_cannot_be_opened_is_left_out(site: Rig) -> None:
    site.restart()  # nothing is open yet
    site.repositories.at[OFFSITE].password = "changed by hand"
    session = site.drive(repairs.start(site.ctx, "r1")["id"])
    assert session["report"]["asked"] == []
    assert "r2 was not asked" in session["report"]["unreachable"][0]


def test_what_cannot_be_asked_for(site: Rig) -> None:
    with pytest.raises(InvalidError, match="trial run"):
        repairs.start(site.ctx, "r1", dry_run=True, from_live=True)
    with pytest.raises(InvalidError, match="to be repaired"):
        repairs.start(site.ctx, "r1", sources=["r1"])
    assert site.rows(RestorePointRow)
