"""How fast each running task may move data: worked out from traffic rules and slow datastores, and told.

Every round looks at the tasks that run, shares what is allowed among them (services/rates.py) by what they make use of
(services/demand.py), and finds out who can be told so now (services/rate_ledger.py): nobody gets what another has not
given up yet. What changed is written to `tasks.rate_bytes_per_s` and sent to the proxies, and sent again until they
tell that it holds. Where nothing is limited a round is two questions to the database.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.orm import Session as DbSession

from backup_server.db.states import TaskState
from backup_server.db.tables import Proxy, Task
from backup_server.scheduler.down import DownLink
from backup_server.scheduler.needs import SchedulerContext
from backup_server.services import datastore_loads, demand, proxy_rates, traffic_rules
from backup_server.services.demand import Demand, Use
from backup_server.services.networks import on_one_machine
from backup_server.services.proxy_ends import ProxyEnds
from backup_server.services.rate_ledger import Ledger
from backup_server.services.rates import LEAST_BYTES_PER_S, share
from backup_server.services.task_ends import Ends, Point, ProxyEnd, TaskFacts, mode_in_use, read_facts
from backup_server.services.traffic_rules import Rule
from proxy_worker.contracts.ids import Attempt, ProxyId, TaskId
from proxy_worker.contracts.messages import RateLimit, RateOrder, TaskKind
from proxy_worker.contracts.older import down_for
from transports.base import TransportMode

SAID_AGAIN_AFTER: Final = timedelta(seconds=10)
"""To a proxy that does not tell what holds: one of an earlier release, or whose mover has not begun yet."""
MISSED_AFTER: Final = timedelta(seconds=2)
"""To a proxy that tells that something else holds."""
LIFTED_SAID: Final = 3
"""How often a proxy that does not tell what holds is told that a limit ended."""
HURRY: Final = timedelta(seconds=1)
"""At most so often a task that begins makes the others make room at once."""
LOOKUP_WAIT_S: Final = 0.5
"""In one round, for one answer: a vCenter that hangs holds up a round for so long, not for every host."""
UNKNOWN_FOR: Final = timedelta(seconds=10)
"""A task whose ends are being looked up stands still for so long; then what is not known is covered by no rule."""
UNKNOWN: Final = "?"
"""The limit of such tasks, of nothing."""
Key = tuple[str, int]
"""Task and attempt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What holds one task."""

    limits: frozenset[str] = frozenset()
    """"r:<rule id>", a proxy's own as "r:proxy/<id>", and "d:<datastore>"."""
    source: bool = False
    target: bool = False
    is_known: bool = True
    """False: where its data go is being looked up, and a rule may cover that."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Where:
    """The proxy that works on a task."""

    proxy_id: str
    end: ProxyEnd

    def is_covered(self, rule: Rule, point: Point) -> bool:
        """Whether the rule covers what moves between the proxy and that point."""
        if not rule.proxy_id:
            return rule.covers(self.end.addresses, point.addresses)
        elsewhere = point.by_network and not on_one_machine(self.end.addresses, point.addresses)
        return rule.proxy_id == self.proxy_id and elsewhere


@dataclass(frozen=True, slots=True, kw_only=True)
class _Limits:
    """What is allowed at this moment."""

    rules: tuple[Rule, ...]
    """Enabled, and with a rate now."""
    bytes_per_s: Mapping[str, float]
    """By name as in Held."""


@dataclass(slots=True)
class _Said:
    rate: RateLimit | None
    at: datetime
    times: int = 1
    """How often."""


class RateKeeper:
    """One for the process; `step` runs on one thread, `at_start` on any."""

    def __init__(
        self,
        ctx: SchedulerContext,
        down: DownLink,
        ends: Ends,
        *,
        leading: Callable[[], bool],
        wake: threading.Event | None = None,
        steady: Callable[[], datetime] | None = None,
    ) -> None:
        """`wake` asks for a round before its time. `steady`: as the context's clock, and nobody sets it; by it goes how
        long something has been so. None: the context's.
        """
        self._wake = wake or threading.Event()
        self._steady = steady or ctx.clock
        self._round_at: datetime | None = None  # the last one as the leader
        self._ctx = ctx
        self._down = down
        self._ends = ends
        self._leading = leading
        self._facts: dict[str, TaskFacts] = {}
        self._unknown: dict[str, datetime] = {}  # tasks whose ends are being looked up, since when
        self._proxies = ProxyEnds()
        self._said: dict[Key, _Said] = {}
        self._lock = threading.Lock()
        self._limits = _Limits(rules=(), bytes_per_s={})
        self._held: dict[str, Held] = {}  # by task, as of the last round and what began since
        self._ledger = Ledger()
        self._demands: dict[str, Demand] = {}
        self._wants: dict[str, float] = {}

    def step(self) -> bool:
        """One round; False: nothing is left to do at once."""
        if not self._leading():
            with self._lock:
                self._said.clear()
                self._ledger.clear()
                self._demands.clear()
                self._round_at = None
            return False
        now = self._steady()
        with self._ctx.db.read() as s:
            limits = self._read_limits(s)
            # What another leader had said, or this one before it ended, may have been heard or not.
            everything = bool(limits.bytes_per_s or self._said or self._round_at is None)
            rows = self._running(s, everything=everything)
            if limits.bytes_per_s or rows:
                self._learn(s, rows)
        held = self._hold_all(limits, rows, now)
        with self._lock:
            rates = self._work_out(limits, rows, held, now)
            self._round_at = now
        wanted = {(row.id, row.attempt): _limit(rates[row.id], held[row.id]) for row in rows}
        self._store(rows, rates)
        self._tell(rows, wanted, now)
        self._forget_lifted(rows)
        return False

    def at_start(
        self, s: DbSession, starts: Sequence[tuple[Task, str, TransportMode]]
    ) -> dict[str, RateLimit]:
        """How fast tasks may begin that are handed out now to that proxy in that mode: with what nobody else uses; the
        next rounds make room for them. Nothing is waited for.
        """
        now = self._steady()
        limits, is_first = self._limits, self._round_at is None
        if is_first:
            limits = self._read_limits(s)
            self._proxies.read(s)
        if not limits.bytes_per_s or not starts:
            return {}
        facts = read_facts(s, [row.id for row, _, _ in starts])
        with self._lock:
            limits = limits if is_first else self._limits
            new = {
                row.id: self._hold_new(limits, facts[row.id], row.datastore, proxy_id, mode)
                for row, proxy_id, mode in starts
                if row.id in facts
            }
            everyone = {**self._held, **new}
            names = {task: held.limits & limits.bytes_per_s.keys() for task, held in everyone.items()}
            rates = share(names, limits.bytes_per_s, self._wants)
            first = self._ledger.orders(names, limits.bytes_per_s, rates, among=new)
            if is_first:
                # Nobody knows yet how fast the others are.
                first = {task: LEAST_BYTES_PER_S if names[task] else None for task in new}
            attempts = {row.id: row.attempt + 1 for row, _, _ in starts}
            for task, rate in first.items():
                self._ledger.begin(task, attempts[task], rate, now)
            self._held.update(new)
            is_short = any(first[task] != rates[task] for task in new)
        if is_short and (self._round_at is None or now - self._round_at >= HURRY):
            self._wake.set()
        said = {task: _limit(first[task], held) for task, held in new.items()}
        return {task: rate for task, rate in said.items() if rate is not None}

    def _work_out(
        self, limits: _Limits, rows: Sequence[Any], held: Mapping[str, Held], now: datetime
    ) -> dict[str, int | None]:
        """What each task is to be told now. With the lock held."""
        ledger = self._ledger
        ledger.keep(held, now)
        for row in rows:
            told = _told(row.progress)
            ledger.follow(row.id, row.attempt, told=told, stored=row.rate_bytes_per_s, now=now)
        everyone = {
            **{task: self._held[task] for task in ledger.granted() if task in self._held},
            **held,
        }
        self._limits, self._held = limits, everyone
        names = {task: each.limits & limits.bytes_per_s.keys() for task, each in everyone.items()}
        rates = share(names, limits.bytes_per_s)
        self._follow_demands(rows, rates, now)
        if self._wants:
            rates = share(names, limits.bytes_per_s, self._wants)
        orders = ledger.orders(names, limits.bytes_per_s, rates, among=held)
        for task, rate in orders.items():
            ledger.say(task, rate, now)
        return orders

    def _follow_demands(
        self, rows: Iterable[Any], fair: Mapping[str, int | None], now: datetime
    ) -> None:
        before, self._demands = self._demands, {}
        for row in rows:
            rate = fair[row.id]
            if rate is None:
                continue
            known = before.get(row.id, demand.GREEDY)
            found = demand.follow(known, _use(row.progress), fair_bytes_per_s=rate, now=now)
            self._demands[row.id] = found
        self._wants = {
            task: each.wants_bytes_per_s
            for task, each in self._demands.items()
            if each.wants_bytes_per_s is not None
        }

    # -- what there is

    def _read_limits(self, s: DbSession) -> _Limits:
        settings, now = self._ctx.settings, self._ctx.clock()
        allowed: dict[str, float] = {
            f"d:{name}": most for name, most in datastore_loads.allowances(s, settings, now).items()
        }
        rules: list[Rule] = []
        for rule in [*traffic_rules.enabled_rules(s), *proxy_rates.own_rules(s)]:
            rate = rule.rate_at(now)
            if rate is not None:
                rules.append(rule)
                allowed[f"r:{rule.id}"] = rate
        if rules:
            allowed[UNKNOWN] = 0.0
        return _Limits(rules=tuple(rules), bytes_per_s=allowed)

    @staticmethod
    def _running(s: DbSession, *, everything: bool) -> list[Any]:
        """Tasks that run; where nothing is limited only those that were."""
        asked = sa.select(
            Task.id,
            Task.attempt,
            Task.kind,
            Task.mode,
            Task.progress,
            Task.proxy_id,
            Task.datastore,
            Task.rate_bytes_per_s,
        ).where(Task.state == TaskState.RUNNING.value, Task.proxy_id.is_not(None))
        if not everything:
            asked = asked.where(Task.rate_bytes_per_s.is_not(None))
        return list(s.execute(asked))

    def _learn(self, s: DbSession, rows: Iterable[Any]) -> None:
        """Facts of tasks and proxies that are new."""
        running = {row.id for row in rows}
        for gone in self._facts.keys() - running:
            del self._facts[gone]
        if unknown := running - self._facts.keys():
            self._facts.update(read_facts(s, unknown))
        self._proxies.read(s)

    # -- what holds which

    def _hold_all(self, limits: _Limits, rows: Sequence[Any], now: datetime) -> dict[str, Held]:
        wait_s = LOOKUP_WAIT_S
        found: dict[str, Held] = {}
        unknown: dict[str, datetime] = {}
        for row in rows:
            facts = self._facts.get(row.id)
            if facts is None:
                found[row.id] = Held()
                continue
            mode = mode_in_use(row)
            where = self._where(row.proxy_id)
            held = self._hold(limits, facts, row.datastore, mode, where, wait_s=wait_s)
            if not held.is_known:
                wait_s = 0.0
                since = unknown[row.id] = self._unknown.get(row.id, now)
                if now - since < UNKNOWN_FOR:
                    held = _standing_still(held)
            found[row.id] = held
        self._unknown = unknown
        return found

    def _hold_new(
        self, limits: _Limits, facts: TaskFacts, datastore: str, proxy_id: str, mode: TransportMode
    ) -> Held:
        held = self._hold(limits, facts, datastore, mode, self._where(proxy_id), wait_s=0)
        return held if held.is_known else _standing_still(held)

    def _where(self, proxy_id: str) -> Where:
        return Where(proxy_id=proxy_id, end=self._proxies.of(proxy_id))

    def _hold(
        self,
        limits: _Limits,
        facts: TaskFacts,
        datastore: str,
        mode: TransportMode | None,
        where: Where,
        *,
        wait_s: float,
    ) -> Held:
        held = Held()
        slow = f"d:{datastore}"
        if slow in limits.bytes_per_s and facts.kind == TaskKind.BACKUP_DISK.value:
            held = Held(limits=frozenset({slow}), source=True)
        rules = [rule for rule in limits.rules if rule.restores or not facts.is_restore]
        if not rules:
            return held
        disk = self._ends.disk(facts, mode, where.end, wait_s=wait_s)
        repository = self._ends.repository(facts, wait_s=wait_s)
        held = replace(held, is_known=disk.is_known and repository.is_known)
        source, target = (repository, disk) if facts.is_restore else (disk, repository)
        for rule in rules:
            by_source, by_target = where.is_covered(rule, source), where.is_covered(rule, target)
            if by_source or by_target:
                held = replace(
                    held,
                    limits=held.limits | {f"r:{rule.id}"},
                    source=held.source or by_source,
                    target=held.target or by_target,
                )
        return held

    # -- what is said

    def _store(self, rows: Iterable[Any], rates: Mapping[str, int | None]) -> None:
        changed = [
            {"b_id": row.id, "b_attempt": row.attempt, "b_rate": rates[row.id]}
            for row in rows
            if rates[row.id] != row.rate_bytes_per_s
        ]
        if not changed:
            return
        # In the order in which whoever changes many tasks does: reports renew the leases of the same ones.
        changed.sort(key=lambda one: str(one["b_id"]))
        statement = (
            sa.update(Task)
            .where(
                Task.id == sa.bindparam("b_id"),
                Task.attempt == sa.bindparam("b_attempt"),
                Task.state == TaskState.RUNNING.value,
            )
            .values(rate_bytes_per_s=sa.bindparam("b_rate"))
            .execution_options(synchronize_session=False)
        )
        with self._ctx.db() as s:
            s.connection().execute(statement, changed)

    def _tell(self, rows: Iterable[Any], wanted: Mapping[Key, RateLimit | None], now: datetime) -> None:
        for gone in self._said.keys() - wanted.keys():
            del self._said[gone]
        orders: dict[str, list[RateOrder]] = {}
        for row in rows:
            key = (row.id, row.attempt)
            if self._is_due(key, wanted[key], row, now):
                orders.setdefault(row.proxy_id, []).append(
                    RateOrder(task_id=TaskId(row.id), attempt=Attempt(row.attempt), rate=wanted[key])
                )
        if not orders:
            return
        with self._ctx.db.read() as s:
            found = s.execute(sa.select(Proxy.id, Proxy.version).where(Proxy.id.in_(orders)))
            versions = {row.id: row.version for row in found}
        for proxy_id, messages in orders.items():
            self._down.send(ProxyId(proxy_id), down_for(messages, versions.get(proxy_id)))
            for message in messages:
                self._note((message.task_id, message.attempt), message.rate, now)

    def _is_due(self, key: Key, rate: RateLimit | None, row: Any, now: datetime) -> bool:
        said = self._said.get(key)
        told = _told(row.progress)
        if said is None:
            return rate is not None or row.rate_bytes_per_s is not None or bool(told)
        if said.rate != rate:
            return True
        if told is None:
            return now - said.at >= SAID_AGAIN_AFTER
        holds = told == (0 if rate is None else rate.bytes_per_s)
        if holds and rate is None:
            del self._said[key]
            return False
        # What holds is said once more: which ends are counted may have changed, and of that nothing is told.
        again = MISSED_AFTER if not holds else SAID_AGAIN_AFTER if said.times == 1 else None
        return again is not None and now - said.at >= again

    def _note(self, key: Key, rate: RateLimit | None, now: datetime) -> None:
        said = self._said.get(key)
        times = said.times + 1 if said is not None and said.rate == rate else 1
        self._said[key] = _Said(rate, now, times)

    def _forget_lifted(self, rows: Iterable[Any]) -> None:
        """Limits that ended, and of which enough was said to proxies that tell nothing."""
        for row in rows:
            said = self._said.get((row.id, row.attempt))
            enough = said is not None and said.rate is None and said.times >= LIFTED_SAID
            if enough and _told(row.progress) is None:
                del self._said[row.id, row.attempt]


def _standing_still(held: Held) -> Held:
    return replace(held, limits=held.limits | {UNKNOWN}, source=True, target=True)


def _limit(bytes_per_s: int | None, held: Held) -> RateLimit | None:
    if bytes_per_s is None:
        return None
    return RateLimit(bytes_per_s=bytes_per_s, source=held.source, target=held.target)


def _told(progress: Mapping[str, Any] | None) -> int | None:
    """The rate that its proxy says it holds, 0 for none; None: it says nothing."""
    told = (progress or {}).get("rate_bytes_per_s", -1)
    return None if told < 0 else int(told)


def _use(progress: Mapping[str, Any] | None) -> Use | None:
    told = _told(progress)
    if told is None or progress is None:
        return None
    return Use(
        rate_bytes_per_s=told,
        passed_bytes_per_s=float(progress.get("passed_bytes_per_s", -1.0)),
        held_share=float(progress.get("held_share", 0.0)),
    )
