"""Connections to the job database.

SQLite runs in WAL mode: readers never wait for the writer. Every transaction that may write begins
with BEGIN IMMEDIATE, because a transaction that read first and wants to write later fails at once
("database is locked") when another wrote in between, whatever the time-out; with IMMEDIATE the second
writer waits at its beginning instead. `synchronous=FULL`: intents must be on the disk before the side
effect that they announce; NORMAL would lose the last commits with the power (not with the process).

PostgreSQL through psycopg 3, isolation READ COMMITTED: changes are UPDATEs guarded by the old state. A
server that was frozen or lost its network in the middle of a transaction holds its locks, the leader's row
among them, only as long as PostgreSQL waits for it: some seconds, so that another server can take over.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import make_url
from sqlalchemy.orm import Session as DbSession
from sqlalchemy.orm import sessionmaker

from backup_server.errors import SettingsError, UnavailableError

BUSY_TIMEOUT_S: Final = 30
_WAL_RETRY_S: Final = 0.02
_POSTGRES_OPTIONS: Final = " ".join(
    f"-c {setting}"
    for setting in (
        # A server that is stopped, or whose machine is gone, in the middle of a transaction holds its rows; the
        # server that takes over waits for them.
        "idle_in_transaction_session_timeout=10s",
        "tcp_keepalives_idle=5",
        "tcp_keepalives_interval=3",
        "tcp_keepalives_count=3",
    )
)
IDLE_TRANSACTION_S: Final = 15.0
"""After which PostgreSQL ends a transaction in which nothing is asked. Ours ask one thing after the other, and
never anybody else in between; and another server is to lead within 30 s."""
_CONNECT_S: Final = 10
_SILENT_PEER_S: Final = 15
_READ_ONLY: Final = "vmhaul_read_only"


class Database:
    """Transactions on the job database.

    `with database() as s:` is one write transaction: committed at the end, rolled back by an
    exception. `with database.read() as s:` sees one consistent state and does not hold up writers.
    Rows stay readable after the end.
    """

    def __init__(self, engine: sa.Engine) -> None:
        self.engine = engine
        self._write = sessionmaker(engine, expire_on_commit=False)
        reader = engine.execution_options(**{_READ_ONLY: True})
        self._read = sessionmaker(reader, expire_on_commit=False, autoflush=False)

    @contextmanager
    def __call__(self) -> Iterator[DbSession]:
        with self._write() as session, session.begin():
            yield session

    @contextmanager
    def read(self) -> Iterator[DbSession]:
        with self._read() as session:
            yield session

    def close(self) -> None:
        self.engine.dispose()


def create_engine(
    url: str, *, pool_size: int = 20, idle_transaction_s: float = IDLE_TRANSACTION_S
) -> sa.Engine:
    """An engine for a SQLite or PostgreSQL URL, set up as this module's docstring says."""
    try:
        parsed = make_url(url)
    except sa.exc.ArgumentError as error:
        raise SettingsError(
            "the database URL cannot be read; give sqlite:///file or postgresql+psycopg://user@host/name"
        ) from error
    if parsed.get_backend_name() == "postgresql":
        parsed = parsed.set(drivername="postgresql+psycopg")
        return _postgresql(parsed, pool_size, idle_transaction_s)
    if parsed.get_backend_name() != "sqlite":
        raise SettingsError(
            f"no support for database {parsed.get_backend_name()}; use SQLite or PostgreSQL"
        )
    if parsed.database and parsed.database != ":memory:":
        Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
    engine = sa.create_engine(
        parsed, pool_size=pool_size, max_overflow=10, connect_args={"timeout": BUSY_TIMEOUT_S}
    )
    sa.event.listen(engine, "connect", _set_up_sqlite)
    sa.event.listen(engine, "begin", _begin_sqlite)
    return engine


def _postgresql(url: sa.URL, pool_size: int, idle_transaction_s: float) -> sa.Engine:
    # Names of libpq, for our side of the connection; what stands in the URL counts before these.
    own_side = {
        "connect_timeout": _CONNECT_S,
        "keepalives_idle": _SILENT_PEER_S // 3,
        "keepalives_interval": _SILENT_PEER_S // 3,
        "keepalives_count": 2,
        "tcp_user_timeout": _SILENT_PEER_S * 1000,
    }
    engine = sa.create_engine(
        url,
        pool_size=pool_size,
        max_overflow=10,
        pool_pre_ping=True,
        connect_args={name: value for name, value in own_side.items() if name not in url.query},
    )
    # Not as start-up options: poolers between the two refuse those that they do not know.
    its_side = {
        "idle_in_transaction_session_timeout": int(idle_transaction_s * 1000),
        "tcp_keepalives_idle": _SILENT_PEER_S // 3,
        "tcp_keepalives_interval": _SILENT_PEER_S // 3,
        "tcp_keepalives_count": 2,
        "tcp_user_timeout": _SILENT_PEER_S * 1000,
    }
    statement = "; ".join(f"SET SESSION {name} = {value}" for name, value in its_side.items())

    def set_up(connection: Any, record: Any) -> None:
        del record
        with connection.cursor() as cursor:
            cursor.execute(statement)
        connection.commit()

    sa.event.listen(engine, "connect", set_up)
    return engine


def _set_up_sqlite(connection: Any, record: Any) -> None:
    del record
    # The driver must not begin transactions by itself: _begin_sqlite does, in the right way.
    connection.isolation_level = None
    cursor = connection.cursor()
    for pragma in (f"busy_timeout={BUSY_TIMEOUT_S * 1000}", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    _enter_wal(cursor)
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.close()


def _enter_wal(cursor: sqlite3.Cursor) -> None:
    """Switch to WAL mode; the first connections to a new database take turns.

    The switch needs the whole file, and SQLite refuses it at once, without its busy time-out, when two
    connections want it together (https://www.sqlite.org/c3ref/busy_handler.html: a handler is not called
    where waiting could be a deadlock).
    """
    waiting = threading.Event()
    for _ in range(int(BUSY_TIMEOUT_S / _WAL_RETRY_S)):
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY:
                raise
            waiting.wait(_WAL_RETRY_S)
        else:
            return
    cursor.execute("PRAGMA journal_mode=WAL")


def _begin_sqlite(connection: sa.Connection) -> None:
    read_only = connection.get_execution_options().get(_READ_ONLY, False)
    connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")


def open_database(url: str) -> Database:
    """Database with its schema brought up to date; UnavailableError when it does not answer."""
    from backup_server.db.migrate import upgrade

    engine = create_engine(url)
    try:
        upgrade(engine)
    except sa.exc.OperationalError as error:
        engine.dispose()
        shown = engine.url.render_as_string(hide_password=True)
        raise UnavailableError(
            f"the job database {shown} does not answer: {error.orig}; check that it runs and may be reached"
        ) from error
    return Database(engine)
