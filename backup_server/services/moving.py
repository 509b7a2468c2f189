"""Running tasks that must not go on as they are: stopped in order, and handed out anew.

The proxy is told as when a session is cancelled: the mover makes durable what it has, and says so. The task was not
cancelled, so it waits again; another attempt, on another way, goes on from the last block that was stored. Nothing
failed, so nothing counts as a failure. All functions work inside the caller's transaction.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.orm import Session as DbSession

from backup_server.db.states import TaskState
from backup_server.db.tables import Task
from backup_server.log import task_ids
from backup_server.services import events
from proxy_worker.contracts.events import EventName

MOVED: Final = "moved"
"""Fact of a task: {"attempt": the one that is to end, "reason": for people}."""
AGAIN_AFTER: Final = timedelta(seconds=1)
"""Long enough to be seen by the dispatcher as a task that waits again."""
Attempts = Mapping[str, tuple[int, str]]
"""By task id: the attempt that is to end, and why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Moving:
    """An attempt whose proxy is to be told."""

    task_id: str
    attempt: int
    proxy_id: str


def ask(s: DbSession, wanted: Attempts, now: datetime) -> list[Moving]:
    """Mark these attempts as those that are to end, as far as they run still and nobody cancelled them. Answers all
    that are marked, those of before among them.
    """
    found: list[Moving] = []
    rows = s.scalars(
        sa.select(Task)
        .where(Task.id.in_(_first(wanted)), Task.state == TaskState.RUNNING.value)
        .where(Task.cancel_requested.is_(False), Task.proxy_id.is_not(None))
        .order_by(Task.id)
        .with_for_update(key_share=True)
        .execution_options(populate_existing=True)
    ).all()
    for row in rows:
        attempt, reason = wanted[row.id]
        if row.attempt != attempt or row.proxy_id is None:
            continue
        found.append(Moving(task_id=row.id, attempt=attempt, proxy_id=row.proxy_id))
        if reason_of(row):
            continue
        row.facts = {**(row.facts or {}), MOVED: {"attempt": attempt, "reason": reason}}
        text = f"{row.title}: {reason}; attempt {attempt} stops in order, another goes on from what is stored"
        events.record(
            s,
            now,
            EventName.TASK_MOVED,
            text,
            session_id=row.session_id,
            task_id=row.id,
            level=events.WARNING,
            ids=task_ids(row),
        )
    return found


_MOST: Final = 500
"""In one transaction; the rest follows in the next round."""


def _first(wanted: Collection[str]) -> list[str]:
    return sorted(wanted)[:_MOST]


def reason_of(row: Task) -> str:
    """Why the attempt that runs is to end so that another goes on; empty: it is not."""
    mark: Any = (row.facts or {}).get(MOVED) or {}
    return str(mark.get("reason", "")) if mark.get("attempt") == row.attempt else ""


def unmarked(facts: Mapping[str, Any] | None) -> dict[str, Any]:
    """The facts of a task whose attempt ended."""
    return {name: value for name, value in (facts or {}).items() if name != MOVED}
