"""A backup copy: restore points of one repository into another, VM by VM, oldest first.

A VM goes round pending → preparing → running → finishing → preparing ... once for each of its points, then
to done. A point is committed in the target before the next begins, so the next is copied as an increment
on it, and whatever kills the server costs at most the point in hand. The copy's id follows from the
target and the source point, so a commit that is repeated is the same commit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.orm import Session as DbSession

from backup_server.db.states import Result, SessionState, TaskState, VmState, change_state
from backup_server.db.tables import (
    Job,
    Repository,
    RestorePointRow,
    Session,
    SessionVm,
    Task,
    new_id,
)
from backup_server.errors import ConflictError, VmhaulError
from backup_server.services import (
    catalogue,
    copy_selection,
    damage,
    events,
    retention,
    session_begin,
    steps,
    stopping,
)
from backup_server.services.context import Context
from backup_server.services.copy_selection import VmToCopy
from backup_server.services.shapes import when
from backup_server.services.steps import StepCancelledError, StepFailedError, Work
from pipeline.model import DiskPoint, RestorePoint, RestorePointId, copied_point, copied_point_id
from proxy_worker.contracts.codec import to_json
from proxy_worker.contracts.messages import (
    CompressionLevel,
    CopyDiskOrder,
    RepositoryRef,
    TaskKind,
)

COPY_PRIORITY: Final = 2
KEYS_PER_POINT: Final = 1_000_000
"""A session has one task for each `disk_key` of a VM. A copy has one for each disk of each point, so the
number of the point stands before the disk's own key."""


# ---- the beginning of the session -----------------------------------------------------------------


def begin(ctx: Context, session_id: str) -> None:
    """Queued to running, with the session's VMs in the same transaction."""
    with ctx.db() as s:
        session = s.get_one(Session, session_id)
        job = s.get(Job, session.job_id) if session.job_id else None
        if job is None or job.source_repository_id is None:
            session_begin.refuse(
                s, session.id, "the job was deleted before its session began", ctx.clock()
            )
            return
        chosen = copy_selection.choose(
            job.selection,
            copy_selection.source_points(s, job.source_repository_id),
            copy_selection.newest_copied(s, job, ctx.clock()),
            first=job.options["first"],
        )
        change_state(
            s,
            Session,
            session.id,
            SessionState.QUEUED,
            SessionState.RUNNING,
            started_at=ctx.clock(),
            options={
                **session.options,
                "source_repository_id": job.source_repository_id,
                # The session goes on with what it began with, whatever becomes of the job.
                "job": {
                    "options": job.options,
                    "retention": job.retention,
                    "selection": job.selection,
                },
            },
        )
        for position, vm in enumerate(chosen):
            s.add(_session_vm(session.id, position, vm))
        text = f"copy job {job.name}: {copy_selection.describe(chosen)}"
        events.record(s, ctx.clock(), "session.started", text, session_id=session.id)


def _session_vm(session_id: str, position: int, vm: VmToCopy) -> SessionVm:
    return SessionVm(
        id=new_id(),
        session_id=session_id,
        position=position,
        moref="",
        instance_uuid=vm.instance_uuid,
        name=vm.name,
        state=VmState.PENDING.value,
        result=None,
        reason="",
        warnings=[],
        restore_point_id=None,
        details={"points": list(vm.point_ids), "at": 0},
        vm_config=None,
        nvram=None,
        snapshot_at=None,
        snapshot_removed_at=None,
        started_at=None,
        finished_at=None,
    )


# ---- preparing ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Base:
    """The newest point that is in both repositories, older than the one to copy."""

    source_id: str
    source_disks: dict[int, dict[str, Any]]
    copy_id: str
    copied_roots: dict[int, str]


