"""HotAdd: disks attached to the VM in which a proxy runs, and taken away again.

An intent is committed before a disk is attached, and closed when the disk is seen to be gone. It belongs to
one attempt of one task: when that is over, however it ended, the proxy, the VM's next step or the janitor
takes the disk away. Only a file that an intent names is ever taken away, only from the VM that it names, and
never with its content.

What proxies ask for while their VM is being changed goes together in the next change. All of it runs under
the VM's turn, so that slots are chosen from what vCenter shows, and nothing is attached for an attempt whose
disks were just taken away.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from itertools import groupby
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.orm import Session as DbSession

from backup_server.db.states import IntentKind, IntentState, TaskState, change_state
from backup_server.db.tables import Intent, Proxy, Task
from backup_server.errors import ConflictError, ForbiddenError, NotFoundError, UnavailableError
from backup_server.log import task_ids
from backup_server.services import new_intents, proxy_vms
from backup_server.services.context import Context
from proxy_worker.contracts.codec import decode_order
from proxy_worker.contracts.messages import (
    BackupDiskOrder,
    PresentRequest,
    RestoreDiskOrder,
    WithdrawRequest,
)
from transports.base import DiskRef, Presented, TransportMode
from transports.errors import ObjectGoneError, TransientTransportError, TransportError
from transports.vsphere.api import Vsphere
from transports.vsphere.model import AttachableVm, AttachedDisk, DiskInfo, DiskToAttach, Place

LATE_FOR: Final = timedelta(hours=24)
"""So long after an intent was closed its disk is looked for once more: a change that vCenter was asked for, and
that nobody waited for to the end, may have come afterwards."""
_UUID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_NONPERSISTENT: Final = "independent_nonpersistent"
_PERSISTENT: Final = "independent_persistent"
_PLACE: Final = re.compile(r"\((\d+):(\d+)\)")
"""In DiskInfo.controller."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What is asked for in one turn of a VM."""

    intent_id: str
    disk: DiskToAttach
    attach: bool


Changed = AttachedDisk | bool
"""The attached disk; True for one that is gone."""


# ---- what proxies ask -----------------------------------------------------------------------------


def present(ctx: Context, task: Task, question: PresentRequest) -> Presented:
    """Attach the task's disk to the proxy's VM. ConflictError: another mode may do. UnavailableError: another
    try may.
    """
    disk = _disk(task, write=question.write)
    try:
        client = ctx.vcenters.get(task.vcenter_id or "")
        vm = _proxy_vm(ctx, client, task, disk)
        _release_earlier(ctx, task)
        intent = _ensure_intent(ctx, task, question, vm, disk)
        attached = _attach(ctx, client, intent)
    except TransientTransportError as error:
        raise UnavailableError(str(error)) from error
    except TransportError as error:
        raise ConflictError(str(error)) from error
    return Presented(
        disk=disk,
        mode=TransportMode.HOTADD,
        disk_uuid=attached.disk_uuid,
        controller_bus=attached.controller_bus,
        unit=attached.unit,
    )


def withdraw(ctx: Context, task: Task, question: WithdrawRequest) -> None:
    """Take away what the attempt has attached. What cannot be taken away now the janitor takes away later."""
    with ctx.db.read() as s:
        intents = [
            intent
            for intent in _open(s, Intent.task_id == task.id)
            if intent.details.get("attempt") == question.attempt
        ]
    try:
        release(ctx, intents)
    except TransportError as error:
        ctx.log.warning("attachment.left", **task_ids(task), reason=str(error))


def _disk(task: Task, *, write: bool) -> DiskRef:
    order = decode_order(task.kind, task.order)
    if isinstance(order, BackupDiskOrder) and not write:
        return order.disk
    if isinstance(order, RestoreDiskOrder) and order.target_disk is not None and write:
        return order.target_disk
    raise ForbiddenError(
        f"task {task.id} has no disk to {'write to' if write else 'read'}; the proxy asked for what is not its work"
    )


