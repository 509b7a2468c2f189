"""Transactions of a server that leads, refused once another does.

A leader that was stopped for a while (a paused machine, a long swap) and goes on does not know that another took
over; what it had begun to do it would commit on top. So each write transaction of the loops asks, as its last
statement, whether the row of the leader is still its own, and holds that row until it is committed: a server that
takes over waits for it, and whoever comes later finds another owner.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from sqlalchemy.orm import Session as DbSession

from backup_server.db.engine import Database

FENCED: Final = "postgresql"
"""Two servers share a database of this kind only."""


class NotLeadingError(Exception):
    """Another server leads now: what this one was doing is given up, nothing of it is committed."""


class FencedDatabase(Database):
    """The transactions of `database`, with `confirm` at the end of those that may write."""

    def __init__(self, database: Database, confirm: Callable[[DbSession], None]) -> None:
        """`confirm` raises NotLeadingError."""
        self.engine = database.engine
        self._inner = database
        self._confirm = confirm

    @contextmanager
    def __call__(self) -> Iterator[DbSession]:
        with self._inner() as session:
            yield session
            self._confirm(session)

    @contextmanager
    def read(self) -> Iterator[DbSession]:
        with self._inner.read() as session:
            yield session

    def close(self) -> None:
        self._inner.close()
