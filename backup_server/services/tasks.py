"""Disk tasks: handed out, kept alive, ended. Every change goes through `db.states.change_state`.

An **attempt** is one hand-out of a task and its fencing token: whatever a proxy says about an attempt
that is not the present one changes nothing. A **lease** is the time until which the server believes that
the proxy works on it. All functions work inside the caller's transaction and take the time; after the
commit the caller wakes the session engine where a task became terminal (`Ended.terminal`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session as DbSession

from backup_server.db.states import (
    SessionState,
    StaleStateError,
    TaskState,
    change_states,
)
from backup_server.db.tables import OutboxRow, Proxy, Repository, Session, Task
from backup_server.log import task_ids
from backup_server.services import counters, events, pending, results
from backup_server.services.proxy_settings import preferred_networks
from backup_server.services.repository_agent import days_of
from backup_server.services.results import Applied, Ended, RetryPolicy, try_again
from proxy_worker.contracts.codec import MessageError, decode_order, to_json
from proxy_worker.contracts.events import EventName
from proxy_worker.contracts.ids import Attempt, ProxyId, SessionId, TaskId
from proxy_worker.contracts.messages import (
    BackupDiskOrder,
    CopyDiskOrder,
    LeaseAnswer,
    LeaseVerdict,
    RateLimit,
    RepositoryRef,
    RestoreDiskOrder,
    TaskKind,
    TaskRequest,
)
from proxy_worker.contracts.older import request_for
from transports.base import TransportMode

OUTBOX_TASK = "task"
OUTBOX_DOWN = "down"
OUTBOX_RESCAN = "rescan"
UNHEARD = "unheard"
"""Fact of a task: the end of an attempt was not heard. What it left is good for this task, whose snapshot holds
the disk still, and is not to be trusted once that is gone."""
_BATCH = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Where a claimed task goes: what `placement.decide` chose."""

    proxy_id: str
    proxy_name: str
    boot_id: str | None
    mode: TransportMode
    decision: Mapping[str, Any]
    fallback_modes: tuple[TransportMode, ...] = ()
    """Where the proxy may go on when the mode fails."""
    rate: RateLimit | None = None
    """How fast it may move data at its beginning; None: as fast as it can."""


def start_attempt(
    db: DbSession,
    row: Task,
    placement: Placement,
    *,
    now: datetime,
    lease_s: float,
    order_ttl_s: float,
) -> TaskRequest:
    """Hand out the next attempt of a pending task, with its outbox row, in one transaction.

    Raises StaleStateError when the task is no longer pending with the attempt that `row` shows, and
    MessageError when its stored order cannot be read (no attempt can succeed then).
    """
    started = start_attempts(db, [(row, placement)], now=now, lease_s=lease_s, order_ttl_s=order_ttl_s)
    request = started[row.id]
    if isinstance(request, MessageError):
        raise request
    return request


def start_attempts(
    db: DbSession,
    starts: Sequence[tuple[Task, Placement]],
    *,
    now: datetime,
    lease_s: float,
    order_ttl_s: float,
) -> dict[str, TaskRequest | MessageError]:
    """As `start_attempt` for many tasks, with a handful of statements for all of them. Answers by task id; a
    MessageError for a task whose stored order cannot be read, and which is still pending. StaleStateError when any of
    the tasks moved on: then the transaction must not be committed.
    """
    # Known to the session from here on, for _request.
    kept = [
        *db.scalars(sa.select(Proxy).where(Proxy.id.in_({p.proxy_id for _, p in starts}))),
        *db.scalars(
            sa.select(Repository).where(Repository.id.in_({r.repository_id for r, _ in starts}))
        ),
    ]
    answers: dict[str, TaskRequest | MessageError] = {}
    changes: list[dict[str, Any]] = []
    outbox: list[dict[str, Any]] = []
    lines: list[events.Line] = []
    expires_at = now + timedelta(seconds=order_ttl_s)
    for row, placement in starts:
        attempt = row.attempt + 1
        try:
            request = _request(db, row, placement, attempt, expires_at, lease_s)
        except MessageError as error:
            answers[row.id] = error
            continue
        answers[row.id] = request
        changes.append(_started(row, placement, attempt, now, now + timedelta(seconds=lease_s)))
        outbox.append(
            {
                "kind": OUTBOX_TASK,
                "proxy_id": placement.proxy_id,
                "task_id": row.id,
                "attempt": attempt,
                "body": to_json(request),
                "created_at": now,
            }
        )
        text = (
            f"{row.title}: attempt {attempt} goes to {placement.proxy_name} by {placement.mode.value}"
        )
        ids = {**task_ids(row), "attempt": attempt, "proxy": placement.proxy_name}
        lines.append(events.Line(text=text, session_id=row.session_id, task_id=row.id, ids=ids))
    del kept
    change_states(db, Task, TaskState.PENDING, TaskState.RUNNING, changes)
    if outbox:
        db.execute(sa.insert(OutboxRow), outbox)
    events.record_all(db, now, EventName.TASK_PLACED, lines)
    return answers


