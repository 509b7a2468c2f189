"""Log lines of sessions, kept in the job database for people, and written to the server's log once they are true."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import sqlalchemy as sa
import structlog
from sqlalchemy.orm import Session as DbSession

from backup_server.db.tables import Event
from backup_server.services.shapes import when

INFO = "info"
WARNING = "warning"
ERROR = "error"
_BATCH = 500


def record(
    db: DbSession,
    now: datetime,
    name: str,
    text: str,
    *,
    session_id: str | None = None,
    task_id: str | None = None,
    level: str = INFO,
    ids: Mapping[str, Any] | None = None,
) -> None:
    """Add a line in the caller's transaction. `name` is stable ("snapshot.created"), `text` for people.

    It is logged after the commit, with `ids` beside those of session and task (`backup_server.log.task_ids`).
    """
    db.add(Event(session_id=session_id, task_id=task_id, at=now, level=level, name=name, text=text))
    given = {"session_id": session_id, "task_id": task_id, **(ids or {})}
    log_when_true(
        db, name, text, level, {key: value for key, value in given.items() if value is not None}
    )


def warn_once(db: DbSession, now: datetime, name: str, text: str, session_ids: Collection[str]) -> None:
    """A warning in each of those sessions that has not had just this one yet."""
    wanted = sorted(set(session_ids))
    said: set[str | None] = set()
    for i in range(0, len(wanted), _BATCH):
        said.update(
            db.scalars(
                sa.select(Event.session_id).where(
                    Event.session_id.in_(wanted[i : i + _BATCH]),
                    Event.name == name,
                    Event.text == text,
                )
            )
        )
    for session_id in wanted:
        if session_id not in said:
            record(db, now, name, text, session_id=session_id, level=WARNING)


def log_when_true(db: DbSession, name: str, text: str, level: str, ids: Mapping[str, Any]) -> None:
    """A line for the log alone, written when the caller's transaction is committed, never when it is not."""
    _log_when_true(db, name, level, [(text, ids)])


def _log_when_true(
    db: DbSession, name: str, level: str, lines: Sequence[tuple[str, Mapping[str, Any]]]
) -> None:
    written: list[bool] = []

    def write(committed: DbSession) -> None:
        # The end of a savepoint is announced like that of the transaction.
        if not written and not committed.in_nested_transaction():
            written.append(True)
            log = getattr(structlog.get_logger(), level)
            for text, ids in lines:
                log(name, text=text, **ids)

    sa.event.listen(db, "after_commit", write)


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One of many that are recorded together."""

    text: str
    session_id: str | None = None
    task_id: str | None = None
    ids: Mapping[str, Any] = field(default_factory=dict)
    """As in `record`."""


def record_all(
    db: DbSession, now: datetime, name: str, lines: Sequence[Line], *, level: str = INFO
) -> None:
    """As `record` for many, with one statement."""
    if not lines:
        return
    db.execute(
        sa.insert(Event),
        [
            {
                "session_id": line.session_id,
                "task_id": line.task_id,
                "at": now,
                "level": level,
                "name": name,
                "text": line.text,
            }
            for line in lines
        ],
    )
    said = []
    for line in lines:
        given = {"session_id": line.session_id, "task_id": line.task_id, **line.ids}
        said.append((line.text, {key: value for key, value in given.items() if value is not None}))
    _log_when_true(db, name, level, said)


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
    return [_shape(row) for row in rows]


def newest_of_session(db: DbSession, session_id: str, limit: int) -> tuple[list[dict[str, Any]], int]:
    """The youngest lines, oldest of them first, and how many came before them."""
    of_it = Event.session_id == session_id
    rows = db.scalars(sa.select(Event).where(of_it).order_by(Event.id.desc()).limit(limit)).all()
    count = db.scalar(sa.select(sa.func.count()).select_from(Event).where(of_it)) or 0
    return [_shape(row) for row in reversed(rows)], max(0, count - len(rows))


def _shape(row: Event) -> dict[str, Any]:
    return {
        "id": row.id,
        "at": when(row.at),
        "level": row.level,
        "name": row.name,
        "text": row.text,
        "task_id": row.task_id,
    }
