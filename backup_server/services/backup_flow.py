"""One VM through a backup session: snapshot, tasks, snapshot away, restore point.

pending → preparing → running → finishing → done; see docs/explanation/first-release.md. The order at
the end: all disks are closed (the tasks are over), the snapshot is removed, the restore point is
committed, the catalogue row is written. A snapshot that cannot be removed now is left to the janitor
and is a warning, never a lost backup.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from backup_server.db.states import Result, TaskState, VmState, change_state
from backup_server.db.tables import Intent, SessionVm, Task, new_id
from backup_server.errors import VmhaulError
from backup_server.services import (
    catalogue,
    disk_facts,
    disk_plan,
    doubts,
    events,
    job_plan,
    proxy_vms,
    retention,
    steps,
    stopping,
    storage_snapshots,
    tracking,
    unfinished,
    vm_snapshots,
)
from backup_server.services.context import Context
from backup_server.services.selection import disk_reason
from backup_server.services.steps import StepCancelledError, StepFailedError, Work
from backup_server.services.unfinished import EarlierDisk
from pipeline.model import (
    BlobId,
    Consistency,
    DiskPoint,
    PointKind,
    RestorePoint,
    RestorePointId,
    VmIdentity,
)
from proxy_worker.contracts.codec import to_json
from proxy_worker.contracts.messages import BackupDiskOrder, CompressionLevel, TaskKind
from transports.base import DiskRef
from transports.errors import ObjectGoneError, TransientTransportError, TransportError
from transports.vsphere.api import Vsphere
from transports.vsphere.model import (
    DatastoreInfo,
    DiskInfo,
    PowerState,
    SnapshotInfo,
    VmConfig,
    VmInfo,
)

BACKUP_PRIORITY = 1
_ROW_ONLY = ("frozen_path", "tracking_wrong")
"""Facts of a disk that the catalogue keeps and the repository does not."""
GONE = "the VM no longer exists in vCenter: it was deleted or registered anew during the session"


# ---- preparing ------------------------------------------------------------------------------------


def prepare(ctx: Context, vm_id: str) -> None:
    """Bring a VM from preparing to running. Raises what the engine's table of step errors knows."""
    work = steps.load(ctx, vm_id)
    cancelled = steps.cancel_check(ctx, work.session.id)
    client = ctx.vcenters.get(work.vcenter_id)
    info = _look(client, work)
    _check_cancel(cancelled())
    base = doubts.look_at_base(ctx, work)
    intent = vm_snapshots.ensure_intent(ctx, work)
    if intent.object_ref is None:
        clean = vm_snapshots.remove_leftovers(ctx, client, work)
        info = _look(client, work)
        _check_space(ctx, client, work, info)
        _track_changes(ctx, client, work, info, clean=clean)
        _check_cancel(cancelled())
    snapshot, intent = _snapshot(ctx, client, work, intent, info)
    _check_cancel(cancelled())
    config = client.vm_config(work.vm.moref, snapshot.moref)
    stores = _datastores(client, snapshot.disks, info.datacenter)
    work = steps.load(ctx, vm_id)
    disks = _chosen(work, info, snapshot)
    earlier = unfinished.of_disks(ctx, work, disks)
    plans = _first_plans(ctx, steps.load(ctx, vm_id), disks, base)
    held = storage_snapshots.hold(
        ctx, client, work, info, snapshot, disks, stores, plans, unfinished.change_ids(earlier)
    )
    _make_tasks(ctx, steps.load(ctx, vm_id), info, snapshot, config, stores, base, held, earlier)
    ctx.wake_dispatcher.set()


def _check_cancel(cancelled: bool) -> None:
    if cancelled:
        raise StepCancelledError("cancelled before the disks were read")


def _look(client: Vsphere, work: Work) -> VmInfo:
    try:
        info = client.vm(work.vm.moref)
    except ObjectGoneError as error:
        raise StepFailedError(GONE) from error
    if info.instance_uuid != work.vm.instance_uuid:
        raise StepFailedError(f"{work.vm.moref} is now another VM ({info.name}); run the job again")
    return info


