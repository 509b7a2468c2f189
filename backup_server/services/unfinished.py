"""What a session that was stopped left of a VM's disks, and whether the next one may go on from it.

The work of a disk is durable in the repository under the id of its task. It may be trusted later only when

- its snapshot was there, on the same files, until the movers had ended (`CARRIES` in the VM's details says so),
- each attempt's end was heard: one that was given up for lost may still be reading, of another moment,
- change tracking can name what changed since: the same disk, of the same size, its tracking not begun anew, the
  VM not reverted, by the same rules as for an increment on a restore point (`disk_plan.tracking_reason`).

The mover looks at the rest: same way of reading, same base, nothing pruned.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.orm import Session as DbSession

from backup_server.db.states import Result, SessionKind, SessionState, TaskState
from backup_server.db.tables import Session, SessionVm, Task
from backup_server.services import disk_plan, steps, tracking
from backup_server.services.context import Context
from backup_server.services.disk_plan import PreviousDisk
from backup_server.services.steps import Work
from backup_server.services.tasks import UNHEARD
from transports.vsphere.model import DiskInfo

CARRIES: Final = "carries"
"""Detail of a VM that was stopped: its disks were read of one moment to the end."""
KEEP_FOR: Final = timedelta(days=14)
"""So long the repository keeps what a stopped session stored. Space that it needs cannot be freed meanwhile."""
_LOOK_BACK: Final = 5
_CONTINUED: Final = (Result.CANCELLED.value, Result.SUCCESS.value, Result.WARNING.value)
_CAN_BE_GONE_ON_FROM: Final = (
    Task.state == TaskState.DONE.value,
    Task.result.in_(_CONTINUED),
    Task.attempt > 0,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class EarlierDisk:
    """One disk as the stopped session saw it, and the task that read it."""

    task_id: str
    disk: PreviousDisk


@dataclass(frozen=True, slots=True, kw_only=True)
class Earlier:
    """What a stopped session left of a VM."""

    was_full: bool
    """A person had asked that session for a full."""
    disks: tuple[EarlierDisk, ...]


NOTHING: Final = Earlier(was_full=False, disks=())


def find(s: DbSession, work: Work, now: datetime) -> Earlier:
    """What the job's last session that came to this VM's disks left of it; nothing unless it was stopped."""
    if work.session.job_id is None:
        return NOTHING
    rows = s.execute(
        sa.select(SessionVm, Session)
        .join(Session, Session.id == SessionVm.session_id)
        .where(
            Session.job_id == work.session.job_id,
            Session.kind == SessionKind.BACKUP.value,
            Session.id != work.session.id,
            Session.state == SessionState.FINISHED.value,
            SessionVm.instance_uuid == work.vm.instance_uuid,
        )
        .order_by(Session.created_at.desc(), Session.id)
        .limit(_LOOK_BACK)
    ).all()
    for vm, session in rows:
        if vm.details.get("disks"):
            return _of(s, work, vm, session, now)
    return NOTHING


def _of(s: DbSession, work: Work, vm: SessionVm, session: Session, now: datetime) -> Earlier:
    same = (session.repository_id, session.vcenter_id, vm.moref) == (
        work.session.repository_id,
        work.session.vcenter_id,
        work.vm.moref,
    )
    fresh = session.finished_at is not None and now - session.finished_at < KEEP_FOR
    if not (same and fresh and vm.details.get(CARRIES)):
        return NOTHING
    tasks = {task.disk_key: task for task in tasks_left(s, vm.id)}
    point = disk_plan.previous_from_row(
        vm.id, session.created_at, [{**facts, "map_root": ""} for facts in vm.details["disks"]]
    )
    disks = [
        EarlierDisk(task_id=tasks[disk.disk_key].id, disk=disk)
        for disk in point.disks
        if disk.disk_key in tasks
        and tasks[disk.disk_key].order.get("current_change_id") == disk.change_id != ""
    ]
    return Earlier(was_full=bool(session.options.get("full")), disks=tuple(disks))


def tasks_left(s: DbSession, vm_id: str) -> list[Task]:
    """Tasks of a VM whose work may be gone on from: each attempt's end was heard."""
    found = s.scalars(
        sa.select(Task)
        .where(Task.session_vm_id == vm_id, *_CAN_BE_GONE_ON_FROM)
        .order_by(Task.position)
    )
    return [task for task in found if not (task.facts or {}).get(UNHEARD)]


def choose(
    earlier: Earlier, disks: Sequence[DiskInfo], *, change_tracking: bool
) -> Mapping[int, EarlierDisk]:
    """Disk key -> what it may go on from. Pure."""
    uuids = Counter(disk.uuid for disk in disks)
    known = {one.disk.disk_key: one for one in earlier.disks}
    found: dict[int, EarlierDisk] = {}
    for disk in disks:
        base, _ = disk_plan.match_disk(
            disk, [one.disk for one in earlier.disks], unique=uuids[disk.uuid] == 1
        )
        if base is None or base.capacity_bytes != disk.capacity_bytes:
            continue
        if disk_plan.tracking_reason(disk, base, wanted=change_tracking):
            continue
        found[disk.key] = known[base.disk_key]
    return found