def _proxy_vm(ctx: Context, client: Vsphere, task: Task, disk: DiskRef) -> AttachableVm:
    """The VM of the task's vCenter in which its proxy runs."""
    with ctx.db.read() as s:
        proxy = s.get(Proxy, task.proxy_id)
    if proxy is None:
        raise ForbiddenError(f"proxy {task.proxy_name} was removed: no disk is attached to its VM")
    # As the proxy told it: what is no UUID is none, and one that nobody confirmed may be another machine's.
    uuid = proxy_vms.uuid_of(proxy)
    if not _UUID.fullmatch(uuid):
        raise ConflictError(
            f"proxy {proxy.name} shows no SMBIOS UUID, so its VM cannot be found; run its worker as root, or "
            "set vm_uuid in its proxy.toml"
        )
    if not proxy_vms.is_confirmed(proxy):
        raise ConflictError(
            f"only proxy {proxy.name} itself says that it is the VM with the SMBIOS UUID {uuid}: no disk is attached "
            f"there; `vmhaul proxy confirm-vm {proxy.name}` confirms it"
        )
    morefs = client.vms_by_bios_uuid(uuid)
    if not morefs:
        raise ConflictError(f"vCenter has no VM with the SMBIOS UUID {uuid} of proxy {proxy.name}")
    if len(morefs) > 1:
        raise ConflictError(
            f"{len(morefs)} VMs have the SMBIOS UUID {uuid} of proxy {proxy.name} ({', '.join(morefs)}): which "
            "of them it is cannot be told; give the clone a UUID of its own"
        )
    if morefs[0] == disk.vm_moref:
        raise ConflictError(
            f"proxy {proxy.name} runs in VM {disk.vm_name} itself; its own disks are not attached to it"
        )
    return client.attachable_vm(morefs[0])


def _ensure_intent(
    ctx: Context, task: Task, question: PresentRequest, vm: AttachableVm, disk: DiskRef
) -> Intent:
    """The attempt's open intent for that VM, committed before vSphere is asked for anything."""
    with ctx.db() as s:
        return new_intents.of_attempt(
            s,
            task,
            question.attempt,
            IntentKind.HOT_ADDED_DISK,
            ctx.clock(),
            target=new_intents.Target(moref=vm.moref, instance_uuid=vm.instance_uuid, name=vm.name),
            mark=disk.path,
            details={
                "path": disk.path,
                "write": question.write,
                "disk_vm_moref": disk.vm_moref,
                "disk_vm_name": disk.vm_name,
                # Where it is to be, committed before it comes; `settled`: nothing comes any more.
                "places": [],
                "settled": False,
            },
        )


def _attach(ctx: Context, client: Vsphere, intent: Intent) -> AttachedDisk:
    """Errors of transports.errors. After one that will not pass nothing is left."""
    [answer] = _change(ctx, client, [intent], attach=True)
    if isinstance(answer, AttachedDisk):
        return answer
    assert isinstance(answer, Exception)
    if isinstance(answer, TransportError) and not isinstance(answer, TransientTransportError):
        _let_go(ctx, intent)
    raise answer


def _let_go(ctx: Context, intent: Intent) -> None:
    try:
        release(ctx, [intent])
    except TransportError as error:
        ctx.log.warning("attachment.left", intent_id=intent.id, reason=str(error))


# ---- what takes disks away ------------------------------------------------------------------------


def release(ctx: Context, intents: Iterable[Intent]) -> None:
    """Take the intents' disks away, those of one VM together, and close them. Raises the first TransportError
    when one stays; the others are taken away all the same.
    """
    problem: TransportError | None = None
    for group in _by_vm(intents):
        try:
            client = ctx.vcenters.get(group[0].vcenter_id)
        except NotFoundError:
            problem = problem or TransportError(
                f"vCenter {group[0].vcenter_id} is not registered any more"
            )
            continue
        except TransportError as error:
            problem = problem or error
            continue
        for intent, answer in zip(group, _change(ctx, client, group, attach=False), strict=True):
            if isinstance(answer, TransportError):
                problem = problem or answer
            elif isinstance(answer, Exception):
                raise answer
            else:
                with ctx.db() as s:
                    _close(ctx, s, intent.id)
    if problem is not None:
        raise problem