def _check_space(ctx: Context, client: Vsphere, work: Work, info: VmInfo) -> None:
    """A snapshot grows while it exists: do not begin one on a datastore that is as good as full."""
    floor = ctx.settings.free_space_floor_bytes
    for name in sorted({disk.datastore for disk in info.disks if not disk.backup_obstacle}):
        store = client.datastore(name, info.datacenter)
        if store.free_bytes < floor:
            raise StepFailedError(
                f"datastore {name} of {work.vm.name} has {store.free_bytes} bytes free, less than the "
                f"{floor} that a snapshot may need; free space or lower free_space_floor_bytes"
            )


def _is_proxy(ctx: Context, work: Work) -> bool:
    with ctx.db.read() as s:
        return (work.vcenter_id, work.vm.moref) in proxy_vms.all_confirmed(s)


def _track_changes(ctx: Context, client: Vsphere, work: Work, info: VmInfo, *, clean: bool) -> None:
    """Switch change tracking on where the job wants it and it is safe; a warning where it is not."""
    if not work.job["options"]["change_tracking"]:
        return
    if info.change_tracking_enabled:
        _reset_tracking_when_wrong(ctx, client, work, info, clean=clean)
        return
    if _is_proxy(ctx, work):
        # What is tracked of the proxy's VM would be tracked of every disk that is added to it.
        with ctx.db() as s:
            text = "change tracking stays off: the VM is a proxy, to which disks are added; it is read as a whole"
            steps.note(s, ctx, work, "change-tracking.proxy", text)
        return
    if not info.change_tracking_supported:
        steps.warn(ctx, work, "change tracking is not supported by this VM: everything is read")
        return
    if info.has_snapshots or not clean:
        # Switching it on beneath snapshots has corrupted increments: wait until they are gone.
        steps.warn(
            ctx,
            work,
            "change tracking was not switched on because the VM has snapshots: everything is read; "
            "remove them",
        )
        return
    try:
        client.enable_change_tracking(work.vm.moref)
    except ObjectGoneError as error:
        raise StepFailedError(GONE) from error
    except TransportError as error:
        steps.warn(ctx, work, f"change tracking could not be switched on: {error}")
        return
    with ctx.db() as s:
        steps.note(s, ctx, work, "change-tracking.enabled", "change tracking switched on")


def _reset_tracking_when_wrong(
    ctx: Context, client: Vsphere, work: Work, info: VmInfo, *, clean: bool
) -> None:
    """Begin tracking anew when the previous run found it wrong. Where that cannot be done, everything is
    read: the plan sees by the change ids that tracking is still the one of then.
    """
    with ctx.db.read() as s:
        previous = job_plan.previous_point(s, work.session.repository_id or "", work.vm.instance_uuid)
    if previous is None or not any(disk.tracking_wrong for disk in previous.disks):
        return
    if info.has_snapshots or not clean:
        steps.warn(
            ctx,
            work,
            "change tracking was found wrong and cannot begin anew because the VM has snapshots: "
            "everything is read until they are removed",
        )
        return
    try:
        tracking.reset(ctx, client, work)
    except ObjectGoneError as error:
        raise StepFailedError(GONE) from error
    except TransportError as error:
        steps.warn(ctx, work, f"change tracking was found wrong and could not begin anew: {error}")


def _snapshot(
    ctx: Context, client: Vsphere, work: Work, intent: Intent, info: VmInfo
) -> tuple[SnapshotInfo, Intent]:
    try:
        snapshot, taken_at = vm_snapshots.take(ctx, client, work, intent, info)
    except ObjectGoneError as error:
        raise StepFailedError(GONE) from error
    if intent.object_ref == snapshot.moref:
        return snapshot, intent
    with ctx.db() as s:
        stored = s.get_one(Intent, intent.id)
        stored.object_ref = snapshot.moref
        vm = steps.remember(
            s, work.vm.id, snapshot=snapshot.moref, consistency=_consistency(snapshot, info).value
        )
        vm.snapshot_at = taken_at
        vm.snapshot_removed_at = None  # a try before this one may have removed its own
        steps.note(
            s, ctx, work, "snapshot.created", f"snapshot made, {_consistency(snapshot, info).value}"
        )
    return snapshot, stored


