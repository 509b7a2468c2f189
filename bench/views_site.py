"""A job database as a large site has it: one night under way, and months of history. SQLite.

Proxies, datastores, repositories and disks are those of `fleet_site`; the night is one session of all VMs, a third of it
done, every slot busy, the rest waiting. History is copied from it inside the database.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa

from backup_server.db.engine import Database
from backup_server.db.states import Result, SessionState, TaskState, VmState
from backup_server.db.tables import Event, Job, Proxy, Session, SessionVm, Task
from bench import fleet_site
from bench.fleet_site import GIB, VCENTER, PlayedProxy, Size

NIGHT: Final = "ffffffff-0000-4000-8000-000000000001"
NIGHT_JOB: Final = "everything"
_BATCH: Final = 2000
_DONE_SHARE: Final = 0.33


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    days: int
    """Of sessions and their VMs."""
    task_days: int
    """Of their tasks: the rows that take most of the room."""
    point_days: int
    jobs: int = 50


def make(db: Database, place: Path, size: Size, history: History, now: datetime) -> None:
    """Fill an empty database."""
    played = fleet_site.make_site(
        db, size, place, server_url="", server_key="", broker_url="", now=now - timedelta(days=400)
    )
    with db() as s:
        s.execute(sa.update(Proxy).values(last_seen_at=now, version="0.4.0", clock_offset_s=0.0))
        s.execute(sa.insert(Job), list(_jobs(history, size, now)))
        s.execute(sa.insert(Session), [_night(now)])
    began = now - timedelta(hours=1)
    for vms, tasks, lines in _batches(db, size, played, began, now):
        with db() as s:
            s.execute(sa.insert(SessionVm), vms)
            s.execute(sa.insert(Task), tasks)
            s.execute(sa.insert(Event), lines)
    for day in range(1, history.days + 1):
        _copy_day(db, day, history, now)
    with db() as s:
        s.execute(sa.text("ANALYZE"))


def _jobs(history: History, size: Size, now: datetime) -> Iterator[dict[str, Any]]:
    names = [NIGHT_JOB, *(f"job-{number:02}" for number in range(history.jobs))]
    for number, name in enumerate(names):
        yield {
            "id": name,
            "name": name,
            "vcenter_id": VCENTER,
            "repository_id": f"repository-{number % size.repositories}",
            "selection": {"include": [{"type": "vm", "name": "*"}], "exclude": [], "exclude_disks": []},
            "schedule": {"cron": "0 22 * * *", "time_zone": "UTC", "missed": "run-once"},
            "retention": {"keep": 14},
            "options": {
                "quiesce": "try",
                "compression": "balanced",
                "change_tracking": True,
                "full_every_days": None,
                "sample_blocks": 16,
                "retries": {"count": 3, "wait_s": 600},
                "proxies": [],
                "modes": [],
            },
            "next_run_at": now + timedelta(hours=12),
            "created_at": now,
            "updated_at": now,
        }


def _night(now: datetime) -> dict[str, Any]:
    return {
        "id": NIGHT,
        "kind": "backup",
        "job_id": NIGHT_JOB,
        "job_name": NIGHT_JOB,
        "repository_id": "repository-0",
        "vcenter_id": VCENTER,
        "state": SessionState.RUNNING.value,
        "options": {"full": False, "trigger": "schedule"},
        "created_at": now - timedelta(hours=1),
        "started_at": now - timedelta(hours=1),
    }


Rows = list[dict[str, Any]]


def _batches(
    db: Database, size: Size, played: list[PlayedProxy], began: datetime, now: datetime
) -> Iterator[tuple[Rows, Rows, Rows]]:
    """VMs, tasks and log lines of the night, some thousand tasks at a time."""
    rng = random.Random(size.seed)
    free = [proxy for proxy in played for _ in range(size.slots)]
    vms: Rows = []
    tasks: Rows = []
    lines: Rows = []
    position = 0
    for rows in fleet_site.night(db, size, began):
        by_vm: dict[str, Rows] = {}
        for task in rows.tasks:
            by_vm.setdefault(task["session_vm_id"], []).append(task)
        for vm in rows.vms:
            done = position < size.vms * _DONE_SHARE
            own = by_vm.get(vm["id"], [])
            for task in own:
                proxy = rng.choice(played) if done else free.pop() if free else None
                tasks.append(_task(rng, task, proxy, done, began, now))
                lines.append(_line(tasks[-1], began))
            vms.append(_vm(rng, vm, position, done, began, now))
            position += 1
        if len(tasks) >= _BATCH:
            yield vms, tasks, lines
            vms, tasks, lines = [], [], []
    if vms:
        yield vms, tasks, lines


def _vm(
    rng: random.Random, vm: dict[str, Any], position: int, done: bool, began: datetime, now: datetime
) -> dict[str, Any]:
    failed = rng.random() < 0.02
    return {
        **vm,
        "session_id": NIGHT,
        "position": position,
        "state": VmState.DONE.value if done else VmState.RUNNING.value,
        "result": (Result.FAILED if failed else Result.SUCCESS).value if done else None,
        "reason": "its host did not answer in time" if done and failed else "",
        "restore_point_id": f"00000000-{vm['id'][9:]}",
        "details": {"kind": "increment", "consistency": "crash", "disks": [{"disk_key": 2000}]},
        "started_at": began,
        "finished_at": now if done else None,
        "snapshot_at": began,
        "snapshot_removed_at": now if done else None,
    }


def _task(
    rng: random.Random,
    task: dict[str, Any],
    proxy: PlayedProxy | None,
    done: bool,
    began: datetime,
    now: datetime,
) -> dict[str, Any]:
    changed = rng.randrange(1, 4) * GIB
    state = TaskState.DONE if done else TaskState.RUNNING if proxy else TaskState.PENDING
    stats = {
        "capacity_bytes": 40 * GIB,
        "changed_bytes": changed,
        "read_bytes": changed,
        "stored_bytes": changed // 3,
        "blocks": {"zero": 1, "new": 900, "deduplicated": 90, "unchanged": 9},
        "duration_s": 400.0,
        "stages": {"source": rng.random(), "proxy": 0.3, "network": 0.2, "target": rng.random()},
    }
    progress = {
        "phase": "reading",
        "total_bytes": changed,
        "done_bytes": changed // 2,
        "read_bytes": changed // 2,
        "stored_bytes": changed // 6,
        "bytes_per_s": 60e6,
        "bottleneck": "source",
    }
    return {
        **task,
        "session_id": NIGHT,
        "state": state.value,
        "result": Result.SUCCESS.value if done else None,
        "attempt": 1 if proxy else 0,
        "proxy_id": proxy.id if proxy else None,
        "proxy_name": proxy.name if proxy else "",
        "mode": proxy.modes[0] if proxy else None,
        "leased_until": now + timedelta(seconds=60) if state is TaskState.RUNNING else None,
        "decision": _decision(),
        "progress": progress if proxy else {},
        "stats": stats if done else None,
        "read_mode": "increment" if done else None,
        "started_at": began if proxy else None,
        "finished_at": now if done else None,
    }


def _decision() -> dict[str, Any]:
    candidates = [
        {
            "proxy_id": f"{number:036}",
            "proxy_name": f"proxy-{number:03}",
            "mode": "nbdssl",
            "accepted": False,
            "reasons": ["all 8 task slots are taken"],
        }
        for number in range(12)
    ]
    return {"chosen": None, "candidates": candidates, "reason": "all proxies are busy", "modes": []}


def _line(task: dict[str, Any], at: datetime) -> dict[str, Any]:
    return {
        "session_id": NIGHT,
        "task_id": task["id"],
        "at": at,
        "level": "info",
        "name": "task.created",
        "text": f"{task['title']} waits for a proxy",
    }


# ---- history --------------------------------------------------------------------------------------


def _copy_day(db: Database, day: int, history: History, now: datetime) -> None:
    """One night of every job. The first eight digits of an id are the day, so that ids stay unique."""
    at = now - timedelta(days=day)
    with db() as s:
        s.execute(sa.insert(Session), [_past(day, number, at) for number in range(history.jobs)])
        given = {"day": day, "jobs": history.jobs, "night": NIGHT, "at": at.isoformat(" ")}
        s.execute(sa.text(_copy(SessionVm, _VM)), given)
        if day <= history.task_days:
            s.execute(sa.text(_copy(Task, _TASK)), given)
        if day <= history.point_days:
            s.execute(sa.text(_POINTS), given)


def _past(day: int, number: int, at: datetime) -> dict[str, Any]:
    figures = {
        "progress": {
            "total_bytes": 400 * GIB,
            "done_bytes": 400 * GIB,
            "read_bytes": 390 * GIB,
            "stored_bytes": 130 * GIB,
            "bytes_per_s": 240e6,
            "eta_s": None,
            "elapsed_s": 3600.0,
            "bottleneck": "source",
        },
        "counts": {"vms": 200, "tasks": 600, "success": 200, "warning": 0, "failed": 0, "cancelled": 0},
    }
    return {
        "id": f"{day:08x}-0000-4000-8000-{number:012x}",
        "kind": "backup",
        "job_id": f"job-{number:02}",
        "job_name": f"job-{number:02}",
        "repository_id": f"repository-{number % 3}",
        "vcenter_id": VCENTER,
        "state": SessionState.FINISHED.value,
        "result": Result.SUCCESS.value if number % 9 else Result.WARNING.value,
        # every ninth was stopped by its window
        "stop_reason": "" if number % 9 else "its window closed",
        "options": {"full": False, "trigger": "schedule"},
        "created_at": at,
        "started_at": at,
        "finished_at": at + timedelta(hours=1),
        "report": {"figures": figures},
    }


_ID: Final = "printf('%08x', :day) || substr({}.{}, 9)"
_SESSION: Final = "printf('%08x-0000-4000-8000-%012x', :day, v.position % :jobs)"
_VM: Final = {
    "id": _ID.format("v", "id"),
    "session_id": _SESSION,
    "restore_point_id": _ID.format("v", "id"),
    "position": "v.position / :jobs",
    "state": "'done'",
    "result": "CASE WHEN v.position % :jobs % 9 = 0 THEN 'cancelled' ELSE 'success' END",
    "details": """'{"kind": "increment", "carries": true, "disks": [{"disk_key": 2000}]}'""",
    "started_at": ":at",
    "finished_at": ":at",
}
_TASK: Final = {
    "id": _ID.format("t", "id"),
    "session_id": _SESSION,
    "session_vm_id": _ID.format("v", "id"),
    "state": "'done'",
    "result": "'success'",
    "attempt": "1",
    "leased_until": "NULL",
    "decision": "NULL",
    "order": "'{}'",
    "facts": "'{}'",
    "created_at": ":at",
    "started_at": ":at",
    "finished_at": ":at",
}
_POINTS: Final = f"""
INSERT INTO restore_points (id, repository_id, job_id, job_name, session_id, vcenter_uuid, instance_uuid, vm_name,
    created_at, kind, consistency, previous_id, disks, size_bytes, doubt, deleting)
