"""Copy jobs over the real services, with fakes around them."""

from __future__ import annotations

from typing import Any

import pytest

from backup_server.db.states import Result, SessionState
from backup_server.db.tables import RestorePointRow, Session, Task
from backup_server.errors import ConflictError, InvalidError
from backup_server.services import catalogue, damage, jobs, repositories, restore_points, sessions
from backup_server.services.copy_flow import KEYS_PER_POINT
from pipeline.model import copied_point_id
from tests.fakes.server import Rig
from transports.vsphere.model import Secret

OFFSITE = "/backup/r2"


@pytest.fixture
def site(rig: Rig) -> Rig:
    """Two VMs, a second repository, a backup job and a copy job."""
    repositories.add(rig.ctx, name="r2", location=OFFSITE, password=Secret("offsite password"))
    rig.vcenter.add_vm("db01", disks=2)
    rig.vcenter.add_vm("web01", disks=1)
    rig.job()
    copy_job(rig)
    return rig


def copy_job(rig: Rig, name: str = "offsite", **values: Any) -> dict[str, Any]:
    data = {
        "name": name,
        "kind": "copy",
        "source_repository": "r1",
        "repository": "r2",
        "retries": {"count": 0, "wait_s": 0},
        **values,
    }
    return jobs.create(rig.ctx, data)


def points_in(rig: Rig, name: str) -> list[RestorePointRow]:
    row_id = repositories.get(rig.ctx, name)["id"]
    return [point for point in rig.points() if point.repository_id == row_id]


def copied_from(rig: Rig, name: str = "r2") -> list[str]:
    return [str(point.source_point_id) for point in points_in(rig, name)]


def test_points_are_copied_oldest_first_each_on_the_one_before(site: Rig) -> None:
    for _ in range(3):
        site.run()
    session = site.run("offsite")
    assert (session["kind"], session["result"], session["reason"]) == ("copy", "success", "")
    sources, copies = points_in(site, "r1"), points_in(site, "r2")
    assert sorted(copied_from(site)) == sorted(point.id for point in sources)
    offsite = site.repositories.at[OFFSITE]
    for vm in ("db01", "web01"):
        wanted = [
            copied_point_id(offsite.repository_id, point.id) for point in sources if point.vm_name == vm
        ]
        assert [point for point in offsite.commits if point in wanted] == wanted
    of_db = [point for point in copies if point.vm_name == "db01"]
    assert [point.kind for point in of_db] == ["full", "increment", "increment"]
    assert [point.previous_id for point in of_db] == [None, of_db[0].id, of_db[1].id]
    assert {disk["change_id"] for point in copies for disk in point.disks} == {""}
    by_id = {point.id: point for point in sources}
    orders = {
        (task.session_vm_id, task.disk_key): task.order
        for task in site.rows(Task, session_id=session["id"])
    }
    [vm] = {vm_id for vm_id, key in orders if key == 2 * KEYS_PER_POINT + 2001}
    order = orders[vm, 2 * KEYS_PER_POINT + 2001]
    original = {disk["disk_key"]: disk for disk in by_id[str(of_db[2].source_point_id)].disks}
    before = {disk["disk_key"]: disk for disk in by_id[str(of_db[1].source_point_id)].disks}
    copied = {disk["disk_key"]: disk for disk in of_db[1].disks}
    assert order["map_root"] == original[2001]["map_root"]
    assert order["base_map_root"] == before[2001]["map_root"]
    assert order["copied_map_root"] == copied[2001]["map_root"]


def test_a_second_run_copies_what_is_new_and_then_nothing(site: Rig) -> None:
    site.run()
    site.run("offsite")
    site.run()
    assert site.run("offsite")["counts"]["tasks"] == 3
    nothing = site.run("offsite")
    assert (nothing["result"], nothing["reason"]) == ("success", "nothing new to copy")
    assert len(points_in(site, "r2")) == 4


def test_of_a_vm_that_was_never_copied_only_the_newest_when_asked(site: Rig) -> None:
    copy_job(site, "newest", first="newest", selection={"include": [{"type": "vm", "name": "DB*"}]})
    for _ in range(3):
        site.run()
    site.run("newest")
    newest = [point.id for point in points_in(site, "r1") if point.vm_name == "db01"][-1]
    assert copied_from(site) == [newest]
    site.run()
    site.run("newest")
    assert [point.vm_name for point in points_in(site, "r2")] == ["db01", "db01"]


def test_selectors_are_for_jobs_and_vms(site: Rig) -> None:
    site.job("second", selection={"include": [{"type": "vm", "name": "web01"}]})
    site.run()
    site.run("second")
    copy_job(
        site,
        "some",
        selection={
            "include": [{"type": "job", "name": "second"}, {"type": "vm", "name": "db0?"}],
            "exclude": [{"type": "vm", "name": "nothing*"}],
        },
    )
    site.run("some")
    by_id = {point.id: point for point in site.points()}
    taken = sorted((by_id[source].vm_name, by_id[source].job_name) for source in copied_from(site))
    assert taken == [("db01", "job1"), ("web01", "second")]


