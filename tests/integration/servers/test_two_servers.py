"""Two server processes on one PostgreSQL: one leads, whatever becomes of it."""

from __future__ import annotations

import shutil
import signal
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import pytest
import sqlalchemy as sa

from backup_server.credentials import CredentialStore, load_or_create_key
from backup_server.db.engine import Database, create_engine
from backup_server.db.states import SessionState
from backup_server.db.tables import Job, JobRun, Leader, Repository, Session, new_id
from backup_server.services.instances import INSTANCE_FILE
from tests.support.postgres import create_database, drop_database
from transports.vsphere.model import Secret

from .rig import KEYS, TAKEOVER_S, Server, leader, takeover_s, wait_for

JOBS = 40
DUE_EVERY_S = 4


@pytest.fixture
def site(
    tmp_path: Path, postgres_url: str, postgres_template: str
) -> Iterator[tuple[Server, Server, Database]]:
    """Two servers with the same keys, not started, and their database."""
    name = f"t{uuid4().hex}"
    url = create_database(postgres_url, name, template=postgres_template)
    first, second = Server(tmp_path / "a", url), Server(tmp_path / "b", url)
    for key in KEYS:
        load_or_create_key(first.data / key)
        shutil.copy(first.data / key, second.data / key)
    database = Database(create_engine(url, pool_size=2))
    yield first, second, database
    for server in (first, second):
        if server.process is not None and server.process.poll() is None:
            server.end(signal.SIGKILL)
        server.close()
    database.close()
    drop_database(postgres_url, name)


def now() -> datetime:
    return datetime.now(UTC)


def add_jobs(database: Database, key_file: Path) -> None:
    """Copy jobs with nothing to copy: their sessions end by themselves. Each is due once a minute, from some
    seconds on."""
    store = CredentialStore(load_or_create_key(key_file))
    with database() as s:
        repositories = []
        for name in ("near", "far"):
            credential = store.store(s, "repository", Secret("x"), now())
            row = Repository(
                id=new_id(),
                name=name,
                repository_id=new_id(),
                location=f"/nowhere/{name}",
                credential_id=credential,
                storage_credential_id=None,
                settings={},
                next_check_at=None,
                block_size_bytes=1 << 20,
                max_tasks=1,
                total_bytes=None,
                free_bytes=None,
                space_at=None,
                created_at=now(),
            )
            s.add(row)
            repositories.append(row)
        s.flush()
        for number in range(JOBS):
            s.add(
                Job(
                    id=new_id(),
                    name=f"job{number:03}",
                    kind="copy",
                    vcenter_id=None,
                    source_repository_id=repositories[0].id,
                    repository_id=repositories[1].id,
                    selection={"include": [{"type": "all", "name": "*"}], "exclude": []},
                    schedule={"cron": "* * * * *", "time_zone": "UTC", "missed": "skip"},
                    retention={"keep": 1},
                    options={
                        "retries": {"count": 0, "wait_s": 0},
                        "proxies": [],
                        "first": "all",
                        "after_backup": False,
                    },
                    next_run_at=None,
                    created_at=now(),
                    updated_at=now(),
                )
            )


def make_due(database: Database) -> None:
    """Every job is due once more, all over the next seconds."""
    at = now()
    with database() as s:
        for number, job in enumerate(s.scalars(sa.select(Job).order_by(Job.name))):
            job.next_run_at = at + timedelta(seconds=number * DUE_EVERY_S / JOBS)


def runs(database: Database) -> list[JobRun]:
    with database.read() as s:
        return list(s.scalars(sa.select(JobRun)))


def check_runs(database: Database) -> int:
    """No due time began two sessions, and no session began without one; how many were begun."""
    with database.read() as s:
        sessions = list(s.scalars(sa.select(Session)))
        started = list(s.scalars(sa.select(JobRun).where(JobRun.session_id.is_not(None))))
    assert len({run.session_id for run in started}) == len(started)
    assert Counter(session.id for session in sessions) == Counter(run.session_id for run in started)
    return len(started)


def test_one_leads_whatever_becomes_of_the_other(site: tuple[Server, Server, Database]) -> None:
    first, second, database = site
    add_jobs(database, first.data / KEYS[0])
    first.start()
    wait_for("the first leads", first.leads)
    second.start()
    assert (first.data / INSTANCE_FILE).read_text() != (second.data / INSTANCE_FILE).read_text()
    assert not second.leads()

    # A leader that stands still in the middle of its work, and wakes up later.
    make_due(database)
    wait_for("some runs", lambda: len(runs(database)) >= JOBS // 4)
    owner, fence = leader(database)
    first.signal(signal.SIGSTOP)
    assert takeover_s(database, owner) < TAKEOVER_S
    wait_for("the second leads", second.leads)
    make_due(database)
    wait_for("runs of the second", lambda: len(runs(database)) >= JOBS)
    first.signal(signal.SIGCONT)
    wait_for("the first sees that it lost the lead", lambda: not first.leads())
    assert leader(database)[1] == fence + 1
    wait_for("all due times are past", lambda: due_left(database) == 0)

    # One that is killed.
    make_due(database)
    wait_for("some more", lambda: due_left(database) < JOBS // 2)
    owner, _ = leader(database)
    second.end(signal.SIGKILL)
    assert takeover_s(database, owner) < TAKEOVER_S
    wait_for("all due times are past", lambda: due_left(database) == 0)
    wait_for("all sessions have ended", lambda: open_sessions(database) == 0)
    assert check_runs(database) >= JOBS

    # One that ends in order says so, and the other need not wait until the row has run out.
    second.start()
    owner, _ = leader(database)
    assert first.end(signal.SIGTERM) == 0
    with database.read() as s:
        assert s.get_one(Leader, "scheduler").until <= now()
    assert takeover_s(database, owner) < TAKEOVER_S
    wait_for("the second leads again", second.leads)


def due_left(database: Database) -> int:
    """Jobs whose time of make_due() has not been acted on."""
    soon = now() + timedelta(seconds=DUE_EVERY_S)
    with database.read() as s:
        return (
            s.scalar(sa.select(sa.func.count()).select_from(Job).where(Job.next_run_at <= now()))
            or s.scalar(
                sa.select(sa.func.count())
                .select_from(Job)
                .where(Job.next_run_at <= soon, sa.extract("second", Job.next_run_at) != 0)
            )
            or 0
        )


def open_sessions(database: Database) -> int:
    with database.read() as s:
        wanted = Session.state != SessionState.FINISHED.value
        return s.scalar(sa.select(sa.func.count()).select_from(Session).where(wanted)) or 0
