"""Claims made true in SQL: all of a round in one transaction, with a number of statements that does not grow with
them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

from sqlalchemy.orm import Session as DbSession

from backup_server import instruments
from backup_server.db.states import StaleStateError
from backup_server.db.tables import Proxy, Task
from backup_server.scheduler import facts
from backup_server.scheduler.claims import Claim
from backup_server.scheduler.needs import SchedulerContext
from backup_server.scheduler.view import View
from backup_server.services import events, job_windows, lineup, pending, proxy_facts, tasks
from backup_server.services.limits import PROXY
from backup_server.services.lineup import Lineup
from backup_server.services.placement import Decision
from proxy_worker.contracts.codec import MessageError
from proxy_worker.contracts.events import EventName
from proxy_worker.contracts.messages import RateLimit
from transports.base import TransportMode


@dataclass(slots=True)
class Confirmed:
    held: list[Claim] = field(default_factory=list)
    stale: bool = False
    """Some task was no longer what the index took it for: compare all of them with SQL."""


Starting = tuple[Claim, Task, tasks.Placement]
AtStart = Callable[[DbSession, Sequence[tuple[Task, str, TransportMode]]], Mapping[str, RateLimit]]
"""How fast tasks may begin that go to that proxy in that mode; by task id, only those that are held to a rate."""


def no_rates(_: DbSession, __: Sequence[tuple[Task, str, TransportMode]]) -> Mapping[str, RateLimit]:
    return {}


def confirm(
    ctx: SchedulerContext,
    view: View,
    claims: Sequence[Claim],
    usage: Mapping[str, int],
    at_start: AtStart = no_rates,
) -> Confirmed:
    """Start the attempts of those claims that `placement` accepts with what SQL says now; the others are to be
    released. `usage`: as the index counted before these claims. Raises what the database raises; then nothing is
    started.
    """
    answer = Confirmed()
    now = ctx.clock()
    try:
        with ctx.db() as s:
            round_ = _Round(ctx, view, usage, now)
            starts = _with_rates(s, round_.judge(s, claims, answer), at_start)
            ready = {
                row.id: max(row.created_at, row.not_before or row.created_at) for _, row, _ in starts
            }
            begun = tasks.start_attempts(
                s,
                [(row, where) for _, row, where in starts],
                now=now,
                lease_s=ctx.settings.lease_s,
                order_ttl_s=ctx.settings.order_ttl_s,
            )
            held = []
            for claim, row, _ in starts:
                problem = begun[row.id]
                if isinstance(problem, MessageError):
                    reason = f"the stored order cannot be carried out: {problem}"
                    pending.give_up(s, row, reason, now)
                    ctx.wake_engine.set()
                else:
                    held.append(claim)
            round_.warn(s)
    except StaleStateError:
        # Another server moved one of them between our look and our change: none of these was started.
        answer.stale = True
        return answer
    answer.held = held
    for claim in held:
        instruments.TASK_WAIT.observe(max(0.0, (now - ready[claim.task_id]).total_seconds()))
    return answer


def _with_rates(s: DbSession, starts: list[Starting], at_start: AtStart) -> list[Starting]:
    rates = at_start(s, [(row, where.proxy_id, where.mode) for _, row, where in starts])
    return [(claim, row, replace(where, rate=rates.get(row.id))) for claim, row, where in starts]


class _Round:
    def __init__(
        self, ctx: SchedulerContext, view: View, usage: Mapping[str, int], now: datetime
    ) -> None:
        self._ctx = ctx
        self._view = view
        self._now = now
        self._used = Counter({proxy.id: usage.get(PROXY + proxy.id, 0) for proxy in view.proxies})
        self._present = view.with_used(usage)
        self._lineups: dict[str, Lineup] = {}
        self._warnings: dict[str, set[str]] = {}
        """What is set and not followed -> sessions whose tasks it is about."""

    def judge(self, s: DbSession, claims: Sequence[Claim], answer: Confirmed) -> list[Starting]:
        rows = facts.lock_pending(s, [claim.task_id for claim in claims])
        proxies = facts.proxies_by_id(s, {claim.proxy_id for claim in claims})
        # Between the end of a window and the stop of its sessions there is a moment.
        closed = job_windows.closed_ids(s, {row.session_id for row in rows.values()}, self._now)
        starts = []
        for claim in claims:
            row = rows.get(claim.task_id)
            if row is None or row.attempt + 1 != claim.attempt or row.cancel_requested:
                answer.stale = True
                continue
            if row.session_id in closed:
                continue
            proxy = proxies.get(claim.proxy_id)
            decision = self._decide(claim, row)
            if proxy is None or not proxy.enabled or decision is None:
                continue
            starts.append((claim, row, self._placement(proxy, decision)))
            if decision.warning:
                self._warnings.setdefault(decision.warning, set()).add(row.session_id)
            self._used[claim.proxy_id] += 1
        return starts

    def warn(self, s: DbSession) -> None:
        for text, sessions in self._warnings.items():
            events.warn_once(s, self._now, EventName.TASK_PLACED, text, sessions)

    def _decide(self, claim: Claim, row: Task) -> Decision | None:
        wish = proxy_facts.task_wish(row, self._view.fleet)
        by, key = self._view.by_id.get(claim.proxy_id), wish.key
        if by is None or wish.impossible or key not in self._view.wishes:
            return None
        if key not in self._lineups:
            self._lineups[key] = lineup.lineup(wish, self._present, self._view.survey_of(key))
        decision = lineup.confirm(
            self._lineups[key],
            by,
            taken=self._used[claim.proxy_id],
            refused=proxy_facts.task_refusals(row),
        )
        # What was claimed was counted for its mode; a better or worse one is claimed anew.
        as_claimed = (
            decision is not None and decision.chosen is not None and decision.chosen.rank == claim.rank
        )
        return decision if as_claimed else None

    def _placement(self, proxy: Proxy, decision: Decision) -> tasks.Placement:
        chosen = decision.chosen
        assert chosen is not None
        return tasks.Placement(
            proxy_id=proxy.id,
            proxy_name=proxy.name,
            boot_id=proxy.boot_id,
            mode=chosen.mode,
            # A worker of an earlier release tells no connections and cannot go on in another mode.
            fallback_modes=decision.fallbacks if proxy.connections_at is not None else (),
            decision={**decision.to_json(), "at": self._now.isoformat()},
        )