def _consistency(snapshot: SnapshotInfo, info: VmInfo) -> Consistency:
    """What the guest's state was; vSphere skips quiescing silently, so tools must have run as well."""
    if snapshot.power_state == PowerState.OFF:
        return Consistency.POWERED_OFF
    if not snapshot.quiesced or not info.tools_running:
        return Consistency.CRASH
    # Only Windows has writers that bring applications to rest; elsewhere file systems are frozen.
    return Consistency.APPLICATION if disk_facts.is_windows(info.guest_os) else Consistency.FILE_SYSTEM


def _datastores(
    client: Vsphere, disks: Sequence[DiskInfo], datacenter: str
) -> dict[str, DatastoreInfo]:
    return {name: client.datastore(name, datacenter) for name in {disk.datastore for disk in disks}}


def _chosen(work: Work, info: VmInfo, snapshot: SnapshotInfo) -> list[DiskInfo]:
    """Disks of the snapshot that the job takes."""
    rules = work.job["selection"]["exclude_disks"]
    disks = [disk for disk in snapshot.disks if not disk_reason(info.name, disk, rules)]
    if not disks:
        raise StepFailedError("the snapshot holds no disk that can be backed up")
    return disks


def _first_plans(
    ctx: Context, work: Work, disks: Sequence[DiskInfo], base: doubts.Base
) -> dict[int, disk_plan.DiskPlan]:
    """As far as can be told before the tasks are made."""
    with ctx.db.read() as s:
        previous, full = _base(ctx, s, work, base)
    return disk_plan.plan_disks(
        disks, previous, full=full, change_tracking=work.job["options"]["change_tracking"]
    )


def _make_tasks(
    ctx: Context,
    work: Work,
    info: VmInfo,
    snapshot: SnapshotInfo,
    config: VmConfig,
    stores: dict[str, DatastoreInfo],
    base: doubts.Base,
    held: storage_snapshots.Held | None,
    earlier: Mapping[int, EarlierDisk],
) -> None:
    """Tasks, plan and configuration in the transaction that makes the VM running."""
    rules = work.job["selection"]["exclude_disks"]
    reasons = {disk.key: disk_reason(info.name, disk, rules) for disk in snapshot.disks}
    disks = _chosen(work, info, snapshot)
    skipped = [f"{disk.label}: {reasons[disk.key]}" for disk in snapshot.disks if reasons[disk.key]]
    # Independent disks and the like are not in a snapshot at all.
    frozen = {disk.key for disk in snapshot.disks}
    skipped += [
        f"{disk.label}: {disk_reason(info.name, disk, rules) or 'not in the snapshot'}"
        for disk in info.disks
        if disk.key not in frozen
    ]
    now = ctx.clock()
    with ctx.db() as s:
        _refuse_when_cancelled(s, work.session.id)
        previous, full = _base(ctx, s, work, base)
        plans = disk_plan.plan_disks(
            disks, previous, full=full, change_tracking=work.job["options"]["change_tracking"]
        )
        increment = previous is not None and any(p.previous_map_root for p in plans.values())
        kind = PointKind.INCREMENT if increment else PointKind.FULL
        vm = steps.remember(
            s,
            work.vm.id,
            kind=kind.value,
            previous_id=previous.id if previous is not None and increment else None,
            disks=[_disk_facts(disk, previous) for disk in disks],
            skipped_disks=skipped,
            bios_uuid=info.bios_uuid,
            vm_name=info.name,
            tries=None,
            not_before=None,
        )
        vm.vm_config, vm.nvram = config.json, config.nvram
        s.flush()
        change_state(s, SessionVm, work.vm.id, VmState.PREPARING, VmState.RUNNING)
        rows = tracking.rows_of(s, work.session.repository_id or "", work.vm.instance_uuid)
        for position, disk in enumerate(disks):
            plan = plans[disk.key]
            sample = tracking.sample_order(work.job["options"], rows, disk, plan, now)
            task = _task(work, info, snapshot, disk, plan, position, sample, stores=stores, now=now)
            if disk.key in earlier:
                unfinished.go_on_from(task, earlier[disk.key], work.job["options"])
            if held is not None:
                storage_snapshots.read_from(task, held, plan)
            s.add(task)
        steps.note(s, ctx, work, "vm.running", f"{kind.value}, {len(disks)} disks")


