"""Binds pending tasks to free slots: index filled from SQL, claimed in Redis, confirmed in SQL.

The order is claim, confirm, message. A claim is provisional: only the guarded UPDATE of the task makes it
true, and only then is there an outbox row. A claim that was not confirmed is released; one that was lost
between (the process died) disappears with the index, which every new leader fills again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final
from uuid import uuid4

from sqlalchemy.orm import Session as DbSession

from backup_server.db.states import StaleStateError
from backup_server.db.tables import Proxy, Task
from backup_server.scheduler import facts
from backup_server.scheduler.claims import Claim, ClaimIndex, PendingTask
from backup_server.scheduler.needs import SchedulerContext, Timing
from backup_server.services import placement, proxy_facts, tasks
from backup_server.services.placement import Decision, Limit, ProxyFacts, Survey
from backup_server.services.wishes import Wish
from proxy_worker.contracts.codec import MessageError
from proxy_worker.contracts.events import EventName
from transports.rules import NETWORK_MODES

_EXPLAINED_TASKS: Final = 200
"""How many tasks that wait for the same proxies get the explanation stored; the others wait alike."""


class Dispatcher:
    """One for the process; `step` runs on one thread."""

    def __init__(
        self,
        ctx: SchedulerContext,
        index: ClaimIndex,
        *,
        leading: Callable[[], bool],
        outbox_wake: threading.Event,
        timing: Timing,
    ) -> None:
        self._ctx = ctx
        self._index = index
        self._leading = leading
        self._outbox_wake = outbox_wake
        self._timing = timing
        self._forget = threading.Event()
        self._forget.set()
        self._generation: str | None = None
        self._machines = proxy_facts.Machines()
        self._reset()

    def _reset(self) -> None:
        self._indexed: dict[str, str] = {}  # pending task -> key of its wish
        self._wishes: dict[str, Wish] = {}
        self._surveys: dict[str, Survey] = {}  # wish -> what every proxy reaches of it
        self._surveyed: list[ProxyFacts] = []  # the proxies for which these hold
        self._fleet = proxy_facts.Fleet()
        self._limits: dict[str, int] = {}
        self._written: dict[str, tuple[object, ...]] = {}  # proxy -> what the index knows of it
        self._unreached_since: dict[str, datetime] = {}
        self._explained: dict[str, Decision] = {}
        self._audited_at: datetime | None = None

    def forget_index(self) -> None:
        """Fill the index again before anything else: another server may have written to it."""
        self._forget.set()

    def step(self) -> bool:
        """One round: index brought up to date, free slots filled. True while slots were filled."""
        if not self._leading():
            return False
        self._follow_generation()
        now = self._ctx.clock()
        with self._ctx.db.read() as s:
            ids = facts.proxy_ids(s)
            pending = facts.pending_ids(s, now)
            repositories = facts.repository_limits(s)
        proxies = self._proxies(now, ids)
        self._fleet = proxy_facts.fleet_of(proxies)
        self._follow_pending(pending, now)
        self._follow_limits(repositories)
        self._follow_proxies(proxies)
        filled = self._fill(proxies, repositories) if self._indexed else False
        if self._audited_at is None or now - self._audited_at >= self._span(self._timing.audit_s):
            self._audited_at = now
            self._audit(now, repositories)
        return filled

    @staticmethod
    def _span(seconds: float) -> timedelta:
        return timedelta(seconds=seconds)

    # -- the index follows SQL

    def _follow_generation(self) -> None:
        if not self._forget.is_set() and self._index.generation() == self._generation:
            return
        self._forget.clear()
        self._generation = None
        self._reset()
        self._index.clear()
        with self._ctx.db.read() as s:
            running = facts.running_claims(s)
        self._index.adopt(running)
        self._index.seal(uuid4().hex)
        self._generation = self._index.generation()
        self._ctx.log.info(
            EventName.INDEX_REBUILT, text="the claim index was filled from SQL", running=len(running)
        )

    def _proxies(self, now: datetime, ids: list[str]) -> list[ProxyFacts]:
        used = self._index.used_slots(ids)
        settings = self._ctx.settings
        # A proxy whose lease just ran out must not be the one that gets the task again.
        silent_s = min(settings.proxy_offline_after_s, settings.lease_s)
        with self._ctx.db.read() as s:
            return proxy_facts.proxy_facts(s, now, silent_s, used, self._machines)

    def _follow_pending(self, pending: set[str], now: datetime) -> None:
        for task_id in self._indexed.keys() - pending:
            self._index.remove(task_id)
            del self._indexed[task_id]
        new = pending - self._indexed.keys()
        if not new:
            return
        with self._ctx.db.read() as s:
            rows = facts.tasks_by_id(s, new)
        entries: list[PendingTask] = []
        hopeless: list[tuple[Task, Wish]] = []
        for row in rows:
            wish = proxy_facts.task_wish(row, self._fleet)
            if wish.impossible:
                hopeless.append((row, wish))
                continue
            self._wishes[wish.key] = wish
            self._indexed[row.id] = wish.key
            entries.append(
                PendingTask(
                    task_id=row.id,
                    place=wish.key,
                    repository_id=row.repository_id,
                    host=proxy_facts.task_host(row),
                    band=row.priority,
                    job=row.session_id,
                    attempt=row.attempt + 1,
                )
            )
        if hopeless:
            self._end_hopeless(hopeless, now)
        try:
            self._index.enqueue(entries)
        except Exception:
            for row in rows:
                self._indexed.pop(row.id, None)
            raise

    def _end_hopeless(self, found: list[tuple[Task, Wish]], now: datetime) -> None:
        """Tasks whose disks no mode admits, whatever proxy: waiting would not help them."""
        with self._ctx.db() as s:
            for row, wish in found:
                reason = f"no transport mode that the job allows can open this disk: {wish.impossible}"
                self._give_up(s, row, reason, now)

    def _follow_limits(self, repositories: dict[str, tuple[str, int]]) -> None:
        limits = {f"r:{row_id}": most for row_id, (_, most) in repositories.items()}
        # Every host that a task was ever made for: the network modes of all proxies share its NFC service.
        with self._ctx.db.read() as s:
            hosts = facts.open_hosts(s)
        limits |= {f"h:{host}": self._ctx.settings.host_nfc_tasks for host in hosts}
        if limits != self._limits:
            self._index.set_limits(limits)
            self._limits = limits

    def _follow_proxies(self, proxies: list[ProxyFacts]) -> None:
        self._survey(proxies)
        for proxy in proxies:
            on = proxy.enabled and proxy.enrolled and proxy.online and not proxy.stopping
            ranks = {
                key: seen.rank(proxy.id) for key, seen in self._surveys.items() if proxy.id in seen.best
            }
            present = (on, proxy.slots, ranks)
            if self._written.get(proxy.id) != present:
                self._index.set_proxy(proxy.id, on=on, slots=proxy.slots, ranks=ranks)
                self._written[proxy.id] = present
        for gone in self._written.keys() - {proxy.id for proxy in proxies}:
            self._index.set_proxy(gone, on=False, slots=0, ranks={})
            del self._written[gone]

    def _survey(self, proxies: list[ProxyFacts]) -> None:
        """Bring the surveys up to date: all when a proxy changed, else those of new wishes."""
        still = [replace(proxy, used=0) for proxy in proxies]
        if still != self._surveyed:
            self._surveys.clear()
            self._surveyed = still
        for key, wish in self._wishes.items():
            if key not in self._surveys:
                self._surveys[key] = placement.survey(wish, still)

    # -- free slots

    def _fill(self, proxies: list[ProxyFacts], repositories: dict[str, tuple[str, int]]) -> bool:
        """One task for each proxy with room, the least busy first: so tasks spread."""
        used = {proxy.id: proxy.used for proxy in proxies}
        usage = self._index.usage(list(self._limits))
        free = [
            proxy
            for proxy in proxies
            if proxy.online and proxy.enabled and not proxy.stopping and proxy.used < proxy.slots
        ]
        free.sort(key=lambda proxy: (proxy.used / proxy.slots, proxy.name))
        claims: list[Claim] = []
        try:
            for proxy in free:
                claims += self._index.claim(proxy.id, 1)
            confirmed = self._confirm(claims, proxies, used, usage, repositories)
        except Exception:
            self._release(claims)
            raise
        self._release([claim for claim in claims if claim not in confirmed])
        if confirmed:
            self._outbox_wake.set()
        return bool(confirmed)

    def _release(self, claims: list[Claim]) -> None:
        for claim in claims:
            # No longer known as indexed: what is still pending is queued anew with the next step.
            self._indexed.pop(claim.task_id, None)
            self._index.release(claim.task_id, claim.attempt)

    def _confirm(
        self,
        claims: list[Claim],
        proxies: list[ProxyFacts],
        used: dict[str, int],
        usage: dict[str, int],
        repositories: dict[str, tuple[str, int]],
    ) -> list[Claim]:
        confirmed: list[Claim] = []
        if not claims:
            return confirmed
        now = self._ctx.clock()
        with self._ctx.db() as s:
            for claim in claims:
                row = s.get(Task, claim.task_id)
                if row is None or row.attempt + 1 != claim.attempt or row.cancel_requested:
                    continue
                present = [replace(proxy, used=used[proxy.id]) for proxy in proxies]
                wish = proxy_facts.task_wish(row, self._fleet)
                decision = placement.decide(
                    wish,
                    present,
                    self._limits_of(row, usage, repositories),
                    claimed_by=claim.proxy_id,
                    known=self._surveys.get(wish.key),
                    refused=proxy_facts.task_refusals(row),
                )
                if not self._is_as_claimed(claim, decision) or not self._start(s, row, decision, now):
                    continue
                confirmed.append(claim)
                used[claim.proxy_id] += 1
                for key in self._keys_of(row, claim.rank):
                    usage[key] = usage.get(key, 0) + 1
        for claim in confirmed:
            self._indexed.pop(claim.task_id, None)
        return confirmed

    @staticmethod
    def _is_as_claimed(claim: Claim, decision: Decision) -> bool:
        """What was claimed was counted for its mode; a better or worse one is claimed anew."""
        return decision.chosen is not None and decision.chosen.rank == claim.rank

    @staticmethod
    def _keys_of(row: Task, rank: int) -> list[str]:
        host = proxy_facts.task_host(row)
        keys = [f"r:{row.repository_id}"]
        return [*keys, f"h:{host}"] if host and rank >= placement.NETWORK_RANK else keys

    def _limits_of(
        self, row: Task, usage: dict[str, int], repositories: dict[str, tuple[str, int]]
    ) -> list[Limit]:
        name, most = repositories.get(row.repository_id, (row.repository_id, 0))
        limits = [
            Limit(what=f"repository {name}", used=usage.get(f"r:{row.repository_id}", 0), maximum=most)
        ]
        host = proxy_facts.task_host(row)
        if host:
            limits.append(
                Limit(
                    what=f"the NFC service of host {row.host_moref}",
                    used=usage.get(f"h:{host}", 0),
                    maximum=self._limits.get(f"h:{host}", 0),
                    modes=NETWORK_MODES,
                )
            )
        return limits

    def _start(self, s: DbSession, row: Task, decision: Decision, now: datetime) -> bool:
        chosen = decision.chosen
        if chosen is None:
            return False
        proxy = s.get(Proxy, chosen.proxy_id)
        if proxy is None or not proxy.enabled:
            return False
        where = tasks.Placement(
            proxy_id=proxy.id,
            proxy_name=proxy.name,
            boot_id=proxy.boot_id,
            mode=chosen.mode,
            # A worker of an earlier release tells no connections and cannot go on in another mode.
            fallback_modes=decision.fallbacks if proxy.connections_at is not None else (),
            decision={**decision.to_json(), "at": now.isoformat()},
        )
        try:
            tasks.start_attempt(
                s,
                row,
                where,
                now=now,
                lease_s=self._ctx.settings.lease_s,
                order_ttl_s=self._ctx.settings.order_ttl_s,
            )
        except StaleStateError:
            return False
        except MessageError as error:
            self._give_up(s, row, f"the stored order cannot be carried out: {error}", now)
            return False
        return True

    def _give_up(self, s: DbSession, row: Task, reason: str, now: datetime) -> None:
        try:
            tasks.give_up(s, row, reason, now)
        except StaleStateError:
            return  # it moved on by itself
        self._ctx.wake_engine.set()

    # -- every few seconds

    def _audit(self, now: datetime, repositories: dict[str, tuple[str, int]]) -> None:
        """Repair what a lost answer of the broker left behind, and say why tasks wait."""
        age_ms = int(self._timing.audit_s * 1000)
        claimed = self._index.claims_older_than(age_ms)
        with self._ctx.db.read() as s:
            running = facts.running_claims(s)
        known = {(claim.task_id, claim.attempt) for claim in running}
        for task_id, attempt in claimed:
            if (task_id, attempt) not in known:
                self._index.release(task_id, attempt)
        self._index.adopt(running)
        for task_id in self._index.missing(self._indexed):
            del self._indexed[task_id]
        proxies = self._proxies(now, list(self._written))
        usage = self._index.usage(list(self._limits))
        places: dict[str, list[str]] = {}
        for task_id, place in self._indexed.items():
            places.setdefault(place, []).append(task_id)
        for place in self._unreached_since.keys() - places.keys():
            del self._unreached_since[place]
        for place in self._wishes.keys() - places.keys():
            del self._wishes[place]
            self._surveys.pop(place, None)
            self._explained.pop(place, None)
        for place, waiting in places.items():
            self._explain(place, waiting, proxies, usage, repositories, now)

    def _explain(
        self,
        place: str,
        waiting: list[str],
        proxies: list[ProxyFacts],
        usage: dict[str, int],
        repositories: dict[str, tuple[str, int]],
        now: datetime,
    ) -> None:
        wish = self._wishes[place]
        with self._ctx.db() as s:
            row = s.get(Task, waiting[0])
            if row is None:
                return
            limits = self._limits_of(row, usage, repositories)
            seen = self._surveys.get(place) or placement.survey(wish, proxies)
            decision = placement.decide(wish, proxies, limits, known=seen)
            if decision.chosen is None and self._explained.get(place) != decision:
                self._explained[place] = decision
                tasks.explain_waiting(s, waiting[:_EXPLAINED_TASKS], decision.to_json())
            if wish.left and not seen.best:
                # Every way was tried or is none: another proxy that comes back would not help.
                for waiting_row in facts.tasks_by_id(s, set(waiting)):
                    self._give_up(
                        s, waiting_row, f"no way to this disk is left: {decision.reason}", now
                    )
                return
            if any(proxy.online and proxy.id in seen.best for proxy in proxies):
                self._unreached_since.pop(place, None)
                return
            since = self._unreached_since.setdefault(place, now)
            if since == now:
                self._ctx.log.warning(
                    EventName.TASK_WAITS, text=decision.reason, tasks=len(waiting), place=place
                )
            if now - since < self._span(self._timing.no_proxy_timeout_s):
                return
            minutes = self._timing.no_proxy_timeout_s / 60
            for waiting_row in facts.tasks_by_id(s, set(waiting)):
                reason = f"no proxy could take this disk for {minutes:.0f} minutes: {decision.reason}"
                self._give_up(s, waiting_row, reason, now)
