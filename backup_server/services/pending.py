"""Tasks that wait: why nobody takes them, and their end without another attempt.

All functions work inside the caller's transaction and take the time. Those that change many lock them in the order of
`results.lock`, and need a number of statements for 500 tasks that does not grow with them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.orm import Session as DbSession

from backup_server.db.states import Result, TaskState, change_state, change_states
from backup_server.db.tables import Task
from backup_server.log import task_ids
from backup_server.services import counters, events
from backup_server.services.results import say, stop_reason
from proxy_worker.contracts.events import EventName

BATCH: Final = 500
_COLUMNS: Final = (
    Task.id,
    Task.attempt,
    Task.kind,
    Task.title,
    Task.session_id,
    Task.proxy_name,
)
_WAITS: Final = Task.state == TaskState.PENDING.value


def explain(db: DbSession, told: Iterable[tuple[Sequence[str], Mapping[str, Any]]]) -> None:
    """Store why no proxy can take these pending tasks now; pairs of ids and decision. One that somebody else holds is
    about to change, and is left out: this is for people, and nobody waits for it.
    """
    decisions = {task_id: dict(decision) for ids, decision in told for task_id in ids}
    for chunk in _chunks(sorted(decisions)):
        free = db.scalars(
            sa.select(Task.id)
            .where(Task.id.in_(chunk), _WAITS)
            .order_by(Task.id)
            .with_for_update(skip_locked=True, key_share=True)
        ).all()
        if free:
            db.connection().execute(
                sa.update(Task)
                .where(Task.id == sa.bindparam("b_id"), _WAITS)
                .values(decision=sa.bindparam("b_decision"))
                .execution_options(synchronize_session=False),
                [{"b_id": task_id, "b_decision": decisions[task_id]} for task_id in free],
            )


def give_up(db: DbSession, row: Task, reason: str, now: datetime) -> None:
    """End a task that is still pending and that no attempt can help. StaleStateError: it moved on."""
    values = {"result": Result.FAILED.value, "reason": reason, "finished_at": now}
    old, new = TaskState.PENDING, TaskState.DONE
    change_state(db, Task, row.id, old, new, attempt=row.attempt, **values)
    counters.add(db, "tasks_ended", (row.kind, Result.FAILED.value))
    say(db, row, now, EventName.TASK_GIVEN_UP, _given_up(row, reason), events.ERROR)


def give_up_all(db: DbSession, reasons: Mapping[str, str], now: datetime) -> int:
    """As `give_up` for many, reasons by task id; those that moved on are left alone. Answers how many ended."""
    count = 0
    for chunk in _chunks(sorted(reasons)):
        rows = _locked(db, Task.id.in_(chunk))
        _end(db, rows, Result.FAILED, lambda row: reasons[row.id], now)
        lines = [_line(row, _given_up(row, reasons[row.id])) for row in rows]
        events.record_all(db, now, EventName.TASK_GIVEN_UP, lines, level=events.ERROR)
        count += len(rows)
    return count


def cancel(db: DbSession, session_id: str, now: datetime) -> None:
    """End what waits of a session that is cancelled or stops."""
    rows = _locked(db, Task.session_id == session_id)
    if not rows:
        return
    why = stop_reason(db, session_id) or "cancelled"
    for chunk in _chunks(rows):
        _end(db, chunk, Result.CANCELLED, lambda _: f"{why} before it was handed out", now)
        lines = [_line(row, f"{row.title}: {why}") for row in chunk]
        events.record_all(db, now, EventName.TASK_CANCELLED, lines)


def _locked(db: DbSession, where: sa.ColumnElement[bool]) -> Sequence[Any]:
    """Those of the tasks that wait, of each what is told of its end; nobody else moves them until the commit."""
    return db.execute(
        sa.select(*_COLUMNS).where(where, _WAITS).order_by(Task.id).with_for_update(key_share=True)
    ).all()


def _end(
    db: DbSession,
    rows: Sequence[Any],
    result: Result,
    reason: Callable[[Any], str],
    now: datetime,
) -> None:
    changes = [
        {
            "id": row.id,
            "attempt": row.attempt,
            "result": result.value,
            "reason": reason(row),
            "finished_at": now,
        }
        for row in rows
    ]
    change_states(db, Task, TaskState.PENDING, TaskState.DONE, changes)
    for row in rows:
        counters.add(db, "tasks_ended", (row.kind, result.value))


def _given_up(row: Any, reason: str) -> str:
    return f"{row.title}: failed: {reason}"


def _line(row: Any, text: str) -> events.Line:
    return events.Line(text=text, session_id=row.session_id, task_id=row.id, ids=task_ids(row))


def _chunks(items: Sequence[Any]) -> Iterable[Sequence[Any]]:
    return (items[i : i + BATCH] for i in range(0, len(items), BATCH))