def _refuse_when_cancelled(s: Any, session_id: str) -> None:
    # With the row locked: a cancel either comes before, and is seen, or after, and sees the tasks.
    _check_cancel(bool(stopping.end_wanted(s, session_id, lock=True)))


def _base(
    ctx: Context, s: Any, work: Work, seen: doubts.Base
) -> tuple[disk_plan.PreviousPoint | None, str]:
    repository_id = work.session.repository_id or ""
    uuid = work.vm.instance_uuid
    previous = job_plan.previous_point(s, repository_id, uuid)
    full = disk_plan.full_reason(
        previous,
        # Also for a VM whose full was stopped: what it read would be of no use for an increment.
        forced=bool(work.session.options.get("full") or work.details.get("full_left")),
        full_every_days=work.job["options"]["full_every_days"],
        last_full_at=job_plan.last_full_at(s, repository_id, uuid),
        now=ctx.clock(),
    )
    if previous is not None and not full:
        full = seen.doubt if previous.id == seen.point_id else doubts.BASE_CHANGED
    return previous, full


def _disk_facts(disk: DiskInfo, previous: disk_plan.PreviousPoint | None) -> dict[str, Any]:
    """What the restore point and its row will say of the disk, from the snapshot."""
    return {
        "disk_key": disk.key,
        "label": disk.label,
        "disk_uuid": disk.uuid,
        "path": disk.base_path,
        "capacity_bytes": disk.capacity_bytes,
        "change_id": disk.change_id,
        "thin": disk.thin,
        "frozen_path": disk.path,
        "tracking_wrong": disk_plan.still_wrong(disk, previous),
    }


def _task(
    work: Work,
    info: VmInfo,
    snapshot: SnapshotInfo,
    disk: DiskInfo,
    plan: disk_plan.DiskPlan,
    position: int,
    sample: tuple[int, bool],
    *,
    stores: dict[str, DatastoreInfo],
    now: Any,
) -> Task:
    options = work.job["options"]
    store = stores[disk.datastore]
    facts = disk_facts.to_read(work.vcenter_id, info, disk, stores, quiesced=snapshot.quiesced)
    order = BackupDiskOrder(
        disk=DiskRef(
            vm_moref=work.vm.moref,
            vm_name=info.name,
            disk_key=disk.key,
            path=disk.path,
            capacity_bytes=disk.capacity_bytes,
            datastore=disk.datastore,
            snapshot_moref=snapshot.moref,
            is_delta=disk.path != disk.base_path,
            storage=store.storage,
        ),
        previous_map_root=plan.previous_map_root,
        previous_change_id=plan.previous_change_id,
        current_change_id=plan.current_change_id,
        full_read_reason=plan.reason,
        datastore_is_vmfs=store.kind == "VMFS",
        compression=CompressionLevel(options["compression"]),
        sampled_blocks=sample[0],
        sample_when_unchanged=sample[1],
    )
    return Task(
        id=new_id(),
        session_id=work.session.id,
        session_vm_id=work.vm.id,
        kind=TaskKind.BACKUP_DISK.value,
        title=f"backup {info.name} / {disk.label}",
        position=work.vm.position * 1000 + position,
        disk_key=disk.key,
        disk_label=disk.label,
        disk_path=disk.base_path,
        capacity_bytes=disk.capacity_bytes,
        datastore=f"{work.vcenter_id}/{disk.datastore}",
        repository_id=work.session.repository_id or "",
        vcenter_id=work.vcenter_id,
        order=to_json(order),
        host_moref=info.host_moref,
        facts=disk_facts.stored(facts, failover=options.get("failover_to_network", True)),
        allowed_proxies=list(options["proxies"]),
        allowed_modes=list(options["modes"]),
        priority=BACKUP_PRIORITY,
        state=TaskState.PENDING.value,
        read_mode_reason=plan.reason,
        created_at=now,
    )