def release_over(ctx: Context, vcenter_id: str, disk_vm_moref: str) -> None:
    """Take away every disk of a VM whose attempt is over: before its snapshot is removed, and before the VM is
    powered on or deleted. TransportError when one stays.
    """
    with ctx.db.read() as s:
        intents = [
            intent
            for intent in _open(s, Intent.vcenter_id == vcenter_id)
            if intent.details.get("disk_vm_moref") == disk_vm_moref and not is_alive(s, intent)
        ]
    release(ctx, intents)


def is_alive(s: DbSession, intent: Intent) -> bool:
    """Whether the attempt goes on that the disk was attached for."""
    return (
        s.scalar(
            sa.select(Task.id).where(
                Task.id == intent.task_id,
                Task.state == TaskState.RUNNING.value,
                Task.attempt == intent.details.get("attempt"),
                Task.proxy_id == intent.details.get("proxy_id"),
            )
        )
        is not None
    )


def is_alive_id(s: DbSession, intent_id: str) -> bool:
    intent = s.get(Intent, intent_id)
    return intent is not None and intent.state == IntentState.OPEN.value and is_alive(s, intent)


def sweep(ctx: Context, vcenter_id: str) -> None:
    """Take away what came after its intent was closed, from every VM that proxies had disks of this vCenter
    attached to of late.
    """
    with ctx.db.read() as s:
        morefs = list(
            s.scalars(
                sa.select(Intent.vm_moref)
                .where(
                    Intent.kind == IntentKind.HOT_ADDED_DISK.value,
                    Intent.vcenter_id == vcenter_id,
                    Intent.closed_at > ctx.clock() - LATE_FOR,
                )
                .distinct()
            )
        )
    for moref in morefs:
        with ctx.attaching.alone((vcenter_id, moref)):
            _sweep(ctx, ctx.vcenters.get(vcenter_id), vcenter_id, moref)


def _sweep(ctx: Context, client: Vsphere, vcenter_id: str, moref: str) -> None:
    try:
        left = _late(ctx, client, vcenter_id, moref)
        if left:
            client.detach_disks(moref, left)
            ctx.log.info("attachment.orphans-removed", vm=moref, disks=[one.path for one in left])
    except TransportError as error:
        ctx.log.warning("attachment.sweep-failed", vm=moref, reason=str(error))


def _release_earlier(ctx: Context, task: Task) -> None:
    """Attachments of earlier attempts at this disk: two must never write to it."""
    with ctx.db.read() as s:
        intents = [one for one in _open(s, Intent.task_id == task.id) if not is_alive(s, one)]
    release(ctx, intents)


# ---- the turn of a VM -----------------------------------------------------------------------------


def _change(
    ctx: Context, client: Vsphere, intents: Sequence[Intent], *, attach: bool
) -> list[Changed | Exception]:
    """Of one VM."""
    vcenter_id, moref = intents[0].vcenter_id, intents[0].vm_moref
    changes = [Change(intent_id=one.id, disk=_of(one), attach=attach) for one in intents]
    return ctx.attaching.ask(
        (vcenter_id, moref), changes, lambda all_: _serve(ctx, client, vcenter_id, moref, all_)
    )


def _serve(
    ctx: Context, client: Vsphere, vcenter_id: str, moref: str, changes: Sequence[Change]
) -> list[Changed | Exception]:
    """One change of the VM for all that wait: first what goes, with what is left over, then what comes."""
    answers: dict[int, Changed | Exception] = {}
    leaving = [(n, one) for n, one in enumerate(changes) if not one.attach]
    coming = [(n, one) for n, one in enumerate(changes) if one.attach]
    gone = _detach(ctx, client, vcenter_id, moref, [one for _, one in leaving], sweep=bool(coming))
    answers |= {n: gone for n, _ in leaving}
    wanted: list[tuple[int, Change]] = []
    for n, one in coming:
        refusal = _refusal(ctx, one)
        if refusal is None:
            wanted.append((n, one))
        else:
            answers[n] = refusal
    attached = _attach_all(ctx, client, moref, [one for _, one in wanted])
    answers |= {n: answer for (n, _), answer in zip(wanted, attached, strict=True)}
    return [answers[n] for n in range(len(changes))]