def test_the_copy_job_keeps_by_its_own_rule_and_does_not_copy_again(site: Rig) -> None:
    jobs.edit(site.ctx, "offsite", {"retention": {"keep": 1}})
    for _ in range(3):
        site.run()
    site.run("offsite")
    assert len(points_in(site, "r2")) == 2
    assert len(points_in(site, "r1")) == 6
    site.run("offsite")
    assert len(points_in(site, "r2")) == 2


def test_what_is_being_copied_is_not_deleted(site: Rig) -> None:
    site.run()
    [source] = [point for point in points_in(site, "r1") if point.vm_name == "db01"]
    session_id = jobs.run(site.ctx, "offsite")["id"]
    for _ in range(2):
        site.engine.run_once()
    with pytest.raises(ConflictError, match="needed by session"):
        restore_points.remove(site.ctx, source.id)
    site.drive(session_id)
    restore_points.remove(site.ctx, source.id)
    assert len(points_in(site, "r2")) == 2


def test_a_point_that_was_deleted_before_its_turn_is_left_out_with_a_warning(site: Rig) -> None:
    for _ in range(2):
        site.run()
    gone = next(point for point in points_in(site, "r1") if point.vm_name == "db01")
    session_id = jobs.run(site.ctx, "offsite")["id"]
    site.engine.run_once()
    with site.ctx.db() as s:
        s.get_one(RestorePointRow, gone.id).deleting = True
    session = site.drive(session_id)
    assert session["result"] == "warning"
    assert "was deleted before it was copied" in session["reason"]
    assert len(points_in(site, "r2")) == 3


def test_a_damaged_point_is_left_out_and_those_after_it_are_copied(site: Rig) -> None:
    for _ in range(2):
        site.run()
    bad = next(point for point in points_in(site, "r1") if point.vm_name == "db01")
    entry = {
        "point_id": bad.id,
        "disk_key": bad.disks[0]["disk_key"],
        "start_bytes": 0,
        "end_bytes": 4096,
        "reason": "block ab is lost",
    }
    with site.ctx.db() as s:
        damage.record(s, bad.repository_id, [entry], is_complete=False, now=site.clock())
    session = site.run("offsite")
    assert session["result"] == "warning"
    assert "is damaged: repair r1 first" in session["reason"]
    assert len(points_in(site, "r2")) == 3


def test_a_disk_that_cannot_be_copied_fails_the_vm_and_the_next_run_goes_on(site: Rig) -> None:
    for _ in range(2):
        site.run()
    site.proxies.outcome = lambda task: (
        (Result.FAILED, "blob ab is damaged")
        if task.kind == "copy-disk" and task.disk_key == KEYS_PER_POINT + 2001
        else (Result.SUCCESS, "")
    )
    session = site.run("offsite")
    assert session["result"] == "failed"
    assert "blob ab is damaged" in session["reason"]
    assert len(points_in(site, "r2")) == 3
    site.proxies.outcome = lambda task: (Result.SUCCESS, "")
    assert site.run("offsite")["result"] == "success"
    assert len(points_in(site, "r2")) == 4


def test_a_copy_that_was_forgotten_on_purpose_does_not_stop_the_others(site: Rig) -> None:
    site.run()
    site.repositories.fail("commit", "permanent", "restore point x was forgotten")
    session = site.run("offsite")
    assert session["result"] == "warning"
    assert len(points_in(site, "r2")) == 1


def test_it_follows_the_backups_of_its_source(site: Rig) -> None:
    jobs.edit(site.ctx, "offsite", {"after_backup": True})
    site.run()
    [following] = site.rows(Session, kind="copy")
    assert following.options["trigger"] == "session"
    assert site.drive(following.id)["result"] == "success"
    assert len(points_in(site, "r2")) == 2
    assert len(site.rows(Session, kind="copy")) == 1


def test_a_backup_that_ends_while_the_copy_runs_is_copied_after_it(site: Rig) -> None:
    site.run()
    jobs.edit(site.ctx, "offsite", {"after_backup": True})
    session_id = jobs.run(site.ctx, "offsite")["id"]
    for _ in range(2):
        site.engine.run_once()
    site.run()
    site.drive(session_id)
    site.clock.advance(1)
    for session in site.rows(Session, kind="copy"):
        site.drive(session.id)
    assert len(points_in(site, "r2")) == 4


def test_a_backup_that_ends_while_a_copy_finds_nothing_is_copied_after_it(site: Rig) -> None:
    backup = site.run()["id"]
    site.run("offsite")
    jobs.edit(site.ctx, "offsite", {"after_backup": True})
    empty = jobs.run(site.ctx, "offsite")["id"]
    site.engine.run_once()  # it looked, and found nothing
    with site.ctx.db() as s:
        assert s.get_one(Session, empty).state == SessionState.RUNNING.value
        s.get_one(Session, backup).finished_at = site.clock.now
    site.drive(empty)
    [again] = site.rows(Session, kind="copy", state="queued")
    assert site.drive(again.id)["reason"] == "nothing new to copy"
    assert site.rows(Session, kind="copy", state="queued") == [], "and then it rests"


