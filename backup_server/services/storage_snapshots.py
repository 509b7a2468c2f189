"""Backup from storage snapshots: the VM snapshot lives for seconds, the storage keeps its state instead.

While the VM snapshot exists, what it froze is the file that is to be read; a storage snapshot made in that time holds
it so for ever. So: changed areas of every disk are asked, an intent is written, each volume involved is frozen,
the VM snapshot is seen to be there still and is removed. Volumes need not be frozen at one moment: the files do not
change between the first and the last.

Intents: one STORAGE_SNAPSHOT for a VM in a session; one STORAGE_EXPOSURE for an attempt of a task that is shown it.
`details` of both: systems [{system, volumes}]; of an exposure also proxy_id, attempt and the exposure's name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.orm import Session as DbSession

from backup_server.db.states import IntentKind, IntentState
from backup_server.db.tables import Intent, Proxy, Task, new_id
from backup_server.db.tables import StorageSystem as StorageRow
from backup_server.errors import NotFoundError
from backup_server.services import disk_facts, new_intents, steps, storage_systems, vm_snapshots
from backup_server.services.context import Context
from backup_server.services.disk_plan import DiskPlan
from backup_server.services.steps import Work
from backup_server.services.storage_pool import PROXIES
from proxy_worker.contracts.codec import decode_order, to_json
from proxy_worker.contracts.extents import pack_extents
from proxy_worker.contracts.messages import BackupDiskOrder
from transports.base import TransportMode
from transports.errors import ChangeTrackingUnusableError, PermanentTransportError, TransportError
from transports.rules import DiskFacts, StorageSnapshotFacts, judge_disk
from transports.storage_systems.base import (
    StorageSystem,
    Volume,
    is_exposure,
    is_snapshot,
    owner_prefix,
    snapshot_name,
    snapshot_of,
)
from transports.storage_systems.matching import READ_BY, volumes_below
from transports.vsphere.api import Vsphere
from transports.vsphere.model import DatastoreInfo, DiskInfo, SnapshotInfo, VmInfo

_MODE: Final = TransportMode.STORAGE_SNAPSHOT
HELD: Final = "storage"
"""Entry of a task's facts: what `present` needs of the storage snapshot."""
RETRIED: Final = "a retry reads from the VM snapshot"
PLAN_CHANGED: Final = "the previous restore point changed while the storage snapshot was made"


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a disk lies on a registered system."""

    system_id: str
    system_name: str
    volumes: tuple[Volume, ...]
    proxies: tuple[str, ...]
    """Ids of those that may read from the system and that the job allows."""

    @property
    def read_by(self) -> TransportMode:
        return READ_BY[self.volumes[0].kind]


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldDisk:
    """One disk in a storage snapshot."""

    place: Place
    plan: DiskPlan
    """On which `known_changes` rests."""
    known_changes: str
    full_read_reason: str
    """Why tracking could not answer; empty when it did, or was not to be asked."""
    continue_changes: str = ""
    """What changed since an earlier session read the disk; empty when nobody can tell."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """A VM's disks in storage snapshots. The VM snapshot is gone."""

    intent_id: str
    disks: Mapping[int, HeldDisk]
    """By the disk's key."""


def read_from(task: Task, held: Held, plan: DiskPlan) -> None:
    """Make a new task of the standard way one that reads what the storage holds."""
    disk = held.disks[task.disk_key]
    place = disk.place
    order = decode_order(task.kind, task.order)
    assert isinstance(order, BackupDiskOrder)
    reason = plan.reason or disk.full_read_reason
    if not reason and plan != disk.plan:
        reason = PLAN_CHANGED
    changed = replace(
        order,
        # The VM snapshot is gone: nobody can ask it for changes.
        disk=replace(order.disk, snapshot_moref=None),
        known_changes="" if reason else disk.known_changes,
        previous_change_id="" if reason else order.previous_change_id,
        full_read_reason=reason,
        continue_changes=disk.continue_changes,
    )
    if not disk.continue_changes:
        task.continues_task_id = None
        changed = replace(changed, continue_work="", continue_change_id="")
    facts = disk_facts.of_task(task)
    assert facts is not None
    told = StorageSnapshotFacts(
        system=place.system_name,
        proxies=place.proxies,
        read_by=place.read_by,
        vm_snapshot_gone=True,
    )
    task.order = to_json(changed)
    task.read_mode_reason = reason
    task.allowed_modes = [TransportMode.STORAGE_SNAPSHOT.value]
    task.facts = {
        **disk_facts.stored(replace(facts, storage_snapshot=told), failover=False),
        HELD: {
            "intent": held.intent_id,
            "system": place.system_id,
            "volumes": [volume.id for volume in place.volumes],
        },
    }


