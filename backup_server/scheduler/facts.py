"""What the dispatcher reads from SQL before it decides."""

from __future__ import annotations

from datetime import datetime
from typing import Final

import sqlalchemy as sa
from sqlalchemy.orm import Session as DbSession
from sqlalchemy.orm import load_only

from backup_server.db.states import TaskState
from backup_server.db.tables import Proxy, Repository, Task
from backup_server.scheduler.claims import RunningClaim
from backup_server.services.proxy_facts import task_host
from transports.rules import NETWORK_MODES


def proxy_ids(db: DbSession) -> list[str]:
    return list(db.scalars(sa.select(Proxy.id).order_by(Proxy.name)))


def open_hosts(db: DbSession) -> set[str]:
    """Hosts of tasks that are not over, as task_host() names them."""
    rows = db.execute(
        sa.select(Task.vcenter_id, Task.host_moref)
        .where(Task.state != TaskState.DONE.value, Task.vcenter_id.is_not(None), Task.host_moref != "")
        .distinct()
    )
    return {f"{vcenter_id}/{host}" for vcenter_id, host in rows}


def repository_limits(db: DbSession) -> dict[str, tuple[str, int]]:
    """Repository row id -> name and most tasks at once."""
    rows = db.execute(sa.select(Repository.id, Repository.name, Repository.max_tasks))
    return {row.id: (row.name, row.max_tasks) for row in rows}


def pending_ids(db: DbSession, now: datetime) -> set[str]:
    """Tasks that may be handed out now."""
    return set(
        db.scalars(
            sa.select(Task.id).where(
                Task.state == TaskState.PENDING.value,
                Task.cancel_requested.is_(False),
                sa.or_(Task.not_before.is_(None), Task.not_before <= now),
            )
        )
    )


def tasks_by_id(db: DbSession, ids: set[str], *, batch: int = 500) -> list[Task]:
    """Rows in the order in which they are to be queued."""
    rows: list[Task] = []
    wanted = sorted(ids)
    for i in range(0, len(wanted), batch):
        rows += db.scalars(sa.select(Task).where(Task.id.in_(wanted[i : i + batch])))
    return sorted(rows, key=lambda row: (row.created_at, row.session_id, row.position, row.id))


def running_claims(db: DbSession) -> list[RunningClaim]:
    rows = db.scalars(
        sa.select(Task)
        .options(load_only(*_CLAIM_COLUMNS))
        .where(Task.state == TaskState.RUNNING.value, Task.proxy_id.is_not(None))
    )
    return [
        RunningClaim(
            task_id=row.id,
            proxy_id=row.proxy_id or "",
            attempt=row.attempt,
            repository_id=row.repository_id,
            host=task_host(row) if row.mode in _NETWORK else "",
        )
        for row in rows
    ]


_NETWORK: Final = frozenset(mode.value for mode in NETWORK_MODES)
_CLAIM_COLUMNS: Final = (
    Task.kind,
    Task.proxy_id,
    Task.attempt,
    Task.repository_id,
    Task.vcenter_id,
    Task.host_moref,
    Task.mode,
)
