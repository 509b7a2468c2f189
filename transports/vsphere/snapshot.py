"""VM snapshots: make, list, remove, consolidate; and change tracking's switch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Final

from pyVmomi import vim, vmodl

from transports.base import Extent
from transports.errors import ChangeTrackingUnusableError, ObjectGoneError, PermanentTransportError
from transports.vsphere import tasks
from transports.vsphere.changed_blocks import (
    Page,
    Refusal,
    collect,
    file_fault,
    invalid_argument,
    query_obstacle,
)
from transports.vsphere.devices import capacity_bytes, disk_infos, disks
from transports.vsphere.faults import fault_keys
from transports.vsphere.inventory import tools_running
from transports.vsphere.model import PowerState, SnapshotInfo
from transports.vsphere.places import moref
from transports.vsphere.properties import Properties, read
from transports.vsphere.session import Connection

# Quiescing may take its time in the guest (vSphere's own limit is 15 minutes by default), and folding
# a large delta takes hours.
CREATE_TIMEOUT_S: Final = 30 * 60.0
REMOVE_TIMEOUT_S: Final = 24 * 3600.0
RECONFIGURE_TIMEOUT_S: Final = 10 * 60.0
_QUERY_TRIES: Final = 3
_QUERY_PAUSE_S: Final = 1.0


def list_snapshots(connection: Connection, vm_moref: str) -> list[SnapshotInfo]:
    """All snapshots of the VM, parents first."""
    tree = read(connection, connection.vm(vm_moref), "snapshot").get("snapshot")
    return [
        _info(connection, vm_moref, entry, quiesced=bool(entry.quiesced))
        for entry in _walk(getattr(tree, "rootSnapshotList", None) or [])
    ]


def create(
    connection: Connection,
    vm_moref: str,
    *,
    name: str,
    description: str,
    quiesce: bool,
    cancelled: Callable[[], bool],
) -> SnapshotInfo:
    vm = connection.vm(vm_moref)
    before = read(connection, vm, "guest.toolsRunningStatus", "runtime.powerState")
    # Without running tools vSphere makes a plain snapshot and still calls it quiesced.
    can_quiesce = tools_running(before) and _power_state(before) is PowerState.ON
    task = vm.CreateSnapshot_Task(name=name, description=description, memory=False, quiesce=quiesce)
    snapshot = tasks.wait(connection, task, timeout_s=CREATE_TIMEOUT_S, cancelled=cancelled)
    tree = read(connection, vm, "snapshot").get("snapshot")
    for entry in _walk(getattr(tree, "rootSnapshotList", None) or []):
        if moref(entry.snapshot) == moref(snapshot):
            # The tree says poweredOff: what the VM would be after a revert without memory.
            made = _info(connection, vm_moref, entry, quiesced=quiesce and can_quiesce)
            return replace(made, power_state=_power_state(before))
    raise ObjectGoneError(
        f"snapshot {moref(snapshot)} of VM {vm_moref} vanished right after it was made; run the job again"
    )


def remove(connection: Connection, vm_moref: str, snapshot_moref: str) -> None:
    """Success when it is gone already."""
    snapshot = connection.object(vim.vm.Snapshot, snapshot_moref)
    try:
        owner = read(connection, snapshot, "vm").get("vm")
        if owner is not None and moref(owner) != vm_moref:
            raise PermanentTransportError(
                f"snapshot {snapshot_moref} belongs to VM {moref(owner)}, not to {vm_moref};"
                " it was left alone"
            )
        task = snapshot.RemoveSnapshot_Task(removeChildren=False, consolidate=True)
        tasks.wait(connection, task, timeout_s=REMOVE_TIMEOUT_S)
    except vmodl.fault.ManagedObjectNotFound:
        return


def consolidation_needed(connection: Connection, vm_moref: str) -> bool:
    seen = read(connection, connection.vm(vm_moref), "runtime.consolidationNeeded")
    return bool(seen.get("runtime.consolidationNeeded", False))


def consolidate(connection: Connection, vm_moref: str) -> None:
    task = connection.vm(vm_moref).ConsolidateVMDisks_Task()
    tasks.wait(connection, task, timeout_s=REMOVE_TIMEOUT_S)


def enable_change_tracking(connection: Connection, vm_moref: str) -> None:
    vm = connection.vm(vm_moref)
    seen = read(
        connection, vm, "config.changeTrackingEnabled", "capability.changeTrackingSupported", "snapshot"
    )
    if seen.get("config.changeTrackingEnabled"):
        return
    if not seen.get("capability.changeTrackingSupported", True):
        raise PermanentTransportError(
            f"VM {vm_moref} does not support change tracking (hardware version 7 or later is needed)"
        )
    if getattr(seen.get("snapshot"), "rootSnapshotList", None):
        # Switching it on under a snapshot is known to lose changes silently.
        raise PermanentTransportError(
            f"change tracking of VM {vm_moref} was not switched on because the VM has snapshots;"
            " remove them, then run the job again"
        )
    _switch_tracking(connection, vm, vm_moref, on=True)


def disable_change_tracking(connection: Connection, vm_moref: str) -> None:
    """Nothing when it is off already."""
    vm = connection.vm(vm_moref)
    seen = read(connection, vm, "config.changeTrackingEnabled", "snapshot")
    if not seen.get("config.changeTrackingEnabled"):
        return
    if getattr(seen.get("snapshot"), "rootSnapshotList", None):
        raise PermanentTransportError(
            f"change tracking of VM {vm_moref} cannot begin anew because the VM has snapshots; remove them,"
            " then run the job again"
        )
    _switch_tracking(connection, vm, vm_moref, on=False)


def _switch_tracking(connection: Connection, vm: Any, vm_moref: str, *, on: bool) -> None:
    task = vm.ReconfigVM_Task(spec=vim.vm.ConfigSpec(changeTrackingEnabled=on))
    tasks.wait(connection, task, timeout_s=RECONFIGURE_TIMEOUT_S)
    seen = read(connection, vm, "config.changeTrackingEnabled")
    if bool(seen.get("config.changeTrackingEnabled")) is not on:
        raise PermanentTransportError(
            f"change tracking of VM {vm_moref} did not take although vSphere accepted it;"
            " look at the VM's advanced configuration (ctkEnabled)"
        )


def changed_areas(
    connection: Connection,
    vm_moref: str,
    snapshot_moref: str,
    disk_key: int,
    change_id: str,
    *,
    wait: Callable[[float], object],
) -> list[Extent]:
    snapshot = connection.object(vim.vm.Snapshot, snapshot_moref)
    disk = _disk(connection, snapshot, disk_key)
    obstacle = query_obstacle(change_id, str(getattr(disk.backing, "changeId", "") or ""))
    if obstacle:
        raise ChangeTrackingUnusableError(obstacle)
    vm = connection.vm(vm_moref)

    def query(offset: int) -> Page:
        for attempt in range(1, _QUERY_TRIES + 1):
            try:
                answer = vm.QueryChangedDiskAreas(snapshot, disk_key, offset, change_id)
            except vim.fault.FileFault as fault:
                verdict, reason = file_fault(fault_keys(fault), str(fault.file or ""))
                if verdict is Refusal.FULL_READ or attempt == _QUERY_TRIES:
                    raise ChangeTrackingUnusableError(reason) from fault
                wait(_QUERY_PAUSE_S * attempt)
            except vmodl.fault.InvalidArgument as fault:
                _, reason = invalid_argument(str(fault.invalidProperty or ""))
                raise ChangeTrackingUnusableError(reason) from fault
            except (vmodl.fault.MethodNotFound, vmodl.fault.NotSupported) as fault:
                raise ChangeTrackingUnusableError(
                    "this server does not offer change tracking"
                ) from fault
            else:
                return _page(answer)
        raise AssertionError("unreachable: the last attempt raises")

    return collect(capacity_bytes(disk), query)


def _page(answer: Any) -> Page:
    return Page(
        start=int(answer.startOffset),
        length=int(answer.length),
        areas=tuple(
            Extent(offset=int(area.start), length=int(area.length)) for area in answer.changedArea or []
        ),
    )


def _disk(connection: Connection, snapshot: Any, disk_key: int) -> Any:
    devices = read(connection, snapshot, "config.hardware.device").get("config.hardware.device")
    for disk in disks(devices):
        if disk.key == disk_key:
            return disk
    raise ObjectGoneError(f"snapshot {moref(snapshot)} has no disk with key {disk_key}")


def _walk(trees: Any) -> Iterator[Any]:
    for tree in trees:
        yield tree
        yield from _walk(tree.childSnapshotList or [])


def _power_state(properties: Properties) -> PowerState:
    return PowerState(str(properties.get("runtime.powerState", PowerState.OFF)))


def _info(connection: Connection, vm_moref: str, entry: Any, *, quiesced: bool) -> SnapshotInfo:
    devices = read(connection, entry.snapshot, "config.hardware.device").get("config.hardware.device")
    return SnapshotInfo(
        moref=moref(entry.snapshot),
        name=str(entry.name),
        description=str(entry.description or ""),
        vm_moref=vm_moref,
        quiesced=quiesced,
        power_state=PowerState(str(entry.state)),
        disks=disk_infos(devices),
    )
