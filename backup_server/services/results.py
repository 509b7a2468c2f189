"""How attempts end: what proxies report of them, and what follows from it.

Every change goes through `db.states`, with the attempt as fencing token. All functions work inside the caller's
transaction and take the time.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.orm import Session as DbSession
from sqlalchemy.orm import defer

from backup_server.config import Settings
from backup_server.db.states import Result, TaskState, change_state, change_states
from backup_server.db.tables import Session, Task
from backup_server.log import task_ids
from backup_server.services import counters, events, moving
from proxy_worker.contracts.codec import to_json
from proxy_worker.contracts.events import EventName
from proxy_worker.contracts.messages import Failover, ResultReport, TaskOutcome
from transports.rules import NETWORK_MODES

_BATCH: Final = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    attempts: int
    """A task that failed this often is not handed out again."""
    wait_s: float
    """Before the second attempt; doubled for each further one, up to `wait_max_s`."""
    wait_max_s: float = 900.0

    def wait_after(self, failures: int) -> timedelta:
        return timedelta(seconds=min(self.wait_max_s, self.wait_s * 2 ** max(0, failures - 1)))


class Applied(StrEnum):
    ENDED = "ended"
    WAITS = "waits"  # pending again
    STALE = "stale"  # another attempt, another proxy, or ended already: nothing changed


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """An attempt that is over: its claim can be released."""

    task_id: str
    attempt: int
    terminal: bool


def policy_of(settings: Settings) -> RetryPolicy:
    return RetryPolicy(attempts=settings.task_attempts, wait_s=settings.task_retry_wait_s)


def apply_result(
    db: DbSession, proxy_id: str, report: ResultReport, *, policy: RetryPolicy, now: datetime
) -> Applied:
    """Bring the end of an attempt into the database; a repeat or an old attempt changes nothing."""
    return apply_results(db, [(proxy_id, report)], policy=policy, now=now)[0]


def apply_results(
    db: DbSession,
    reports: Sequence[tuple[str, ResultReport]],
    *,
    policy: RetryPolicy,
    now: datetime,
) -> list[Applied]:
    """As `apply_result` for many, pairs of proxy id and report: those that simply end are written with a number of
    statements that does not grow with them. Answers in the order of the reports.
    """
    rows = _locked(db, {proxy_id for proxy_id, _ in reports}, {report.task_id for _, report in reports})
    answers: list[Applied] = []
    over: set[str] = set()
    plain: list[dict[str, Any]] = []
    lines: dict[tuple[str, str], list[events.Line]] = {}
    # What is said of each is written with one statement, after all of them.
    with db.no_autoflush:
        for proxy_id, report in reports:
            row = rows.get(report.task_id)
            if row is None or row.id in over or not _is_of(row, proxy_id, report):
                answers.append(Applied.STALE)
                continue
            over.add(row.id)
            end = _plain_end(db, row, report)
            if end is None:
                answers.append(_another(db, row, report, policy, now))
                continue
            result, reason = end
            plain.append(_ended(row, result, reason, now, _told(row, report)))
            _say_failovers(db, row, report.failovers, now)
            name, level, text = _count_end(db, row, result, reason, report)
            line = events.Line(text=text, session_id=row.session_id, task_id=row.id, ids=task_ids(row))
            lines.setdefault((name, level), []).append(line)
            answers.append(Applied.ENDED)
        change_states(db, Task, TaskState.RUNNING, TaskState.DONE, plain)
        for (name, level), some in lines.items():
            events.record_all(db, now, name, some, level=level)
    return answers


def lock(db: DbSession, wanted: sa.Select[Any]) -> None:
    """Lock tasks before the first of them is changed, in the order of their ids, until the transaction ends: two that
    change many at once then wait for each other and not in a circle. `wanted` asks for their ids.
    """
    db.execute(wanted.order_by(Task.id).with_for_update(key_share=True)).all()


def lock_running(db: DbSession, proxy_ids: Collection[str], task_ids: Iterable[str]) -> None:
    """As `lock`, of those of the tasks that run on one of these proxies: others' are not theirs to hold up."""
    wanted = sorted(set(task_ids))
    for i in range(0, len(wanted), _BATCH):
        chunk = wanted[i : i + _BATCH]
        theirs = (Task.state == TaskState.RUNNING.value, Task.proxy_id.in_(proxy_ids))
        lock(db, sa.select(Task.id).where(Task.id.in_(chunk), *theirs))


