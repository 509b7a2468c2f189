"""Death at a chosen point: what a kill -9 leaves behind, without killing the test."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy.orm import Session as DbSession

from backup_server.db.engine import Database


class Crash(BaseException):
    """The process is dead from here on."""


class CrashPlan:
    """Counts the points at which a process may die, and dies at the one that was asked for."""

    def __init__(self) -> None:
        self.passed: list[str] = []
        self._at = 0
        self._dead = False

    def arm(self, at: int) -> None:
        """Die at the `at`-th point from now, counted from 1; 0: never."""
        self.passed = []
        self._at = at
        self._dead = False

    @property
    def struck(self) -> bool:
        return self._dead

    @property
    def is_armed(self) -> bool:
        """A death is still to come."""
        return self._at > 0

    def revive(self) -> None:
        """The next process begins."""
        self._at = 0
        self._dead = False

    def point(self, name: str) -> None:
        if self._dead:
            raise Crash(name)  # other threads of a dead process do nothing more either
        self.passed.append(name)
        if len(self.passed) == self._at:
            self._dead = True
            raise Crash(name)


class CrashingDatabase(Database):
    """Points before and after every commit."""

    plan: CrashPlan | None = None

    @contextmanager
    def __call__(self) -> Iterator[DbSession]:
        with self._write() as session, session.begin():
            yield session
            session.flush()
            if self.plan is not None:
                self.plan.point("before commit")
        if self.plan is not None:
            self.plan.point("after commit")