def test_cancelled_between_points(site: Rig) -> None:
    for _ in range(2):
        site.run()
    session_id = jobs.run(site.ctx, "offsite")["id"]
    for _ in range(2):
        site.engine.run_once()
    sessions.cancel(site.ctx, session_id)
    session = site.drive(session_id)
    assert session["result"] == "cancelled"
    assert site.rows(Session, id=session_id)[0].state == SessionState.FINISHED.value
    assert site.run("offsite")["result"] == "success"
    assert len(points_in(site, "r2")) == 4


def test_an_increment_is_not_built_on_a_copy(site: Rig) -> None:
    """Backups into a repository that also holds copies of the same VM."""
    site.run()
    site.run("offsite")
    site.job("into-r2", repository="r2", selection={"include": [{"type": "vm", "name": "web01"}]})
    assert site.run("into-r2")["result"] == "success"
    own = [point for point in points_in(site, "r2") if point.job_name == "into-r2"]
    assert [(point.kind, point.previous_id) for point in own] == [("full", None)]


def test_a_repository_that_was_imported_knows_its_copies(site: Rig) -> None:
    for _ in range(2):
        site.run()
    site.run("offsite")
    before = {
        (row.id, row.source_point_id, row.job_id, row.kind, row.previous_id)
        for row in points_in(site, "r2")
    }
    row_id = repositories.get(site.ctx, "r2")["id"]
    with site.ctx.db() as s:
        for row in points_in(site, "r2"):
            s.delete(s.get_one(RestorePointRow, row.id))
    assert catalogue.rebuild(site.ctx, row_id) == {"points": 4, "added": 4, "removed": 0}
    after = {
        (row.id, row.source_point_id, row.job_id, row.kind, row.previous_id)
        for row in points_in(site, "r2")
    }
    assert after == before
    assert site.run("offsite")["reason"] == "nothing new to copy"


def test_both_repositories_are_held_by_the_job(site: Rig) -> None:
    for name in ("r1", "r2"):
        with pytest.raises(ConflictError, match="offsite"):
            repositories.remove(site.ctx, name)


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"source_repository": "r2"}, "source_repository"),
        ({"source_repository": "nowhere"}, "source_repository"),
        ({"quiesce": "try"}, "quiesce"),
        ({"vcenter": "vc1"}, "vcenter"),
        ({"first": "some"}, "first"),
        ({"selection": {"include": [{"type": "folder", "name": "x"}]}}, "selection"),
        ({"selection": {"include": []}}, "selection"),
    ],
)
def test_what_a_copy_job_cannot_be(site: Rig, values: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidError) as caught:
        copy_job(site, "wrong", **values)
    assert set(caught.value.details) == {field}


def test_a_backup_job_has_no_fields_of_a_copy(site: Rig) -> None:
    with pytest.raises(InvalidError) as caught:
        site.job("wrong", source_repository="r2", after_backup=True)
    assert set(caught.value.details) == {"source_repository", "after_backup"}


def test_a_copy_job_is_edited_shown_and_planned(site: Rig) -> None:
    site.run()
    changed = jobs.edit(
        site.ctx,
        "offsite",
        {"compression": "high", "selection": {"include": [{"type": "vm", "name": "db01"}]}},
    )
    assert (changed["kind"], changed["source_repository"], changed["vcenter"]) == ("copy", "r1", None)
    assert changed["compression"] == "high"
    [vm] = jobs.plan(site.ctx, "offsite")["vms"]
    assert (vm["name"], len(vm["restore_points"])) == ("db01", 1)
    assert jobs.get(site.ctx, "job1")["kind"] == "backup"


def test_a_clock_that_was_years_ahead_keeps_no_new_point_from_being_copied(site: Rig) -> None:
    site.clock.advance(3650 * 86_400)
    site.run()
    site.run("offsite")
    site.clock.advance(-3650 * 86_400)
    site.run()
    site.run("offsite")
    assert sorted(copied_from(site)) == sorted(point.id for point in points_in(site, "r1"))


def test_a_copy_that_is_damaged_is_no_base(site: Rig) -> None:
    site.run()
    site.run("offsite")
    for copy in points_in(site, "r2"):
        entry = {
            "point_id": copy.id,
            "disk_key": copy.disks[0]["disk_key"],
            "start_bytes": 0,
            "end_bytes": 4096,
            "reason": "block ab is lost",
        }
        with site.ctx.db() as s:
            damage.record(s, copy.repository_id, [entry], is_complete=False, now=site.clock())
    site.run()
    session = site.run("offsite")
    assert session["result"] == "success"
    orders = [task.order for task in site.rows(Task, session_id=session["id"])]
    assert len(orders) == 3
    assert {order["copied_map_root"] for order in orders} == {""}


def test_two_jobs_that_copy_to_and_fro_come_to_rest(site: Rig) -> None:
    copy_job(site, "there", after_backup=True)
    copy_job(site, "back", source_repository="r2", repository="r1", after_backup=True)
    site.run()
    for _ in range(20):
        waiting = site.rows(Session, state="queued")
        if not waiting:
            break
        for session in waiting:
            site.drive(session.id)
    assert site.rows(Session, state="queued") == []
