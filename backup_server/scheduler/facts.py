"""What the dispatcher reads from SQL before it decides.

What it reads in every round is bounded by what changed since the last one; the whole of what waits and runs is read
when the index is filled, and in audits.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from datetime import datetime
from operator import attrgetter
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.orm import Session as DbSession
from sqlalchemy.orm import defer, load_only

from backup_server.db.states import TaskState
from backup_server.db.tables import Proxy, Repository, Task
from backup_server.scheduler.claims import RunningClaim
from backup_server.services.limits import repository_rows, task_keys
from backup_server.services.surveys import claim_rank
from backup_server.services.wishes import FILE_MODE
from proxy_worker.contracts.messages import TaskKind
from transports.base import TransportMode

_BATCH: Final = 500


def repository_limits(db: DbSession) -> dict[str, tuple[str, int]]:
    """Repository row id -> name and most tasks at once."""
    rows = db.execute(sa.select(Repository.id, Repository.name, Repository.max_tasks))
    return {row.id: (row.name, row.max_tasks) for row in rows}


# ---- what waits -----------------------------------------------------------------------------------


def _may_go_out(now: datetime) -> tuple[sa.ColumnElement[bool], ...]:
    return (
        Task.state == TaskState.PENDING.value,
        Task.cancel_requested.is_(False),
        sa.or_(Task.not_before.is_(None), Task.not_before <= now),
    )


_ORDER: Final = (Task.priority, Task.created_at, Task.session_id, Task.position, Task.id)
"""In which tasks are queued: the urgent first, as several rounds pass until all of a night are."""


def pending_ids(db: DbSession, now: datetime) -> list[str]:
    """All tasks that may be handed out now, in the order in which they are to be queued."""
    return [row[-1] for row in sorted(_rows(db, sa.select(*_ORDER).where(*_may_go_out(now))))]


def fresh_ids(db: DbSession, since: datetime, now: datetime, again: Collection[str] = ()) -> list[str]:
    """As `pending_ids`, of tasks that were made or whose pause ended after `since`, and of those in `again`."""
    made = sa.select(*_ORDER).where(*_may_go_out(now), Task.created_at > since)
    paused = sa.select(*_ORDER).where(*_may_go_out(now), Task.not_before > since)
    rows = {*_rows(db, made), *_rows(db, paused)}
    if again:
        rows.update(_rows(db, sa.select(*_ORDER).where(*_may_go_out(now), Task.id.in_(again))))
    return [row[-1] for row in sorted(rows)]


def _rows(db: DbSession, query: sa.Select[*tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    return [tuple(row) for row in db.execute(query)]


def tasks_by_id(db: DbSession, ids: Collection[str], *, batch: int = _BATCH) -> list[Task]:
    """Rows in the order in which they are to be queued."""
    rows: list[Task] = []
    wanted = sorted(ids)
    for i in range(0, len(wanted), batch):
        rows += db.scalars(
            sa.select(Task).options(*_WITHOUT_REPORTS).where(Task.id.in_(wanted[i : i + batch]))
        )
    return sorted(rows, key=attrgetter(*(column.key for column in _ORDER)))


def sessions_of(db: DbSession, task_ids: Sequence[str]) -> set[str]:
    found: set[str] = set()
    for i in range(0, len(task_ids), _BATCH):
        chunk = task_ids[i : i + _BATCH]
        found.update(db.scalars(sa.select(Task.session_id).distinct().where(Task.id.in_(chunk))))
    return found


def begun_vms(db: DbSession, vm_ids: Iterable[str]) -> set[str]:
    """Those of the VMs (of sessions) of which a disk was handed out already."""
    wanted = sorted(set(vm_ids))
    found: set[str] = set()
    for i in range(0, len(wanted), _BATCH):
        found.update(
            db.scalars(
                sa.select(Task.session_vm_id)
                .distinct()
                .where(Task.session_vm_id.in_(wanted[i : i + _BATCH]), Task.attempt > 0)
            )
        )
    return found


def lock_pending(db: DbSession, ids: Sequence[str]) -> dict[str, Task]:
    """Rows that are still pending, locked until the transaction ends. One that somebody else holds is left out: it
    is about to change.
    """
    rows = db.scalars(
        sa.select(Task)
        .options(*_WITHOUT_REPORTS)
        .where(Task.id.in_(ids), Task.state == TaskState.PENDING.value)
        .with_for_update(skip_locked=True)
    )
    return {row.id: row for row in rows}


def proxies_by_id(db: DbSession, ids: Collection[str]) -> dict[str, Proxy]:
    return {row.id: row for row in db.scalars(sa.select(Proxy).where(Proxy.id.in_(ids)))}


# ---- what runs ------------------------------------------------------------------------------------


def running_claims(db: DbSession) -> list[RunningClaim]:
    rows = db.scalars(
        sa.select(Task)
        .options(load_only(*_CLAIM_COLUMNS))
        .where(Task.state == TaskState.RUNNING.value, Task.proxy_id.is_not(None))
    ).all()
    copies = any(row.kind == TaskKind.COPY_DISK.value for row in rows)
    repositories = repository_rows(db) if copies else {}
    return [
        RunningClaim(
            task_id=row.id,
            proxy_id=row.proxy_id or "",
            attempt=row.attempt,
            rank=_rank_now(row),
            keys=task_keys(row, repositories),
        )
        for row in rows
    ]


def still_running(db: DbSession, claims: Sequence[RunningClaim]) -> set[tuple[str, int]]:
    """Task and attempt of those that run at this very moment."""
    found: set[tuple[str, int]] = set()
    for i in range(0, len(claims), _BATCH):
        rows = db.execute(
            sa.select(Task.id, Task.attempt).where(
                Task.id.in_([claim.task_id for claim in claims[i : i + _BATCH]]),
                Task.state == TaskState.RUNNING.value,
            )
        )
        found.update((row.id, row.attempt) for row in rows)
    return found


def _rank_now(row: Task) -> int:
    """Of the mode in use now: a proxy may have gone on in another one than the task was claimed for."""
    return rank_of((row.progress or {}).get("mode") or row.mode)


def rank_of(mode: str | None) -> int:
    """Of a claim in that mode."""
    known = next((one for one in TransportMode if one.value == mode), FILE_MODE)
    return claim_rank(known, near=True)


_WITHOUT_REPORTS: Final = (defer(Task.decision), defer(Task.stats), defer(Task.progress))
_CLAIM_COLUMNS: Final = (
    Task.kind,
    Task.proxy_id,
    Task.attempt,
    Task.repository_id,
    Task.datastore,
    Task.vcenter_id,
    Task.host_moref,
    Task.mode,
    Task.progress,
    Task.order,
)
