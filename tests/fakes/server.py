"""A server without processes: real services over a real database, fakes around them, a clock by hand."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from backup_server.config import Settings
from backup_server.db.engine import create_engine
from backup_server.db.states import Result, SessionState, TaskState, change_state
from backup_server.db.tables import Intent, Proxy, RestorePointRow, Session, SessionVm, Task
from backup_server.services import jobs, repositories, sessions, vcenters
from backup_server.services.bootstrap import open_context
from backup_server.services.context import Context
from backup_server.services.engine import SessionEngine
from backup_server.services.janitor import Janitor
from backup_server.services.vcenter_pool import VsphereDoor
from tests.fakes.agent import FakeRepositories, FakeRepository
from tests.fakes.crash import Crash, CrashingDatabase, CrashPlan
from tests.fakes.storage import FakeArray
from tests.fakes.vsphere import PASSWORD, THUMBPRINT, FakeVcenter
from transports.vsphere.model import Secret

REPOSITORY_PASSWORD = "correct horse"
LOCATION = "/backup/r1"


class HandClock:
    def __init__(self) -> None:
        self.now = datetime(2026, 3, 2, 20, 0, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


class FakeProxies:
    """Ends pending tasks the way that proxies' reports do, as a test wants them to end."""

    def __init__(self, rig: Rig) -> None:
        self._rig = rig
        self.outcome: Callable[[Task], tuple[Result, str]] = lambda task: (Result.SUCCESS, "")
        self.mismatch: Callable[[Task], str] = lambda task: ""
        """Where a trial shows change tracking to be wrong."""
        self.done: list[Task] = []

    def work(self) -> int:
        ctx = self._rig.ctx
        with ctx.db.read() as s:
            pending = list(s.scalars(sa.select(Task).where(Task.state == TaskState.PENDING.value)))
        for task in pending:
            result, reason = self.outcome(task)
            good = result in (Result.SUCCESS, Result.WARNING)
            # Not through the crashing database: proxies' reports are another part's concern.
            with sa.orm.Session(ctx.db.engine) as s, s.begin():
                change_state(s, Task, task.id, TaskState.PENDING, TaskState.RUNNING)
                change_state(
                    s,
                    Task,
                    task.id,
                    TaskState.RUNNING,
                    TaskState.DONE,
                    attempt=0,
                    result=result.value,
                    reason=reason,
                    map_root=f"{int(task.id[:8], 16):064x}" if good else "",
                    read_mode=self._read_mode(task),
                    facts={**task.facts, **self._trial(task)},
                    stats=self._stats(task) if good else None,
                    finished_at=ctx.clock(),
                )
            self.done.append(task)
        return len(pending)

    def _read_mode(self, task: Task) -> str:
        if not task.order.get("previous_map_root"):
            return "full"
        whole = task.order.get("full_read_reason") or self.mismatch(task)
        return "full-scan" if whole else "increment"

    def _trial(self, task: Task) -> dict[str, Any]:
        sampled = task.order.get("sampled_blocks", 0)
        if not sampled:
            return {}
        found = self.mismatch(task)
        return {"sampled_blocks": sampled} | ({"tracking_mismatch": found} if found else {})

    @staticmethod
    def _stats(task: Task) -> dict[str, Any]:
        return {
            "capacity_bytes": task.capacity_bytes,
            "read_bytes": 1000,
            "changed_bytes": 2000,
            "stored_bytes": 300,
            "blocks": {"zero": 1, "new": 2, "deduplicated": 3, "unchanged": 4},
            "duration_s": 2.0,
            "stages": {"source": 0.9, "proxy": 0.2, "network": 0.0, "target": 0.3},
        }