def _locked(db: DbSession, proxy_ids: Collection[str], ids: Iterable[str]) -> dict[str, Task]:
    """As `lock_running`, with the rows: nobody else moves them meanwhile. A result of anything else counts for nothing,
    and waits for nobody.
    """
    wanted = sorted(ids)
    found: dict[str, Task] = {}
    for i in range(0, len(wanted), _BATCH):
        rows = db.scalars(
            sa.select(Task)
            .options(*_NOT_NEEDED)
            .where(
                Task.id.in_(wanted[i : i + _BATCH]),
                Task.state == TaskState.RUNNING.value,
                Task.proxy_id.in_(proxy_ids),
            )
            .order_by(Task.id)
            .with_for_update(key_share=True)
            .execution_options(populate_existing=True)
        )
        found.update((row.id, row) for row in rows)
    return found


_NOT_NEEDED: Final = tuple(
    defer(column) for column in (Task.order, Task.decision, Task.stats, Task.progress)
)


def _is_of(row: Task, proxy_id: str, report: ResultReport) -> bool:
    """Whether it tells of the attempt that runs."""
    return row.state == TaskState.RUNNING.value and (row.attempt, row.proxy_id) == (
        report.attempt,
        proxy_id,
    )


def _plain_end(db: DbSession, row: Task, report: ResultReport) -> tuple[Result, str] | None:
    """Result and reason of a task that is over with this; None: another attempt may follow."""
    if report.outcome is TaskOutcome.SUCCESS:
        return Result.SUCCESS, report.reason
    if report.outcome is TaskOutcome.WARNING:
        return Result.WARNING, report.reason
    if report.outcome is TaskOutcome.FAILED:
        return Result.FAILED, report.reason
    if report.outcome is TaskOutcome.CANCELLED and row.cancel_requested:
        return Result.CANCELLED, stop_reason(db, row.session_id) or report.reason or "cancelled"
    return None


def _another(
    db: DbSession, row: Task, report: ResultReport, policy: RetryPolicy, now: datetime
) -> Applied:
    """An attempt came to nothing, or was to end so that another goes on elsewhere."""
    moved = moving.reason_of(row)
    if moved and report.outcome is TaskOutcome.CANCELLED:
        return _go_on(db, row, moved, now)
    reason = report.reason or "the proxy ended the attempt"
    return try_again(db, row, reason, policy, now, report.failovers)


def _go_on(db: DbSession, row: Task, reason: str, now: datetime) -> Applied:
    """Pending again: the attempt ended as it was asked to, which is no failure."""
    change_state(
        db,
        Task,
        row.id,
        TaskState.RUNNING,
        TaskState.PENDING,
        attempt=row.attempt,
        reason=reason,
        facts=moving.unmarked(row.facts),
        not_before=now + moving.AGAIN_AFTER,
        leased_until=None,
    )
    text = f"{row.title}: attempt {row.attempt} on {row.proxy_name} ended in order; another follows"
    say(db, row, now, EventName.TASK_RETRIED, text, events.INFO)
    return Applied.WAITS


def failures_of(row: Task, failovers: Iterable[Failover]) -> list[dict[str, Any]]:
    """Pairs of proxy and mode that failed for this task so far, for people and for `facts["left"]`."""
    return [
        *(row.facts or {}).get("left", []),
        *(
            {
                "proxy": row.proxy_id,
                "name": row.proxy_name,
                "mode": one.mode.value,
                "reason": one.reason,
                "attempt": row.attempt,
            }
            for one in failovers
        ),
    ]


def _say_failovers(db: DbSession, row: Task, failovers: Sequence[Failover], now: datetime) -> None:
    for one in failovers:
        text = f"{row.title}: {one.mode.value} on {row.proxy_name} was left: {one.reason}"
        say(db, row, now, EventName.TASK_MODE_LEFT, text, events.WARNING)
        counters.add(db, "task_failovers", (one.mode.value,))


def _told(row: Task, report: ResultReport) -> dict[str, Any]:
    """What the proxy tells of the end, for the task's columns."""
    return {
        "read_mode": report.read_mode.value if report.read_mode else None,
        "read_mode_reason": report.read_mode_reason,
        "map_root": report.map_root,
        "sha256": report.sha256,
        "stats": to_json(report.stats) if report.stats else None,
        "facts": _facts_of(row, report),
        "mode": report.mode.value if report.mode is not None else row.mode,
    }


