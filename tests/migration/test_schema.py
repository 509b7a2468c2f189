"""Migrations and tables say the same, on both databases."""

from __future__ import annotations

import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from backup_server.db.engine import create_engine, open_database
from backup_server.db.migrate import current_revision, head_revision, upgrade
from backup_server.db.tables import (
    Base,
    Credential,
    Intent,
    Job,
    Proxy,
    Repository,
    Session,
    SessionVm,
    Setting,
    Task,
    Vcenter,
)
from backup_server.errors import SettingsError, UnavailableError


def test_migrated_schema_is_the_tables(database_url: str) -> None:
    engine = create_engine(database_url)
    assert current_revision(engine) is None
    upgrade(engine)
    assert current_revision(engine) == head_revision()
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []
    engine.dispose()


def test_partial_indices_are_migrated(database_url: str) -> None:
    engine = create_engine(database_url)
    upgrade(engine)
    indices = {index["name"]: index for index in sa.inspect(engine).get_indexes("sessions")}
    found = indices["uq_sessions_one_open_per_job"]
    assert found["unique"]
    where = str(found["dialect_options"][f"{engine.dialect.name}_where"])
    assert "finished" in where
    engine.dispose()


def test_upgrade_may_be_repeated_and_keeps_data(database_url: str) -> None:
    for _ in range(2):
        database = open_database(database_url)
        with database() as s:
            s.merge(Setting(name="a", value="b"))
        database.close()
    database = open_database(database_url)
    with database.read() as s:
        assert s.get_one(Setting, "a").value == "b"
    database.close()


def test_rows_of_0_2_0_are_kept_and_have_what_0_3_0_adds(database_url: str) -> None:
    engine = create_engine(database_url)
    upgrade(engine, "0002")
    now = datetime(2026, 1, 1, tzinfo=UTC)
    old: list[tuple[type[Base], dict[str, Any]]] = [
        (Vcenter, {"id": "v1", "credential_id": "c1"}),
        (Proxy, {"id": "p1", "name": "px1", "modes": []}),
        (Intent, {"id": "i1", "vcenter_id": "v1", "mark": "ours"}),
    ]
    with engine.begin() as connection:
        connection.execute(
            sa.insert(Base.metadata.tables["credentials"]),
            [_row(Base.metadata.tables["credentials"], {"id": "c1"}, set(), now)],
        )
        for cls, values in old:
            table = Base.metadata.tables[cls.__tablename__]
            missing = {"settings", "connections", "details", "state_note"}
            _insert(connection, table, _row(table, values, missing, now))
    engine.dispose()
    database = open_database(database_url)
    with database.read() as s:
        proxy, intent = s.get_one(Proxy, "p1"), s.get_one(Intent, "i1")
        assert (proxy.name, proxy.settings, proxy.connections, proxy.connections_at) == (
            "px1",
            {},
            {},
            None,
        )
        assert (intent.mark, intent.details, intent.task_id) == ("ours", {}, None)
    database.close()


def test_rows_of_0_3_0_are_kept_and_have_what_0_4_0_adds(database_url: str) -> None:
    engine = create_engine(database_url)
    upgrade(engine, "0003")
    now = datetime(2026, 1, 1, tzinfo=UTC)
    old: list[tuple[type[Base], dict[str, Any]]] = [
        (Credential, {"id": "c1"}),
        (Proxy, {"id": "p1", "name": "px1", "modes": []}),
        (Repository, {"id": "r1", "credential_id": "c1"}),
        (Job, {"id": "j1", "name": "nightly", "repository_id": "r1"}),
        (Session, {"id": "s1", "job_id": "j1"}),
        (SessionVm, {"id": "v1", "session_id": "s1"}),
        (
            Task,
            {
                "id": "t1",
                "session_id": "s1",
                "session_vm_id": "v1",
                "repository_id": "r1",
                "proxy_id": "p1",
                "facts": {},
            },
        ),
    ]
    with engine.begin() as connection:
        for cls, values in old:
            table = Base.metadata.tables[cls.__tablename__]
            _insert(connection, table, _row(table, values, {"state_note", "stop_reason"}, now))
    engine.dispose()
    database = open_database(database_url)
    with database.read() as s:
        proxy, job = s.get_one(Proxy, "p1"), s.get_one(Job, "j1")
        session, task = s.get_one(Session, "s1"), s.get_one(Task, "t1")
        assert (proxy.name, proxy.server_id, proxy.state_note) == ("px1", None, "")
        assert (job.name, job.window, job.after_job_id) == ("nightly", None, None)
        assert (session.job_id, session.stop_reason) == ("j1", "")
        assert (task.proxy_id, task.continues_task_id, task.rate_bytes_per_s) == ("p1", None, None)
    database.close()


def _insert(connection: sa.Connection, table: sa.Table, row: dict[str, Any]) -> None:
    names = ", ".join(f'"{name}"' for name in row)
    slots = ", ".join(f":{name}" for name in row)
    typed = [sa.bindparam(name, type_=table.c[name].type) for name in row]
    connection.execute(
        sa.text(f'INSERT INTO "{table.name}" ({names}) VALUES ({slots})').bindparams(*typed), row
    )


def _row(table: sa.Table, values: dict[str, Any], without: set[str], now: datetime) -> dict[str, Any]:
    """A row with something in each column that must have it."""
    empty = {bool: True, int: 1, float: 1.0, str: "x", bytes: b"x"}
    row = {
        column.name: {} if isinstance(column.type, sa.JSON) else empty.get(column.type.python_type, now)
        for column in table.columns
        if not column.nullable and column.name not in without
    }
    return {**row, **values}


