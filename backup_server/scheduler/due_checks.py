"""Starts the verifications that the repositories' schedules ask for."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta

import sqlalchemy as sa

from backup_server.db.tables import Repository
from backup_server.errors import ConflictError
from backup_server.scheduler.needs import SchedulerContext
from backup_server.services import events, schedule, verification


class DueChecks:
    """One for the process; `step` runs on one thread."""

    def __init__(self, ctx: SchedulerContext, leading: Callable[[], bool]) -> None:
        self._ctx = ctx
        self._leading = leading
        self._last_step: datetime | None = None

    def step(self) -> bool:
        if not self._leading():
            return False
        now = self._ctx.clock()
        if self._last_step is None or now < self._last_step:
            self._after_clock_change(now)
        self._last_step = now
        with self._ctx.db.read() as s:
            due = s.scalars(
                sa.select(Repository.id).where(
                    Repository.next_check_at.is_not(None), Repository.next_check_at <= now
                )
            ).all()
        for repository_id in due:
            if self._fire(repository_id, now):
                self._ctx.wake_engine.set()
        return False

    def _after_clock_change(self, now: datetime) -> None:
        """As that of the jobs."""
        wanted = sa.select(Repository).where(Repository.next_check_at > now).with_for_update()
        with self._ctx.db() as s:
            for row in s.scalars(wanted):
                due = verification.next_check(row.settings, now)
                if due is not None and row.next_check_at is not None and due < row.next_check_at:
                    row.next_check_at = due

    def _fire(self, repository_id: str, now: datetime) -> bool:
        with self._ctx.db() as s:
            # The row is locked: of two servers one starts the check, the other sees the next due time.
            row = s.get(Repository, repository_id, with_for_update=True)
            if row is None or row.next_check_at is None or row.next_check_at > now:
                return False
            wanted = row.settings.get(verification.SETTING)
            if wanted is None:
                row.next_check_at = None
                return False
            since = row.next_check_at - timedelta(microseconds=1)
            due = schedule.due_runs(wanted["schedule"], since, now)
            row.next_check_at = verification.next_check(row.settings, now)
            if due.fire is None:
                return False
            try:
                verification.begin(s, row, now=now, trigger="schedule")
            except ConflictError as error:
                text = f"the verification of repository {row.name} was due and was not started: {error}"
                events.record(s, now, "verification.not-started", text, level=events.WARNING)
                return False
            return True
