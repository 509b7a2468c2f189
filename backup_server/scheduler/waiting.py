"""Tasks that nobody takes: why, for people; and their end when waiting cannot help."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import islice
from typing import Final

from sqlalchemy.orm import Session as DbSession

from backup_server.db.states import StaleStateError
from backup_server.db.tables import Task
from backup_server.scheduler import facts
from backup_server.scheduler.claims import ClaimIndex
from backup_server.scheduler.needs import SchedulerContext, Timing
from backup_server.scheduler.view import View
from backup_server.services import events, placement, tasks
from backup_server.services.placement import Decision
from backup_server.services.surveys import ProxyFacts, survey
from backup_server.services.wishes import Wish
from proxy_worker.contracts.events import EventName

_EXPLAINED_PLACES: Final = 40
_EXPLAINED_TASKS: Final = 20
"""How many tasks that wait for the same proxies get the explanation stored: those that come next. The others wait
alike, and whoever asks why is told what holds at that moment.
"""


class Waiting:
    def __init__(self, ctx: SchedulerContext, index: ClaimIndex, view: View, timing: Timing) -> None:
        self._ctx = ctx
        self._index = index
        self._view = view
        self._timing = timing
        self._unreached_since: dict[str, datetime] = {}
        self._explained: dict[str, str] = {}
        """Place -> the reason that was stored: figures in a decision change all the time, reasons do not."""
        self._turn: dict[str, None] = {}
        """Places in the order in which they are explained next."""
        self._warned: dict[str, tuple[str, set[str]]] = {}
        """Place -> why nobody takes its tasks, and those whose sessions were told so."""

    def look(self, indexed: Mapping[str, str], now: datetime) -> None:
        """`indexed`: pending tasks with the keys of their wishes."""
        usage = self._index.usage()
        proxies = self._view.with_used(usage)
        places: dict[str, list[str]] = {}
        for task_id, place in indexed.items():
            places.setdefault(place, []).append(task_id)
        self._view.forget_wishes(self._view.wishes.keys() - places.keys())
        for kept in (self._unreached_since, self._explained, self._warned):
            for place in kept.keys() - places.keys():
                kept.pop(place, None)
        if not places:
            return
        there = {proxy.id for proxy in proxies if proxy.online and proxy.slots > 0}
        lost = {place for place in places if there.isdisjoint(self._view.survey_of(place).best)}
        for place in places.keys() - lost:
            self._unreached_since.pop(place, None)
        # Those that nobody who is there can take need somebody. Of the others the next few: a large site has a
        # thousand, and each explanation looks at every proxy.
        chosen = {place: places[place] for place in dict.fromkeys([*lost, *self._next_few(places)])}
        with self._ctx.db.read() as s:
            found = facts.tasks_by_id(s, {waiting[0] for waiting in chosen.values()})
        heads = {row.id: row for row in found}
        changed: list[tuple[list[str], Decision]] = []
        for place, waiting in chosen.items():
            head = heads.get(waiting[0])
            if head is not None:
                self._explain(place, waiting, head, proxies, usage, now, changed, is_lost=place in lost)
        if changed:
            with self._ctx.db() as s:
                for waiting, decision in changed:
                    tasks.explain_waiting(s, waiting[:_EXPLAINED_TASKS], decision.to_json())

    def _next_few(self, places: Mapping[str, list[str]]) -> list[str]:
        """They go to the end of the line."""
        self._turn = {place: None for place in self._turn if place in places}
        self._turn.update(dict.fromkeys(places))
        few = [*islice(self._turn, _EXPLAINED_PLACES)]
        for place in few:
            del self._turn[place]
            self._turn[place] = None
        return few

    def _explain(
        self,
        place: str,
        waiting: list[str],
        head: Task,
        proxies: list[ProxyFacts],
        usage: Mapping[str, int],
        now: datetime,
        changed: list[tuple[list[str], Decision]],
        *,
        is_lost: bool,
    ) -> None:
        view = self._view
        wish = view.wishes[place]
        seen = view.survey_of(place)
        decision = placement.decide(wish, proxies, view.limits_of(head, usage), known=seen)
        if decision.chosen is None and self._explained.get(place) != decision.reason:
            self._explained[place] = decision.reason
            changed.append((waiting, decision))
        is_over = wish.left or self._is_for_nobody(wish)
        if is_over and not seen.best and not self._may_come_back(wish):
            # Every way was tried or is none: another proxy that comes back would not help.
            self._give_up(waiting, f"no way to this disk is left: {decision.reason}", now)
            return
        if not is_lost:
            return
        since = self._unreached_since.setdefault(place, now)
        self._warn(place, waiting, decision.reason, now)
        if now - since < timedelta(seconds=self._timing.no_proxy_timeout_s):
            return
        minutes = self._timing.no_proxy_timeout_s / 60
        reason = f"no proxy could take this disk for {minutes:.0f} minutes: {decision.reason}"
        self._give_up(waiting, reason, now)

    def _is_for_nobody(self, wish: Wish) -> bool:
        """Whether the proxies to which it is bound, as the job or a storage snapshot has it, are all removed."""
        snapshot = wish.reach.snapshot_proxies if wish.reach is not None else None
        return any(
            bound and self._view.by_id.keys().isdisjoint(bound) for bound in (wish.proxies, snapshot)
        )

    def _may_come_back(self, wish: Wish) -> bool:
        """Whether a proxy that is disabled could take the disk: it may be drained for an upgrade only."""
        proxies = self._view.proxies
        if all(proxy.enabled for proxy in proxies):
            return False
        return bool(survey(wish, [replace(one, enabled=True) for one in proxies]).best)

    def _warn(self, place: str, waiting: list[str], reason: str, now: datetime) -> None:
        """Tell the sessions of these tasks, once for each reason, that nobody can take them, and why."""
        before, told = self._warned.get(place, ("", set()))
        if before != reason:
            told = set()
        new = [task_id for task_id in waiting if task_id not in told]
        if not new:
            return
        with self._ctx.db() as s:
            sessions = facts.sessions_of(s, new)
            text = f"disks wait, and no proxy there is can take them: {reason}"
            events.warn_once(s, now, EventName.TASK_WAITS, text, sessions)
        self._warned[place] = (reason, told | set(new))

    def _give_up(self, waiting: Iterable[str], reason: str, now: datetime) -> None:
        with self._ctx.db() as s:
            for row in facts.tasks_by_id(s, set(waiting)):
                _give_up(s, row, reason, now)
        self._ctx.wake_engine.set()


def _give_up(s: DbSession, row: Task, reason: str, now: datetime) -> None:
    try:
        tasks.give_up(s, row, reason, now)
    except StaleStateError:
        return  # it moved on by itself