def test_newer_schema_is_refused(database_url: str) -> None:
    engine = create_engine(database_url)
    upgrade(engine)
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(SettingsError, match="9999"):
        upgrade(engine)
    engine.dispose()


def test_two_servers_that_start_together_take_turns(database_url: str) -> None:
    problems: list[Exception] = []

    def start() -> None:
        engine = create_engine(database_url)
        try:
            upgrade(engine)
        except Exception as error:  # noqa: BLE001 - looked at below
            problems.append(error)
        engine.dispose()

    threads = [threading.Thread(target=start) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    engine = create_engine(database_url)
    assert current_revision(engine) == head_revision()
    engine.dispose()


def test_first_connections_to_a_new_file_take_turns(tmp_path: Path) -> None:
    """The switch to WAL is refused at once, without SQLite's time-out, when two ask for it together."""
    problems: list[Exception] = []
    for round_number in range(40):
        together = threading.Barrier(6)

        def start(number: int = round_number, together: threading.Barrier = together) -> None:
            engine = create_engine(f"sqlite:///{tmp_path}/jobs-{number}.db")
            together.wait()
            try:
                with engine.begin() as connection:
                    connection.execute(sa.text("CREATE TABLE IF NOT EXISTS t (x INTEGER)"))
            except Exception as error:  # noqa: BLE001 - looked at below
                problems.append(error)
            engine.dispose()

        threads = [threading.Thread(target=start) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert problems == []


def test_writers_wait_for_each_other(database_url: str) -> None:
    """Read, then write, in many threads: with a deferred begin SQLite would refuse most of them."""
    database = open_database(database_url)
    with database() as s:
        s.add(Setting(name="n", value="0"))

    def count() -> None:
        for _ in range(20):
            with database() as s:
                row = s.get_one(Setting, "n", with_for_update=True)
                row.value = str(int(row.value) + 1)

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with database.read() as s:
        assert s.get_one(Setting, "n").value == "80"
    database.close()


def test_rolled_back_by_an_exception(database_url: str) -> None:
    database = open_database(database_url)

    def fail() -> None:
        with database() as s:
            s.add(Setting(name="n", value="0"))
            s.flush()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    with database.read() as s:
        assert s.get(Setting, "n") is None
    database.close()


def test_sqlite_is_set_up_for_safety(tmp_path: Path) -> None:
    database = open_database(f"sqlite:///{tmp_path / 'x.db'}")
    with database.engine.connect() as connection:
        pragmas = {
            name: connection.scalar(sa.text(f"PRAGMA {name}"))
            for name in ("journal_mode", "foreign_keys", "synchronous")
        }
    assert pragmas == {"journal_mode": "wal", "foreign_keys": 1, "synchronous": 2}
    database.close()


@pytest.mark.parametrize("url", ["mysql://host/db", "not a url"])
def test_databases_that_are_not_supported(url: str) -> None:
    with pytest.raises(SettingsError):
        create_engine(url)


def test_database_that_does_not_answer() -> None:
    with pytest.raises(UnavailableError) as caught:
        open_database("postgresql://user:hunter2@127.0.0.1:1/db")
    assert "hunter2" not in str(caught.value)


def test_rows_of_the_first_release_survive(database_url: str) -> None:
    """SQLite writes changed tables anew; what refers to their rows must not go with the old ones."""
    engine = create_engine(database_url)
    upgrade(engine, "0001")
    when = "2026-11-23 02:00:00.000000"
    with engine.begin() as connection:
        for statement in (
            f"INSERT INTO credentials VALUES ('c1', 'vcenter', '', '{when}')",
            (
                "INSERT INTO vcenters (id, name, host, port, username, credential_id, thumbprint_sha256,"
                f" instance_uuid, about, created_at) VALUES ('v1', 'v', 'h', 443, 'u', 'c1', '', '', '{{}}', '{when}')"
            ),
            (
                "INSERT INTO repositories (id, name, repository_id, location, credential_id, block_size_bytes,"
                f" max_tasks, created_at) VALUES ('r1', 'main', 'x', '/backup', 'c1', 1048576, 4, '{when}')"
            ),
            (
                "INSERT INTO jobs (id, name, description, enabled, vcenter_id, repository_id, selection,"
                " retention, options, created_at, updated_at) VALUES"
                f" ('j1', 'nightly', '', true, 'v1', 'r1', '{{}}', '{{}}', '{{}}', '{when}', '{when}')"
            ),
            f"INSERT INTO job_runs VALUES ('j1', '{when}', 'started', 's1')",
            (
                "INSERT INTO sessions (id, kind, job_id, job_name, repository_id, state, reason, options,"
                " cancel_requested, attempt, created_at, report) VALUES"
                f" ('s1', 'backup', 'j1', 'nightly', 'r1', 'finished', '', '{{}}', false, 1, '{when}', '{{}}')"
            ),
        ):
            connection.execute(sa.text(statement))
    upgrade(engine)
    with engine.connect() as connection:
        job = connection.execute(
            sa.text("SELECT kind, vcenter_id, source_repository_id FROM jobs")
        ).one()
        assert tuple(job) == ("backup", "v1", None)
        assert connection.scalar(sa.text("SELECT job_id FROM sessions")) == "j1"
        assert connection.scalar(sa.text("SELECT count(*) FROM job_runs")) == 1
        assert connection.scalar(sa.text("SELECT location FROM repositories")) == "/backup"
        if engine.dialect.name == "sqlite":
            assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar() == 1
    engine.dispose()