def _ended(
    row: Task, result: Result, reason: str, now: datetime, told: Mapping[str, Any]
) -> dict[str, Any]:
    """The change that ends it."""
    return {
        "id": row.id,
        "attempt": row.attempt,
        "result": result.value,
        "reason": reason,
        "finished_at": now,
        "leased_until": None,
        **told,
    }


def _count_end(
    db: DbSession, row: Task, result: Result, reason: str, report: ResultReport | None = None
) -> tuple[str, str, str]:
    """Count it; answers what is to be said of it: name, level and text."""
    level = {Result.FAILED: events.ERROR, Result.WARNING: events.WARNING}.get(result, events.INFO)
    name = EventName.TASK_CANCELLED if result is Result.CANCELLED else EventName.TASK_FINISHED
    counters.add(db, "tasks_ended", (row.kind, result.value))
    if report is not None and report.stats is not None:
        mode = report.mode.value if report.mode else ""
        counters.add(db, "read_bytes", (row.kind, mode), report.stats.read_bytes)
        counters.add(db, "stored_bytes", (row.kind,), report.stats.stored_bytes)
    tail = f": {reason}" if reason not in {"", result.value} else ""
    return name, level, f"{row.title}: {result.value}{tail}"


def _end(
    db: DbSession, row: Task, result: Result, reason: str, now: datetime, **values: Any
) -> Applied:
    """The end of a task of which no proxy told."""
    change = _ended(row, result, reason, now, values)
    task_id, attempt = change.pop("id"), change.pop("attempt")
    change_state(db, Task, task_id, TaskState.RUNNING, TaskState.DONE, attempt=attempt, **change)
    name, level, text = _count_end(db, row, result, reason)
    say(db, row, now, name, text, level)
    return Applied.ENDED


def _facts_of(row: Task, report: ResultReport) -> dict[str, Any]:
    """The task's facts with what its end added: modes that were left, and how tracking stood its trial."""
    facts = dict(row.facts or {})
    if report.failovers:
        facts["left"] = failures_of(row, report.failovers)
    if report.sampled_blocks:
        facts["sampled_blocks"] = report.sampled_blocks
    if report.tracking_mismatch:
        facts["tracking_mismatch"] = report.tracking_mismatch
    return facts


def try_again(
    db: DbSession,
    row: Task,
    reason: str,
    policy: RetryPolicy,
    now: datetime,
    failovers: Sequence[Failover] = (),
    not_before: datetime | None = None,
) -> Applied:
    """An attempt that came to nothing: pending again after a pause and `not_before`, or the end of the task.

    A direct mode that failed is not to be chosen again on that proxy for this task. The network modes may:
    they are what everything falls back to, and a host that was away comes back.
    """
    if row.cancel_requested:
        reason = stop_reason(db, row.session_id) or "cancelled"
        return _end(db, row, Result.CANCELLED, reason, now)
    _say_failovers(db, row, failovers, now)
    left = [one for one in failovers if one.mode not in NETWORK_MODES]
    facts = {**(row.facts or {}), "left": failures_of(row, left)} if left else row.facts
    failures = row.failures + 1
    if failures >= policy.attempts:
        reason = f"given up after {failures} attempts, the last on {row.proxy_name}: {reason}"
        return _end(db, row, Result.FAILED, reason, now, failures=failures, facts=facts)
    again = now + policy.wait_after(failures)
    change_state(
        db,
        Task,
        row.id,
        TaskState.RUNNING,
        TaskState.PENDING,
        attempt=row.attempt,
        failures=failures,
        reason=reason,
        facts=facts,
        not_before=again if not_before is None else max(again, not_before),
        leased_until=None,
    )
    text = f"{row.title}: attempt {row.attempt} on {row.proxy_name} ended: {reason}; another follows"
    say(db, row, now, EventName.TASK_RETRIED, text, events.WARNING)
    counters.add(db, "task_attempts_repeated")
    return Applied.WAITS


def say(db: DbSession, row: Task, now: datetime, name: str, text: str, level: str) -> None:
    events.record(
        db,
        now,
        name,
        text,
        session_id=row.session_id,
        task_id=row.id,
        level=level,
        ids=task_ids(row),
    )


def stop_reason(db: DbSession, session_id: str) -> str:
    """Why the session stops although nobody cancelled it; empty: it does not."""
    return db.scalar(sa.select(Session.stop_reason).where(Session.id == session_id)) or ""