def hold(
    ctx: Context,
    client: Vsphere,
    work: Work,
    info: VmInfo,
    snapshot: SnapshotInfo,
    disks: Sequence[DiskInfo],
    stores: Mapping[str, DatastoreInfo],
    plans: Mapping[int, DiskPlan],
    since: Mapping[int, str],
) -> Held | None:
    """Keep the snapshot's state on the storage and remove the snapshot; None: read it in the standard way.
    `since`: change ids of the disks that an earlier session left, by their keys.

    May be begun again after a crash: what an earlier try left is removed first.
    """
    remove_leftovers(ctx, work)
    options = work.job["options"]
    if not options.get("storage_snapshots"):
        return None
    failover = bool(options.get("storage_failover", True))
    if work.session.attempt > 1 and failover:
        _say_standard(ctx, work, RETRIED)
        return None
    with ctx.db.read() as s:
        found, obstacle = places_of(
            s, work.vcenter_id, info, disks, stores, options, quiesced=snapshot.quiesced
        )
    if obstacle:
        _say_standard(ctx, work, obstacle)
        return None
    places = {key: place for key, place in found.items() if place is not None}
    held_disks = {
        disk.key: _held(client, work, snapshot, disk, plans[disk.key], places, since.get(disk.key, ""))
        for disk in disks
    }
    intent = _ensure_intent(ctx, work, places.values())
    try:
        _freeze(ctx, intent)
        _confirm(client, work, snapshot)
    except (TransportError, NotFoundError) as error:
        _undo(ctx, work, intent)
        if not failover:
            raise
        steps.warn(ctx, work, f"no storage snapshot could be made, the VM snapshot is read: {error}")
        return None
    with ctx.db() as s:
        names = ", ".join(sorted({place.system_name for place in places.values()}))
        steps.note(s, ctx, work, "storage-snapshot.created", f"storage snapshot made on {names}")
    _remove_vm_snapshot(ctx, client, work)
    return Held(intent_id=intent.id, disks=held_disks)


def _say_standard(ctx: Context, work: Work, reason: str) -> None:
    with ctx.db() as s:
        text = f"read from the VM snapshot, not from a storage snapshot: {reason}"
        steps.note(s, ctx, work, "storage-snapshot.not-used", text)


# ---- which storage --------------------------------------------------------------------------------


def places_of(
    s: DbSession,
    vcenter_id: str,
    vm: VmInfo,
    disks: Sequence[DiskInfo],
    stores: Mapping[str, DatastoreInfo],
    options: Mapping[str, Any],
    *,
    quiesced: bool,
) -> tuple[dict[int, Place | None], str]:
    """Where each disk lies by its key, and why the whole VM is read in the standard way; empty: it is not.
    `options`: the job's. Runs and plans ask the same.
    """
    places = {disk.key: place_of(s, stores.get(disk.datastore), options) for disk in disks}
    usable = _usable_proxies(s)
    for disk in disks:
        place = places[disk.key]
        system = StorageSnapshotFacts(system=place.system_name if place else "")
        facts = disk_facts.to_read(
            vcenter_id, vm, disk, stores, quiesced=quiesced, storage_snapshot=system
        )
        obstacle = _obstacle(disk.label, place, facts, options, usable)
        if obstacle:
            return places, obstacle
    return places, ""


