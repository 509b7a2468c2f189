"""Sessions as the doors show them: figures added up from the tasks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session as DbSession

from backup_server.db.states import Result, SessionState, TaskState
from backup_server.db.tables import RestorePointRow, Session, SessionVm, Task
from backup_server.services import job_windows
from backup_server.services.shapes import when
from backup_server.services.wishes import WITHOUT_VSPHERE

_STAGES = ("source", "proxy", "network", "target")


def session_shape(
    s: DbSession, row: Session, now: datetime, *, with_vms: bool = False
) -> dict[str, Any]:
    """The API's Session. `vms` only on request; figures of a finished one come from its report."""
    kept = row.report.get("figures") if row.state == SessionState.FINISHED.value else None
    vms: Sequence[SessionVm] = ()
    tasks: Sequence[Task] = ()
    if with_vms or kept is None:
        vms = s.scalars(
            sa.select(SessionVm).where(SessionVm.session_id == row.id).order_by(SessionVm.position)
        ).all()
        tasks = s.scalars(
            sa.select(Task).where(Task.session_id == row.id).order_by(Task.position, Task.id)
        ).all()
    figures = kept or session_figures(row, vms, tasks, now)
    shape = {
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
        "waits_until": _waits_until(s, row, now),
        "progress": figures["progress"],
        "counts": figures["counts"],
        "retry_of": row.retry_of,
        "attempt": row.attempt,
        "options": {key: value for key, value in row.options.items() if key != "vm_uuids"},
        "report": {key: value for key, value in row.report.items() if key != "figures"},
    }
    if with_vms:
        by_vm: dict[str, list[Task]] = {}
        for task in tasks:
            by_vm.setdefault(task.session_vm_id, []).append(task)
        committed = set(
            s.scalars(
                sa.select(RestorePointRow.id).where(
                    RestorePointRow.id.in_([vm.restore_point_id for vm in vms])
                )
            )
        )
        shape["vms"] = [vm_shape(vm, by_vm.get(vm.id, []), committed) for vm in vms]
    return shape


def _waits_until(s: DbSession, row: Session, now: datetime) -> str | None:
    """When a session that waits for its time, or for its job's window, can begin; None: nothing like that."""
    if row.state != SessionState.QUEUED.value:
        return None
    times = [job_windows.opens_at(s, row, now)]
    for name in ("not_before", "begin_after"):
        with suppress(ValueError):  # the engine says what is wrong with it
            times.append(datetime.fromisoformat(row.options.get(name) or ""))
    later = [at for at in times if at is not None and at > now]
    return when(max(later)) if later else None


def session_figures(
    row: Session, vms: Sequence[SessionVm], tasks: Sequence[Task], now: datetime
) -> dict[str, Any]:
    """Progress and counts, as kept in the report of a finished session."""
    results = Counter(vm.result for vm in vms)
    return {
        "progress": _progress(row, tasks, now),
        "counts": {
            "vms": len(vms),
            "tasks": len(tasks),
            "success": results[Result.SUCCESS.value],
            "warning": results[Result.WARNING.value],
            "failed": results[Result.FAILED.value],
            "cancelled": results[Result.CANCELLED.value],
        },
    }


def _progress(row: Session, tasks: Iterable[Task], now: datetime) -> dict[str, Any]:
    total = done = read = stored = 0
    speed = 0.0
    busy: Counter[str] = Counter()
    for task in tasks:
        own = task_progress(task)
        total += own["total_bytes"]
        done += own["done_bytes"]
        read += own["read_bytes"]
        stored += own["stored_bytes"]
        if task.state == TaskState.RUNNING.value:
            speed += own["bytes_per_s"]
        if own["bottleneck"]:
            busy[own["bottleneck"]] += max(1, own["read_bytes"])
    if row.finished_at is not None and row.started_at is not None:
        elapsed_s = (row.finished_at - row.started_at).total_seconds()
        speed = read / elapsed_s if elapsed_s > 0 else 0.0
    left = max(0, total - done)
    running = row.state == SessionState.RUNNING.value
    return {
        "total_bytes": total,
        "done_bytes": done,
        "read_bytes": read,
        "stored_bytes": stored,
        "bytes_per_s": speed,
        "eta_s": left / speed if running and speed > 0 else None,
        "elapsed_s": _elapsed_s(row, now),
        "bottleneck": busy.most_common(1)[0][0] if busy else None,
    }


def _elapsed_s(row: Session, now: datetime) -> float | None:
    if row.started_at is None:
        return None
    return max(0.0, ((row.finished_at or now) - row.started_at).total_seconds())


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
    return not live or live.get("phase") in {"opening", "querying-changes"}


def _throughput(stats: Mapping[str, Any]) -> float:
    duration_s = float(stats.get("duration_s", 0) or 0)
    return float(stats.get("read_bytes", 0) or 0) / duration_s if duration_s > 0 else 0.0


def _bottleneck(stats: Mapping[str, Any]) -> str | None:
    stages = stats.get("stages")
    if not isinstance(stages, Mapping):
        return None
    return max(_STAGES, key=lambda name: float(stages.get(name, 0) or 0))


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
