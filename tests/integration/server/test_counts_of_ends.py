"""Whatever ends a session or a task, the counters that monitoring reads know of it."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from backup_server.db.states import SessionState, TaskState
from backup_server.db.tables import Session, Task
from backup_server.services import counters, jobs, pending, repositories, sessions
from tests.fakes.server import Rig
from tests.support.storage_rig import begin


def counted(rig: Rig, name: str) -> dict[tuple[str, ...], int]:
    with rig.ctx.db.read() as s:
        return {labels: n for (one, labels), n in counters.read(s).items() if one == name}


def rows(rig: Rig, table: Any, state: str) -> dict[tuple[str, ...], int]:
    with rig.ctx.db.read() as s:
        found = s.execute(
            sa.select(table.kind, table.result, sa.func.count())
            .where(table.state == state)
            .group_by(table.kind, table.result)
        )
        return {(kind, result): times for kind, result, times in found}


def sessions_agree(rig: Rig) -> dict[tuple[str, ...], int]:
    found = rows(rig, Session, SessionState.FINISHED.value)
    assert counted(rig, "sessions_ended") == found
    return found


def test_sessions_that_ran(rig: Rig) -> None:
    rig.vcenter.add_vm("db01", disks=1)
    rig.job()
    assert rig.run()["result"] == "success"
    for made in (repositories.check, repositories.prune):
        assert rig.drive(str(made(rig.ctx, "r1")["id"]))["result"] == "success"
    assert sum(sessions_agree(rig).values()) == 3


def test_sessions_that_never_began(rig: Rig) -> None:
    rig.vcenter.add_vm("db01", disks=1)
    rig.job()
    cancelled = str(jobs.run(rig.ctx, "job1")["id"])
    sessions.cancel(rig.ctx, cancelled)
    rig.drive(cancelled)
    displaced = str(jobs.run(rig.ctx, "job1")["id"])
    with rig.ctx.db() as s:
        # As a retry that waits.
        row = s.get_one(Session, displaced)
        row.options = {**row.options, "not_before": "2030-01-01T00:00:00+00:00"}
    refused = str(jobs.run(rig.ctx, "job1")["id"])
    with rig.ctx.db() as s:
        s.execute(sa.update(Session).where(Session.id == refused).values(job_id=None))
    assert rig.drive(refused)["result"] == "failed"
    assert sessions_agree(rig) == {("backup", "cancelled"): 2, ("backup", "failed"): 1}


def test_tasks_that_were_never_handed_out(rig: Rig) -> None:
    rig.vcenter.add_vm("db01", disks=2)
    rig.job()
    session_id, [first, _] = begin(rig)
    with rig.ctx.db() as s:
        pending.give_up(s, s.get_one(Task, first.id), "nobody reaches it", rig.clock())
    sessions.cancel(rig.ctx, session_id)
    found = rows(rig, Task, TaskState.DONE.value)
    assert counted(rig, "tasks_ended") == found
    assert found == {("backup-disk", "failed"): 1, ("backup-disk", "cancelled"): 1}