class Rig:
    """One server over one migrated database; `restart()` is what follows a kill."""

    def __init__(self, tmp_path: Path, database_url: str, **settings: Any) -> None:
        self.plan = CrashPlan()
        self.clock = HandClock()
        self.vcenter = FakeVcenter(self.plan)
        self.repositories = FakeRepositories(self.plan)
        self.array = FakeArray(self.plan)
        self.settings = Settings(
            **{
                "data_dir": tmp_path / "data",
                "database": database_url,
                "engine_threads": 1,
                "step_wait_s": 0.0,
                **settings,
            }
        )
        self.ctx = self._open()
        self.engine = SessionEngine(self.ctx)
        self.janitor = Janitor(self.ctx)
        self.proxies = FakeProxies(self)

    def _open(self) -> Context:
        database = CrashingDatabase(create_engine(self.settings.database_url, pool_size=5))
        context = open_context(
            self.settings,
            clock=self.clock,
            vsphere=VsphereDoor(connect=self.vcenter.connect, probe=self.vcenter.probe),
            start_agent=self.repositories.start,
            database=database,
            storage_drivers={"fake": self.array.driver()},
        )
        database.plan = self.plan
        return context

    def restart(self) -> None:
        """The process was killed; another one begins."""
        self.plan.revive()
        self.close()
        self.ctx = self._open()
        self.engine = SessionEngine(self.ctx)
        self.janitor = Janitor(self.ctx)

    def close(self) -> None:
        self.engine.stop()
        self.ctx.close()

    # -- setting up

    def site(self, location: str = LOCATION) -> Rig:
        """A vCenter and a repository, registered."""
        vcenters.add(
            self.ctx,
            name="vc1",
            host="vc1.test",
            username="backup",
            password=Secret(PASSWORD),
            thumbprint_sha256=THUMBPRINT,
        )
        repositories.add(self.ctx, name="r1", location=location, password=Secret(REPOSITORY_PASSWORD))
        return self

    def job(self, name: str = "job1", **values: Any) -> dict[str, Any]:
        data = {
            "name": name,
            "vcenter": "vc1",
            "repository": "r1",
            "selection": {"include": [{"type": "all"}]},
            "retries": {"count": 0, "wait_s": 0},
            **values,
        }
        return jobs.create(self.ctx, data)

    @property
    def repository(self) -> FakeRepository:
        return self.repositories.at[LOCATION]

    # -- running

    def run(self, job: str = "job1", **options: Any) -> dict[str, Any]:
        """One session of the job, to its end."""
        return self.drive(jobs.run(self.ctx, job, **options)["id"])

    def drive(self, session_id: str, *, steps: int = 60) -> dict[str, Any]:
        """Engine, proxies and time, until the session is over; the session as the API shows it."""
        for _ in range(steps):
            try:
                self.engine.run_once()
                self.proxies.work()
            except Crash:
                self.restart()
            self.clock.advance(10)
            with self.ctx.db.read() as s:
                if s.get_one(Session, session_id).state == SessionState.FINISHED.value:
                    break
        else:
            raise AssertionError(f"session did not end: {sessions.get(self.ctx, session_id)}")
        return sessions.get(self.ctx, session_id)

    # -- looking

    def rows(self, table: type[Any], **values: Any) -> list[Any]:
        with self.ctx.db.read() as s:
            return list(s.scalars(sa.select(table).filter_by(**values)))

    def points(self) -> list[RestorePointRow]:
        with self.ctx.db.read() as s:
            return list(s.scalars(sa.select(RestorePointRow).order_by(RestorePointRow.created_at)))

    def open_intents(self) -> list[Intent]:
        return self.rows(Intent, state="open")

    def vm_row(self, session: dict[str, Any], name: str) -> SessionVm:
        [row] = self.rows(SessionVm, session_id=session["id"], name=name)
        return row

    def default_proxy(self) -> Proxy:
        [row] = [row for row in self.rows(Proxy) if row.name == "default"]
        return row


def running_task(rig: Rig) -> Task:
    rig.vcenter.add_vm("db01", disks=1)
    rig.job()
    jobs.run(rig.ctx, "job1")
    for _ in range(3):
        rig.engine.run_once()
    [task] = rig.rows(Task)
    with rig.ctx.db() as s:
        change_state(
            s,
            Task,
            task.id,
            TaskState.PENDING,
            TaskState.RUNNING,
            proxy_id=rig.default_proxy().id,
            leased_until=rig.clock.now + timedelta(seconds=30),
        )
        s.execute(sa.update(Task).values(attempt=3))
    return task
