"""Disks of other VMs, attached to a proxy's VM and taken away again.

Nothing here makes or deletes a file: a change of devices is sent by `_reconfigure` alone, which refuses every
file operation. With one, taking a disk away would delete the customer's.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from time import monotonic
from typing import Any, Final
from uuid import UUID

from pyVmomi import vim, vmodl

from transports.errors import (
    PermanentTransportError,
    TransientTransportError,
    TransportUnavailableError,
)
from transports.vsphere import tasks
from transports.vsphere.api import Announce
from transports.vsphere.devices import capacity_bytes, controllers, disk_infos, disks
from transports.vsphere.disk_slots import (
    OWN_UNIT,
    PARAVIRTUAL,
    Slot,
    disks_of_controller,
    plan_slots,
)
from transports.vsphere.model import (
    AttachableVm,
    AttachedDisk,
    DiskToAttach,
    Place,
    ScsiController,
)
from transports.vsphere.places import moref, unescape
from transports.vsphere.properties import read, read_objects, read_view
from transports.vsphere.session import Connection

_d: Any = vim.vm.device
_Spec: Any = vim.vm.device.VirtualDeviceSpec

RECONFIGURE_TIMEOUT_S: Final = 150.0
"""Less than a proxy waits for its answer. A task that takes longer goes on, and is looked for later."""
GONE_WITHIN_S: Final = 30.0
_POLL_S: Final = 0.2
_READ_MODE: Final = "independent_nonpersistent"
_WRITE_MODE: Final = "independent_persistent"
_REDO_LOG: Final = "REDO_"
_UNFINISHED: Final = ("queued", "running")
_DEVICES: Final = "config.hardware.device"
_CHANGE_VERSION: Final = "config.changeVersion"


def swapped(uuid: str) -> str:
    """The UUID with the first three groups in the other byte order."""
    return str(UUID(bytes_le=UUID(uuid).bytes))


def vms_by_bios_uuid(connection: Connection, bios_uuid: str) -> list[str]:
    wanted = {str(UUID(bios_uuid)), swapped(bios_uuid)}
    index = connection.content.searchIndex
    try:
        found = [
            vm for uuid in sorted(wanted) for vm in index.FindAllByUuid(None, uuid, True, False) or []
        ]
    except (vmodl.fault.MethodNotFound, vmodl.fault.NotSupported, vmodl.fault.InvalidRequest):
        seen = read_view(connection, [(vim.VirtualMachine, ("config.uuid",))])
        found = [vm for vm, values in seen if str(values.get("config.uuid") or "").lower() in wanted]
    return sorted({moref(vm) for vm in found})


def attachable_vm(connection: Connection, vm_moref: str) -> AttachableVm:
    vm = connection.vm(vm_moref)
    seen = read(
        connection,
        vm,
        "name",
        "config.instanceUuid",
        "config.uuid",
        "config.version",
        _CHANGE_VERSION,
        _DEVICES,
        "environmentBrowser",
    )
    hardware = str(seen.get("config.version") or "")
    version = _version(hardware)
    told = _limits(connection, seen.get("environmentBrowser"), hardware)
    devices = list(seen.get(_DEVICES) or [])
    return AttachableVm(
        moref=vm_moref,
        name=unescape(str(seen.get("name", vm_moref))),
        instance_uuid=str(seen.get("config.instanceUuid") or ""),
        bios_uuid=str(seen.get("config.uuid") or ""),
        hardware_version=version,
        controllers=tuple(_scsi_controllers(devices, version, told)),
        disks=disk_infos(devices),
        new_controller_disks=disks_of_controller(PARAVIRTUAL, version, told.get(PARAVIRTUAL)),
        change_version=str(seen.get(_CHANGE_VERSION) or ""),
    )


def attach_disks(
    connection: Connection,
    vm_moref: str,
    wanted: Sequence[DiskToAttach],
    announce: Announce = lambda _places: None,
) -> list[AttachedDisk]:
    vm = connection.vm(vm_moref)
    devices = _devices(connection, vm)
    places = {one.path: _place(devices, found) for one in wanted if (found := _find(devices, one))}
    missing = list({one.path: one for one in wanted if one.path not in places}.values())
    changes: list[Any] = []
    change_version = ""
    if missing:
        target = attachable_vm(connection, vm_moref)
        for one in missing:
            _refuse_foreign(target, one)
        plan = plan_slots(target, len(missing))
        slots = list(zip(missing, plan.slots, strict=True))
        places |= {one.path: (slot.controller.bus, slot.unit) for one, slot in slots}
        changes = [_add_controller(controller) for controller in plan.new_controllers]
        changes += [_add_disk(one, slot, -(2000 + n)) for n, (one, slot) in enumerate(slots)]
        change_version = target.change_version
    announce([places[one.path] for one in wanted])
    if changes:
        _reconfigure(connection, vm, changes, change_version)
        devices = _devices(connection, vm)
    at = [replace(one, places=(places[one.path],)) for one in wanted]
    return [_attached(devices, one, vm_moref) for one in at]


def detach_disks(connection: Connection, vm_moref: str, wanted: Sequence[DiskToAttach]) -> None:
    vm = connection.vm(vm_moref)
    try:
        if _is_changing(connection, vm):
            # An attachment that was asked for and given up waiting for may come yet.
            raise TransientTransportError(
                f"VM {vm_moref} is being reconfigured; disks are taken away when that has ended"
            )
        seen = read(connection, vm, _DEVICES, _CHANGE_VERSION)
        devices = list(seen.get(_DEVICES) or [])
        found = {disk.key: disk for one in wanted for disk in _matching(devices, one)}
        if not found:
            return
        changes = [_Spec(operation="remove", device=disk) for disk in found.values()]
        # Keys are given to others again: what another has changed since the look must not be taken for ours.
        _reconfigure(connection, vm, changes, str(seen.get(_CHANGE_VERSION) or ""))
        _wait_until_gone(connection, vm, wanted)
    except vmodl.fault.ManagedObjectNotFound:
        return


def _reconfigure(connection: Connection, vm: Any, changes: Sequence[Any], change_version: str) -> None:
    """Refused by vSphere (ConcurrentAccess) when the configuration is another than that of `change_version`."""
    for change in changes:
        # The one line that stands between a mistake and a customer's deleted disk.
        if change.fileOperation is not None:
            raise PermanentTransportError(
                f"a file operation ({change.fileOperation}) with an attached disk is never sent; nothing was changed"
            )
    spec = vim.vm.ConfigSpec(deviceChange=list(changes), changeVersion=change_version or None)
    task = vm.ReconfigVM_Task(spec=spec)
    tasks.wait(connection, task, timeout_s=RECONFIGURE_TIMEOUT_S)


def _add_controller(controller: ScsiController) -> Any:
    return _Spec(
        operation="add",
        device=_d.ParaVirtualSCSIController(
            key=controller.key,
            busNumber=controller.bus,
            sharedBus="noSharing",
        ),
    )


def _add_disk(one: DiskToAttach, slot: Slot, key: int) -> Any:
    return _Spec(
        operation="add",
        device=_d.VirtualDisk(
            key=key,
            controllerKey=slot.controller.key,
            unitNumber=slot.unit,
            # Required, and taken from the file where no file operation is given.
            capacityInKB=0,
            backing=_d.VirtualDisk.FlatVer2BackingInfo(fileName=one.path, diskMode=_mode(one)),
        ),
    )


def _mode(one: DiskToAttach) -> str:
    return _WRITE_MODE if one.write else _READ_MODE


def _find(devices: Iterable[Any], one: DiskToAttach) -> Any:
    """The attached disk, or None."""
    return next(_matching(devices, one), None)


def _matching(devices: Iterable[Any], one: DiskToAttach) -> Iterator[Any]:
    """By file, by our mode and by its place, never by its key: keys are given to others again. Another product, or a
    person, may have attached the same file in the same mode: where it sits tells that apart.

    Of a disk whose writes are thrown away the host may name the redo log that it throws away, with the
    disk's own file as its parent. No other parent counts: a linked clone's disk is its owner's.
    """
    known = list(devices)
    for disk in disks(known):
        if str(getattr(disk.backing, "diskMode", "") or "") != _mode(one):
            continue
        if one.places is not None and _place(known, disk) not in one.places:
            continue
        name, parent = _file(disk.backing), _file(getattr(disk.backing, "parent", None))
        if one.path == name or (not one.write and _REDO_LOG in name.upper() and one.path == parent):
            yield disk


def _place(devices: Iterable[Any], disk: Any) -> Place:
    """-1 for what is not told."""
    controller = controllers(devices).get(disk.controllerKey)
    bus, unit = getattr(controller, "busNumber", None), disk.unitNumber
    return (-1 if bus is None else int(bus), -1 if unit is None else int(unit))


def _file(backing: Any) -> str:
    return str(getattr(backing, "fileName", "") or "")


def _refuse_foreign(target: AttachableVm, one: DiskToAttach) -> None:
    """A file that the VM has in another way is its own, or somebody attached it by hand."""
    for disk in target.disks:
        if one.path in (disk.path, disk.base_path if _REDO_LOG in disk.path.upper() else ""):
            raise TransportUnavailableError(
                f"{one.path} is attached to VM {target.name} already ({disk.label}, {disk.disk_mode}), and not "
                "by vmhaul; detach it there, or use another proxy"
            )


def _attached(devices: Sequence[Any], one: DiskToAttach, vm_moref: str) -> AttachedDisk:
    disk = _find(devices, one)
    if disk is None:
        raise TransientTransportError(
            f"vSphere attached {one.path} to VM {vm_moref}, but the VM does not show it; try again"
        )
    bus, unit = _place(devices, disk)
    return AttachedDisk(
        path=one.path,
        disk_uuid=str(getattr(disk.backing, "uuid", "") or ""),
        controller_bus=bus,
        unit=unit,
        capacity_bytes=capacity_bytes(disk),
    )


def _wait_until_gone(connection: Connection, vm: Any, wanted: Sequence[DiskToAttach]) -> None:
    pause = threading.Event()
    began = monotonic()
    while left := [one.path for one in wanted if _find(_devices(connection, vm), one) is not None]:
        if monotonic() - began > GONE_WITHIN_S:
            raise TransientTransportError(
                f"vSphere took {', '.join(left)} away from VM {moref(vm)}, but the VM still shows it; try again"
            )
        pause.wait(_POLL_S)


def _is_changing(connection: Connection, vm: Any) -> bool:
    """Whether a reconfiguration of the VM is under way. Servers that do not tell have none."""
    recent = list(read(connection, vm, "recentTask").get("recentTask") or [])
    if not recent:
        return False
    wanted = ("info.state", "info.descriptionId")
    for _, seen in read_objects(connection, recent, vim.Task, wanted):
        kind = str(seen.get("info.descriptionId") or "").lower()
        if str(seen.get("info.state", "")) in _UNFINISHED and "reconfig" in kind:
            return True
    return False


def _devices(connection: Connection, vm: Any) -> list[Any]:
    return list(read(connection, vm, _DEVICES).get(_DEVICES) or [])


def _scsi_controllers(
    devices: Sequence[Any], version: int, told: dict[str, int]
) -> Iterator[ScsiController]:
    for device in devices:
        if not isinstance(device, _d.VirtualSCSIController):
            continue
        kind = _kind(device)
        yield ScsiController(
            key=int(device.key),
            bus=int(device.busNumber or 0),
            kind=kind,
            taken=frozenset(
                int(other.unitNumber)
                for other in devices
                if other.controllerKey == device.key
                and other.unitNumber is not None
                and other.unitNumber != OWN_UNIT
            ),
            max_disks=disks_of_controller(kind, version, told.get(kind)),
        )


def _limits(connection: Connection, browser: Any, version: str) -> dict[str, int]:
    """Disks that each kind of SCSI controller takes on this VM's host; empty where that is not told."""
    if browser is None:
        return {}
    try:
        asked = connection.object(vim.EnvironmentBrowser, moref(browser))
        option = asked.QueryConfigOption(key=version or None)
    except (vmodl.MethodFault, vmodl.RuntimeFault):
        return {}  # documented limits do, and the reconfiguration itself says when they are wrong
    hardware = getattr(option, "hardwareOptions", None)
    return {
        _kind(kind).removesuffix("Option"): int(kind.numSCSIDisks.max)
        for kind in getattr(hardware, "virtualDeviceOption", None) or []
        if isinstance(kind, _d.VirtualSCSIControllerOption) and kind.numSCSIDisks is not None
    }


def _kind(thing: Any) -> str:
    return type(thing).__name__.rsplit(".", 1)[-1]


def _version(text: str) -> int:
    number = text.removeprefix("vmx-")
    return int(number) if number.isdigit() else 0
