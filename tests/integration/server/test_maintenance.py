from __future__ import annotations

import pytest

from backup_server.db.states import Result
from backup_server.db.tables import RestorePointRow, Session
from backup_server.errors import ConflictError
from backup_server.services import jobs, repositories
from tests.fakes.server import Rig


def test_check_reports_problems(rig: Rig) -> None:
    shown = rig.drive(repositories.check(rig.ctx, "r1", read_data=True)["id"])
    assert (shown["result"], shown["report"]["read_bytes"]) == ("success", 100)
    rig.repository.problems = [f"pack {n} is damaged" for n in range(5)]
    shown = rig.drive(repositories.check(rig.ctx, "r1")["id"])
    assert shown["result"] == "failed"
    assert shown["reason"].startswith("pack 0 is damaged; pack 1")
    assert shown["reason"].endswith("and 2 more")


def test_agent_that_dies_fails_the_session(rig: Rig) -> None:
    rig.repositories.fail("check", "dead", "")
    shown = rig.drive(repositories.check(rig.ctx, "r1")["id"])
    assert shown["result"] == "failed"


def test_one_of_a_kind_at_a_time(rig: Rig) -> None:
    repositories.check(rig.ctx, "r1")
    with pytest.raises(ConflictError):
        repositories.check(rig.ctx, "r1")


def test_retention_forgets_and_a_prune_follows(rig: Rig) -> None:
    rig.vcenter.add_vm("db01", disks=1)
    rig.job(retention={"keep": 2})
    for _ in range(2):
        rig.run()
    assert rig.rows(Session, kind="prune") == []
    rig.run()
    [prune] = rig.rows(Session, kind="prune")
    assert rig.drive(prune.id)["result"] == "success"
    assert len(rig.points()) == len(rig.repository.points) == 2
    assert rig.repository.pruned == [{"keep_task_ids": [], "min_age_s": rig.settings.prune_min_age_s}]


def test_retention_by_days_keeps_the_newest(rig: Rig) -> None:
    rig.vcenter.add_vm("db01", disks=1)
    rig.job(retention={"days": 3})
    for _ in range(6):
        rig.run()
        rig.clock.advance(86_400)
    ages = [(rig.clock.now - point.created_at).days for point in rig.points()]
    assert len(ages) < 6
    assert max(ages) <= 4
    newest = rig.points()[-1].id
    rig.clock.advance(30 * 86_400)
    rig.proxies.outcome = lambda task: (Result.FAILED, "no")
    rig.run()
    assert newest in {point.id for point in rig.points()}


def test_retention_looks_at_its_own_job_only(rig: Rig) -> None:
    rig.vcenter.add_vm("db01", disks=1)
    rig.job("a", retention={"keep": 1})
    rig.job("b", retention={"keep": 1})
    for name in "abab":
        rig.run(name)
    assert sorted(point.job_name for point in rig.points()) == ["a", "b"]


def test_failing_retention_is_done_by_the_next_run(rig: Rig) -> None:
    rig.vcenter.add_vm("db01", disks=1)
    rig.job(retention={"keep": 1})
    rig.run()
    rig.repositories.fail("forget", "transient", "busy")
    assert rig.run()["result"] == "success"
    assert len(rig.repository.points) == 2
    rig.run()
    assert len(rig.points()) == len(rig.repository.points) == 1


def test_prune_waits_for_sessions_and_sessions_for_a_prune(rig: Rig) -> None:
    rig.vcenter.add_vm("db01", disks=1)
    rig.job()
    session = jobs.run(rig.ctx, "job1")
    for _ in range(3):
        rig.engine.run_once()
    prune = repositories.prune(rig.ctx, "r1")
    rig.engine.run_once()
    assert rig.repository.pruned == []
    rig.drive(session["id"])
    rig.drive(prune["id"])
    assert len(rig.repository.pruned) == 1


def test_prune_keeps_the_work_of_open_tasks(rig: Rig) -> None:
    from backup_server.db.tables import Task
    from backup_server.services.maintenance_flow import _needed_work

    rig.vcenter.add_vm("db01")
    rig.job()
    session = jobs.run(rig.ctx, "job1")
    for _ in range(3):
        rig.engine.run_once()
    [repository] = repositories.list_all(rig.ctx)
    tasks = {task.id for task in rig.rows(Task)}
    assert set(_needed_work(rig.ctx, repository["id"])) == tasks != set()
    rig.drive(session["id"])
    assert _needed_work(rig.ctx, repository["id"]) == []


def test_rescan_makes_the_catalogue_equal_to_the_repository(rig: Rig) -> None:
    rig.vcenter.add_vm("db01", disks=1)
    rig.job()
    for _ in range(3):
        rig.run()
    before = {point.id: point.disks[0]["map_root"] for point in rig.points()}
    lost, gone, _ = [point.id for point in rig.points()]
    with rig.ctx.db() as s:
        s.delete(s.get_one(RestorePointRow, lost))
    del rig.repository.points[gone]
    del before[gone]
    shown = rig.drive(repositories.rescan(rig.ctx, "r1")["id"])
    assert shown["report"] == {"points": 2, "added": 1, "removed": 1}
    assert {point.id: point.disks[0]["map_root"] for point in rig.points()} == before
    # Points that were found again belong to their job, so retention and increments go on.
    assert {point.job_name for point in rig.points()} == {"job1"}
    assert rig.run()["vms"][0]["kind"] == "increment"


def test_import_reads_what_is_there(rig: Rig) -> None:
    from transports.vsphere.model import Secret

    rig.vcenter.add_vm("db01", disks=1)
    rig.job()
    rig.run()
    jobs.remove(rig.ctx, "job1")
    repositories.remove(rig.ctx, "r1")
    assert rig.points() == []
    shown = repositories.add(
        rig.ctx,
        name="again",
        location="/backup/r1",
        password=Secret("correct horse"),
        import_existing=True,
    )
    assert shown["restore_points"] == 1
    assert rig.points()[0].vm_name == "db01"