SELECT {_ID.format("v", "id")}, 'repository-' || (v.position % :jobs % 3), printf('job-%02d', v.position % :jobs),
    printf('job-%02d', v.position % :jobs), {_SESSION}, '', v.instance_uuid, v.name, :at, 'increment', 'crash', NULL,
    '[{{"disk_key": 2000, "label": "Hard disk 1", "path": "[datastore 001] vm/0.vmdk", "capacity_bytes": 42949672960,
    "map_root": "", "sha256": "", "read_mode": "increment", "read_mode_reason": "", "read_bytes": 1, "stored_bytes": 1,
    "uuid": "", "change_id": "", "datastore": "datastore 001"}}]', 42949672960, '', 0
FROM session_vms v WHERE v.session_id = :night
"""


def _copy(table: Any, changed: dict[str, str]) -> str:
    alias = "t" if table is Task else "v"
    columns = [column.name for column in table.__table__.columns]
    values = [changed.get(name, f'{alias}."{name}"') for name in columns]
    source = "session_vms v"
    if table is Task:
        source = "tasks t JOIN session_vms v ON v.id = t.session_vm_id"
    names = ", ".join(f'"{name}"' for name in columns)
    return (
        f"INSERT INTO {table.__tablename__} ({names}) SELECT {', '.join(values)} FROM {source} "
        "WHERE v.session_id = :night"
    )