def of_disks(ctx: Context, work: Work, disks: Sequence[DiskInfo]) -> Mapping[int, EarlierDisk]:
    """What a session that was stopped left of these disks, by their keys. A person who asks for a full asks
    for everything to be read.
    """
    options = work.session.options
    if options.get("full") and options.get("trigger") == "manual":
        return {}
    with ctx.db.read() as s:
        earlier = find(s, work, ctx.clock())
    if earlier.was_full and not options.get("full"):
        with ctx.db() as s:
            steps.remember(s, work.vm.id, full_left=True)
    return choose(earlier, disks, change_tracking=work.job["options"]["change_tracking"])


def change_ids(earlier: Mapping[int, EarlierDisk]) -> dict[int, str]:
    """Of the moments that were read, by the disks' keys."""
    return {key: one.disk.change_id for key, one in earlier.items()}


def go_on_from(task: Task, earlier: EarlierDisk, options: Mapping[str, Any]) -> None:
    """Make a new task one that goes on from what a stopped session read."""
    task.continues_task_id = earlier.task_id
    task.order = {
        **task.order,
        "continue_work": earlier.task_id,
        "continue_change_id": earlier.disk.change_id,
        # What is taken over unread is put on trial as what an increment leaves out is.
        "sampled_blocks": int(options.get("sample_blocks", tracking.DEFAULT_SAMPLE_BLOCKS)),
    }


def needed_work(s: DbSession, repository_id: str, now: datetime) -> list[str]:
    """Tasks of stopped sessions whose work a later session may go on from, and those that a task which is not
    done goes on from: prune keeps what they stored. A few statements, however many VMs were stopped.
    """
    return sorted({*_under_way(s, repository_id), *_left_for_later(s, repository_id, now)})


def _under_way(s: DbSession, repository_id: str) -> set[str]:
    """What tasks that are open, or whose session is, go on from. Found by what is open, not by what is there."""
    wanted = sa.select(Task.continues_task_id).where(
        Task.repository_id == repository_id, Task.continues_task_id.is_not(None)
    )
    open_tasks = (TaskState.PENDING.value, TaskState.RUNNING.value)
    open_sessions = (SessionState.QUEUED.value, SessionState.RUNNING.value)
    found = {*s.scalars(wanted.where(Task.state.in_(open_tasks)))}
    of_sessions = wanted.join(Session, Session.id == Task.session_id)
    found |= {*s.scalars(of_sessions.where(Session.state.in_(open_sessions)))}
    return {task_id for task_id in found if task_id is not None}


def _left_for_later(s: DbSession, repository_id: str, now: datetime) -> set[str]:
    was_stopped = (
        Session.repository_id == repository_id,
        Session.kind == SessionKind.BACKUP.value,
        Session.job_id.is_not(None),
        Session.state == SessionState.FINISHED.value,
        Session.stop_reason != "",
        Session.finished_at > now - KEEP_FOR,
        SessionVm.result == Result.CANCELLED.value,
        SessionVm.details[CARRIES].as_boolean(),
    )
    first = s.scalar(
        sa.select(sa.func.min(Session.created_at))
        .select_from(SessionVm)
        .join(Session, Session.id == SessionVm.session_id)
        .where(*was_stopped)
    )
    if first is None:
        return set()
    newest = _newest_vms(s, first, was_stopped)
    tasks = s.execute(
        sa.select(Task.id, Task.session_vm_id, Task.facts)
        .join(SessionVm, SessionVm.id == Task.session_vm_id)
        .join(Session, Session.id == SessionVm.session_id)
        .where(*was_stopped, *_CAN_BE_GONE_ON_FROM)
    )
    return {
        row.id for row in tasks if row.session_vm_id in newest and not (row.facts or {}).get(UNHEARD)
    }


def _newest_vms(
    s: DbSession, since: datetime, was_stopped: Sequence[sa.ColumnElement[bool]]
) -> set[str]:
    """Of each job's VM that was stopped, the last time that a session which ended came to its disks. `since`: when
    the first of the sessions was made that are asked about; older ones are not the last.
    """
    asked = (
        sa.select(SessionVm.instance_uuid, Session.job_id)
        .join(Session, Session.id == SessionVm.session_id)
        .where(*was_stopped)
        .distinct()
        .subquery()
    )
    has_disks = sa.func.coalesce(SessionVm.details["disks"].as_string(), "[]") != "[]"
    rows = s.execute(
        sa.select(SessionVm.id, SessionVm.instance_uuid, Session.job_id, has_disks.label("has_disks"))
        .join(Session, Session.id == SessionVm.session_id)
        .join(
            asked,
            sa.and_(asked.c.instance_uuid == SessionVm.instance_uuid, asked.c.job_id == Session.job_id),
        )
        .where(
            Session.kind == SessionKind.BACKUP.value,
            Session.state == SessionState.FINISHED.value,
            Session.created_at >= since,
        )
        .order_by(Session.created_at.desc(), Session.id)
    )
    looks: Counter[tuple[str, str]] = Counter()
    found: dict[tuple[str, str], str] = {}
    for row in rows:
        key = (row.job_id, row.instance_uuid)
        looks[key] += 1
        if row.has_disks and looks[key] <= _LOOK_BACK:
            found.setdefault(key, row.id)
    return set(found.values())
