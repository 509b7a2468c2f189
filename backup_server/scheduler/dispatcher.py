"""Binds pending tasks to free slots: index filled from SQL, claimed in Redis, confirmed in SQL.

The order is claim, confirm, message. A claim is provisional: only the guarded UPDATE of the task makes it
true, and only then is there an outbox row. A claim that was not confirmed is released; one that was lost
between (the process died) disappears with the index, which every new leader fills again.

A round reads what changed since the last one: tasks that are new or whose pause is over. All of what waits is
compared with the index in audits, and at once when a claim turns out to be of a task that is no longer pending.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import islice
from typing import Final
from uuid import uuid4

from backup_server.db.states import TaskState
from backup_server.db.tables import Task
from backup_server.scheduler import confirming, facts
from backup_server.scheduler.claims import Claim, ClaimIndex, PendingTask, ProxyEntry
from backup_server.scheduler.confirming import AtStart, no_rates
from backup_server.scheduler.needs import SchedulerContext, Timing
from backup_server.scheduler.view import View, is_on
from backup_server.scheduler.waiting import Waiting
from backup_server.services import pending, proxy_facts
from backup_server.services.task_ends import Ends
from backup_server.services.wishes import Wish
from proxy_worker.contracts.events import EventName
from transports.system import uptime_s

_CLAIMS: Final = 128
"""In one round: Redis answers nobody else while the script runs, some 0.2 ms for each."""
_QUEUED: Final = 500
_SURVEYED: Final = 300
"""In one round: some 0.2 s."""
_COMMIT_S: Final = 3.0
"""A task is as old as its making, and seen when that was committed: so long at most does a commit take. What takes
longer is found by the next audit.
"""
_NO_RANKS: Final = {"": 0}
"""Of a place of which nobody knows what the index has: no survey finds this."""


def _not_known(entry: ProxyEntry) -> ProxyEntry:
    """In the place of an entry of which nobody knows whether the index has it: no proxy is like this."""
    return replace(entry, slots=-1)


def _just_now() -> datetime | None:
    return None


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
        at_start: AtStart = no_rates,
        ends: Ends | None = None,
        heard_until: Callable[[], datetime | None] = _just_now,
        steady_s: Callable[[], float] = uptime_s,
    ) -> None:
        """`heard_until`: what proxies said before that moment was applied; None: all of it. `steady_s`: a clock that
        nobody sets.
        """
        self._ctx = ctx
        self._at_start = at_start
        self._ends = ends
        self._heard_until = heard_until
        self._steady_s = steady_s
        self._index = index
        self._leading = leading
        self._outbox_wake = outbox_wake
        self._timing = timing
        self._forget = threading.Event()
        self._forget.set()
        self._generation: str | None = None
        self._reset()

    def _reset(self) -> None:
        self._view = View(ends=self._ends)
        self._indexed: dict[str, str] = {}  # pending task -> key of its wish
        self._limits: dict[str, int] = {}  # as the index has them
        self._written: dict[str, ProxyEntry] = {}  # proxy -> what the index knows of it
        self._again: set[str] = set()  # tasks whose claim came to nothing
        self._placed: dict[str, dict[str, int]] = {}  # wish -> what the index knows: rank by proxy
        self._new: dict[str, None] = {}  # tasks that are to be queued, in their order
        self._looked_at: datetime | None = None  # when SQL was asked for new tasks
        self._compare = True
        self._wished_for = 0  # View.fleets for which that holds
        self._busy = False
        self._read_s: float | None = (
            None  # when the view was read, as all that follows by the steady clock
        )
        self._audited_s: float | None = None
        self._waiting = Waiting(
            self._ctx, self._index, self._view, self._timing, steady_s=self._steady_s
        )

    def forget_index(self) -> None:
        """Fill the index again before anything else: another server may have written to it."""
        self._forget.set()

    def step(self) -> bool:
        """One round: index brought up to date, free slots filled. True while there is more to do at once."""
        if not self._leading():
            return False
        self._follow_generation()
        now = self._ctx.clock()
        view = self._view
        # While one round follows the other only what is new among the tasks is looked for.
        if not self._busy or self._is_over(self._read_s, self._timing.facts_s):
            near = view.fleet.near
            self._read(now)
            if self._generation and view.fleet.near != near:
                # Another wish of what waits already: it is queued anew, for the proxies that now come first.
                self._forget.set()
                self._follow_generation()
                view = self._view
                self._read(now)
        self._follow_pending(now)
        if not self._leading():
            # Stopped meanwhile, for whatever reason: what this one knows must not stand in what another filled by now.
            return False
        self._follow_limits()
        self._follow_proxies()
        filled = self._fill() if self._indexed else False
        self._busy = filled or bool(self._new or view.unsurveyed or view.unwritten)
        if self._is_over(self._audited_s, self._timing.audit_s):
            self._audited_s = self._steady_s()
            self._audit(now)
        return self._busy

    def _read(self, now: datetime) -> None:
        began_s = self._steady_s()
        self._view.read(self._ctx, now, self._heard_until())
        self._read_s = began_s

    def _is_over(self, since_s: float | None, span_s: float) -> bool:
        return since_s is None or self._steady_s() - since_s >= span_s

    @staticmethod
    def _span(seconds: float) -> timedelta:
        return timedelta(seconds=seconds)

    # -- the index follows SQL

    def _follow_generation(self) -> None:
        known = self._generation
        # None: the index was being filled when something failed.
        if not self._forget.is_set() and known is not None and self._index.generation() == known:
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

    def _follow_pending(self, now: datetime) -> None:
        if self._wished_for != self._view.fleets:
            # Proxies that lie elsewhere, or are near other repositories: the same tasks have other wishes now.
            self._index.remove_all(self._indexed)
            self._indexed.clear()
            self._compare = True
            self._wished_for = self._view.fleets
        with self._ctx.db.read() as s:
            if self._compare or self._looked_at is None:
                waiting = facts.pending_ids(s, now)
                gone = self._indexed.keys() - set(waiting)
                self._new.clear()
            else:
                waiting = facts.fresh_ids(s, self._looked_at - self._span(_COMMIT_S), now, self._again)
                gone = set()
        if gone:
            self._index.remove_all(gone)
            for task_id in gone:
                del self._indexed[task_id]
        # What is new comes before what is left of many: it may be urgent, and the next comparison orders all of it.
        came = dict.fromkeys(task_id for task_id in waiting if task_id not in self._indexed)
        self._new = {**came, **self._new}
        self._looked_at = now
        self._compare = False
        self._again.clear()
        # What is left comes with the next rounds: a night's thirty thousand at once would hold up what is urgent.
        self._enqueue(list(islice(self._new, _QUEUED)), now)

    def _enqueue(self, new: list[str], now: datetime) -> None:
        if not new:
            return
        for task_id in new:
            del self._new[task_id]
        view = self._view
        with self._ctx.db.read() as s:
            rows = facts.tasks_by_id(s, new)
            begun = facts.begun_vms(s, (row.session_vm_id for row in rows))
        entries: list[PendingTask] = []
        hopeless: list[tuple[Task, Wish]] = []
        for row in rows:
            if row.state != TaskState.PENDING.value or row.cancel_requested:
                continue  # it ended while it was to be queued
            wish = proxy_facts.task_wish(row, view.fleet)
            if wish.impossible:
                hopeless.append((row, wish))
                continue
            place = self._indexed[row.id] = view.add_wish(wish)
            entries.append(
                PendingTask(
                    task_id=row.id,
                    place=place,
                    keys=view.keys(row),
                    band=row.priority,
                    job=row.session_id,
                    attempt=row.attempt + 1,
                    vm=row.session_vm_id,
                    begun=row.session_vm_id in begun,
                )
            )
        if hopeless:
            self._end_hopeless(hopeless, now)
        try:
            self._index.enqueue(entries)
        except Exception:
            for row in rows:
                self._indexed.pop(row.id, None)
            self._compare = True
            raise

    def _end_hopeless(self, found: list[tuple[Task, Wish]], now: datetime) -> None:
        """Tasks whose disks no mode admits, whatever proxy: waiting would not help them."""
        reasons = {
            row.id: f"no transport mode that the job allows can open this disk: {wish.impossible}"
            for row, wish in found
        }
        with self._ctx.db() as s:
            pending.give_up_all(s, reasons, now)
        self._ctx.wake_engine.set()

    def _follow_limits(self) -> None:
        limits = self._view.limits()
        changed = {key: most for key, most in limits.items() if self._limits.get(key) != most}
        if changed:
            # An answer may be lost: until it came nobody knows what the index has.
            self._limits = {key: most for key, most in self._limits.items() if key not in changed}
            self._index.set_limits(changed)
            self._limits = limits

    def _follow_proxies(self) -> None:
        view = self._view
        entries = view.entries()
        changed = [entry for entry in entries if self._written.get(entry.proxy_id) != entry]
        gone = self._written.keys() - view.by_id.keys()
        if changed:
            self._written.update({entry.proxy_id: _not_known(entry) for entry in changed})
            self._index.set_proxies(changed)
            self._written.update({entry.proxy_id: entry for entry in changed})
        if gone:
            self._index.remove_proxies(gone)
            for proxy_id in gone:
                del self._written[proxy_id]
        self._follow_places(entry.proxy_id for entry in entries)

    def _follow_places(self, proxy_ids: Iterable[str]) -> None:
        view = self._view
        places = {key: view.surveys[key] for key in view.survey(_SURVEYED)}
        ranks = {key: seen.ranks() for key, seen in places.items()}
        ranks = {
            key: mine
            for key, mine in ranks.items()
            if key not in self._placed or self._placed[key] != mine
        }
        gone = {key for key in view.forgotten if key in self._placed and key not in view.wishes}
        if ranks or gone:
            self._placed.update(dict.fromkeys([*ranks, *gone], _NO_RANKS))
            self._index.set_places({**ranks, **{key: {} for key in gone}}, proxy_ids)
        view.unwritten.clear()
        view.forgotten.clear()
        self._placed.update(ranks)
        for key in gone:
            del self._placed[key]

    # -- free slots

    def _fill(self) -> bool:
        on = [proxy.id for proxy in self._view.proxies if is_on(proxy)]
        usage = self._index.usage()
        claims = self._index.claim(on, each=_CLAIMS, most=_CLAIMS)
        if not claims:
            return False
        try:
            confirmed = confirming.confirm(self._ctx, self._view, claims, usage, self._at_start)
        except Exception:
            self._release(claims)
            raise
        held = {(claim.task_id, claim.attempt) for claim in confirmed.held}
        for claim in confirmed.held:
            self._indexed.pop(claim.task_id, None)
        refused = [claim for claim in claims if (claim.task_id, claim.attempt) not in held]
        self._release(refused)
        if confirmed.held:
            self._outbox_wake.set()
        elif confirmed.stale:
            # A session that was cancelled, with thousands of tasks: not 128 of them at a time.
            self._compare = True
        return bool(confirmed.held)

    def _release(self, claims: list[Claim]) -> None:
        """Claims that came to nothing: what is still pending is queued anew with the next step."""
        if not claims:
            return
        for claim in claims:
            self._indexed.pop(claim.task_id, None)
            self._again.add(claim.task_id)
        self._index.release_all((claim.task_id, claim.attempt) for claim in claims)

    # -- every few seconds

    def _audit(self, now: datetime) -> None:
        """Repair what a lost answer of the broker left behind, and say why tasks wait."""
        age_ms = int(self._timing.audit_s * 1000)
        claimed = self._index.claims_older_than(age_ms)
        with self._ctx.db.read() as s:
            running = facts.running_claims(s)
        known = {(claim.task_id, claim.attempt) for claim in running}
        self._index.release_all(claim for claim in claimed if claim not in known)
        adopted = self._index.adopt(running)
        if adopted:
            # What ended between our look and the adoption is released by nobody else.
            with self._ctx.db.read() as s:
                still = facts.still_running(s, adopted)
            ended = [(claim.task_id, claim.attempt) for claim in adopted]
            self._index.release_all(claim for claim in ended if claim not in still)
        for task_id in self._index.missing(self._indexed):
            del self._indexed[task_id]
        self._compare = True
        self._waiting.look(self._indexed, now)
