"""What a backup must not build on, and what it must not become.

Before the snapshot: the restore point that an increment would build on, as the repository itself tells
it. After the disks were read: whether the snapshot that froze them was there to the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from backup_server.db.states import Result
from backup_server.db.tables import Intent, Task
from backup_server.errors import ConflictError, IntegrityError
from backup_server.services import disk_plan, job_plan, steps, storage_snapshots, unfinished
from backup_server.services.context import Context
from backup_server.services.steps import Work
from pipeline.model import RestorePoint
from transports.base import TransportMode
from transports.errors import ObjectGoneError, TransportError
from transports.vsphere.model import SnapshotInfo

BASE_CHANGED = "the previous restore point was deleted while the run began"
BASE_GONE = (
    "the repository does not hold the previous restore point that the catalogue names; "
    "rescan the repository"
)
BASE_DIFFERS = (
    "the catalogue and the repository disagree about the previous restore point; rescan the repository"
)
BASE_ELSEWHERE = "the previous restore point was made of a VM that was registered otherwise: {was}"
_SETTLED = ("failure", "snapshot_held", "snapshot_gone", "snapshot_left")
"""Details of a VM whose snapshot need not be looked at any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """The point that an increment would build on, as the repository tells it."""

    point_id: str
    doubt: str
    """Why nothing may build on it; empty when it is in order."""


def look_at_base(ctx: Context, work: Work) -> Base:
    """Ask the repository for the point that the catalogue names: the repository may have been replaced
    by an older copy, or changed by another server.
    """
    repository_id = work.session.repository_id or ""
    with ctx.db.read() as s:
        previous = job_plan.previous_point(s, repository_id, work.vm.instance_uuid)
    if previous is None:
        return Base(point_id="", doubt="")
    agent = ctx.agents.get(repository_id)
    agent.opened()  # a repository that does not open at all is not a point that is missing
    try:
        point = agent.point(previous.id)
    except (ConflictError, IntegrityError) as error:
        ctx.log.warning("backup.base-gone", vm=work.vm.name, point=previous.id, reason=str(error))
        return Base(point_id=previous.id, doubt=BASE_GONE)
    return Base(point_id=previous.id, doubt=_doubt(work, previous, point))


def _doubt(work: Work, previous: disk_plan.PreviousPoint, point: RestorePoint) -> str:
    known = {
        (disk.disk_key, disk.disk_uuid, disk.capacity_bytes, disk.map_root, disk.change_id)
        for disk in previous.disks
    }
    stored = {
        (disk.disk_key, disk.disk_uuid, disk.capacity_bytes, str(disk.map_root), disk.change_id)
        for disk in point.disks
    }
    if known != stored:
        return BASE_DIFFERS
    # Change ids compare moments of one VM only. Copied files (a replica, a VM that was brought back from
    # a copy and registered again) go on with the same ids and other contents.
    vcenter_uuid = work.session.options.get("vcenter_uuid", "")
    if point.vm.vcenter_uuid != vcenter_uuid:
        return BASE_ELSEWHERE.format(was=f"in vCenter {point.vm.vcenter_uuid}")
    if point.vm.moref != work.vm.moref:
        return BASE_ELSEWHERE.format(was=f"as {point.vm.moref}")
    return ""


