"""What the dispatcher reads from SQL before it decides."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta

import sqlalchemy as sa
from sqlalchemy.orm import Session as DbSession

from backup_server.db.states import TaskState
from backup_server.db.tables import Proxy, Repository, Task
from backup_server.scheduler.claims import RunningClaim
from backup_server.services.placement import ProxyFacts
from transports.base import TransportMode


def proxy_facts(
    db: DbSession, now: datetime, offline_after_s: float, used: Mapping[str, int]
) -> list[ProxyFacts]:
    """All proxies by name; `used` are the slots that the index counts as taken."""
    rows = db.scalars(sa.select(Proxy).order_by(Proxy.name)).all()
    return [_facts(row, now, offline_after_s, used.get(row.id, 0)) for row in rows]


def _facts(row: Proxy, now: datetime, offline_after_s: float, used: int) -> ProxyFacts:
    reported = row.facts.get("slots")
    seen = row.last_seen_at
    return ProxyFacts(
        id=row.id,
        name=row.name,
        enabled=row.enabled,
        enrolled=row.signing_key is not None,
        online=seen is not None and now - seen <= timedelta(seconds=offline_after_s),
        stopping=bool(row.facts.get("stopping")),
        # What the administrator allows, and no more than the worker has room for.
        slots=min(row.slots, reported) if isinstance(reported, int) else row.slots,
        used=used,
        offered_modes=_modes(row.facts.get("modes", [])),
        allowed_modes=_modes(row.modes),
    )


def _modes(names: list[str]) -> tuple[TransportMode, ...]:
    """Best first; names that this release does not know are left out."""
    return tuple(mode for mode in TransportMode if mode.value in names)


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
    rows = db.execute(
        sa.select(Task.id, Task.proxy_id, Task.attempt, Task.datastore, Task.repository_id).where(
            Task.state == TaskState.RUNNING.value, Task.proxy_id.is_not(None)
        )
    )
    return [
        RunningClaim(
            task_id=row.id,
            proxy_id=row.proxy_id,
            attempt=row.attempt,
            datastore=row.datastore,
            repository_id=row.repository_id,
        )
        for row in rows
    ]