def prepare(ctx: Context, vm_id: str) -> None:
    """Make the tasks of the VM's next point, or go past it when it is there or gone."""
    work = steps.load(ctx, vm_id)
    _check_cancel(ctx, work)
    source_id, target_id = _repositories(work)
    point_id = work.details["points"][work.details["at"]]
    with ctx.db.read() as s:
        target = s.get_one(Repository, target_id)
        source = s.get(Repository, source_id)
        row = s.get(RestorePointRow, point_id)
    if source is None:
        raise StepFailedError("the repository to copy from was removed")
    if row is None or row.deleting:
        _go_past(ctx, work, f"restore point {point_id[:8]} was deleted before it was copied")
        return
    if damage.is_damaged(row):
        # It would fail at the lost block each time, and keep all that come after it from being copied.
        _go_past(ctx, work, f"restore point {point_id[:8]} is damaged: repair {source.name} first")
        return
    with ctx.db.read() as s:
        copied = s.get(RestorePointRow, copied_point_id(target.repository_id, point_id))
    if copied is not None:
        _go_on(ctx, work, VmState.PREPARING)
        return
    point = ctx.agents.get(source_id).point(point_id)
    with ctx.db() as s:
        _refuse_when_cancelled(s, work.session.id)
        base = None if work.session.options.get("full") else _base(s, work, point)
        vm = steps.remember(
            s,
            work.vm.id,
            kind="increment" if base else "full",
            previous_id=base.copy_id if base else None,
            base_id=base.source_id if base else None,
            consistency=point.consistency.value,
            tries=None,
            not_before=None,
        )
        vm.restore_point_id = copied_point_id(target.repository_id, point_id)
        s.flush()
        change_state(s, SessionVm, work.vm.id, VmState.PREPARING, VmState.RUNNING)
        reference = RepositoryRef(repository_id=source.repository_id, location=source.location)
        for position, disk in enumerate(point.disks):
            s.add(_task(ctx, work, point, disk, position, _order(work, reference, disk, base)))
        text = f"copying the point of {when(point.created_at)}, {len(point.disks)} disks"
        steps.note(s, ctx, work, "vm.running", text)
    ctx.wake_dispatcher.set()


def _repositories(work: Work) -> tuple[str, str]:
    """Rows of source and target."""
    return work.session.options["source_repository_id"], work.session.repository_id or ""


def _check_cancel(ctx: Context, work: Work) -> None:
    if steps.cancel_check(ctx, work.session.id)():
        raise StepCancelledError("cancelled between two restore points")


def _refuse_when_cancelled(s: DbSession, session_id: str) -> None:
    # With the row locked: a cancel either comes before, and is seen, or after, and sees the tasks.
    if stopping.end_wanted(s, session_id, lock=True):
        raise StepCancelledError("cancelled before the disks were read")


def _base(s: DbSession, work: Work, point: RestorePoint) -> _Base | None:
    source_id, target_id = _repositories(work)
    copies = sa.orm.aliased(RestorePointRow)
    found = s.execute(
        sa.select(RestorePointRow, copies)
        .join(copies, copies.source_point_id == RestorePointRow.id)
        .where(
            RestorePointRow.repository_id == source_id,
            RestorePointRow.instance_uuid == point.vm.instance_uuid,
            RestorePointRow.created_at < point.created_at,
            RestorePointRow.deleting.is_(False),
            copies.repository_id == target_id,
            copies.deleting.is_(False),
        )
        .order_by(RestorePointRow.created_at.desc())
        .limit(1)
    ).first()
    if found is None:
        return None
    original, copy = found
    if damage.is_damaged(copy):
        # An increment would take over what is lost; read as a whole, this point brings it back.
        return None
    return _Base(
        source_id=original.id,
        source_disks={disk["disk_key"]: disk for disk in original.disks},
        copy_id=copy.id,
        copied_roots={disk["disk_key"]: disk["map_root"] for disk in copy.disks},
    )


def _order(work: Work, source: RepositoryRef, disk: DiskPoint, base: _Base | None) -> CopyDiskOrder:
    before = base.source_disks.get(disk.disk_key) if base else None
    return CopyDiskOrder(
        source=source,
        map_root=disk.map_root,
        capacity_bytes=disk.capacity_bytes,
        base_map_root=before["map_root"] if before else "",
        base_capacity_bytes=before["capacity_bytes"] if before else 0,
        copied_map_root=base.copied_roots.get(disk.disk_key, "") if base and before else "",
        compression=CompressionLevel(work.job["options"]["compression"]),
    )


def _task(
    ctx: Context,
    work: Work,
    point: RestorePoint,
    disk: DiskPoint,
    position: int,
    order: CopyDiskOrder,
) -> Task:
    number = work.details["at"]
    return Task(
        id=new_id(),
        session_id=work.session.id,
        session_vm_id=work.vm.id,
        kind=TaskKind.COPY_DISK.value,
        title=f"copy {point.vm.name} / {disk.label} of {point.created_at:%Y-%m-%d %H:%M}",
        position=work.vm.position * KEYS_PER_POINT + number * 1000 + position,
        disk_key=number * KEYS_PER_POINT + disk.disk_key,
        disk_label=disk.label,
        disk_path=disk.path,
        capacity_bytes=disk.capacity_bytes,
        datastore="",
        repository_id=work.session.repository_id or "",
        vcenter_id=None,
        order=to_json(order),
        allowed_proxies=list(work.job["options"]["proxies"]),
        allowed_modes=[],
        priority=COPY_PRIORITY,
        state=TaskState.PENDING.value,
        created_at=ctx.clock(),
    )


