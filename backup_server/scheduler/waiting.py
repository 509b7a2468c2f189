"""Tasks that nobody takes: why, for people; and their end when waiting cannot help."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from itertools import islice
from typing import Final

from backup_server.db.tables import Task
from backup_server.scheduler import facts
from backup_server.scheduler.claims import ClaimIndex
from backup_server.scheduler.needs import SchedulerContext, Timing
from backup_server.scheduler.view import View
from backup_server.services import events, pending, placement
from backup_server.services.placement import Decision
from backup_server.services.surveys import ProxyFacts, survey
from backup_server.services.wishes import Wish
from proxy_worker.contracts.events import EventName

_EXPLAINED_PLACES: Final = 40
_LOST_PLACES: Final = 100
"""In one look, of those that nobody who is there reaches: when a whole fleet is away that is all of them."""
_EXPLAINED_TASKS: Final = 20
"""How many tasks that wait for the same proxies get the explanation stored: those that come next. The others wait
alike, and whoever asks why is told what holds at that moment.
"""
_LONGEST_GAP: Final = 4
"""Audits. What lies further apart is no watching: this server was stopped, or its machine slept."""


class Waiting:
    def __init__(
        self,
        ctx: SchedulerContext,
        index: ClaimIndex,
        view: View,
        timing: Timing,
        *,
        steady_s: Callable[[], float],
    ) -> None:
        """`steady_s`: a clock that nobody sets."""
        self._ctx = ctx
        self._index = index
        self._view = view
        self._timing = timing
        self._steady_s = steady_s
        self._looked_s: float | None = None
        self._unreached_s: dict[str, float] = {}
        """Place -> for how long we watched that nobody who is there could take its tasks."""
        self._explained: dict[str, str] = {}
        """Place -> the reason that was stored: figures in a decision change all the time, reasons do not."""
        self._turn: dict[str, None] = {}
        """Places in the order in which they are explained next."""
        self._lost_turn: dict[str, None] = {}
        """As `_turn`, those that nobody who is there reaches."""
        self._warned: dict[str, tuple[str, set[str]]] = {}
        """Place -> why nobody takes its tasks, and those whose sessions were told so."""

    def look(self, indexed: Mapping[str, str], now: datetime) -> None:
        """`indexed`: pending tasks with the keys of their wishes."""
        passed_s = self._passed_s()
        usage = self._index.usage()
        proxies = self._view.with_used(usage)
        places: dict[str, list[str]] = {}
        for task_id, place in indexed.items():
            places.setdefault(place, []).append(task_id)
        self._view.forget_wishes(self._view.wishes.keys() - places.keys())
        for kept in (self._explained, self._warned):
            for place in kept.keys() - places.keys():
                kept.pop(place, None)
        there = {
            proxy.id for proxy in proxies if proxy.online and proxy.slots > 0 and not proxy.trouble
        }
        lost = [place for place in places if there.isdisjoint(self._view.survey_of(place).best)]
        before = self._unreached_s
        self._unreached_s = {
            place: before[place] + passed_s if place in before else 0.0 for place in lost
        }
        if not places:
            return
        # Those that nobody who is there can take need somebody, and come first. Of the others the next few: a large
        # site has a thousand, and each explanation looks at every proxy.
        few = [
            *_next_few(self._lost_turn, lost, _LOST_PLACES),
            *_next_few(self._turn, places, _EXPLAINED_PLACES),
        ]
        chosen = {place: places[place] for place in dict.fromkeys(few)}
        with self._ctx.db.read() as s:
            found = facts.tasks_by_id(s, {waiting[0] for waiting in chosen.values()})
        heads = {row.id: row for row in found}
        changed: list[tuple[list[str], Decision]] = []
        for place, waiting in chosen.items():
            head = heads.get(waiting[0])
            if head is not None:
                self._explain(place, waiting, head, proxies, usage, now, changed)
        if changed:
            with self._ctx.db() as s:
                pending.explain(
                    s,
                    [(waiting[:_EXPLAINED_TASKS], decision.to_json()) for waiting, decision in changed],
                )

    def _passed_s(self) -> float:
        """Since the last look, as far as we looked."""
        before, now_s = self._looked_s, self._steady_s()
        self._looked_s = now_s
        return 0.0 if before is None else min(now_s - before, _LONGEST_GAP * self._timing.audit_s)

    def _explain(
        self,
        place: str,
        waiting: list[str],
        head: Task,
        proxies: list[ProxyFacts],
        usage: Mapping[str, int],
        now: datetime,
        changed: list[tuple[list[str], Decision]],
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
        unreached_s = self._unreached_s.get(place)
        if unreached_s is None:
            return
        self._warn(place, waiting, decision.reason, now)
        if unreached_s < self._timing.no_proxy_timeout_s:
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

    def _give_up(self, waiting: Sequence[str], reason: str, now: datetime) -> None:
        # Each part by itself: nobody waits for the end of thousands.
        for i in range(0, len(waiting), pending.BATCH):
            with self._ctx.db() as s:
                pending.give_up_all(s, dict.fromkeys(waiting[i : i + pending.BATCH], reason), now)
        self._ctx.wake_engine.set()


def _next_few(line: dict[str, None], places: Iterable[str], most: int) -> list[str]:
    """Those whose turn it is; they go to the end of the line, which is of all the places afterwards."""
    wanted = dict.fromkeys(places)
    for place in line.keys() - wanted.keys():
        del line[place]
    line.update(wanted)
    few = [*islice(line, most)]
    for place in few:
        del line[place]
        line[place] = None
    return few