def _started(
    row: Task, placement: Placement, attempt: int, now: datetime, leased_until: datetime
) -> dict[str, Any]:
    return {
        "id": row.id,
        "attempt": row.attempt,
        "new_attempt": attempt,
        "started_at": row.started_at or now,
        "proxy_id": placement.proxy_id,
        "proxy_name": placement.proxy_name,
        "proxy_boot_id": placement.boot_id,
        "mode": placement.mode.value,
        "leased_until": leased_until,
        "decision": dict(placement.decision),
        "not_before": None,
        "reason": "",
        "progress": {},
        "rate_bytes_per_s": None if placement.rate is None else placement.rate.bytes_per_s,
    }


def _request(
    db: DbSession,
    row: Task,
    placement: Placement,
    attempt: int,
    expires_at: datetime,
    lease_s: float,
) -> TaskRequest:
    order = decode_order(row.kind, row.order)
    repository = db.get_one(Repository, row.repository_id)
    proxy = db.get(Proxy, placement.proxy_id)
    request = TaskRequest(
        kind=TaskKind(row.kind),
        task_id=TaskId(row.id),
        session_id=SessionId(row.session_id),
        attempt=Attempt(attempt),
        proxy_id=ProxyId(placement.proxy_id),
        # It looks at its own clock: what is ahead of ours would call every order too late.
        expires_at_s=expires_at.timestamp() + max(0.0, (proxy and proxy.clock_offset_s) or 0.0),
        title=row.title,
        mode=placement.mode,
        repository=RepositoryRef(
            repository_id=repository.repository_id,
            location=repository.location,
            immutable_days=days_of(repository),
        ),
        backup=order if isinstance(order, BackupDiskOrder) else None,
        restore=order if isinstance(order, RestoreDiskOrder) else None,
        copy=order if isinstance(order, CopyDiskOrder) else None,
        fallback_modes=placement.fallback_modes,
        preferred_networks=preferred_networks(proxy.settings) if proxy is not None else (),
        lease_s=lease_s,
        rate=placement.rate,
    )
    return request_for(request, proxy.version if proxy is not None else None)


# ---- what time and people do ----------------------------------------------------------------------


def expire_leases(
    db: DbSession,
    *,
    now: datetime,
    policy: RetryPolicy,
    heard_until: datetime | None = None,
    behind: Collection[str] = (),
) -> list[Ended]:
    """Take back every task whose proxy was not heard of in time. `heard_until`: what came before that moment was
    applied, and what came later may renew a lease; None: all was. `behind`: proxies of which not all of that was read,
    so that nobody knows whether they are silent.

    A row that somebody else holds is left for the next time: it is being renewed or ended.
    """
    until = now if heard_until is None else min(now, heard_until)
    where = sa.and_(Task.leased_until.is_not(None), Task.leased_until < until)
    if behind:
        where = sa.and_(where, Task.proxy_id.not_in(behind))
    why = "the proxy was not heard of for longer than the lease"
    return _take_back(db, where, why, policy, now, skip_locked=True)


def end_leases_of_other_boots(
    db: DbSession, proxy_id: str, boot_id: str, *, now: datetime, policy: RetryPolicy
) -> list[Ended]:
    """The proxy's worker was started anew: what its earlier self ran is lost. Who changes other tasks as well locks
    these before (`of_other_boots`); one that somebody else holds is left until its lease is over.
    """
    where = sa.and_(
        Task.proxy_id == proxy_id,
        Task.proxy_boot_id.is_not(None),
        Task.proxy_boot_id != boot_id,
    )
    why = "the proxy's worker was started anew"
    return _take_back(db, where, why, policy, now, skip_locked=True)


def of_other_boots(db: DbSession, boots: Mapping[str, str]) -> list[str]:
    """Ids of the tasks that other selves of these proxies' workers run; boot ids by proxy."""
    if not boots:
        return []
    rows = db.execute(
        sa.select(Task.id, Task.proxy_id, Task.proxy_boot_id).where(
            Task.state == TaskState.RUNNING.value,
            Task.proxy_id.in_(boots),
            Task.proxy_boot_id.is_not(None),
        )
    )
    return [row.id for row in rows if row.proxy_boot_id != boots[row.proxy_id]]


