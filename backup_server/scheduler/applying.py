"""What proxies reported, brought into the database: in one transaction for all that one reading brought.

Results are guarded by attempt and state, the rest is merely the latest value again, so that whatever is read twice
changes nothing the second time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.orm import Session as DbSession

from backup_server.db.fenced import NotLeadingError
from backup_server.db.tables import Proxy, Task
from backup_server.scheduler.needs import SchedulerContext, retry_policy
from backup_server.services import leases, proxy_troubles, proxy_vms, results, tasks
from backup_server.services.proxy_facts import NO_DIRECTORIES
from backup_server.services.results import Applied, Ended
from proxy_worker.contracts.codec import MessageError, to_json
from proxy_worker.contracts.events import EventName
from proxy_worker.contracts.messages import (
    ConnectionsReport,
    DownMessage,
    HeartbeatReport,
    LeaseAnswer,
    LeasesHeld,
    LeaseVerdict,
    ProgressReport,
    ResultAck,
    ResultReport,
    RunningTask,
    TaskOutcome,
)
from proxy_worker.contracts.older import down_for
from transports.rules import same_uuid

_OUTAGES: Final = (
    sa.exc.OperationalError,
    sa.exc.InterfaceError,
    sa.exc.TimeoutError,
    sa.exc.DisconnectionError,
    NotLeadingError,
)
"""The database is away or busy, or another server leads: nothing is wrong with what was to be stored."""
_REASON_CHARS: Final = 200
_PLACED_BY: Final = ("slots", "stopping", "modes", NO_DIRECTORIES)
"""Facts of a proxy that placement goes by."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """A heartbeat, and how far its clock is from ours, the time left out for which it waited."""

    report: HeartbeatReport
    skew_s: float


@dataclass(slots=True)
class Batch:
    """What one reading brought, coalesced."""

    entries: dict[str, list[Any]] = field(default_factory=dict)
    heartbeats: dict[str, list[Heard]] = field(default_factory=dict)
    """In the order of their coming."""
    refused: dict[str, int] = field(default_factory=dict)
    """How many messages of each proxy."""
    progress: dict[str, tuple[str, ProgressReport]] = field(default_factory=dict)
    results: list[tuple[str, ResultReport]] = field(default_factory=list)
    clock_offsets: dict[str, float] = field(default_factory=dict)
    connections: dict[str, ConnectionsReport] = field(default_factory=dict)

    def apart(self) -> Iterator[tuple[str, Batch]]:
        """Each message alone, with its sender, in the order in which they are written."""
        for proxy_id, result in self.results:
            yield proxy_id, Batch(results=[(proxy_id, result)])
        for proxy_id, heartbeat in self.heartbeats.items():
            yield proxy_id, Batch(heartbeats={proxy_id: heartbeat})
        for proxy_id, found in self.connections.items():
            yield proxy_id, Batch(connections={proxy_id: found})
        for key, (proxy_id, report) in self.progress.items():
            yield proxy_id, Batch(progress={key: (proxy_id, report)})
        for proxy_id, offset_s in self.clock_offsets.items():
            yield proxy_id, Batch(clock_offsets={proxy_id: offset_s})


@dataclass(slots=True)
class Effect:
    """What is to be told after the commit."""

    ended: list[Ended] = field(default_factory=list)
    answers: dict[str, list[DownMessage]] = field(default_factory=dict)
    changed_proxies: bool = False


class ReportWriter:
    """One thread uses it."""

    def __init__(self, ctx: SchedulerContext, refuse: Callable[[str, MessageError], None]) -> None:
        """`refuse` says of a message of that proxy that it counts for nothing, and why."""
        self._ctx = ctx
        self._refuse = refuse

    def write(self, batch: Batch) -> Effect:
        """All in one transaction; each message in one of its own when that does not work, so that one which cannot be
        stored stops nobody else's. Raises when the database is away.
        """
        try:
            with self._ctx.db() as s:
                return self.apply(s, batch)
        except _OUTAGES:
            raise
        except Exception as error:  # noqa: BLE001 - which one it was is found out below, and said
            self._ctx.log.warning(
                "reports.apart", text=f"reports are stored one by one: {_short(error)}"
            )
        effect = Effect()
        for proxy_id, part in batch.apart():
            found = self._write_one(proxy_id, part)
            effect.ended += found.ended
            effect.changed_proxies |= found.changed_proxies
            for receiver, answers in found.answers.items():
                effect.answers.setdefault(receiver, []).extend(answers)
        return effect

    def _write_one(self, proxy_id: str, part: Batch) -> Effect:
        try:
            with self._ctx.db() as s:
                return self.apply(s, part)
        except _OUTAGES:
            raise
        except Exception as error:  # noqa: BLE001 - as above
            reason = f"a report cannot be stored: {_short(error)}"
            self._refuse(proxy_id, MessageError(reason))
        if not part.results:
            return Effect()
        # Sent until it is acknowledged, and its task kept alive by heartbeats until then: so the attempt ends here.
        [(_, bad)] = part.results
        plain = ResultReport(
            task_id=bad.task_id, attempt=bad.attempt, outcome=TaskOutcome.RETRY, reason=reason
        )
        return (
            self._write_one(proxy_id, Batch(results=[(proxy_id, plain)])) if bad != plain else Effect()
        )

    def apply(self, s: DbSession, batch: Batch) -> Effect:
        now = self._ctx.clock()
        policy = retry_policy(self._ctx.settings)
        effect = Effect()
        anew = self._lock_proxies(s, batch)
        changed = [*_named_in(batch), *tasks.of_other_boots(s, anew)]
        results.lock_running(s, list(_speakers(batch)), changed)
        # Results first: a worker that was started anew sends what its earlier self had finished and
        # only then its first heartbeat, which ends that self's leases.
        answers = results.apply_results(s, batch.results, policy=policy, now=now)
        self._log_stale(s, batch.results, answers)
        for (proxy_id, result), applied in zip(batch.results, answers, strict=True):
            ack = ResultAck(task_id=result.task_id, attempt=result.attempt)
            effect.answers.setdefault(proxy_id, []).append(ack)
            if applied is Applied.STALE:
                continue
            effect.ended.append(
                Ended(
                    task_id=result.task_id,
                    attempt=result.attempt,
                    terminal=applied is Applied.ENDED,
                )
            )
        self._apply_heartbeats(s, batch.heartbeats, now, effect)
        for proxy_id, found in batch.connections.items():
            self._apply_connections(s, proxy_id, found, now)
            effect.changed_proxies = True
        leases.record_progress(s, batch.progress.values())
        for proxy_id, offset_s in batch.clock_offsets.items():
            row = s.get(Proxy, proxy_id, with_for_update={"key_share": True}, populate_existing=True)
            if row is not None:
                row.clock_offset_s = offset_s
                trouble = {proxy_troubles.CLOCK: proxy_troubles.clock_trouble(offset_s)}
                effect.changed_proxies |= proxy_troubles.note(s, row, trouble, now)
        return effect

    @staticmethod
    def _lock_proxies(s: DbSession, batch: Batch) -> dict[str, str]:
        """Before their tasks, as who revokes one does, and in one order. Answers those whose worker says another boot
        id than before, with the new one.
        """
        ids = batch.heartbeats.keys() | batch.connections.keys() | batch.clock_offsets.keys()
        if not ids:
            return {}
        asked = sa.select(Proxy.id, Proxy.boot_id).where(Proxy.id.in_(ids)).order_by(Proxy.id)
        told = {proxy_id: beats[-1].report.boot_id for proxy_id, beats in batch.heartbeats.items()}
        return {
            row.id: told[row.id]
            for row in s.execute(asked.with_for_update(key_share=True)).all()
            if row.id in told and row.boot_id != told[row.id]
        }

    @staticmethod
    def _apply_connections(
        s: DbSession, proxy_id: str, found: ConnectionsReport, now: datetime
    ) -> None:
        # With the row locked: an administrator may be changing its settings.
        row = s.get(Proxy, proxy_id, with_for_update={"key_share": True}, populate_existing=True)
        if row is None:
            return
        before = proxy_vms.uuid_of(row)
        is_new = before != found.vm_uuid
        row.connections, row.connections_at = to_json(found), now
        if before and not same_uuid(before, found.vm_uuid):
            proxy_vms.unconfirm(row)
        s.flush()
        if is_new:
            proxy_vms.follow_uuid(s, proxy_id, found.vm_uuid)

    def _log_stale(
        self, s: DbSession, told: list[tuple[str, ResultReport]], answers: list[Applied]
    ) -> None:
        """Often the same once more, as our acknowledgement was on its way."""
        stale = [one for one, applied in zip(told, answers, strict=True) if applied is Applied.STALE]
        if not stale:
            return
        ids = [result.task_id for _, result in stale]
        sessions = {row.id: row.session_id for row in _of(s, Task.id, Task.session_id, ids)}
        names = {row.id: row.name for row in _of(s, Proxy.id, Proxy.name, [one for one, _ in stale])}
        for proxy_id, result in stale:
            self._ctx.log.info(
                EventName.RESULT_STALE,
                text="a result of an attempt that is over changes nothing",
                proxy_id=proxy_id,
                proxy=names.get(proxy_id, ""),
                session_id=sessions.get(result.task_id),
                task_id=result.task_id,
                attempt=result.attempt,
                outcome=result.outcome.value,
            )

    def _apply_heartbeats(
        self, s: DbSession, beats: dict[str, list[Heard]], now: datetime, effect: Effect
    ) -> None:
        if not beats:
            return
        # With the rows locked: what is known of a proxy's VM stands in the same column. All in one order, and all with
        # few statements: every proxy of a fleet says something every few seconds.
        rows = s.scalars(
            sa.select(Proxy)
            .where(Proxy.id.in_(beats))
            .order_by(Proxy.id)
            .with_for_update(key_share=True)
            .execution_options(populate_existing=True)
        ).all()
        for row in rows:
            self._apply_heartbeat(s, row, beats[row.id], now, effect)
        s.flush()
        # Results that were read just now are acknowledged, which says all there is to say.
        heard = {(task.task_id, task.attempt) for task in effect.ended}
        # Of two machines with one identity each says what it runs.
        latest = [(row.id, report) for row in rows for report in _latest(beats[row.id])]
        renewed = leases.renew_all(
            s,
            [
                leases.Beat(
                    proxy_id=proxy_id,
                    boot_id=report.boot_id,
                    running=[
                        task for task in report.running if (task.task_id, task.attempt) not in heard
                    ],
                    sequence=report.sequence,
                )
                for proxy_id, report in latest
            ],
            now=now,
            lease_s=self._ctx.settings.lease_s,
        )
        for (proxy_id, report), answers in zip(latest, renewed, strict=True):
            told = together(answers, report) if report.takes_leases_held else answers
            effect.answers.setdefault(proxy_id, []).extend(down_for(told, report.version))

    def _apply_heartbeat(
        self, s: DbSession, row: Proxy, beats: list[Heard], now: datetime, effect: Effect
    ) -> None:
        """`beats`: what was heard of that proxy, the last of them is what holds."""
        settings = self._ctx.settings
        proxy_id, report = row.id, beats[-1].report
        boots = proxy_troubles.follow_boots(
            row.facts.get(proxy_troubles.BOOTS) or {},
            [(one.report.boot_id, one.report.clock_s) for one in beats],
        )
        # A self that was replaced ends nothing: it is late, or a twin, and then both go on with what they have.
        replaced = proxy_troubles.is_replaced(boots, report.boot_id)
        if not replaced and row.boot_id != report.boot_id:
            effect.ended += tasks.end_leases_of_other_boots(
                s, proxy_id, report.boot_id, now=now, policy=retry_policy(settings)
            )
            self._ctx.log.info(
                EventName.PROXY_RESTARTED, text=f"worker of {row.name} started", proxy_id=proxy_id
            )
        seen = row.last_seen_at
        back = seen is None or (now - seen).total_seconds() > settings.proxy_offline_after_s
        new_facts = {
            **row.facts,
            "slots": report.slots,
            "running": len(report.running),
            "stopping": report.stopping,
            "modes": [mode.value for mode in report.modes],
            "cpu_share": report.cpu_share,
            "free_memory_bytes": report.free_memory_bytes,
            NO_DIRECTORIES: report.no_directories[:_REASON_CHARS],
            proxy_troubles.BOOTS: boots,
        }
        if back or any(row.facts.get(key) != new_facts[key] for key in _PLACED_BY):
            effect.changed_proxies = True
        row.facts = new_facts
        if not replaced:
            row.boot_id = report.boot_id
        row.version = report.version
        row.last_seen_at = now
        row.clock_offset_s = beats[-1].skew_s
        effect.changed_proxies |= proxy_troubles.note(s, row, _troubles(row, boots), now)


def _speakers(batch: Batch) -> set[str]:
    told = {proxy_id for proxy_id, _ in (*batch.results, *batch.progress.values())}
    return told | batch.heartbeats.keys()


def _named_in(batch: Batch) -> Iterator[str]:
    """The tasks that it may change."""
    yield from (result.task_id for _, result in batch.results)
    yield from (report.task_id for _, report in batch.progress.values())
    for beats in batch.heartbeats.values():
        yield from (task.task_id for report in _latest(beats) for task in report.running)


def _of(s: DbSession, key: Any, value: Any, ids: list[Any]) -> Any:
    return s.execute(sa.select(key, value).where(key.in_(ids)))


def _short(error: Exception) -> str:
    """Of the database's complaint the first line: what follows repeats statement and values."""
    text = str(getattr(error, "orig", None) or error).partition("\n")[0]
    # What cannot be stored must not stand in the reason that is.
    return f"{type(error).__name__}: {text}".replace("\0", "")[:_REASON_CHARS]


def together(answers: Sequence[LeaseAnswer], report: HeartbeatReport) -> list[DownMessage]:
    """What a worker is told of the leases that its heartbeat asked for: those that it keeps with one message."""
    told: list[DownMessage] = [one for one in answers if one.verdict is not LeaseVerdict.HELD]
    held = tuple(
        RunningTask(task_id=one.task_id, attempt=one.attempt)
        for one in answers
        if one.verdict is LeaseVerdict.HELD
    )
    return [*told, LeasesHeld(sequence=report.sequence, held=held)] if held else told


def _latest(beats: list[Heard]) -> list[HeartbeatReport]:
    """The last heartbeat of each self of the worker."""
    return list({one.report.boot_id: one.report for one in beats}.values())


def _troubles(row: Proxy, boots: dict[str, Any]) -> dict[str, str]:
    found = {
        proxy_troubles.CLOCK: proxy_troubles.clock_trouble(row.clock_offset_s or 0.0),
        proxy_troubles.VERSION: proxy_troubles.version_trouble(row.name, row.version or ""),
    }
    if proxy_troubles.has_twin(boots):
        found[proxy_troubles.IDENTITY] = proxy_troubles.identity_trouble(row.name)
    return found
