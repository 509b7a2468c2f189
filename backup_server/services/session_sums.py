"""Figures of sessions, added up by the database: no row of a task is read, however many a session has.

What one task adds is told by `session_shapes.task_progress`; a test holds the two together.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.orm import Session as DbSession

from backup_server.db.states import Result, SessionState, TaskState, VmState
from backup_server.db.tables import Session, SessionVm, Task

STAGES: Final = ("source", "proxy", "network", "target")
BEFORE_THE_LOOK: Final = ("opening", "querying-changes")
"""Phases in which the proxy does not know yet how much there is to do."""
WAITING: Final = "waiting"
ACTIVE: Final = "active"
RESULTS: Final = tuple(
    result.value for result in (Result.SUCCESS, Result.WARNING, Result.FAILED, Result.CANCELLED)
)
_GOOD: Final = (Result.SUCCESS.value, Result.WARNING.value)


@dataclass(slots=True, kw_only=True)
class Sums:
    """Of the tasks of one session."""

    tasks: int = 0
    tasks_done: int = 0
    total_bytes: int = 0
    done_bytes: int = 0
    read_bytes: int = 0
    stored_bytes: int = 0
    bytes_per_s: float = 0.0
    busy: dict[str, int] = field(default_factory=dict)
    """Bottleneck -> bytes read by the tasks that have it."""
    vms: dict[tuple[str, str | None], int] = field(default_factory=dict)
    """State and result -> VMs."""


def figures_of(
    s: DbSession, rows: Sequence[Session], now: datetime, *, ended: bool = False
) -> dict[str, dict[str, Any]]:
    """Progress and counts of sessions by their ids, as kept in the report of a finished one. Two statements,
    whatever there is to add up. `ended`: the sessions end now.
    """
    if not rows:
        return {}
    sums = {row.id: Sums() for row in rows}
    _add_vms(s, sums)
    _add_tasks(s, sums)
    return {row.id: _figures(row, sums[row.id], now, ended=ended) for row in rows}


def _add_vms(s: DbSession, sums: Mapping[str, Sums]) -> None:
    columns = (SessionVm.session_id, SessionVm.state, SessionVm.result)
    found = s.execute(
        sa.select(*columns, sa.func.count())
        .where(SessionVm.session_id.in_(sums.keys()))
        .group_by(*columns)
    )
    for session_id, state, result, count in found:
        sums[session_id].vms[(state, result)] = count


def _add_tasks(s: DbSession, sums: Mapping[str, Sums]) -> None:
    each = _each_task(sums.keys()).subquery()
    groups = (each.c.session_id, each.c.is_done, each.c.bottleneck)
    summed = ("total_bytes", "done_bytes", "read_bytes", "stored_bytes", "bytes_per_s", "weight")
    found = s.execute(
        sa.select(
            *groups,
            sa.func.count().label("tasks"),
            *(sa.func.sum(each.c[name]).label(name) for name in summed),
        ).group_by(*groups)
    )
    for row in found:
        own = sums[row.session_id]
        own.tasks += row.tasks
        own.tasks_done += row.tasks if row.is_done else 0
        own.total_bytes += int(row.total_bytes)
        own.done_bytes += int(row.done_bytes)
        own.read_bytes += int(row.read_bytes)
        own.stored_bytes += int(row.stored_bytes)
        own.bytes_per_s += float(row.bytes_per_s)
        if row.bottleneck:
            own.busy[row.bottleneck] = own.busy.get(row.bottleneck, 0) + int(row.weight)


def _each_task(session_ids: Collection[str]) -> sa.Select[Any]:
    """One row for each task: `task_progress` in SQL."""
    over = Task.state == TaskState.DONE.value
    good = sa.and_(over, Task.result.in_(_GOOD))
    changed = _number(Task.stats, "changed_bytes")
    told = sa.and_(over, changed.is_not(None))  # statistics have all of their fields, or are not there
    live_total, live_done, live_read, live_stored = (
        sa.func.coalesce(_number(Task.progress, name), 0)
        for name in ("total_bytes", "done_bytes", "read_bytes", "stored_bytes")
    )
    phase = Task.progress["phase"].as_string()
    unknown = sa.or_(phase.is_(None), phase.in_(BEFORE_THE_LOOK))
    read = sa.case((told, sa.func.coalesce(_number(Task.stats, "read_bytes"), 0)), else_=live_read)
    live_bottleneck = sa.func.nullif(Task.progress["bottleneck"].as_string(), "")
    return sa.select(
        Task.session_id.label("session_id"),
        sa.case((over, 1), else_=0).label("is_done"),
        sa.case((told, changed), (unknown, Task.capacity_bytes), else_=live_total).label("total_bytes"),
        sa.case(
            (sa.and_(told, good), changed), (told, live_done), (good, live_total), else_=live_done
        ).label("done_bytes"),
        read.label("read_bytes"),
        sa.case(
            (told, sa.func.coalesce(_number(Task.stats, "stored_bytes"), 0)), else_=live_stored
        ).label("stored_bytes"),
        sa.case(
            (
                Task.state == TaskState.RUNNING.value,
                sa.func.coalesce(_number(Task.progress, "bytes_per_s"), 0),
            ),
            else_=0,
        ).label("bytes_per_s"),
        sa.case(
            (told, sa.func.coalesce(_slowest_stage(), live_bottleneck)), else_=live_bottleneck
        ).label("bottleneck"),
        sa.case((read > 1, read), else_=1).label("weight"),
    ).where(Task.session_id.in_(session_ids))


def _number(column: Any, *path: str) -> sa.ColumnElement[Any]:
    """A number of a JSON column; as a float, since PostgreSQL refuses to take "1.0" for a whole number. Exact up
    to 2^53, eight petabytes.
    """
    return sa.cast(column[path if len(path) > 1 else path[0]].as_string(), sa.Double)


def _slowest_stage() -> sa.ColumnElement[Any]:
    """The first of the stages with the most time; NULL where no stage was told."""
    times = {name: sa.func.coalesce(_number(Task.stats, "stages", name), 0) for name in STAGES}
    whens: list[Any] = [(Task.stats["stages"].as_string().is_(None), sa.null())]
    for number, name in enumerate(STAGES[:-1]):
        later = (times[name] >= times[other] for other in STAGES[number + 1 :])
        whens.append((sa.and_(*later), name))
    return sa.case(*whens, else_=STAGES[-1])


def _figures(row: Session, sums: Sums, now: datetime, *, ended: bool) -> dict[str, Any]:
    by_result = dict.fromkeys(RESULTS, 0)
    waiting = active = 0
    for (state, result), count in sums.vms.items():
        if result in by_result:
            by_result[result] += count
        if state == VmState.PENDING.value:
            waiting += count
        elif state != VmState.DONE.value:
            active += count
    return {
        "progress": _progress(row, sums, now, ended=ended),
        "counts": {
            "vms": sum(sums.vms.values()),
            "tasks": sums.tasks,
            "tasks_done": sums.tasks_done,
            WAITING: waiting,
            ACTIVE: active,
            **by_result,
        },
    }


def _progress(row: Session, sums: Sums, now: datetime, *, ended: bool) -> dict[str, Any]:
    finished_at = now if ended else row.finished_at
    elapsed_s = None
    if row.started_at is not None:
        elapsed_s = max(0.0, ((finished_at or now) - row.started_at).total_seconds())
    speed = sums.bytes_per_s
    if finished_at is not None and elapsed_s is not None:
        speed = sums.read_bytes / elapsed_s if elapsed_s > 0 else 0.0
    left = max(0, sums.total_bytes - sums.done_bytes)
    running = row.state == SessionState.RUNNING.value and not ended
    busiest = sorted(sums.busy.items(), key=lambda one: (-one[1], one[0]))
    return {
        "total_bytes": sums.total_bytes,
        "done_bytes": sums.done_bytes,
        "read_bytes": sums.read_bytes,
        "stored_bytes": sums.stored_bytes,
        "bytes_per_s": speed,
        "eta_s": left / speed if running and speed > 0 else None,
        "elapsed_s": elapsed_s,
        "bottleneck": busiest[0][0] if busiest else None,
    }