def _obstacle(
    label: str,
    place: Place | None,
    facts: DiskFacts,
    options: Mapping[str, Any],
    usable: Sequence[Proxy],
) -> str:
    verdict = judge_disk(TransportMode.STORAGE_SNAPSHOT, facts)
    if place is None or not verdict.usable:
        return f"{label}: {verdict.text}"
    verdict = judge_disk(place.read_by, facts)
    if not verdict.usable:
        return f"{label} cannot be read by {place.read_by.value}: {verdict.text}"
    if not _modes_allow(options, place.read_by):
        return f"the job allows neither storage-snapshot nor {place.read_by.value}"
    if not any(one.id in place.proxies and _reads(one, place.read_by) for one in usable):
        return (
            f"no proxy that is on, that the job allows and that offers storage-snapshot and {place.read_by.value} may "
            f"read from {place.system_name}; name one with `vmhaul storage edit {place.system_name} --proxy PROXY`"
        )
    return ""


def place_of(s: DbSession, store: DatastoreInfo | None, options: Mapping[str, Any]) -> Place | None:
    """The registered system that has all volumes below a datastore, and who may read from it."""
    if store is None:
        return None
    allowed = set(options.get("proxies") or ())
    rows = s.scalars(
        sa.select(StorageRow).where(StorageRow.enabled.is_(True)).order_by(StorageRow.name)
    )
    for row in rows:
        volumes = volumes_below(store.storage, storage_systems.volumes_of(row))
        if volumes:
            listed = [str(one["proxy_id"]) for one in row.options.get(PROXIES, [])]
            return Place(
                system_id=row.id,
                system_name=row.name,
                volumes=volumes,
                proxies=tuple(one for one in listed if not allowed or one in allowed),
            )
    return None


def _usable_proxies(s: DbSession) -> list[Proxy]:
    return list(
        s.scalars(sa.select(Proxy).where(Proxy.enabled.is_(True), Proxy.signing_key.is_not(None)))
    )


def _reads(proxy: Proxy, read_by: TransportMode) -> bool:
    """Whether the proxy offers what it takes. When the VM snapshot is gone, nobody else could stand in for it."""
    offered = proxy.facts.get("modes")
    if proxy.modes and _MODE.value not in proxy.modes:
        return False
    return offered is None or {_MODE.value, read_by.value} <= set(offered)


def _modes_allow(options: Mapping[str, Any], read_by: TransportMode) -> bool:
    modes = options.get("modes") or ()
    return not modes or TransportMode.STORAGE_SNAPSHOT.value in modes or read_by.value in modes


# ---- holding --------------------------------------------------------------------------------------


def _held(
    client: Vsphere,
    work: Work,
    snapshot: SnapshotInfo,
    disk: DiskInfo,
    plan: DiskPlan,
    places: Mapping[int, Place],
    since: str,
) -> HeldDisk:
    """The proxy cannot ask any more when it reads, so the changes go with its order."""
    changes, reason = "", ""
    if plan.previous_map_root and plan.previous_change_id and not plan.reason:
        try:
            areas = client.changed_areas(
                work.vm.moref, snapshot.moref, disk.key, plan.previous_change_id
            )
            changes = pack_extents(areas)
        except ChangeTrackingUnusableError as error:
            reason = str(error)
    return HeldDisk(
        place=places[disk.key],
        plan=plan,
        known_changes=changes,
        full_read_reason=reason,
        continue_changes=_changes_since(client, work, snapshot, disk, since),
    )


def _changes_since(
    client: Vsphere, work: Work, snapshot: SnapshotInfo, disk: DiskInfo, since: str
) -> str:
    if not since:
        return ""
    try:
        return pack_extents(client.changed_areas(work.vm.moref, snapshot.moref, disk.key, since))
    except ChangeTrackingUnusableError:
        return ""


