"""Leadership, due jobs and the loops themselves, with a clock that the test moves."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import redis
import sqlalchemy as sa
import structlog

from backup_server.config import Settings
from backup_server.db.engine import Database, open_database
from backup_server.db.tables import (
    Credential,
    Event,
    Job,
    JobRun,
    Leader,
    UtcDateTime,
    Vcenter,
    new_id,
)
from backup_server.errors import ConflictError
from backup_server.scheduler.due_jobs import DueJobs
from backup_server.scheduler.leader import Leadership
from backup_server.scheduler.loops import Loop
from backup_server.scheduler.reaper import Reaper
from backup_server.services import counters
from tests.integration.queue.rig import LightContext, wait_for
from tests.integration.queue.task_rows import add_repository

START = datetime(2026, 3, 1, 12, tzinfo=UTC)


class Clock:
    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> datetime:
        return self.now

    def forward(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


@pytest.fixture
def db(migrated_url: str) -> Iterator[Database]:
    made = open_database(migrated_url)
    yield made
    made.close()


@pytest.fixture
def clock() -> Clock:
    return Clock()


def leader(db: Database, owner: str, clock: Clock, gains: list[str]) -> Leadership:
    return Leadership(
        db,
        owner,
        ttl_s=10,
        clock=clock,
        log=structlog.get_logger(),
        on_gain=lambda: gains.append(owner),
        time_of_database=lambda _, offset: sa.literal(clock() + offset, UtcDateTime),
        steady_s=lambda: clock().timestamp(),
    )


def test_one_leads_until_it_falls_silent(db: Database, clock: Clock) -> None:
    gains: list[str] = []
    one, two = leader(db, "one", clock, gains), leader(db, "two", clock, gains)
    for each in (one, two):
        each.step()
    assert (one.leading, two.leading, one.fence) == (True, False, 1)
    clock.forward(9)
    for each in (one, two):
        each.step()
    assert (one.leading, two.leading, one.fence) == (True, False, 1)
    clock.forward(10)
    assert not one.leading
    two.step()
    assert (two.leading, two.fence) == (True, 2)
    one.step()
    assert not one.leading
    two.release()
    assert not two.leading
    one.step()
    assert (one.leading, one.fence) == (True, 3)
    assert gains == ["one", "two", "one"]


def test_a_row_that_reaches_far_ahead_is_free_when_its_owner_is_silent(
    db: Database, clock: Clock
) -> None:
    """The database's clock was put back: another server leads within 30 s of the last renewal all the same."""
    one, two = leader(db, "one", clock, []), leader(db, "two", clock, [])

    def pass_time(seconds: float, *servers: Leadership) -> None:
        for _ in range(int(seconds / 3)):
            clock.forward(3)
            for server in servers:
                server.step()

    pass_time(60, one, two)
    assert (one.leading, two.leading, one.fence) == (True, False, 1)
    with db() as s:
        s.execute(sa.update(Leader).values(until=clock() + timedelta(hours=1)))
    pass_time(12, two)
    assert (one.leading, two.leading) == (False, False)
    pass_time(15, two)
    assert (one.leading, two.leading, two.fence) == (False, True, 2)
    pass_time(60, one, two)
    assert one.leading != two.leading


