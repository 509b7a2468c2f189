"""What to read of one disk for a backup: what changed, what is allocated, and whether tracking is believed.

Whatever change tracking cannot answer plainly is a full read with its reason.
"""

from __future__ import annotations

from typing import Final

from pipeline import planning
from pipeline.continuing import Continuation, go_on_from
from pipeline.errors import IntegrityError
from pipeline.model import ReadMode
from pipeline.planning import BackupPlan
from pipeline.repository import Repository
from pipeline.repository.work import read_work
from pipeline.tracking_trial import NO_TRIAL, Trial, try_kept, try_tracking
from proxy_worker.contracts.extents import unpack_extents
from proxy_worker.contracts.messages import BackupDiskOrder, TaskRequest
from proxy_worker.vsphere_session import RenewableSession
from transports.base import Ability, DiskReader, Extent
from transports.errors import ChangeTrackingUnusableError, TransportError

ALLOCATED: Final = "*"
"""Instead of a change id: what is allocated."""
NOT_TRACKED: Final = "the disk is not tracked: the snapshot has no change id"
NEVER_TRACKED: Final = "the disk was not tracked when the previous restore point was made"


def plan_disk(
    order: BackupDiskOrder, reader: DiskReader, session: RenewableSession, block_size_bytes: int
) -> BackupPlan:
    """What to read. Whatever change tracking cannot answer plainly is a full read with its reason."""
    changed, reason = changes(order, session)
    allocated = None
    if changed is None:
        allocated = _allocated(order, reader, session)
    return planning.plan_backup(
        capacity_bytes=order.disk.capacity_bytes,
        block_size_bytes=block_size_bytes,
        previous_map_root=order.previous_map_root,
        changed=changed,
        # Of an increment everything that changed is read: a list of allocated blocks that missed one
        # would store zeros where there is data, and it saves little.
        allocated=allocated,
        full_read_reason=reason,
    )


def changes(order: BackupDiskOrder, session: RenewableSession) -> tuple[list[Extent] | None, str]:
    """Changed extents, or None and why everything has to be read."""
    if not order.previous_map_root or order.full_read_reason:
        return None, order.full_read_reason
    if not order.current_change_id:
        return None, NOT_TRACKED
    if not order.previous_change_id:
        return None, NEVER_TRACKED
    disk = order.disk
    if order.known_changes:
        return _known_changes(order)
    snapshot = disk.snapshot_moref
    if snapshot is None:
        return None, "the disk is read without a snapshot, so vSphere cannot tell what changed"
    try:
        found = session.use(
            lambda v: v.changed_areas(disk.vm_moref, snapshot, disk.disk_key, order.previous_change_id)
        )
    except ChangeTrackingUnusableError as error:
        return None, str(error)
    return found, ""


def _known_changes(order: BackupDiskOrder) -> tuple[list[Extent] | None, str]:
    """What the server asked while the VM snapshot existed, which is gone by now."""
    try:
        return unpack_extents(order.known_changes, size_bytes=order.disk.capacity_bytes), ""
    except ValueError as error:
        return None, f"what the server said of changes is not to be used: {error}"


def _allocated(
    order: BackupDiskOrder, reader: DiskReader, session: RenewableSession
) -> list[Extent] | None:
    """What may hold data; None when nobody can tell. The mode knows best; tracking's own answer is to be
    had on VMFS only, and on a disk that is tracked.
    """
    disk = order.disk
    told = _allocated_by_mode(order, reader)
    if told is not None or disk.is_delta:
        return told  # tracking's answer would be about the delta alone, and what lies below it would be lost
    snapshot = disk.snapshot_moref
    if snapshot is None or not order.datastore_is_vmfs or not order.current_change_id:
        return None
    if order.previous_map_root:
        return None  # tracking was found wanting for this disk just now
    try:
        return session.use(lambda v: v.changed_areas(disk.vm_moref, snapshot, disk.disk_key, ALLOCATED))
    except TransportError:
        return None  # it only saves reading; the mover finds zeros by itself


def _allocated_by_mode(order: BackupDiskOrder, reader: DiskReader) -> list[Extent] | None:
    """None when the mode cannot tell, or would tell of the delta alone."""
    can = reader.capabilities
    if can.allocated_extents is not Ability.NATIVE or (order.disk.is_delta and not can.whole_chain):
        return None
    return list(reader.allocated_extents(0, reader.size_bytes))