# ---- finishing ------------------------------------------------------------------------------------


def finish(ctx: Context, vm_id: str) -> None:
    """Bring a VM from finishing to done."""
    work = steps.load(ctx, vm_id)
    doubts.confirm_snapshot(ctx, work)
    doubts.note_what_carries(ctx, work)
    work = steps.load(ctx, vm_id)
    _remove_snapshot(ctx, work)
    storage_snapshots.release(ctx, steps.load(ctx, vm_id))
    tracking.note_mismatches(ctx, steps.load(ctx, vm_id))
    work = steps.load(ctx, vm_id)
    result, reason = _verdict(ctx, work)
    if result not in (Result.SUCCESS, Result.WARNING):
        with ctx.db() as s:
            steps.end_vm(s, ctx, work, VmState.FINISHING, result, reason)
        return
    point, tasks = _point(ctx, work)
    repository_id = work.session.repository_id or ""
    ctx.agents.get(repository_id).commit(point)
    kept = catalogue.immutable_until(ctx, repository_id, [point.id])
    figures = {
        facts["disk_key"]: {name: facts.get(name, "") for name in _ROW_ONLY}
        for facts in work.details["disks"]
    }
    for task in tasks:
        figures[task.disk_key] |= {**_figures(task), **tracking.figures(task)}
    with ctx.db() as s:
        catalogue.add_point(
            s,
            point,
            repository_id,
            job_id=work.session.job_id,
            session_id=work.session.id,
            figures=figures,
            immutable_until=kept.get(point.id),
        )
        steps.end_vm(s, ctx, work, VmState.FINISHING, result, reason)
    _apply_retention(ctx, work)


def _remove_snapshot(ctx: Context, work: Work) -> None:
    """Remove the snapshot and close the intent; after enough tries, leave both to the janitor."""
    with ctx.db.read() as s:
        intent = steps.open_intent(s, work.vm.id)
    if intent is None or work.details.get("snapshot_left"):
        return
    try:
        warnings = vm_snapshots.remove(ctx, ctx.vcenters.get(work.vcenter_id), intent)
    except TransportError as error:
        tries = int(work.details.get("remove_tries", 0)) + 1
        again = isinstance(error, TransientTransportError)
        if again and tries < ctx.settings.snapshot_remove_tries:
            with ctx.db() as s:
                steps.remember(s, work.vm.id, remove_tries=tries)
            raise
        _leave_to_janitor(ctx, work, intent, str(error))
        return
    with ctx.db() as s:
        vm_snapshots.close_intent(s, intent.id, ctx.clock(), problem="")
        vm = steps.remember(s, work.vm.id, tries=None, not_before=None)
        vm.snapshot_removed_at = ctx.clock()
        if vm.snapshot_at is not None:  # otherwise there was none, and nobody is to look for its traces
            steps.note(s, ctx, work, "snapshot.removed", "snapshot removed")
    for text in warnings:
        steps.warn(ctx, work, text, "consolidation.needed")