def _ensure_intent(ctx: Context, work: Work, places: Iterable[Place]) -> Intent:
    volumes: dict[str, set[str]] = {}
    for place in places:
        volumes.setdefault(place.system_id, set()).update(volume.id for volume in place.volumes)
    intent_id = new_id()
    with ctx.db() as s:
        return new_intents.of_session(
            s,
            work,
            IntentKind.STORAGE_SNAPSHOT,
            ctx.clock(),
            target=new_intents.target_of(work),
            mark=snapshot_name(ctx.server_id, intent_id),
            intent_id=intent_id,
            details={
                "systems": [
                    {"system": system, "volumes": sorted(ids)}
                    for system, ids in sorted(volumes.items())
                ]
            },
        )


def _freeze(ctx: Context, intent: Intent) -> None:
    for part in intent.details["systems"]:
        ctx.storage.get(part["system"]).create_snapshot(intent.mark, part["volumes"])


def _confirm(client: Vsphere, work: Work, snapshot: SnapshotInfo) -> None:
    """The storage holds what the VM snapshot froze only if that was there to the end."""
    for one in client.snapshots(work.vm.moref):
        if one.moref == snapshot.moref:
            files = {disk.key: disk.path for disk in one.disks}
            if files == {disk.key: disk.path for disk in snapshot.disks}:
                return
            raise PermanentTransportError("the disks' files were moved while the storage was frozen")
    raise PermanentTransportError("the VM snapshot was removed by somebody else meanwhile")


def _remove_vm_snapshot(ctx: Context, client: Vsphere, work: Work) -> None:
    """What cannot be removed now is removed when the VM's tasks are over, as every other."""
    with ctx.db.read() as s:
        intent = steps.open_intent(s, work.vm.id)
    if intent is None:
        return
    try:
        warnings = vm_snapshots.remove(ctx, client, intent)
    except TransportError as error:
        steps.warn(ctx, work, f"the VM snapshot could not be removed at once: {error}")
        return
    with ctx.db() as s:
        vm_snapshots.close_intent(s, intent.id, ctx.clock(), problem="")
        steps.remember(s, work.vm.id).snapshot_removed_at = ctx.clock()
        steps.note(s, ctx, work, "snapshot.removed", "snapshot removed, the storage holds its state")
    for text in warnings:
        steps.warn(ctx, work, text, "consolidation.needed")


# ---- letting go -----------------------------------------------------------------------------------


def release(ctx: Context, work: Work) -> None:
    """All disks of the VM are read: nothing of its storage snapshots is left, or it is the janitor's."""
    for intent in _intents_of(ctx, work.vm.id):
        try:
            clean(ctx, intent)
        except (TransportError, NotFoundError) as error:
            with ctx.db() as s:
                stored = s.get_one(Intent, intent.id)
                stored.problem, stored.next_try_at = str(error), ctx.clock()
            text = f"a storage snapshot could not be removed yet, this is tried again: {error}"
            steps.warn(ctx, work, text)
            continue
        close(ctx, intent)
        with ctx.db() as s:
            steps.note(s, ctx, work, "storage-snapshot.removed", "storage snapshot removed")


def remove_leftovers(ctx: Context, work: Work) -> None:
    """What a try before a crash left behind of this VM; what stays is the janitor's."""
    for intent in _intents_of(ctx, work.vm.id):
        _undo(ctx, work, intent)


def _undo(ctx: Context, work: Work, intent: Intent) -> None:
    try:
        clean(ctx, intent)
    except (TransportError, NotFoundError) as error:
        ctx.log.warning("storage-snapshot.left", vm=work.vm.name, name=intent.mark, reason=str(error))
    else:
        close(ctx, intent)


def clean(ctx: Context, intent: Intent) -> None:
    """Remove what the intent names: of a snapshot everything that was shown of it as well."""
    # By name, as one that was hidden in part is no exposure any more for an array, and takes space there still.
    shown = [one.mark for one in _shown_of(ctx, intent)]
    for part in intent.details.get("systems", []):
        try:
            system = ctx.storage.get(part["system"])
        except NotFoundError as error:
            raise NotFoundError(f"the storage system was removed: {error}") from error
        if intent.kind == IntentKind.STORAGE_EXPOSURE.value:
            system.hide(intent.mark)
        else:
            _remove(system, intent.mark, shown)


