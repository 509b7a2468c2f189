"""Takes back the tasks of proxies that fell silent, and ends those of cancelled sessions."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from datetime import datetime, timedelta

from backup_server.scheduler.claims import ClaimIndex
from backup_server.scheduler.needs import SchedulerContext, retry_policy
from backup_server.services import tasks, waits
from proxy_worker.contracts.events import EventName


class Reaper:
    """One for the process; `step` runs on one thread."""

    def __init__(
        self,
        ctx: SchedulerContext,
        index: ClaimIndex,
        *,
        leading: Callable[[], bool],
        listening_since: Callable[[], datetime | None],
        heard_until: Callable[[], datetime | None],
        outbox_wake: threading.Event,
        behind: Callable[[], Collection[str]] = frozenset,
    ) -> None:
        """`listening_since`: since when reports have been read without a break; None: not now. `heard_until`: what
        came before that moment was applied; None: nothing was read yet. `behind`: of all proxies but these.
        """
        self._ctx = ctx
        self._index = index
        self._leading = leading
        self._listening_since = listening_since
        self._heard_until = heard_until
        self._behind = behind
        self._outbox_wake = outbox_wake

    def step(self) -> bool:
        if not self._leading():
            return False
        self._cancel()
        return self._expire()

    def _cancel(self) -> None:
        now = self._ctx.clock()
        with self._ctx.db.read() as s:
            sessions = tasks.sessions_to_cancel(s)
        for session_id in sessions:
            with self._ctx.db() as s:
                tasks.cancel_session_tasks(s, session_id, now)
            self._ctx.wake_engine.set()
            self._ctx.wake_dispatcher.set()
            self._outbox_wake.set()

    def _mind_the_clock(self, now: datetime) -> None:
        settings = self._ctx.settings
        count = waits.shorten_waits(
            self._ctx.db, now=now, lease_s=settings.lease_s, policy=retry_policy(settings)
        )
        if count:
            self._ctx.log.warning(
                EventName.CLOCK_WENT_BACK,
                text=f"the server's clock went back; leases and pauses of {count} tasks count anew",
            )

    def _expire(self) -> bool:
        now = self._ctx.clock()
        self._mind_the_clock(now)
        # In this order: who is not behind any more was read until a later moment than that.
        since, heard_until, behind = self._listening_since(), self._heard_until(), self._behind()
        # Silence counts only while we listened: after an outage of the server or the broker every proxy
        # gets a whole lease to be heard again.
        if (
            since is None
            or heard_until is None
            or now - since < timedelta(seconds=self._ctx.settings.lease_s)
        ):
            return False
        with self._ctx.db() as s:
            ended = tasks.expire_leases(
                s,
                now=now,
                policy=retry_policy(self._ctx.settings),
                heard_until=heard_until,
                behind=behind,
            )
        if not ended:
            return False
        if any(task.terminal for task in ended):
            self._ctx.wake_engine.set()
        if any(not task.terminal for task in ended):
            self._ctx.wake_janitor.set()
        self._ctx.wake_dispatcher.set()
        self._index.release_all((task.task_id, task.attempt) for task in ended)
        return True