def end_leases_of(
    db: DbSession, proxy_id: str, *, reason: str, now: datetime, policy: RetryPolicy
) -> list[Ended]:
    """Take back all that a proxy works on: it is trusted no longer. It does not hear of it at once, so what writes to
    a VM's disk goes elsewhere when the lease is over that the writer counts on.
    """
    ended: list[Ended] = []
    where = Task.proxy_id == proxy_id
    while some := _take_back(db, where, reason, policy, now, writes_on=True):
        ended += some
        db.flush()
    return ended


def _take_back(
    db: DbSession,
    where: sa.ColumnElement[bool],
    reason: str,
    policy: RetryPolicy,
    now: datetime,
    *,
    writes_on: bool = False,
    skip_locked: bool = False,
) -> list[Ended]:
    """`writes_on`: writers among them may write until their leases end. `skip_locked`: leave what somebody else holds."""
    # With the rows locked: a result that is being stored comes first, with the facts that it brings.
    rows = db.scalars(
        sa.select(Task)
        .where(Task.state == TaskState.RUNNING.value, where)
        .order_by(Task.id)
        .limit(_BATCH)
        .with_for_update(skip_locked=skip_locked)
        .execution_options(populate_existing=True)
    ).all()
    ended: list[Ended] = []
    for row in rows:
        ids = task_ids(row)
        row.facts = {**(row.facts or {}), UNHEARD: True}
        try:
            writes = writes_on and row.kind == TaskKind.RESTORE_DISK_TO_VM.value
            after = row.leased_until if writes else None
            applied = try_again(db, row, reason, policy, now, not_before=after)
        except StaleStateError:
            continue  # its result came first, where rows are not locked
        counters.add(db, "leases_expired")
        events.log_when_true(db, EventName.LEASE_EXPIRED, reason, events.WARNING, ids)
        ended.append(Ended(task_id=row.id, attempt=row.attempt, terminal=applied is Applied.ENDED))
    return ended


def cancel_session_tasks(db: DbSession, session_id: str, now: datetime) -> int:
    """Cancel what is left of a session's tasks; answers how many of them were running and are told now.

    Pending tasks end at once. Running ones are marked and their proxies told: here once, then in the answer to each
    heartbeat; they end when the proxy says so or its lease is over. The caller wakes engine and dispatcher then.
    """
    unmarked = (
        Task.session_id == session_id,
        Task.state != TaskState.DONE.value,
        Task.cancel_requested.is_(False),
    )
    results.lock(db, sa.select(Task.id).where(*unmarked))
    # The mark first: a hand-out at the same moment then either sees the row locked by us or is seen.
    marked = db.scalars(
        sa.update(Task)
        .where(*unmarked)
        .values(cancel_requested=True)
        .returning(Task.id)
        .execution_options(synchronize_session=False)
    ).all()
    pending.cancel(db, session_id, now)
    return sum(_tell_of_cancel(db, chunk, now) for chunk in _chunks(marked))


def _tell_of_cancel(db: DbSession, task_ids: Sequence[str], now: datetime) -> int:
    """Those of the tasks that run; answers how many."""
    running = db.execute(
        sa.select(Task.id, Task.attempt, Task.proxy_id)
        .where(Task.id.in_(task_ids), Task.state == TaskState.RUNNING.value, Task.proxy_id.is_not(None))
        .order_by(Task.id)
    ).all()
    if running:
        db.execute(
            sa.insert(OutboxRow),
            [
                {
                    "kind": OUTBOX_DOWN,
                    "proxy_id": row.proxy_id,
                    "task_id": row.id,
                    "attempt": row.attempt,
                    "body": to_json(
                        LeaseAnswer(
                            task_id=TaskId(row.id),
                            attempt=Attempt(row.attempt),
                            verdict=LeaseVerdict.CANCEL,
                        )
                    ),
                    "created_at": now,
                }
                for row in running
            ],
        )
    return len(running)


def sessions_to_cancel(db: DbSession) -> list[str]:
    """Sessions that were asked to end and still have tasks that do not know it."""
    return list(
        db.scalars(
            sa.select(Session.id)
            .where(
                sa.or_(Session.cancel_requested.is_(True), Session.stop_reason != ""),
                Session.state != SessionState.FINISHED.value,
                sa.exists().where(
                    Task.session_id == Session.id,
                    sa.or_(
                        Task.state == TaskState.PENDING.value,
                        sa.and_(
                            Task.state == TaskState.RUNNING.value,
                            Task.cancel_requested.is_(False),
                        ),
                    ),
                ),
            )
            .order_by(Session.created_at)
        )
    )


def _chunks(items: Sequence[str]) -> Iterable[Sequence[str]]:
    return (items[i : i + _BATCH] for i in range(0, len(items), _BATCH))
