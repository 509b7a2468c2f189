"""Sessions as the doors show them: figures of the whole, and their VMs and disks a page at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.orm import Session as DbSession

from backup_server.db.states import Result, SessionState, TaskState, VmState
from backup_server.db.tables import RestorePointRow, Session, SessionVm, Task
from backup_server.services import job_windows, windows
from backup_server.services.session_sums import (
    ACTIVE,
    BEFORE_THE_LOOK,
    RESULTS,
    STAGES,
    WAITING,
    figures_of,
)
from backup_server.services.shapes import when
from backup_server.services.windows import Window
from backup_server.services.wishes import WITHOUT_VSPHERE


def session_shapes(s: DbSession, rows: Sequence[Session], now: datetime) -> list[dict[str, Any]]:
    """The API's Sessions, without VMs: a few statements for all of them. Figures of a finished one come from its
    report.
    """
    figures = {
        row.id: row.report["figures"]
        for row in rows
        if row.state == SessionState.FINISHED.value and row.report.get("figures")
    }
    figures |= figures_of(s, [row for row in rows if row.id not in figures], now)
    queued = [row for row in rows if row.state == SessionState.QUEUED.value]
    held = job_windows.windows_of(s, queued)
    return [_shape(row, figures[row.id], _waits_until(row, held.get(row.id), now)) for row in rows]


def _shape(row: Session, figures: Mapping[str, Any], waits_until: str | None) -> dict[str, Any]:
    return {
        "id": row.id,
        "kind": row.kind,
        "job": row.job_name or None,
        "job_id": row.job_id,
        "state": row.state,
        "result": row.result,
        "reason": row.reason,
        "created_at": when(row.created_at),
        "started_at": when(row.started_at),
        "finished_at": when(row.finished_at),
        "cancel_requested": row.cancel_requested,
        "stop_reason": row.stop_reason,
        "waits_until": waits_until,
        "progress": figures["progress"],
        # Sessions of earlier releases counted less.
        "counts": {
            WAITING: 0,
            ACTIVE: 0,
            "tasks_done": figures["counts"]["tasks"],
            **figures["counts"],
        },
        "retry_of": row.retry_of,
        "attempt": row.attempt,
        "options": {key: value for key, value in row.options.items() if key != "vm_uuids"},
        "report": {key: value for key, value in row.report.items() if key != "figures"},
    }


def _waits_until(row: Session, window: Window | None, now: datetime) -> str | None:
    """When a session that waits for its time, or for its job's window, can begin; None: nothing like that."""
    if row.state != SessionState.QUEUED.value:
        return None
    times = [None if windows.is_open(window, now) else windows.next_open(window, now)]
    for name in ("not_before", "begin_after"):
        with suppress(ValueError):  # the engine says what is wrong with it
            times.append(datetime.fromisoformat(row.options.get(name) or ""))
    later = [at for at in times if at is not None and at > now]
    return when(max(later)) if later else None


# ---- VMs and disks --------------------------------------------------------------------------------


VM_CHOICES: Final = (WAITING, ACTIVE, *RESULTS)
"""Which VMs of a session may be asked for: those that were not begun, that are worked on, or that ended so."""


def vm_page(
    s: DbSession, session_id: str, *, limit: int, after: int = -1, only: str | None = None
) -> tuple[list[dict[str, Any]], int | None]:
    """At most `limit` VMs with their disks in the session's order, from behind the position `after`, and the
    position from behind which more come, None when none do. `only`: one of VM_CHOICES.
    """
    query = sa.select(SessionVm).where(SessionVm.session_id == session_id, SessionVm.position > after)
    if only == WAITING:
        query = query.where(SessionVm.state == VmState.PENDING.value)
    elif only == ACTIVE:
        query = query.where(SessionVm.state.not_in((VmState.PENDING.value, VmState.DONE.value)))
    elif only is not None:
        query = query.where(SessionVm.result == only)
    found = s.scalars(query.order_by(SessionVm.position).limit(limit + 1)).all()
    vms = found[:limit]
    by_vm: dict[str, list[Task]] = {}
    tasks = (
        sa.select(Task)
        .where(Task.session_vm_id.in_([vm.id for vm in vms]))
        .options(sa.orm.defer(Task.order))
        .order_by(Task.position, Task.id)
    )
    for task in s.scalars(tasks):
        by_vm.setdefault(task.session_vm_id, []).append(task)
    committed = set(
        s.scalars(
            sa.select(RestorePointRow.id).where(
                RestorePointRow.id.in_([vm.restore_point_id for vm in vms])
            )
        )
    )
    shown = [vm_shape(vm, by_vm.get(vm.id, []), committed) for vm in vms]
    return shown, vms[-1].position if len(found) > limit and vms else None