def _detach(
    ctx: Context,
    client: Vsphere,
    vcenter_id: str,
    moref: str,
    leaving: Sequence[Change],
    *,
    sweep: bool,
) -> Changed | Exception:
    """Take away what is asked for. With `sweep` also what is left over; that this fails is no hindrance."""
    kept = _wanted_by_others(ctx, vcenter_id, moref, {one.intent_id for one in leaving})
    # Read again: where they are was noted after they were asked for.
    with ctx.db.read() as s:
        known = [_of(s.get_one(Intent, one.intent_id)) for one in leaving]
    disks = [one for one in known if not any(_is_same(one, other) for other in kept)]
    try:
        if disks:
            client.detach_disks(moref, disks)
    except ObjectGoneError:
        return True
    except TransportError as error:
        return error
    if sweep:
        _sweep(ctx, client, vcenter_id, moref)
    return True


def _refusal(ctx: Context, change: Change) -> Exception | None:
    """Why a disk is not attached any more that was asked for before the VM's turn came."""
    with ctx.db.read() as s:
        intent = s.get_one(Intent, change.intent_id)
        if intent.state == IntentState.OPEN.value and is_alive(s, intent):
            return None
    return ForbiddenError(f"the attempt for which {change.disk.path} was to be attached is over")


def _attach_all(
    ctx: Context, client: Vsphere, moref: str, changes: Sequence[Change]
) -> Sequence[Changed | Exception]:
    """All in one change; one by one when that is refused, so that one bad disk does not keep the others."""
    if not changes:
        return []
    disks = [_with_shared_places(ctx, moref, one) for one in changes]
    try:
        answers = client.attach_disks(moref, disks, partial(_note_places, ctx, changes))
    except TransientTransportError as error:
        return [error] * len(changes)
    except TransportError as error:
        if len(changes) == 1:
            _settle(ctx, changes)
            return [error]
        return [answer for one in changes for answer in _attach_all(ctx, client, moref, [one])]
    _settle(ctx, changes)
    return answers


def _note_places(ctx: Context, changes: Sequence[Change], places: Sequence[Place]) -> None:
    """Where the disks will be: by that they are known for ours, whatever becomes of this process."""
    with ctx.db() as s:
        for change, place in zip(changes, places, strict=True):
            intent = s.get_one(Intent, change.intent_id, with_for_update=True, populate_existing=True)
            noted = [list(one) for one in intent.details.get("places") or []]
            if list(place) not in noted:
                intent.details = {**intent.details, "places": [*noted, list(place)], "settled": False}


def _settle(ctx: Context, changes: Sequence[Change]) -> None:
    """vSphere answered: no disk of theirs will come later than this."""
    with ctx.db() as s:
        for change in changes:
            intent = s.get_one(Intent, change.intent_id, with_for_update=True, populate_existing=True)
            intent.details = {**intent.details, "settled": True}


def _with_shared_places(ctx: Context, moref: str, change: Change) -> DiskToAttach:
    """The same file may be attached for another attempt already: then that one will do."""
    with ctx.db.read() as s:
        own = s.get_one(Intent, change.intent_id)
        others = [
            _of(intent)
            for intent in _open(s, Intent.vcenter_id == own.vcenter_id, Intent.vm_moref == moref)
            if is_alive(s, intent)
        ]
    disk = _of(own)
    if disk.places is None:
        return disk
    shared = {place for one in others if _same_file(one, disk) for place in one.places or ()} | set(
        disk.places
    )
    return replace(disk, places=tuple(sorted(shared)))