def trust_or_read_all(
    request: TaskRequest,
    order: BackupDiskOrder,
    plan: BackupPlan,
    reader: DiskReader,
    repository: Repository,
) -> tuple[BackupPlan, Trial]:
    """The plan, or one that reads everything because tracking was found wrong."""
    if plan.read_mode is not ReadMode.INCREMENT:
        return plan, NO_TRIAL
    trial, reason = NO_TRIAL, ""
    if plan.changed_bytes or order.sample_when_unchanged:
        try:
            trial = try_tracking(
                repository=repository,
                reader=reader,
                plan=plan,
                wanted=order.sampled_blocks,
                seed=request.task_id,
            )
            reason = trial.for_people()
        except IntegrityError as error:
            # What cannot be compared cannot be built on either; a full scan stores it anew.
            reason = f"the previous map cannot be read: {error}"
    reason = reason or _read_all_before(request, order, repository)
    if not reason:
        return plan, trial
    return _read_everything(order, plan, reader, reason), trial


def _read_everything(
    order: BackupDiskOrder, plan: BackupPlan, reader: DiskReader, reason: str
) -> BackupPlan:
    return planning.plan_backup(
        capacity_bytes=plan.capacity_bytes,
        block_size_bytes=plan.block_size_bytes,
        previous_map_root=order.previous_map_root,
        changed=None,
        allocated=_allocated_by_mode(order, reader),
        full_read_reason=reason,
    )


def _read_all_before(request: TaskRequest, order: BackupDiskOrder, repository: Repository) -> str:
    """Why an earlier attempt at this disk did not trust tracking; empty when none did that. What it found
    stands, and so does what it read.
    """
    for work_id in filter(None, (request.task_id, order.continue_work)):
        try:
            record = read_work(repository.storage, repository.keyring, work_id)
        except IntegrityError:
            continue  # the mover begins anew then
        if record is not None and record.read_mode == ReadMode.FULL_SCAN.value:
            return "an earlier attempt at this disk had begun to read everything"
    return ""


# ---- what an earlier session left -----------------------------------------------------------------


def go_on_where_possible(
    request: TaskRequest,
    order: BackupDiskOrder,
    plan: BackupPlan,
    trial: Trial,
    session: RenewableSession,
    reader: DiskReader,
    repository: Repository,
) -> tuple[BackupPlan, Trial, Continuation | None]:
    """The plan that goes on from what an earlier session of the job had read when it was stopped, or `plan`.

    It rests on change tracking: where that is in doubt, or does not answer, the disk is read as if there had
    been no such session. A few of the blocks that would be taken over are read all the same and compared.
    """
    in_doubt = plan.read_mode is ReadMode.FULL_SCAN and plan.reason != order.full_read_reason
    if not order.continue_work or trial.differing or in_doubt:
        return plan, trial, None
    changed = _changed_since(order, session)
    if changed is None:
        return plan, trial, None
    continued = go_on_from(
        repository=repository, plan=plan, work_id=order.continue_work, changed=changed
    )
    if continued is None:
        return plan, trial, None
    try:
        kept = try_kept(
            repository=repository,
            reader=reader,
            continued=continued,
            wanted=order.sampled_blocks,
            seed=request.task_id,
        )
    except IntegrityError:
        return plan, trial, None  # what cannot be compared is not taken over
    both = Trial(sampled=trial.sampled + kept.sampled, differing=kept.differing)
    if not kept.differing:
        return continued.plan, both, continued
    if plan.read_mode is ReadMode.INCREMENT:
        plan = _read_everything(order, plan, reader, both.for_people())
    return plan, both, None


def _changed_since(order: BackupDiskOrder, session: RenewableSession) -> list[Extent] | None:
    """What changed since the earlier session's moment; None when nobody can tell."""
    disk, snapshot = order.disk, order.disk.snapshot_moref
    if not order.continue_change_id or not order.current_change_id:
        return None
    if order.continue_changes:
        try:
            return unpack_extents(order.continue_changes, size_bytes=disk.capacity_bytes)
        except ValueError:
            return None
    if snapshot is None:
        return None
    since = order.continue_change_id
    try:
        return session.use(lambda v: v.changed_areas(disk.vm_moref, snapshot, disk.disk_key, since))
    except ChangeTrackingUnusableError:
        return None
