"""Who runs the scheduler: one row, held by renewing it.

Two servers on one database must not both hand out tasks. Every change of state is guarded in SQL, so two
leaders for a moment would waste work and break nothing; the row keeps it from lasting. On PostgreSQL every
transaction of a loop asks for the row as well (`db.fenced`), so a leader that was stopped and wakes up commits
nothing.

Clocks of the servers play no part. What stands in the row is the database's time, by which all of them judge it; how
long this server may believe that it leads it counts itself, on a clock that nobody sets and that goes on while the
machine sleeps. When the database's clock was put back, the row of an owner that is gone reaches far ahead: one that was
not renewed for two of its terms is free, whatever time stands in it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError as DuplicateError
from sqlalchemy.orm import Session as DbSession

from backup_server import instruments
from backup_server.db.clock import DatabaseTime, database_time
from backup_server.db.engine import Database
from backup_server.db.fenced import FENCED, NotLeadingError
from backup_server.db.tables import Leader
from proxy_worker.contracts.events import EventName
from transports.system import uptime_s

NAME: Final = "scheduler"
_TERMS: Final = 2
"""So many without a renewal, and the owner is taken for gone: it stops by itself after one."""


class Leadership:
    def __init__(
        self,
        db: Database,
        owner: str,
        *,
        ttl_s: float,
        clock: Callable[[], datetime],
        log: Any,
        on_gain: Callable[[], None],
        time_of_database: DatabaseTime | None = None,
        steady_s: Callable[[], float] = uptime_s,
    ) -> None:
        """`owner` is new for every process; `on_gain` is called before `leading` becomes true. `clock`: for a database
        without one of its own; `steady_s`: a clock that nobody sets.
        """
        self._db = db
        self._owner = owner
        self._ttl = timedelta(seconds=ttl_s)
        self._ttl_s = ttl_s
        self._after = time_of_database or database_time(clock)
        self._steady_s = steady_s
        self._log = log
        self._on_gain = on_gain
        self._lock = threading.Lock()
        self._until_s: float | None = None
        self._fence = 0
        self._seen: tuple[str, datetime] | None = None  # whose the row was, and until when
        self._seen_at_s: float | None = None  # since when it is so

    @property
    def leading(self) -> bool:
        until_s = self._until_s
        return until_s is not None and self._steady_s() < until_s

    @property
    def fence(self) -> int:
        """Grows with every change of the leader; 0 while this process never led."""
        return self._fence

    def confirm(self, s: DbSession) -> None:
        """In a transaction: NotLeadingError unless the row is ours, and stays it until the commit. A database of
        one server needs no such question.
        """
        if s.get_bind().dialect.name != FENCED:
            return
        owner = s.scalar(sa.select(Leader.owner).where(Leader.name == NAME).with_for_update(read=True))
        if owner != self._owner:
            raise NotLeadingError("another server leads; this one's step is given up")

    def step(self) -> bool:
        """Take or renew the row. Never asks to be called again at once."""
        with self._lock:
            was = self.leading
            now_s = self._steady_s()
            fence = self._take(now_s)
            if fence is None:
                if was:
                    self._log.warning(EventName.LEADER_LOST, text="another server leads now")
                self._until_s = None
                instruments.LEADS.set(0)
                return False
            if not was or fence != self._fence:
                self._on_gain()
                self._log.info(EventName.LEADER_TAKEN, text="this server leads", fence=fence)
            self._fence = fence
            # Counted from before the UPDATE: we must never believe longer than others do.
            self._until_s = now_s + self._ttl_s
            instruments.LEADS.set(1)
        return False

    def release(self) -> None:
        """Let another server take over at once."""
        with self._lock:
            self._until_s = None
            instruments.LEADS.set(0)
            with self._db() as s:
                s.execute(
                    sa.update(Leader)
                    .where(Leader.name == NAME, Leader.owner == self._owner)
                    .values(until=self._after(s, timedelta(0)))
                    .execution_options(synchronize_session=False)
                )

    def _free(self, s: DbSession, now_s: float) -> sa.ColumnElement[bool]:
        """Whether the row is nobody's any more: its time is over, or its owner fell silent."""
        over = Leader.until <= self._after(s, timedelta(0))
        silent = self._seen_at_s is not None and now_s - self._seen_at_s >= _TERMS * self._ttl_s
        if self._seen is None or not silent:
            return over
        owner, until = self._seen
        return sa.or_(over, sa.and_(Leader.owner == owner, Leader.until == until))

    def _notice(self, row: Leader | None, now_s: float) -> None:
        seen = None if row is None else (row.owner, row.until)
        if seen != self._seen or self._seen_at_s is None:
            self._seen, self._seen_at_s = seen, now_s

    def _take(self, now_s: float) -> int | None:
        mine = Leader.owner == self._owner
        with self._db() as s:
            fence = s.scalar(
                sa.update(Leader)
                .where(Leader.name == NAME, sa.or_(mine, self._free(s, now_s)))
                .values(
                    fence=Leader.fence + sa.case((mine, 0), else_=1),
                    owner=self._owner,
                    until=self._after(s, self._ttl),
                )
                .returning(Leader.fence)
                .execution_options(synchronize_session=False)
            )
            row = None if fence is not None else s.get(Leader, NAME)
        self._notice(row, now_s)
        if fence is not None or row is not None:
            return fence
        try:
            with self._db() as s:
                until = self._after(s, self._ttl)
                s.execute(sa.insert(Leader).values(name=NAME, owner=self._owner, until=until, fence=1))
        except DuplicateError:
            return None  # another server was faster with the very first row
        return 1