def _remove(system: StorageSystem, name: str, shown: Sequence[str] = ()) -> None:
    for exposure in dict.fromkeys([*shown, *system.exposures(f"{name}-")]):
        system.hide(exposure)
    system.delete_snapshot(name)


def close(ctx: Context, intent: Intent) -> None:
    """Nothing of it is left; nor is, of a snapshot, of what was shown of it."""
    now = ctx.clock()
    with ctx.db() as s:
        vm_snapshots.close_intent(s, intent.id, now, problem="")
        for one in _open_shown(s, intent):
            vm_snapshots.close_intent(s, one.id, now, problem="")


def _shown_of(ctx: Context, intent: Intent) -> list[Intent]:
    with ctx.db.read() as s:
        return _open_shown(s, intent)


def _open_shown(s: DbSession, intent: Intent) -> list[Intent]:
    """Open intents of what was shown of a snapshot; none for another kind of intent."""
    if intent.kind != IntentKind.STORAGE_SNAPSHOT.value:
        return []
    of_vm = s.scalars(
        sa.select(Intent).where(
            Intent.kind == IntentKind.STORAGE_EXPOSURE.value,
            Intent.state == IntentState.OPEN.value,
            Intent.session_vm_id == intent.session_vm_id,
        )
    )
    return [one for one in of_vm if one.mark.startswith(intent.mark)]


def _intents_of(ctx: Context, vm_id: str) -> list[Intent]:
    with ctx.db.read() as s:
        return list(
            s.scalars(
                sa.select(Intent).where(
                    Intent.session_vm_id == vm_id,
                    Intent.kind == IntentKind.STORAGE_SNAPSHOT.value,
                    Intent.state == IntentState.OPEN.value,
                )
            )
        )


def open_for(s: DbSession, intent_id: str) -> Intent | None:
    """The snapshot's intent while it is open."""
    intent = s.get(Intent, intent_id)
    return intent if intent is not None and intent.state == IntentState.OPEN.value else None


# ---- what no open intent names --------------------------------------------------------------------


def sweep(ctx: Context) -> None:
    """Remove what bears this server's mark on any system although no open intent names it."""
    with ctx.db.read() as s:
        rows = s.execute(sa.select(StorageRow.id, StorageRow.name)).all()
    for row in rows:
        try:
            _sweep(ctx, ctx.storage.get(row.id), row.name)
        except (TransportError, NotFoundError) as error:
            ctx.log.warning("storage.sweep-failed", system=row.name, reason=str(error))


def _sweep(ctx: Context, system: StorageSystem, system_name: str) -> None:
    prefix = owner_prefix(ctx.server_id)
    # Listed before the intents are read: what is made after that is not in the list.
    exposures = [name for name in system.exposures(prefix) if is_exposure(name, prefix)]
    snapshots = [one.name for one in system.snapshots(prefix) if is_snapshot(one.name, prefix)]
    with ctx.db.read() as s:
        marks = set(
            s.scalars(
                sa.select(Intent.mark).where(
                    Intent.state == IntentState.OPEN.value,
                    Intent.kind == IntentKind.STORAGE_SNAPSHOT.value,
                )
            )
        )
    for name in exposures:
        if snapshot_of(name) not in marks:
            system.hide(name)
            ctx.log.info("storage.orphan-hidden", system=system_name, exposure=name)
    for name in snapshots:
        if name not in marks:
            _remove(system, name)
            ctx.log.info("storage.orphan-removed", system=system_name, snapshot=name)


def held_of(task: Task) -> Mapping[str, Any] | None:
    """What `Held.task_facts` stored; None for a task of the standard way."""
    held = task.facts.get(HELD)
    return held if isinstance(held, Mapping) else None