def _leave_to_janitor(ctx: Context, work: Work, intent: Intent, problem: str) -> None:
    with ctx.db() as s:
        stored = s.get_one(Intent, intent.id)
        stored.problem = problem
        stored.next_try_at = ctx.clock()
        steps.remember(s, work.vm.id, snapshot_left=True, tries=None, not_before=None)
    steps.warn(ctx, work, f"the snapshot could not be removed yet, this is tried again: {problem}")


def _verdict(ctx: Context, work: Work) -> tuple[Result, str]:
    """Result of the VM and why, from its tasks."""
    failure = work.details.get("failure")
    if failure:
        return Result(failure["result"]), str(failure["reason"])
    with ctx.db.read() as s:
        tasks = steps.tasks_of(s, work.vm.id)
    bad = [task for task in tasks if not doubts.is_good(task)]
    if any(task.result == Result.FAILED.value for task in bad):
        reasons = [
            f"{task.disk_label}: {task.reason}" for task in bad if task.result == Result.FAILED.value
        ]
        if _is_gone(ctx, work):
            return Result.FAILED, f"{GONE} ({'; '.join(reasons)})"
        return Result.FAILED, "; ".join(reasons)
    if bad:
        return Result.CANCELLED, work.session.stop_reason or "cancelled"
    warnings = [
        f"{task.disk_label}: {task.reason}" for task in tasks if task.result == Result.WARNING.value
    ]
    warnings += work.vm.warnings
    return (Result.WARNING, "; ".join(warnings)) if warnings else (Result.SUCCESS, "")


def _is_gone(ctx: Context, work: Work) -> bool:
    try:
        ctx.vcenters.get(work.vcenter_id).vm(work.vm.moref)
    except ObjectGoneError:
        return True
    except TransportError as error:
        ctx.log.info("vm.look-failed", vm=work.vm.name, reason=str(error))
    return False


def _point(ctx: Context, work: Work) -> tuple[RestorePoint, list[Task]]:
    """The restore point, the same each time it is put together from the same rows."""
    with ctx.db.read() as s:
        tasks = steps.tasks_of(s, work.vm.id)
    by_key = {task.disk_key: task for task in tasks}
    vm, details = work.vm, work.details
    if vm.snapshot_at is None or vm.restore_point_id is None:
        raise StepFailedError("the session's rows are incomplete; run the job again")
    disks = tuple(
        DiskPoint(
            **{name: value for name, value in facts.items() if name not in _ROW_ONLY},
            map_root=BlobId(by_key[facts["disk_key"]].map_root),
            sha256=by_key[facts["disk_key"]].sha256,
        )
        for facts in details["disks"]
    )
    previous = details.get("previous_id")
    point = RestorePoint(
        id=RestorePointId(vm.restore_point_id),
        vm=VmIdentity(
            instance_uuid=vm.instance_uuid,
            bios_uuid=details["bios_uuid"],
            name=details["vm_name"],
            moref=vm.moref,
            vcenter_uuid=work.session.options.get("vcenter_uuid", ""),
        ),
        created_at=vm.snapshot_at,
        kind=PointKind(details["kind"]),
        consistency=Consistency(details["consistency"]),
        previous=RestorePointId(previous) if previous else None,
        job_name=work.session.job_name,
        disks=disks,
        skipped_disks=tuple(details["skipped_disks"]),
        vm_config=vm.vm_config or b"",
        nvram=vm.nvram or b"",
    )
    return point, tasks


def _figures(task: Task) -> dict[str, Any]:
    stats = task.stats or {}
    return {name: int(stats[name]) for name in ("read_bytes", "stored_bytes") if name in stats}


def _apply_retention(ctx: Context, work: Work) -> None:
    """Old points of this VM go. What fails here is said, and done by the next run."""
    try:
        retention.apply(ctx, work)
    except VmhaulError as error:
        ctx.log.warning("retention.failed", vm=work.vm.name, reason=str(error))
        with ctx.db() as s:
            text = f"old restore points could not be deleted, the next run tries again: {error}"
            steps.note(s, ctx, work, "retention.failed", text, events.WARNING)
