"""How fast each running task may move data: worked out from traffic rules and slow datastores, and told.

Every round looks at the tasks that run, shares what is allowed among them (services/rates.py), writes what changed
to `tasks.rate_bytes_per_s` and sends it to the proxies. What holds is said again every few seconds, so that an order
that was lost is made up for. Where nothing is limited a round is two questions to the database.
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
from backup_server.services import datastore_loads, proxy_rates, traffic_rules
from backup_server.services.lookups import NONE, Addresses
from backup_server.services.networks import on_one_machine
from backup_server.services.proxy_facts import addresses_of
from backup_server.services.rates import share
from backup_server.services.task_ends import Ends, Point, TaskFacts, read_facts
from backup_server.services.traffic_rules import Rule
from proxy_worker.contracts.ids import Attempt, ProxyId, TaskId
from proxy_worker.contracts.messages import RateLimit, RateOrder, TaskKind
from proxy_worker.contracts.older import down_for
from transports.base import TransportMode

SAID_AGAIN_AFTER: Final = timedelta(seconds=10)
LIFTED_SAID: Final = 3
"""How often a proxy is told that a limit ended."""
LOOKUP_WAIT_S: Final = 0.5
Key = tuple[str, int]
"""Task and attempt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What holds one task."""

    limits: frozenset[str] = frozenset()
    """"r:<rule id>", a proxy's own as "r:proxy/<id>", and "d:<datastore>"."""
    source: bool = False
    target: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Where:
    """The proxy that works on a task."""

    proxy_id: str
    addresses: Addresses

    def is_covered(self, rule: Rule, point: Point) -> bool:
        """Whether the rule covers what moves between the proxy and that point."""
        if not rule.proxy_id:
            return rule.covers(self.addresses, point.addresses)
        elsewhere = point.by_network and not on_one_machine(self.addresses, point.addresses)
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


class RateKeeper:
    """One for the process; `step` runs on one thread, `at_start` on any."""

    def __init__(
        self, ctx: SchedulerContext, down: DownLink, ends: Ends, *, leading: Callable[[], bool]
    ) -> None:
        self._ctx = ctx
        self._down = down
        self._ends = ends
        self._leading = leading
        self._facts: dict[str, TaskFacts] = {}
        self._proxies: dict[str, tuple[datetime | None, Addresses]] = {}
        self._said: dict[Key, _Said] = {}
        self._lock = threading.Lock()
        self._limits = _Limits(rules=(), bytes_per_s={})
        self._held: dict[str, Held] = {}  # by task, as of the last round and what began since

    def step(self) -> bool:
        """One round; False: nothing is left to do at once."""
        if not self._leading():
            self._said.clear()
            return False
        now = self._ctx.clock()
        with self._ctx.db.read() as s:
            limits = self._read_limits(s, now)
            rows = self._running(s, everything=bool(limits.bytes_per_s or self._said))
            if limits.bytes_per_s or rows:
                self._learn(s, rows)
        held = {row.id: self._held_by(limits, row) for row in rows}
        with self._lock:
            self._limits, self._held = limits, dict(held)
        rates = share({task: each.limits for task, each in held.items()}, limits.bytes_per_s)
        wanted = {(row.id, row.attempt): _limit(rates[row.id], held[row.id]) for row in rows}
        self._store(rows, rates)
        self._tell(rows, wanted, now)
        return False

    def at_start(
        self, s: DbSession, starts: Sequence[tuple[Task, str, TransportMode]]
    ) -> dict[str, RateLimit]:
        """How fast tasks may begin that are handed out now to that proxy in that mode; the next round may change it.
        Nothing is waited for.
        """
        if not self._limits.bytes_per_s or not starts:
            return {}
        facts = read_facts(s, [row.id for row, _, _ in starts])
        with self._lock:
            limits = self._limits
            new: dict[str, Held] = {}
            for row, proxy_id, mode in starts:
                if row.id in facts:
                    where = self._where(proxy_id)
                    new[row.id] = self._hold(
                        limits, facts[row.id], row.datastore, mode, where, wait_s=0
                    )
            self._held.update(new)
            names = {task: held.limits for task, held in self._held.items()}
        rates = share(names, limits.bytes_per_s)
        said = {task: _limit(rates[task], held) for task, held in new.items()}
        return {task: rate for task, rate in said.items() if rate is not None}

    # -- what there is

    def _read_limits(self, s: DbSession, now: datetime) -> _Limits:
        settings = self._ctx.settings
        allowed: dict[str, float] = {
            f"d:{name}": most for name, most in datastore_loads.allowances(s, settings, now).items()
        }
        rules: list[Rule] = []
        for rule in [*traffic_rules.enabled_rules(s), *proxy_rates.own_rules(s)]:
            rate = rule.rate_at(now)
            if rate is not None:
                rules.append(rule)
                allowed[f"r:{rule.id}"] = rate
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
        seen = s.execute(sa.select(Proxy.id, Proxy.connections_at)).all()
        for proxy_id, at in seen:
            if proxy_id not in self._proxies or self._proxies[proxy_id][0] != at:
                self._proxies[proxy_id] = (at, _addresses(s, proxy_id))

    # -- what holds which

    def _held_by(self, limits: _Limits, row: Any) -> Held:
        facts = self._facts.get(row.id)
        if facts is None:
            return Held()
        mode = _mode((row.progress or {}).get("mode") or row.mode)
        where = self._where(row.proxy_id)
        return self._hold(limits, facts, row.datastore, mode, where, wait_s=LOOKUP_WAIT_S)

    def _where(self, proxy_id: str) -> Where:
        _, addresses = self._proxies.get(proxy_id, (None, NONE))
        return Where(proxy_id=proxy_id, addresses=addresses)

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
        disk = self._ends.disk(facts, mode, wait_s=wait_s)
        repository = self._ends.repository(facts, wait_s=wait_s)
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
            if self._is_due(key, wanted[key], row.rate_bytes_per_s, now):
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

    def _is_due(self, key: Key, rate: RateLimit | None, stored: int | None, now: datetime) -> bool:
        said = self._said.get(key)
        if said is None:
            return rate is not None or stored is not None
        if said.rate != rate:
            return True
        return now - said.at >= SAID_AGAIN_AFTER

    def _note(self, key: Key, rate: RateLimit | None, now: datetime) -> None:
        said = self._said.get(key)
        times = said.times + 1 if said is not None and said.rate == rate else 1
        if rate is None and times >= LIFTED_SAID:
            del self._said[key]
        else:
            self._said[key] = _Said(rate, now, times)


def _limit(bytes_per_s: int | None, held: Held) -> RateLimit | None:
    if bytes_per_s is None:
        return None
    return RateLimit(bytes_per_s=bytes_per_s, source=held.source, target=held.target)


def _mode(name: str | None) -> TransportMode | None:
    return TransportMode(name) if name in set(TransportMode) else None


def _addresses(s: DbSession, proxy_id: str) -> Addresses:
    told = s.scalar(sa.select(Proxy.connections).where(Proxy.id == proxy_id)) or {}
    return addresses_of(str(text) for text in told.get("addresses", ()))
