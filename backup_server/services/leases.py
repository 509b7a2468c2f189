"""Leases of running tasks: renewed by heartbeats, asked for when secrets are wanted; and progress.

All functions work inside the caller's transaction.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, TypeVar

import sqlalchemy as sa
from sqlalchemy.orm import Session as DbSession

from backup_server.db.states import TaskState
from backup_server.db.tables import Proxy, Task
from backup_server.errors import ForbiddenError
from proxy_worker.contracts.codec import to_json
from proxy_worker.contracts.messages import (
    LeaseAnswer,
    LeaseVerdict,
    ProgressReport,
    RunningTask,
)

T = TypeVar("T")

_BATCH: Final = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Beat:
    """What a heartbeat says of leases."""

    proxy_id: str
    boot_id: str
    running: Sequence[RunningTask]
    sequence: int = 0


def renew_leases(
    db: DbSession,
    proxy_id: str,
    boot_id: str,
    running: Sequence[RunningTask],
    *,
    now: datetime,
    lease_s: float,
    sequence: int = 0,
) -> list[LeaseAnswer]:
    """Renew what the proxy rightly says it runs; a verdict for each task it named. `sequence`: of its heartbeat."""
    beat = Beat(proxy_id=proxy_id, boot_id=boot_id, running=running, sequence=sequence)
    return renew_all(db, [beat], now=now, lease_s=lease_s)[0]


def renew_all(
    db: DbSession, beats: Sequence[Beat], *, now: datetime, lease_s: float
) -> list[list[LeaseAnswer]]:
    """As `renew_leases` for the heartbeats of many proxies, with a statement for 500 tasks that are read, one for 500 of
    one attempt (few have a second) that are renewed, and one for all that were not heard of before. Who changes other
    tasks as well locks these first (`results.lock_running`).
    """
    rows: dict[str, Any] = {}
    for chunk in _chunks(sorted({task.task_id for beat in beats for task in beat.running})):
        found = db.execute(
            sa.select(
                Task.id,
                Task.state,
                Task.attempt,
                Task.proxy_id,
                Task.proxy_boot_id,
                Task.cancel_requested,
            ).where(Task.id.in_(chunk))
        )
        rows.update({row.id: row for row in found})
    answers: list[list[LeaseAnswer]] = []
    held: dict[int, set[str]] = {}
    first: list[dict[str, Any]] = []
    for beat in beats:
        mine: list[LeaseAnswer] = []
        for task in beat.running:
            row = rows.get(task.task_id)
            verdict = LeaseVerdict.LOST
            if row is not None and _is_held(row, task, beat):
                verdict = LeaseVerdict.CANCEL if row.cancel_requested else LeaseVerdict.HELD
                held.setdefault(row.attempt, set()).add(row.id)
                if row.proxy_boot_id is None:
                    first.append({"b_id": row.id, "b_attempt": row.attempt, "b_boot": beat.boot_id})
            mine.append(
                LeaseAnswer(
                    task_id=task.task_id,
                    attempt=task.attempt,
                    verdict=verdict,
                    sequence=beat.sequence,
                )
            )
        answers.append(mine)
    until = now + timedelta(seconds=lease_s)
    for attempt, named in sorted(held.items()):
        for part in _chunks(sorted(named)):
            db.connection().execute(_renewal(part, attempt, until))
    if first:
        first.sort(key=lambda one: str(one["b_id"]))
        db.connection().execute(_FIRST_HEARD, first)
    return answers


def _is_held(row: Any, task: RunningTask, beat: Beat) -> bool:
    return (
        row.state == TaskState.RUNNING.value
        and (row.attempt, row.proxy_id) == (task.attempt, beat.proxy_id)
        and row.proxy_boot_id in (None, beat.boot_id)
    )


def _renewal(task_ids: Sequence[str], attempt: int, until: datetime) -> sa.Update:
    """An attempt has one proxy, so that task and attempt say enough."""
    return (
        sa.update(Task)
        .where(
            Task.id.in_(task_ids),
            Task.attempt == attempt,
            Task.state == TaskState.RUNNING.value,
        )
        .values(leased_until=until)
        .execution_options(synchronize_session=False)
    )


_FIRST_HEARD: Final = (
    sa.update(Task)
    .where(
        Task.id == sa.bindparam("b_id"),
        Task.attempt == sa.bindparam("b_attempt"),
        Task.state == TaskState.RUNNING.value,
    )
    .values(proxy_boot_id=sa.bindparam("b_boot"))
    .execution_options(synchronize_session=False)
)


def record_progress(db: DbSession, reports: Iterable[tuple[str, ProgressReport]]) -> None:
    """Latest progress of running tasks; `reports` are pairs of proxy id and report."""
    statement = (
        sa.update(Task)
        .where(
            Task.id == sa.bindparam("b_id"),
            Task.attempt == sa.bindparam("b_attempt"),
            Task.proxy_id == sa.bindparam("b_proxy"),
            Task.state == TaskState.RUNNING.value,
        )
        .values(progress=sa.bindparam("b_progress"))
        .execution_options(synchronize_session=False)
    )
    values = [
        {
            "b_id": report.task_id,
            "b_attempt": report.attempt,
            "b_proxy": proxy_id,
            "b_progress": {
                name: value
                for name, value in to_json(report).items()
                if name not in {"schema_version", "task_id", "attempt"}
            },
        }
        for proxy_id, report in reports
    ]
    if values:
        values.sort(key=lambda one: str(one["b_id"]))  # as leases are renewed
        db.connection().execute(statement, values)


def holds_attempt(
    db: DbSession, proxy_id: str, task_id: str, attempt: int, *, cancelled_too: bool = False
) -> bool:
    """Whether that proxy may work on that attempt now; what secrets are given out by. `cancelled_too`: or may
    tidy up after it.
    """
    return (
        db.scalar(
            sa.select(Task.id)
            .join(Proxy, Proxy.id == Task.proxy_id)
            .where(
                Task.id == task_id,
                Task.attempt == attempt,
                Task.proxy_id == proxy_id,
                Task.state == TaskState.RUNNING.value,
                sa.or_(sa.literal(cancelled_too), Task.cancel_requested.is_(False)),
                Proxy.signing_key.is_not(None),
            )
        )
        is not None
    )


def require_attempt(db: DbSession, proxy_id: str, task_id: str, attempt: int) -> None:
    """ForbiddenError when the proxy does not hold that attempt (any more)."""
    if not holds_attempt(db, proxy_id, task_id, attempt):
        raise ForbiddenError(f"attempt {attempt} of task {task_id} is over; stop working on it")


def _chunks(items: Sequence[T]) -> Iterable[Sequence[T]]:
    return (items[i : i + _BATCH] for i in range(0, len(items), _BATCH))
