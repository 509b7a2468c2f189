"""Sessions as the doors show them."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from backup_server.db.states import TaskState, change_state
from backup_server.db.tables import Task
from backup_server.errors import (
    ConflictError,
    InvalidError,
    NotFoundError,
)
from backup_server.services import (
    jobs,
    pending,
    repositories,
    sessions,
)
from tests.fakes.server import Rig


def test_session_shows_progress_and_keeps_its_figures(rig: Rig) -> None:
    rig.vcenter.add_vm("db01")
    rig.job()
    session = jobs.run(rig.ctx, "job1")
    for _ in range(3):
        rig.engine.run_once()
    first = rig.rows(Task)[0]
    with rig.ctx.db() as s:
        change_state(s, Task, first.id, TaskState.PENDING, TaskState.RUNNING)
        s.execute(
            sa.update(Task)
            .where(Task.id == first.id)
            .values(
                progress={
                    "phase": "reading",
                    "total_bytes": 1000,
                    "done_bytes": 400,
                    "read_bytes": 300,
                    "stored_bytes": 100,
                    "bytes_per_s": 50.0,
                    "bottleneck": "source",
                }
            )
        )
    shown = sessions.get(rig.ctx, session["id"])["progress"]
    with rig.ctx.db() as s:
        opening = {"phase": "opening", "total_bytes": 0, "done_bytes": 0}
        s.execute(sa.update(Task).where(Task.id != first.id).values(progress=opening))
    # A disk that is being opened is not of size 0: the session would be at its end too early.
    assert sessions.get(rig.ctx, session["id"])["progress"]["total_bytes"] == shown["total_bytes"]
    other = rig.rows(Task)[1].capacity_bytes
    assert shown["total_bytes"] == 1000 + other
    assert (shown["done_bytes"], shown["bytes_per_s"], shown["bottleneck"]) == (400, 50.0, "source")
    assert shown["eta_s"] == (600 + other) / 50
    with rig.ctx.db() as s:
        change_state(s, Task, first.id, TaskState.RUNNING, TaskState.PENDING)
    done = rig.drive(session["id"])
    assert done["progress"]["read_bytes"] == 2000
    assert done["progress"]["stored_bytes"] == 600
    assert done["progress"]["bottleneck"] == "source"
    [listed] = sessions.list_all(rig.ctx)["items"]
    assert listed["progress"] == done["progress"]
    assert "vms" not in listed


def test_session_lists_filter(rig: Rig) -> None:
    rig.vcenter.add_vm("db01", disks=1)
    rig.job()
    rig.run()
    repositories.check(rig.ctx, "r1")
    kinds = lambda **values: [item["kind"] for item in sessions.list_all(rig.ctx, **values)["items"]]  # noqa: E731
    assert kinds() == ["repository-check", "backup"]
    assert kinds(job="job1") == ["backup"]
    assert kinds(kind="repository-check") == ["repository-check"]
    assert kinds(state="queued") == ["repository-check"]
    with pytest.raises(InvalidError):
        kinds(state="asleep")
    assert kinds(limit=1) == ["repository-check"]


def test_session_events_and_prefixes(rig: Rig) -> None:
    rig.vcenter.add_vm("db01", disks=1)
    rig.job()
    session = rig.run()
    lines = sessions.events(rig.ctx, session["id"])
    names = [line["name"] for line in lines]
    assert names[0] == "session.started"
    assert names[-1] == "session.finished"
    assert names.index("snapshot.created") < names.index("snapshot.removed") < names.index("vm.done")
    assert sessions.events(rig.ctx, session["id"], after=lines[-2]["id"]) == lines[-1:]
    assert sessions.get(rig.ctx, session["id"][:8])["id"] == session["id"]
    for wrong in ("nope", "abcdefgh"):
        with pytest.raises(NotFoundError):
            sessions.get(rig.ctx, wrong)
    with pytest.raises(ConflictError):
        sessions.cancel(rig.ctx, session["id"])
    task = session["vms"][0]["tasks"][0]
    assert sessions.why(rig.ctx, task["id"])["title"] == "backup db01 / Hard disk 1"
    with pytest.raises(NotFoundError):
        sessions.why(rig.ctx, "nope")


def test_a_disk_that_waits_says_why(rig: Rig) -> None:
    rig.vcenter.add_vm("db01", disks=1)
    rig.job()
    session = jobs.run(rig.ctx, "job1")
    for _ in range(3):
        rig.engine.run_once()
    [task] = rig.rows(Task)
    assert sessions.why(rig.ctx, task.id[:8])["waits"] == "no proxy was asked yet"
    with rig.ctx.db() as s:
        pending.explain(s, [([task.id], {"reason": "default: the proxy is offline"})])
    for ref in (task.id, task.id[:4]):
        assert sessions.why(rig.ctx, ref)["waits"] == "default: the proxy is offline"
    shown = sessions.get(rig.ctx, session["id"])["vms"][0]["tasks"][0]
    assert shown["waits"] == "default: the proxy is offline"
    rig.drive(session["id"])
    assert sessions.get(rig.ctx, session["id"])["vms"][0]["tasks"][0]["waits"] == ""
    for ref in ("zzzz", task.id[:3], "%%%%", "____"):
        with pytest.raises(NotFoundError, match="session show"):
            sessions.why(rig.ctx, ref)