def task_progress(task: Task) -> dict[str, Any]:
    """Figures of one task: from its last report while it runs, from its statistics afterwards."""
    live: Mapping[str, Any] = task.progress or {}
    stats: Mapping[str, Any] = task.stats or {}
    over = task.state == TaskState.DONE.value
    good = over and task.result in (Result.SUCCESS.value, Result.WARNING.value)
    if over and stats:
        considered = int(stats.get("changed_bytes", 0) or 0)
        return {
            "phase": "done",
            "total_bytes": considered,
            "done_bytes": considered if good else int(live.get("done_bytes", 0) or 0),
            "read_bytes": int(stats.get("read_bytes", 0) or 0),
            "stored_bytes": int(stats.get("stored_bytes", 0) or 0),
            "bytes_per_s": _throughput(stats),
            "bottleneck": _bottleneck(stats) or live.get("bottleneck") or None,
            "rate_bytes_per_s": None,
        }
    total = int(live.get("total_bytes", 0) or 0)
    return {
        "phase": "done" if over else str(live.get("phase") or task.state),
        # Nothing is known before the proxy looked: the disk's size is the honest upper bound.
        "total_bytes": task.capacity_bytes if _unknown(live) else total,
        "done_bytes": total if good else int(live.get("done_bytes", 0) or 0),
        "read_bytes": int(live.get("read_bytes", 0) or 0),
        "stored_bytes": int(live.get("stored_bytes", 0) or 0),
        "bytes_per_s": float(live.get("bytes_per_s", 0) or 0),
        "bottleneck": live.get("bottleneck") or None,
        "rate_bytes_per_s": None if over else task.rate_bytes_per_s,
    }


def _unknown(live: Mapping[str, Any]) -> bool:
    return live.get("phase") in {None, *BEFORE_THE_LOOK}


def _throughput(stats: Mapping[str, Any]) -> float:
    duration_s = float(stats.get("duration_s", 0) or 0)
    return float(stats.get("read_bytes", 0) or 0) / duration_s if duration_s > 0 else 0.0


def _bottleneck(stats: Mapping[str, Any]) -> str | None:
    stages = stats.get("stages")
    if not isinstance(stages, Mapping):
        return None
    return max(STAGES, key=lambda name: float(stages.get(name, 0) or 0))


def vm_shape(vm: SessionVm, tasks: Sequence[Task], committed: set[str]) -> dict[str, Any]:
    snapshot_s = None
    if vm.snapshot_at is not None and vm.snapshot_removed_at is not None:
        snapshot_s = (vm.snapshot_removed_at - vm.snapshot_at).total_seconds()
    return {
        "id": vm.id,
        "name": vm.name,
        "moref": vm.moref,
        "instance_uuid": vm.instance_uuid,
        "state": vm.state,
        "result": vm.result,
        "reason": vm.reason,
        "warnings": list(vm.warnings),
        # The id is chosen early; it is worth showing only when the point exists.
        "restore_point_id": vm.restore_point_id if vm.restore_point_id in committed else None,
        "kind": vm.details.get("kind"),
        "consistency": vm.details.get("consistency"),
        "skipped_disks": vm.details.get("skipped_disks", []),
        "target_moref": vm.details.get("target_moref"),
        "snapshot_s": snapshot_s,
        "started_at": when(vm.started_at),
        "finished_at": when(vm.finished_at),
        "tasks": [task_shape(task) for task in tasks],
    }


def task_shape(task: Task) -> dict[str, Any]:
    return {
        "id": task.id,
        "kind": task.kind,
        "title": task.title,
        "disk_key": task.disk_key,
        "label": task.disk_label,
        "disk": task.disk_path,
        "capacity_bytes": task.capacity_bytes,
        "state": task.state,
        "result": task.result,
        "reason": task.reason,
        "waits": waits(task),
        "proxy": task.proxy_name or None,
        # What touches no vSphere is placed under some mode, and uses none.
        "mode": None if task.kind in WITHOUT_VSPHERE else _mode(task),
        "failovers": failovers(task),
        "attempt": task.attempt,
        "read_mode": task.read_mode,
        "read_mode_reason": task.read_mode_reason,
        "progress": task_progress(task),
        "stats": task.stats,
        "sha256": task.sha256 or None,
        "started_at": when(task.started_at),
        "finished_at": when(task.finished_at),
    }


def _mode(task: Task) -> str | None:
    """The mode in use: a mover tells when it went on in another than the one it was handed."""
    if task.state == TaskState.RUNNING.value and task.progress:
        return task.progress.get("mode") or task.mode
    return task.mode


def failovers(task: Task) -> list[dict[str, Any]]:
    """Modes that were left in the course of the task, over all attempts."""
    return [
        {name: one.get(name) for name in ("proxy", "mode", "reason", "attempt")}
        | {"proxy": one.get("name") or one.get("proxy")}
        for one in (task.facts or {}).get("left", [])
    ]


def waits(task: Task) -> str:
    """Why a task that waits was not handed out yet; empty for one that does not wait."""
    if task.state != TaskState.PENDING.value:
        return ""
    said = str((task.decision or {}).get("reason") or "")
    if task.not_before is not None:
        again = f"attempt {task.attempt + 1} at {task.not_before:%H:%M:%S} UTC or later"
        return f"{again}; {said}" if said and not task.attempt else again
    return said or "no proxy was asked yet"
