"""One restore: a disk to a file, or a VM made anew, its disks written, then finished.

A VM that is being restored bears a mark until it is whole. What bears the mark when the restore is
over, failed or was killed is destroyed; what does not bear it is never touched.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import sqlalchemy as sa

from backup_server.db.states import IntentKind, Result, TaskState, VmState, change_state
from backup_server.db.tables import Intent, RestorePointRow, Session, SessionVm, Task, new_id
from backup_server.services import attachments, disk_facts, events, new_intents, steps, vm_snapshots
from backup_server.services.context import Context
from backup_server.services.marks import restored_vm_mark
from backup_server.services.restores import TO_FILE, datastore_of
from backup_server.services.steps import StepCancelledError, StepFailedError, Work
from pipeline.model import RestorePoint
from proxy_worker.contracts.codec import to_json
from proxy_worker.contracts.messages import RestoreDiskOrder, TaskKind
from transports.base import DiskRef
from transports.errors import ObjectGoneError, PermanentTransportError, TransportError
from transports.vsphere.api import Vsphere
from transports.vsphere.model import DatastoreInfo, DiskInfo, NewDisk, PowerState, VmConfig, VmPlacement

RESTORE_PRIORITY = 0


# ---- preparing ------------------------------------------------------------------------------------


def prepare(ctx: Context, vm_id: str) -> None:
    """Bring a restore from preparing to running."""
    work = steps.load(ctx, vm_id)
    if work.details["restore"] == TO_FILE:
        _prepare_file(ctx, work)
    else:
        _prepare_vm(ctx, work)
    ctx.wake_dispatcher.set()


def _begin_running(ctx: Context, s: Any, work: Work) -> None:
    wanted = s.scalar(
        sa.select(Session.cancel_requested).where(Session.id == work.session.id).with_for_update()
    )
    if wanted:
        raise StepCancelledError("cancelled before the disks were written")
    point = s.get(RestorePointRow, work.vm.restore_point_id)
    if point is None or point.deleting:
        raise StepFailedError("the restore point was deleted before the restore began")
    change_state(s, SessionVm, work.vm.id, VmState.PREPARING, VmState.RUNNING)
    steps.note(s, ctx, work, "vm.running", f"restoring {len(work.details['disks'])} disks")
    if point.doubt:
        text = f"this restore point is in doubt: {point.doubt}"
        steps.note(s, ctx, work, "restore-point.in-doubt", text, events.WARNING)


def _prepare_file(ctx: Context, work: Work) -> None:
    _read_point(ctx, work)
    [disk] = work.details["disks"]
    order = RestoreDiskOrder(
        map_root=disk["map_root"],
        capacity_bytes=disk["capacity_bytes"],
        expected_sha256=disk.get("sha256", ""),
        target_path=work.details["path"],
        overwrite=work.details["overwrite"],
    )
    with ctx.db() as s:
        _begin_running(ctx, s, work)
        task = _task(ctx, work, TaskKind.RESTORE_DISK_TO_FILE, disk, order, 0)
        task.allowed_proxies = list(work.details["proxies"])
        task.disk_path = work.details["path"]
        s.add(task)


def _prepare_vm(ctx: Context, work: Work) -> None:
    point = _read_point(ctx, work)
    _check_config(point)
    client = ctx.vcenters.get(work.vcenter_id)
    cancelled = steps.cancel_check(ctx, work.session.id)
    intent = _ensure_intent(ctx, work)
    _start_clean(ctx, client, intent)
    if cancelled():
        raise StepCancelledError("cancelled before the VM was made")
    config = VmConfig(json=point.vm_config, nvram=point.nvram)
    placement = _placement(work)
    moref = client.create_vm(config, placement, mark=intent.mark)
    with ctx.db() as s:
        stored = s.get_one(Intent, intent.id)
        stored.object_ref = stored.vm_moref = moref
        steps.remember(s, work.vm.id, target_moref=moref)
        steps.note(s, ctx, work, "restore.vm-created", f"VM {placement.name} made")
    disks = client.add_disks(moref, config, _new_disks(client, work, placement), placement)
    stores = _datastores(client, disks.values(), placement.datacenter)
    made = client.vm(moref)
    with ctx.db() as s:
        _begin_running(ctx, s, work)
        for position, disk in enumerate(work.details["disks"]):
            target = disks[disk["disk_key"]]
            store = stores[target.datastore]
            order = RestoreDiskOrder(
                map_root=disk["map_root"],
                capacity_bytes=disk["capacity_bytes"],
                expected_sha256=disk.get("sha256", ""),
                target_disk=_ref(moref, placement.name, target, store),
            )
            task = _task(ctx, work, TaskKind.RESTORE_DISK_TO_VM, disk, order, position)
            task.disk_path = target.path
            task.allowed_modes = list(work.details.get("modes", []))
            task.allowed_proxies = list(work.details.get("proxies", []))
            task.datastore = f"{work.vcenter_id}/{target.datastore}"
            task.host_moref = made.host_moref
            task.facts = disk_facts.stored(
                disk_facts.to_write(
                    work.vcenter_id, made, target, store, datacenter=placement.datacenter
                )
            )
            s.add(task)


def _read_point(ctx: Context, work: Work) -> RestorePoint:
    """The point as the repository tells it; what the catalogue said of its disks must be the same."""
    agent = ctx.agents.get(work.session.repository_id or "")
    point = agent.point(work.vm.restore_point_id or "")
    stored = {(disk.disk_key, str(disk.map_root), disk.capacity_bytes) for disk in point.disks}
    for disk in work.details["disks"]:
        if (disk["disk_key"], disk["map_root"], disk["capacity_bytes"]) not in stored:
            raise StepFailedError(
                f"the catalogue and the repository disagree about {disk['label']} of this restore point; "
                "rescan the repository and restore again"
            )
    return point


def _check_config(point: RestorePoint) -> None:
    if not point.vm_config:
        raise StepFailedError(
            "the restore point holds no VM configuration; restore its disks to files instead"
        )


def _ensure_intent(ctx: Context, work: Work) -> Intent:
    with ctx.db() as s:
        intent = steps.open_intent(s, work.vm.id)
        if intent is not None:
            return intent
        intent_id = new_id()
        # The VM is not there yet: it will be known by its mark.
        name = work.details["placement"]["name"]
        return new_intents.of_session(
            s,
            work,
            IntentKind.RESTORED_VM,
            ctx.clock(),
            target=new_intents.Target(moref="", instance_uuid="", name=name),
            mark=restored_vm_mark(ctx.server_id, intent_id),
            intent_id=intent_id,
        )


def _start_clean(ctx: Context, client: Vsphere, intent: Intent) -> None:
    """What an earlier, killed try made is destroyed: its disks may be half added."""
    destroy(ctx, client, intent)
    if intent.object_ref is not None:
        with ctx.db() as s:
            s.get_one(Intent, intent.id).object_ref = None


def destroy(ctx: Context, client: Vsphere, intent: Intent) -> bool:
    """Destroy the VM that bears the intent's mark; False when there is none.

    Raises TransportError when it stays, and when one of its disks stays attached to a proxy's VM.
    """
    if intent.object_ref is not None:
        attachments.release_over(ctx, intent.vcenter_id, intent.object_ref)
    found = client.find_marked_vm(intent.mark)
    if found is None:
        return False
    # Where ours is known, no other will do: a copy that somebody made of it bears the mark as well.
    client.destroy_marked_vm(intent.object_ref or found, intent.mark)
    return True


def _placement(work: Work) -> VmPlacement:
    return VmPlacement(**work.details["placement"])


def _new_disks(client: Vsphere, work: Work, placement: VmPlacement) -> list[NewDisk]:
    return [
        NewDisk(
            disk_key=disk["disk_key"],
            capacity_bytes=disk["capacity_bytes"],
            thin=disk["thin"] if work.details.get("thin") is None else work.details["thin"],
            datastore=_home(client, disk, placement) if work.details["own_datastores"] else "",
        )
        for disk in work.details["disks"]
    ]


def _home(client: Vsphere, disk: Mapping[str, Any], placement: VmPlacement) -> str:
    """The disk's own datastore where it still exists; empty (the placement's) where it does not."""
    name = datastore_of(disk["path"])
    if not name or name == placement.datastore:
        return ""
    try:
        return name if client.datastore(name, placement.datacenter).accessible else ""
    except ObjectGoneError:
        return ""


def _datastores(
    client: Vsphere, disks: Iterable[DiskInfo], datacenter: str
) -> dict[str, DatastoreInfo | None]:
    """By name; None where it is not told: the disk is then written through a host."""
    found: dict[str, DatastoreInfo | None] = {}
    for name in {disk.datastore for disk in disks}:
        try:
            found[name] = client.datastore(name, datacenter)
        except PermanentTransportError:
            found[name] = None
    return found


def _ref(moref: str, vm_name: str, disk: DiskInfo, store: DatastoreInfo | None) -> DiskRef:
    return DiskRef(
        vm_moref=moref,
        vm_name=vm_name,
        disk_key=disk.key,
        path=disk.path,
        capacity_bytes=disk.capacity_bytes,
        datastore=disk.datastore,
        storage=None if store is None else store.storage,
    )


def _task(
    ctx: Context,
    work: Work,
    kind: TaskKind,
    disk: Mapping[str, Any],
    order: RestoreDiskOrder,
    position: int,
) -> Task:
    return Task(
        id=new_id(),
        session_id=work.session.id,
        session_vm_id=work.vm.id,
        kind=kind.value,
        title=f"restore {work.vm.name} / {disk['label']}",
        position=position,
        disk_key=disk["disk_key"],
        disk_label=disk["label"],
        disk_path="",
        capacity_bytes=disk["capacity_bytes"],
        datastore="",
        repository_id=work.session.repository_id or "",
        vcenter_id=work.session.vcenter_id,
        order=to_json(order),
        allowed_proxies=[],
        allowed_modes=[],
        priority=RESTORE_PRIORITY,
        state=TaskState.PENDING.value,
        created_at=ctx.clock(),
    )


# ---- finishing ------------------------------------------------------------------------------------


def finish(ctx: Context, vm_id: str) -> None:
    """Bring a restore from finishing to done: the VM made whole, or what there is of it destroyed."""
    work = steps.load(ctx, vm_id)
    result, reason = _verdict(ctx, work)
    good = result in (Result.SUCCESS, Result.WARNING)
    if good and (target := work.details.get("target_moref")):
        # A disk that a proxy's VM still has would keep the VM from being powered on.
        attachments.release_over(ctx, work.vcenter_id, target)
    with ctx.db.read() as s:
        intent = steps.open_intent(s, vm_id)
    if intent is not None:
        if good:
            _complete(ctx, work, intent)
            with ctx.db() as s:
                vm_snapshots.close_intent(s, intent.id, ctx.clock(), problem="")
        else:
            _undo(ctx, work, intent)
    if good and work.details.get("power_on"):
        _power_on(ctx, work)
    work = steps.load(ctx, vm_id)
    if result is Result.SUCCESS and work.vm.warnings:
        result, reason = Result.WARNING, "; ".join(work.vm.warnings)
    with ctx.db() as s:
        steps.end_vm(s, ctx, work, VmState.FINISHING, result, reason)


def _undo(ctx: Context, work: Work, intent: Intent) -> None:
    """Destroy what was made; when that fails the janitor goes on, the result stays what it is."""
    try:
        destroyed = destroy(ctx, ctx.vcenters.get(work.vcenter_id), intent)
    except TransportError as error:
        with ctx.db() as s:
            stored = s.get_one(Intent, intent.id)
            stored.problem, stored.next_try_at = str(error), ctx.clock()
        text = f"the half restored VM could not be deleted yet, this is tried again: {error}"
        steps.warn(ctx, work, text)
        return
    with ctx.db() as s:
        vm_snapshots.close_intent(s, intent.id, ctx.clock(), problem="")
        if destroyed:
            name = _placement(work).name
            text = f"the half restored VM {name} was deleted"
            steps.note(s, ctx, work, "restore.vm-destroyed", text)


def _verdict(ctx: Context, work: Work) -> tuple[Result, str]:
    failure = work.details.get("failure")
    if failure:
        return Result(failure["result"]), str(failure["reason"])
    with ctx.db.read() as s:
        tasks = steps.tasks_of(s, work.vm.id)
    for worst in (Result.FAILED, Result.CANCELLED, Result.WARNING):
        hit = [task for task in tasks if task.result == worst.value]
        if hit:
            return worst, "; ".join(f"{task.disk_label}: {task.reason}" for task in hit)
    return Result.SUCCESS, ""


def _complete(ctx: Context, work: Work, intent: Intent) -> None:
    """Everything that needs the disks; the mark goes with it, and the VM is the customer's."""
    client = ctx.vcenters.get(work.vcenter_id)
    moref = intent.object_ref
    if moref is None:
        raise StepFailedError("the VM that was being restored is not known any more; restore again")
    if client.find_marked_vm(intent.mark) is None:
        # A try before a crash took the mark away: all that finishing does was done, or the VM is gone.
        _still_there(client, moref)
        return
    point = _read_point(ctx, work)
    config = VmConfig(json=point.vm_config, nvram=point.nvram)
    warnings = client.finish_vm(moref, config, _placement(work))
    for text in warnings:
        steps.warn(ctx, work, text)
    with ctx.db() as s:
        steps.note(s, ctx, work, "restore.vm-finished", f"VM {intent.vm_name} is whole")


def _still_there(client: Vsphere, moref: str) -> None:
    try:
        client.vm(moref)
    except ObjectGoneError as error:
        raise StepFailedError("the VM was deleted in vCenter while it was being restored") from error


def _power_on(ctx: Context, work: Work) -> None:
    moref = work.details["target_moref"]
    try:
        client = ctx.vcenters.get(work.vcenter_id)
        if client.vm(moref).power_state != PowerState.ON:
            client.power_on(moref)
    except TransportError as error:
        # The VM is whole; that it does not start is for a person to look at, not to restore again.
        steps.warn(ctx, work, f"the VM could not be powered on: {error}")
