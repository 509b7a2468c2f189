"""What is asked about jobs, proxies and stopped sessions costs as many statements for many as for one."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from backup_server.db.states import Result, SessionKind, SessionState, TaskState, VmState
from backup_server.db.tables import Proxy, Session, SessionVm, Task, new_id
from backup_server.services import about, figures, jobs, sessions, unfinished
from backup_server.services.unfinished import CARRIES
from proxy_worker.contracts.codec import to_json
from proxy_worker.contracts.ids import ProxyId
from proxy_worker.contracts.messages import ConnectionsReport
from tests.fakes.server import Rig
from tests.support.statements import counted


@pytest.fixture(autouse=True)
def broker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(about, "broker_problem", lambda ctx: "")


def _statements(rig: Rig, ask: Callable[[], object]) -> int:
    with counted(rig.ctx.db.engine) as cost:
        ask()
    return cost.statements


def test_jobs_and_their_figures(rig: Rig) -> None:
    rig.vcenter.add_vm("db01")
    rig.job()
    rig.run()

    def cost() -> tuple[int, int]:
        listed = _statements(rig, lambda: jobs.list_all(rig.ctx))
        return listed, _statements(rig, lambda: figures.collect(rig.ctx))

    one = cost()
    for number in range(2, 7):
        rig.job(f"job{number}", after_job=f"job{number - 1}")
        rig.run(f"job{number}")
    assert cost() == one
    shown = {job["name"]: job for job in jobs.list_all(rig.ctx)}
    assert len(shown) == 6
    assert shown["job6"]["after_job"] == "job5"
    assert shown["job6"]["last_session"]["result"] == "success"
    alone = jobs.get(rig.ctx, "job6")
    assert {name: alone[name] for name in shown["job6"]} == shown["job6"]
    ages = [one for one in figures.collect(rig.ctx) if one.name == "vmhaul_job_oldest_point_seconds"]
    assert {one.labels for one in ages} == {(name,) for name in shown}


def test_why_of_a_task_asks_as_much_of_many_proxies(rig: Rig) -> None:
    rig.vcenter.add_vm("db01", disks=3)
    rig.job()
    jobs.run(rig.ctx, "job1")
    for _ in range(20):
        rig.engine.run_once()
    first, *others = rig.rows(Task)

    def more_proxies(names: range) -> None:
        now = rig.clock()
        with rig.ctx.db() as s:
            for number in names:
                proxy_id = new_id()
                report = ConnectionsReport(
                    proxy_id=ProxyId(proxy_id), vm_uuid="", addresses=("192.0.2.7/24",),
                    connections=(), missing=(),
                )  # fmt: skip
                s.add(
                    Proxy(
                        id=proxy_id, name=f"p{number}", local=False, slots=2, created_at=now,
                        last_seen_at=now, signing_key="ab" * 32, facts={"modes": ["nbdssl"], "slots": 2},
                        connections=to_json(report), connections_at=now,
                    )
                )  # fmt: skip

    more_proxies(range(2))
    few = _statements(rig, lambda: sessions.why(rig.ctx, first.id))
    more_proxies(range(2, 12))
    with rig.ctx.db() as s:
        holder = s.scalars(sa.select(Proxy.id).where(Proxy.name == "p3")).one()
        running = sa.update(Task).where(Task.id.in_([one.id for one in others]))
        s.execute(running.values(state=TaskState.RUNNING.value, proxy_id=holder, mode="nbdssl"))
    with counted(rig.ctx.db.engine, Task) as cost:
        shown = sessions.why(rig.ctx, first.id[:8])
    # One more: the task is found by the beginning of its id.
    assert cost.statements <= few + 2
    assert cost.rows == 1
    said = shown["now"]
    assert len(said["candidates"]) + sum(said["others"].values()) >= 12


# ---- what stopped sessions left -------------------------------------------------------------------


def _session(
    rig: Rig, job_id: str, at: datetime, vms: dict[str, dict[str, Any]], *, stopped: bool = True
) -> None:
    """A session that ended. `vms`: instance uuid -> what differs from a VM whose one disk was read."""
    with rig.ctx.db() as s:
        job = jobs.get(rig.ctx, job_id)
        repository = s.scalars(sa.text("SELECT id FROM repositories")).one()
        session = Session(
            id=new_id(), kind=SessionKind.BACKUP.value, job_id=job["id"], job_name=job_id,
            repository_id=repository, state=SessionState.FINISHED.value,
            stop_reason="its window closed" if stopped else "",
            created_at=at, started_at=at, finished_at=at + timedelta(hours=1),
        )  # fmt: skip
        s.add(session)
        s.flush()
        for position, (uuid, changes) in enumerate(vms.items()):
            details = {CARRIES: True, "disks": [{"disk_key": 2000}], **changes.get("details", {})}
            vm = SessionVm(
                id=new_id(), session_id=session.id, position=position, moref="vm-1", instance_uuid=uuid,
                name=uuid, state=VmState.DONE.value, details=details,
                result=changes.get("result", Result.CANCELLED.value),
            )  # fmt: skip
            s.add(vm)
            s.flush()
            s.add(
                Task(
                    id=changes.get("task", new_id()), session_id=session.id, session_vm_id=vm.id,
                    kind="backup-disk", title=uuid, position=0, disk_key=2000, disk_label="", disk_path="",
                    capacity_bytes=1, datastore="", repository_id=repository, order={}, priority=1,
                    state=TaskState.DONE.value, result=Result.CANCELLED.value,
                    attempt=changes.get("attempt", 1), facts=changes.get("facts", {}), created_at=at,
                )
            )  # fmt: skip


def _needed(rig: Rig) -> list[str]:
    with rig.ctx.db.read() as s:
        repository = s.scalars(sa.text("SELECT id FROM repositories")).one()
        return unfinished.needed_work(s, repository, rig.clock())


def test_what_is_kept_of_stopped_sessions(rig: Rig) -> None:
    rig.job("job1")
    rig.job("job2")
    first = rig.clock() - timedelta(days=5)
    _session(
        rig,
        "job1",
        first,
        {
            "kept": {"task": "t-kept"},
            "taken up": {"task": "t-old"},
            "not reached again": {"task": "t-waits"},
            "stopped again": {"task": "t-first"},
            "moment lost": {"details": {CARRIES: False}},
            "done": {"result": Result.SUCCESS.value},
            "never handed out": {"attempt": 0},
            "end unheard": {"facts": {unfinished.UNHEARD: True}},
            "other job": {"task": "t-other"},
        },
    )
    _session(
        rig,
        "job1",
        first + timedelta(days=1),
        {
            "taken up": {"result": Result.SUCCESS.value},
            "not reached again": {"details": {"disks": [], CARRIES: False}},
            "stopped again": {"task": "t-second"},
        },
    )
    _session(rig, "job2", first + timedelta(days=2), {"other job": {"result": Result.SUCCESS.value}})
    assert _needed(rig) == ["t-kept", "t-other", "t-second", "t-waits"]
    rig.clock.advance(9.5 * 86400)
    assert _needed(rig) == ["t-second"]


def test_what_is_kept_is_found_in_few_statements(rig: Rig) -> None:
    rig.job("job1")
    at = rig.clock() - timedelta(days=1)
    _session(rig, "job1", at, {"one": {}})
    few = _statements(rig, lambda: _needed(rig))
    _session(rig, "job1", at + timedelta(hours=2), {f"vm-{number}": {} for number in range(40)})
    assert _statements(rig, lambda: _needed(rig)) == few
    assert len(_needed(rig)) == 41
