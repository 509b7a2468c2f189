"""Log lines of sessions, kept in the job database for people."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session as DbSession

from backup_server.db.tables import Event
from backup_server.services.shapes import when

INFO = "info"
WARNING = "warning"
ERROR = "error"


def record(
    db: DbSession,
    now: datetime,
    name: str,
    text: str,
    *,
    session_id: str | None = None,
    task_id: str | None = None,
    level: str = INFO,
) -> None:
    """Add a line in the caller's transaction. `name` is stable ("snapshot.created"), `text` for people."""
    db.add(Event(session_id=session_id, task_id=task_id, at=now, level=level, name=name, text=text))


def of_session(
    db: DbSession, session_id: str, *, after: int = 0, limit: int = 1000
) -> list[dict[str, Any]]:
    """Lines with an id above `after`, oldest first."""
    rows = db.scalars(
        sa.select(Event)
        .where(Event.session_id == session_id, Event.id > after)
        .order_by(Event.id)
        .limit(limit)
    )
    return [
        {
            "id": row.id,
            "at": when(row.at),
            "level": row.level,
            "name": row.name,
            "text": row.text,
            "task_id": row.task_id,
        }
        for row in rows
    ]