def confirm_snapshot(ctx: Context, work: Work) -> None:
    """Disks that were read are good only when the snapshot that froze them was there to the end.

    Somebody may have removed it, or another one beneath it: a proxy that connected again afterwards then
    found another state under the same file name. Written down before our own removal, so that a crash
    cannot make that look like somebody else's.
    """
    with ctx.db.read() as s:
        intent = steps.open_intent(s, work.vm.id)
        tasks = steps.tasks_of(s, work.vm.id)
    settled = any(name in work.details for name in _SETTLED)
    # What a storage snapshot holds was seen to be whole when it was made; a VM snapshot that could not be removed
    # then may go at any time.
    settled = settled or any(storage_snapshots.held_of(task) for task in tasks)
    if settled or intent is None or not all(is_good(task) for task in tasks):
        return
    try:
        snapshots = ctx.vcenters.get(work.vcenter_id).snapshots(work.vm.moref)
    except ObjectGoneError:
        _doubt_what_san_read(ctx, work, tasks)
        return
    except TransportError as error:
        tries = int(work.details.get("confirm_tries", 0)) + 1
        if tries < ctx.settings.snapshot_remove_tries:
            with ctx.db() as s:
                steps.remember(s, work.vm.id, confirm_tries=tries)
            raise
        steps.warn(ctx, work, f"whether the snapshot stayed to the end could not be seen: {error}")
        return
    problem = _snapshot_problem(intent, tasks, snapshots)
    with ctx.db() as s:
        if problem:
            failure = {"result": Result.FAILED.value, "reason": problem}
            steps.remember(s, work.vm.id, failure=failure, tries=None, not_before=None)
        else:
            steps.remember(s, work.vm.id, snapshot_held=True)


def note_what_carries(ctx: Context, work: Work) -> None:
    """Of a VM whose session is stopped: whether its disks were read of one moment to the end, so that the next
    session may go on from what was read. Before our own removal of the snapshot, as confirm_snapshot.
    """
    if not work.session.stop_reason or unfinished.CARRIES in work.details:
        return
    with ctx.db.read() as s:
        intent = steps.open_intent(s, work.vm.id)
        tasks = steps.tasks_of(s, work.vm.id)
    carries = bool(tasks) and "failure" not in work.details
    if carries and not any(storage_snapshots.held_of(task) for task in tasks):
        carries = intent is not None and _stayed(ctx, work, intent, tasks)
    with ctx.db() as s:
        steps.remember(s, work.vm.id, **{unfinished.CARRIES: carries})


def _stayed(ctx: Context, work: Work, intent: Intent, tasks: Sequence[Task]) -> bool:
    try:
        snapshots = ctx.vcenters.get(work.vcenter_id).snapshots(work.vm.moref)
    except TransportError as error:
        ctx.log.info("backup.not-carried", vm=work.vm.name, reason=str(error))
        return False  # it costs reading the disks again, and nothing else
    return not _snapshot_problem(intent, tasks, snapshots)


def _doubt_what_san_read(ctx: Context, work: Work, tasks: Sequence[Task]) -> None:
    """The VM went with its files. A host or a file server tells who still reads them, so what was read to the end
    was read in time. Over SAN nothing tells that blocks were freed, and became another's. It may be all that is
    left of the VM, so it is kept.
    """
    read = [task.disk_label for task in tasks if task.mode == TransportMode.DIRECT_SAN.value]
    if not read:
        return
    steps.warn(
        ctx,
        work,
        f"the VM was deleted or unregistered before its backup ended, and {', '.join(read)} was read over SAN: "
        "when its files were deleted meanwhile, blocks may be zeros or another's; check it before you rely on it",
    )
    with ctx.db() as s:
        steps.remember(s, work.vm.id, snapshot_gone=True)


def is_good(task: Task) -> bool:
    return task.result in (Result.SUCCESS.value, Result.WARNING.value)


def _snapshot_problem(intent: Intent, tasks: Sequence[Task], snapshots: Sequence[SnapshotInfo]) -> str:
    """By its moref: a person may rename a snapshot without doing harm."""
    held = next((one for one in snapshots if one.moref == intent.object_ref), None)
    if held is None:
        return (
            "the backup's snapshot was removed by somebody else while its disks were read, "
            "so what was read may be of different times; run the job again"
        )
    files = {disk.key: disk.path for disk in held.disks}
    for task in tasks:
        if files.get(task.disk_key) != task.order["disk"]["path"]:
            return (
                f"the files of {task.disk_label} were moved or renamed while they were read "
                "(another snapshot removed, or a storage migration); run the job again"
            )
    return ""
