"""Who runs the scheduler: one row, held by renewing it.

Two servers on one database must not both hand out tasks. Every change of state is guarded in SQL, so two
leaders for a moment would waste work and break nothing; the row keeps it from lasting. On PostgreSQL every
transaction of a loop asks for the row as well (`db.fenced`), so a leader that was stopped and wakes up commits
nothing.

Clocks of two servers need not agree: a row that its owner did not renew for two of its terms is free, whatever time
stands in it.
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
from backup_server.db.engine import Database
from backup_server.db.fenced import FENCED, NotLeadingError
from backup_server.db.tables import Leader
from proxy_worker.contracts.events import EventName

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
    ) -> None:
        """`owner` is new for every process; `on_gain` is called before `leading` becomes true."""
        self._db = db
        self._owner = owner
        self._ttl = timedelta(seconds=ttl_s)
        self._clock = clock
        self._log = log
        self._on_gain = on_gain
        self._lock = threading.Lock()
        self._until: datetime | None = None
        self._fence = 0
        self._seen: tuple[str, datetime] | None = None  # whose the row was, and until when
        self._seen_at: datetime | None = None  # since when it is so

    @property
    def leading(self) -> bool:
        until = self._until
        return until is not None and self._clock() < until

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
            now = self._clock()
            fence = self._take(now)
            if fence is None:
                if was:
                    self._log.warning(EventName.LEADER_LOST, text="another server leads now")
                self._until = None
                instruments.LEADS.set(0)
                return False
            if not was or fence != self._fence:
                self._on_gain()
                self._log.info(EventName.LEADER_TAKEN, text="this server leads", fence=fence)
            self._fence = fence
            # Counted from before the UPDATE: we must never believe longer than others do.
            self._until = now + self._ttl
            instruments.LEADS.set(1)
        return False

    def release(self) -> None:
        """Let another server take over at once."""
        with self._lock:
            self._until = None
            instruments.LEADS.set(0)
            with self._db() as s:
                s.execute(
                    sa.update(Leader)
                    .where(Leader.name == NAME, Leader.owner == self._owner)
                    .values(until=self._clock())
                )

    def _free(self, now: datetime) -> sa.ColumnElement[bool]:
        """Whether the row is nobody's any more: its time is over by our clock, or its owner fell silent."""
        over = Leader.until <= now
        if self._seen is None or self._seen_at is None or now - self._seen_at < _TERMS * self._ttl:
            return over
        owner, until = self._seen
        return sa.or_(over, sa.and_(Leader.owner == owner, Leader.until == until))

    def _notice(self, row: Leader | None, now: datetime) -> None:
        seen = None if row is None else (row.owner, row.until)
        if seen != self._seen or self._seen_at is None or now < self._seen_at:
            self._seen, self._seen_at = seen, now

    def _take(self, now: datetime) -> int | None:
        mine = Leader.owner == self._owner
        with self._db() as s:
            fence = s.scalar(
                sa.update(Leader)
                .where(Leader.name == NAME, sa.or_(mine, self._free(now)))
                .values(
                    fence=Leader.fence + sa.case((mine, 0), else_=1),
                    owner=self._owner,
                    until=now + self._ttl,
                )
                .returning(Leader.fence)
                .execution_options(synchronize_session=False)
            )
            row = None if fence is not None else s.get(Leader, NAME)
        self._notice(row, now)
        if fence is not None or row is not None:
            return fence
        try:
            with self._db() as s:
                s.add(Leader(name=NAME, owner=self._owner, until=now + self._ttl, fence=1))
        except DuplicateError:
            return None  # another server was faster with the very first row
        return 1