# ---- what the database says of a VM ---------------------------------------------------------------


def _open(s: DbSession, *where: sa.ColumnElement[bool]) -> list[Intent]:
    return list(
        s.scalars(
            sa.select(Intent)
            .where(
                Intent.kind == IntentKind.HOT_ADDED_DISK.value,
                Intent.state == IntentState.OPEN.value,
                *where,
            )
            .order_by(Intent.created_at)
        )
    )


def _wanted_by_others(
    ctx: Context, vcenter_id: str, moref: str, intent_ids: set[str]
) -> list[DiskToAttach]:
    """Disks that another open intent for that VM still needs: the same file in two sessions."""
    with ctx.db.read() as s:
        return [
            _of(intent)
            for intent in _open(s, Intent.vcenter_id == vcenter_id, Intent.vm_moref == moref)
            if intent.id not in intent_ids and is_alive(s, intent)
        ]


def _late(ctx: Context, client: Vsphere, vcenter_id: str, moref: str) -> list[DiskToAttach]:
    """Disks of closed intents, and of open ones whose attempt is over, that the VM has."""
    with ctx.db.read() as s:
        rows = s.scalars(
            sa.select(Intent).where(
                Intent.kind == IntentKind.HOT_ADDED_DISK.value,
                Intent.vcenter_id == vcenter_id,
                Intent.vm_moref == moref,
                sa.or_(
                    Intent.state == IntentState.OPEN.value, Intent.closed_at > ctx.clock() - LATE_FOR
                ),
            )
        ).all()
        alive = [_of(one) for one in rows if one.closed_at is None and is_alive(s, one)]
        named = [
            _of(one)
            for one in rows
            # What was closed after vSphere had answered is gone: the same file there is somebody else's.
            if (one.closed_at is None and not is_alive(s, one))
            or (one.closed_at is not None and not one.details.get("settled"))
        ]
    left = [one for one in dict.fromkeys(named) if not any(_is_same(one, other) for other in alive)]
    if not left:
        return []
    return [one for one in left if any(_is(disk, one) for disk in client.attachable_vm(moref).disks)]


def _is(disk: DiskInfo, one: DiskToAttach) -> bool:
    if one.places is not None and _place(disk) not in one.places:
        return False
    if one.write:
        return disk.disk_mode == _PERSISTENT and disk.path == one.path
    return disk.disk_mode == _NONPERSISTENT and one.path in (disk.path, disk.base_path)


def _place(disk: DiskInfo) -> Place | None:
    found = _PLACE.search(disk.controller)
    return None if found is None else (int(found[1]), int(found[2]))


def _same_file(one: DiskToAttach, other: DiskToAttach) -> bool:
    return (one.path, one.write) == (other.path, other.write)


def _is_same(one: DiskToAttach, other: DiskToAttach) -> bool:
    """Whether it may be one attachment."""
    if not _same_file(one, other):
        return False
    return one.places is None or other.places is None or bool(set(one.places) & set(other.places))


def _of(intent: Intent) -> DiskToAttach:
    details: dict[str, Any] = intent.details
    places = details.get("places")
    return DiskToAttach(
        path=str(details["path"]),
        write=bool(details["write"]),
        places=None if places is None else tuple((int(bus), int(unit)) for bus, unit in places),
    )


def _close(ctx: Context, s: DbSession, intent_id: str) -> None:
    intent = s.get(Intent, intent_id, populate_existing=True)
    if intent is not None and intent.state == IntentState.OPEN.value:
        change_state(
            s, Intent, intent_id, IntentState.OPEN, IntentState.DONE, closed_at=ctx.clock(), problem=""
        )


def _by_vm(intents: Iterable[Intent]) -> list[list[Intent]]:
    def vm(intent: Intent) -> tuple[str, str]:
        return intent.vcenter_id, intent.vm_moref

    return [list(group) for _, group in groupby(sorted(intents, key=vm), key=vm)]