# ---- finishing ------------------------------------------------------------------------------------


def finish(ctx: Context, vm_id: str) -> None:
    """Commit the point in hand, then go on to the next or to the end."""
    work = steps.load(ctx, vm_id)
    source_id, target_id = _repositories(work)
    number = work.details["at"]
    with ctx.db.read() as s:
        tasks = {
            task.disk_key % KEYS_PER_POINT: task
            for task in steps.tasks_of(s, vm_id)
            if task.disk_key // KEYS_PER_POINT == number
        }
        source, target = s.get(Repository, source_id), s.get_one(Repository, target_id)
    result, reason = _verdict(work, list(tasks.values()))
    if result is not Result.SUCCESS:
        with ctx.db() as s:
            steps.end_vm(s, ctx, work, VmState.FINISHING, result, reason)
        return
    if source is None:
        raise StepFailedError("the repository to copy from was removed")
    previous = work.details.get("previous_id")
    copy = copied_point(
        ctx.agents.get(source_id).point(work.details["points"][number]),
        source_repository_id=source.repository_id,
        target_repository_id=target.repository_id,
        map_roots={key: task.map_root for key, task in tasks.items()},
        job_name=work.session.job_name,
        previous=RestorePointId(previous) if previous else None,
    )
    try:
        ctx.agents.get(target_id).commit(copy)
    except ConflictError as error:
        # Forgotten there on purpose, or another point of that id: trying again changes nothing.
        _go_past(ctx, work, str(error), VmState.FINISHING)
        return
    kept = catalogue.immutable_until(ctx, target_id, [copy.id])
    with ctx.db() as s:
        catalogue.add_point(
            s,
            copy,
            target_id,
            job_id=work.session.job_id,
            session_id=work.session.id,
            figures={key: _figures(task) for key, task in tasks.items()},
            immutable_until=kept.get(copy.id),
        )
        steps.remember(s, vm_id, copied=int(work.details.get("copied", 0)) + 1)
    _go_on(ctx, steps.load(ctx, vm_id), VmState.FINISHING)


def _verdict(work: Work, tasks: list[Task]) -> tuple[Result, str]:
    failure = work.details.get("failure")
    if failure:
        return Result(failure["result"]), str(failure["reason"])
    for worst in (Result.FAILED, Result.CANCELLED):
        hit = [task for task in tasks if task.result == worst.value]
        if hit:
            return worst, "; ".join(f"{task.disk_label}: {task.reason}" for task in hit)
    return Result.SUCCESS, ""


def _figures(task: Task) -> dict[str, Any]:
    stats = task.stats or {}
    return {name: int(stats[name]) for name in ("read_bytes", "stored_bytes") if name in stats}


def _go_past(ctx: Context, work: Work, why: str, state: VmState = VmState.PREPARING) -> None:
    """Leave a point out, with a warning, and go on with the next."""
    steps.warn(ctx, work, why, "copy.left-out")
    _go_on(ctx, steps.load(ctx, work.vm.id), state)


def _go_on(ctx: Context, work: Work, state: VmState) -> None:
    """To the VM's next point, or to its end."""
    following = work.details["at"] + 1
    if following < len(work.details["points"]):
        with ctx.db() as s:
            steps.remember(s, work.vm.id, at=following, previous_id=None, tries=None, not_before=None)
            s.flush()
            if state is VmState.FINISHING:
                change_state(s, SessionVm, work.vm.id, VmState.FINISHING, VmState.PREPARING)
        ctx.wake_engine.set()
        return
    warnings = "; ".join(work.vm.warnings)
    with ctx.db() as s:
        result = Result.WARNING if warnings else Result.SUCCESS
        steps.end_vm(s, ctx, work, state, result, warnings)
    _apply_retention(ctx, work)


def _apply_retention(ctx: Context, work: Work) -> None:
    """Old copies of this VM go. What fails here is said, and done by the next run."""
    try:
        retention.apply(ctx, work)
    except VmhaulError as error:
        ctx.log.warning("retention.failed", vm=work.vm.name, reason=str(error))
        with ctx.db() as s:
            text = f"old restore points could not be deleted, the next run tries again: {error}"
            steps.note(s, ctx, work, "retention.failed", text, events.WARNING)
