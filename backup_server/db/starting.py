"""Servers on one database start one after the other: what a start makes once must not be made twice.

Migrations have their own turn (`migrate.upgrade`). This one is for what comes after: which keys the database was begun
with, the server's id, the default proxy, passwords that the server gives itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import sqlalchemy as sa

from backup_server.db.engine import Database
from backup_server.db.fenced import FENCED
from backup_server.errors import UnavailableError

_LOCK: Final = 0x766D68617573  # "vmhaus": PostgreSQL advisory lock, beside the one of migrations
LONGEST_S: Final = 120.0
"""A server that stands still in the middle of its start lets others start after so long."""


@contextmanager
def one_at_a_time(database: Database, *, longest_s: float = LONGEST_S) -> Iterator[None]:
    """Hold the turn; others wait. Of a transaction, not of a connection: poolers hand connections on. A database of one
    machine needs none: its data directory has one server (`up.lock`).

    UnavailableError when the turn was lost meanwhile: start again.
    """
    if database.engine.dialect.name != FENCED:
        yield
        return
    try:
        with database.engine.connect() as connection, connection.begin():
            longest_ms = int(longest_s * 1000)
            connection.execute(sa.text(f"SET LOCAL idle_in_transaction_session_timeout = {longest_ms}"))
            connection.execute(sa.text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
            yield
            # Asks the database: a turn that ran out is noticed before anything is built on it.
            connection.execute(sa.text("SELECT 1"))
    except (sa.exc.OperationalError, sa.exc.InternalError) as error:
        raise UnavailableError(
            f"the job database did not let the start be finished ({error.orig}); check that it runs, then start again"
        ) from error