def test_two_that_begin_at_once_do_not_both_lead(db: Database, clock: Clock) -> None:
    gains: list[str] = []
    leaders = [leader(db, f"o{n}", clock, gains) for n in range(4)]
    threads = [threading.Thread(target=each.step) for each in leaders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(each.leading for each in leaders) == 1
    assert len(gains) == 1


class Jobs:
    def __init__(self, db: Database, clock: Clock, directory: Path) -> None:
        self.db, self.clock = db, clock
        self.ctx = LightContext(settings=Settings(data_dir=directory), db=db, clock=clock)
        self.started: list[datetime] = []
        self.refuse = False
        self.loop = DueJobs(self.ctx, self._start, lambda: True)
        with db() as s:
            credential = Credential(id=new_id(), kind="x", sealed=b"x", created_at=START)
            s.add(credential)
            s.flush()
            vcenter = Vcenter(
                id=new_id(),
                name="vc",
                host="vc",
                port=443,
                username="u",
                credential_id=credential.id,
                thumbprint_sha256="",
                instance_uuid="",
                about={},
                created_at=START,
            )
            s.add(vcenter)
            self.vcenter_id, self.repository_id = vcenter.id, add_repository(s, START)

    def _start(self, s: Any, job: Job, now: datetime) -> str:
        if self.refuse:
            raise ConflictError("a session of the job is running already")
        self.started.append(now)
        return new_id()

    def add(self, missed: str, **changes: Any) -> str:
        values = {
            "id": new_id(),
            "name": new_id(),
            "vcenter_id": self.vcenter_id,
            "repository_id": self.repository_id,
            "selection": {},
            "schedule": {"cron": "0 * * * *", "time_zone": "UTC", "missed": missed},
            "retention": {},
            "options": {},
            "next_run_at": START + timedelta(hours=1),
            "created_at": START,
            "updated_at": START,
            **changes,
        }
        with self.db() as s:
            s.add(Job(**values))
        return str(values["id"])

    def runs(self) -> list[tuple[int, str]]:
        with self.db.read() as s:
            rows = s.scalars(sa.select(JobRun).order_by(JobRun.due_at)).all()
        return [(row.due_at.hour, row.outcome) for row in rows]

    def next_run(self, job_id: str) -> datetime | None:
        with self.db.read() as s:
            return s.get_one(Job, job_id).next_run_at


@pytest.fixture
def jobs(db: Database, clock: Clock, tmp_path: Path) -> Jobs:
    return Jobs(db, clock, tmp_path)


def test_a_due_time_fires_once(jobs: Jobs, clock: Clock) -> None:
    job_id = jobs.add("skip")
    jobs.loop.step()
    assert jobs.started == []
    clock.forward(3600 + 5)
    for _ in range(3):
        jobs.loop.step()
    assert len(jobs.started) == 1
    assert jobs.runs() == [(13, "started")]
    assert jobs.next_run(job_id) == START + timedelta(hours=2)
    assert jobs.ctx.wake_engine.is_set()


@pytest.mark.parametrize(
    ("missed", "runs"),
    [
        ("run-once", [(13, "missed"), (14, "missed"), (15, "started")]),
        ("skip", [(13, "missed"), (14, "missed"), (15, "missed")]),
    ],
)
def test_runs_missed_while_the_server_was_down(
    jobs: Jobs, clock: Clock, missed: str, runs: list[tuple[int, str]]
) -> None:
    job_id = jobs.add(missed, name="nightly")
    clock.forward(3.5 * 3600)
    jobs.loop.step()
    assert jobs.runs() == runs
    assert len(jobs.started) == (1 if missed == "run-once" else 0)
    assert jobs.next_run(job_id) == START + timedelta(hours=4)
    missed_runs = sum(outcome == "missed" for _, outcome in runs)
    with jobs.db.read() as s:
        assert counters.read(s) == {("job_runs_missed", ("nightly", "away")): missed_runs}


def test_a_job_that_still_runs_is_not_started_and_it_is_said(jobs: Jobs, clock: Clock) -> None:
    jobs.add("run-once", name="nightly")
    jobs.refuse = True
    clock.forward(3600)
    jobs.loop.step()
    assert jobs.runs() == [(13, "a session of the job is running already")]
    with jobs.db.read() as s:
        assert [event.name for event in s.scalars(sa.select(Event))] == ["job.not-started"]
        assert counters.read(s) == {("job_runs_missed", ("nightly", "refused")): 1}


def test_disabled_jobs_and_those_without_schedule_rest(jobs: Jobs, clock: Clock) -> None:
    jobs.add("run-once", enabled=False)
    bare = jobs.add("run-once", schedule=None)
    clock.forward(3600)
    jobs.loop.step()
    assert (jobs.started, jobs.runs(), jobs.next_run(bare)) == ([], [], None)


def test_a_clock_that_was_ahead_keeps_no_job_waiting(jobs: Jobs, clock: Clock) -> None:
    job_id = jobs.add("skip", next_run_at=START + timedelta(days=3650))
    jobs.loop.step()
    assert jobs.next_run(job_id) == START + timedelta(hours=1)
    clock.forward(3650 * 86_400)
    jobs.loop.step()
    clock.forward(-3650 * 86_400)
    jobs.loop.step()
    assert jobs.next_run(job_id) == START + timedelta(hours=1)


def test_two_servers_fire_one_run(jobs: Jobs, clock: Clock) -> None:
    jobs.add("run-once")
    clock.forward(3600)
    other = DueJobs(jobs.ctx, jobs._start, lambda: True)
    threads = [threading.Thread(target=each.step) for each in (jobs.loop, other)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert jobs.runs() == [(13, "started")]


def test_a_loop_survives_every_failure_and_tells_of_it() -> None:
    errors: list[Exception] = [redis.ConnectionError("gone"), ValueError("odd"), KeyError("x")]
    done = threading.Event()

    def step() -> bool:
        if errors:
            raise errors.pop(0)
        done.set()
        return False

    loop = Loop(
        "test",
        step,
        interval_s=0.01,
        clock=lambda: START,
        log=structlog.get_logger(),
    )
    assert not loop.health.alive
    loop.start()
    assert done.wait(30)
    wait_for(lambda: loop.health.failures == 0, "recovery")
    assert loop.health.last_success_at == START
    loop.stop()
    assert loop.join(10)


def test_a_lease_that_a_clock_ahead_wrote_ends_in_time(
    db: Database, clock: Clock, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The reaper says that the clock went back, and goes on."""
    ctx = LightContext(settings=Settings(data_dir=tmp_path), db=db, clock=clock)
    monkeypatch.setattr("backup_server.services.waits.shorten_waits", lambda *_, **__: 1)
    reaper = Reaper(
        ctx,
        index=None,  # type: ignore[arg-type]
        leading=lambda: True,
        listening_since=lambda: None,
        heard_until=lambda: None,
        outbox_wake=threading.Event(),
    )
    with structlog.testing.capture_logs() as said:
        assert not reaper.step()
    assert [line["event"] for line in said] == ["clock.went-back"]
