"""Running tasks whose data must not cross in the clear any more: stopped in order, and handed out another way.

A traffic rule that asks for encryption keeps tasks from beginning in the clear (services/traffic_guard.py). One that is
made or changed while tasks run covers those as well, and so does one whose task went on in another mode: each round
looks at what runs, marks what must not go on (services/moving.py), and tells the proxies until the attempts end. Where
no rule asks for encryption a round is one question to the database.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.orm import Session as DbSession

from backup_server.db.states import TaskState
from backup_server.db.tables import Task
from backup_server.scheduler.down import DownLink
from backup_server.scheduler.needs import SchedulerContext
from backup_server.services import moving, traffic_guard
from backup_server.services.moving import Moving
from backup_server.services.proxy_ends import ProxyEnds
from backup_server.services.task_ends import Ends, TaskFacts, mode_in_use, read_facts
from backup_server.services.traffic_guard import NO_GUARD, Guard
from backup_server.services.wishes import FILE_MODE
from proxy_worker.contracts.ids import Attempt, ProxyId, TaskId
from proxy_worker.contracts.messages import LeaseAnswer, LeaseVerdict

SAID_AGAIN_AFTER: Final = timedelta(seconds=5)
"""To a proxy whose attempt still runs: it was not there, or its mover makes durable what it has."""


class EncryptionKeeper:
    """One for the process; `step` runs on one thread."""

    def __init__(
        self, ctx: SchedulerContext, down: DownLink, ends: Ends, *, leading: Callable[[], bool]
    ) -> None:
        self._leading = leading
        self._ctx = ctx
        self._down = down
        self._ends = ends
        self._guard: Guard = NO_GUARD
        self._proxies = ProxyEnds()
        self._facts: dict[str, TaskFacts] = {}
        self._told: dict[tuple[str, int], datetime] = {}

    def step(self) -> bool:
        """One round; False: nothing is left to do at once."""
        if not self._leading():
            self._told.clear()
            return False
        now = self._ctx.clock()
        with self._ctx.db.read() as s:
            self._guard = traffic_guard.read(s, self._ends, lambda: self._proxies.read(s), self._guard)
            rows = self._running(s) if self._guard.rules else []
        wanted = self._must_end(rows)
        if not wanted:
            self._told.clear()
            return False
        with self._ctx.db() as s:
            found = moving.ask(s, wanted, now)
        self._tell(found, now)
        return False

    def _running(self, s: DbSession) -> list[Any]:
        rows = s.execute(
            sa.select(Task.id, Task.attempt, Task.mode, Task.progress, Task.proxy_id).where(
                Task.state == TaskState.RUNNING.value,
                Task.proxy_id.is_not(None),
                Task.cancel_requested.is_(False),
            )
        ).all()
        running = {row.id for row in rows}
        for gone in self._facts.keys() - running:
            del self._facts[gone]
        if unknown := running - self._facts.keys():
            self._facts.update(read_facts(s, unknown))
        return list(rows)

    def _must_end(self, rows: Iterable[Any]) -> dict[str, tuple[int, str]]:
        found: dict[str, tuple[int, str]] = {}
        for row in rows:
            facts = self._facts.get(row.id)
            if facts is None:
                continue
            reason = self._guard.stops(facts, row.proxy_id, mode_in_use(row) or FILE_MODE)
            if reason:
                found[row.id] = (row.attempt, reason)
        return found

    def _tell(self, found: Iterable[Moving], now: datetime) -> None:
        before, self._told = self._told, {}
        verdicts: dict[str, list[LeaseAnswer]] = {}
        for one in found:
            key = (one.task_id, one.attempt)
            told_at = before.get(key)
            # A clock that was set back makes nobody wait for it.
            if told_at is not None and told_at <= now < told_at + SAID_AGAIN_AFTER:
                self._told[key] = told_at
                continue
            self._told[key] = now
            answer = LeaseAnswer(
                task_id=TaskId(one.task_id),
                attempt=Attempt(one.attempt),
                verdict=LeaseVerdict.CANCEL,
            )
            verdicts.setdefault(one.proxy_id, []).append(answer)
        for proxy_id, answers in verdicts.items():
            self._down.send(ProxyId(proxy_id), answers)
