"""Virtual devices as values: disks, their controllers, and why a snapshot leaves a disk out."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

from pyVmomi import vim

from transports.vsphere.model import DiskInfo

_d: Any = vim.vm.device
_DATASTORE_PATH: Final = re.compile(r"^\[(?P<datastore>[^\]]*)\]\s*(?P<path>.*)$")

# Backings of which a snapshot makes no delta.
_PHYSICAL_RDM: Final = "physicalMode"
_RAW_MAPPINGS: Final = (
    _d.VirtualDisk.RawDiskMappingVer1BackingInfo,
    _d.VirtualDisk.RawDiskVer2BackingInfo,
)
_UNSHARED: Final = ("", "noSharing", "sharingNone")


def split_path(path: str) -> tuple[str, str]:
    """("ds", "dir/disk.vmdk") of "[ds] dir/disk.vmdk"; an empty datastore when it is no such path."""
    match = _DATASTORE_PATH.match(path)
    return (match["datastore"], match["path"]) if match else ("", path)


def disks(devices: Iterable[Any] | None) -> list[Any]:
    return [device for device in devices or [] if isinstance(device, _d.VirtualDisk)]


def controllers(devices: Iterable[Any] | None) -> dict[int, Any]:
    """Controllers by key."""
    return {device.key: device for device in devices or [] if isinstance(device, _d.VirtualController)}


def scsi_buses(devices: Iterable[Any] | None) -> tuple[int, ...]:
    """Bus numbers of the SCSI controllers."""
    found = controllers(devices).values()
    return tuple(
        sorted(int(one.busNumber) for one in found if isinstance(one, _d.VirtualSCSIController))
    )


def disk_infos(devices: Iterable[Any] | None) -> tuple[DiskInfo, ...]:
    devices = list(devices or [])
    by_key = controllers(devices)
    return tuple(_disk_info(disk, by_key) for disk in disks(devices))


def capacity_bytes(disk: Any) -> int:
    return int(disk.capacityInBytes or 0) or int(disk.capacityInKB or 0) << 10


def controller_kind(controller: Any) -> str:
    """One of "SCSI", "SATA", "NVMe" and "IDE", or the device's class name."""
    for kind, name in (
        (_d.VirtualSCSIController, "SCSI"),
        (_d.VirtualSATAController, "SATA"),
        (_d.VirtualNVMEController, "NVMe"),
        (_d.VirtualIDEController, "IDE"),
    ):
        if isinstance(controller, kind):
            return name
    return type(controller).__name__.rsplit(".", 1)[-1] if controller is not None else "unknown"


def backup_obstacle(disk: Any, controller: Any) -> str:
    """Why a snapshot does not contain this disk, for an operator; empty when it does."""
    backing = disk.backing
    mode = str(getattr(backing, "diskMode", "") or "")
    if mode.startswith("independent"):
        return (
            f"the disk is independent ({mode}): snapshots leave it out;"
            " set its mode to dependent, or back it up from inside the guest"
        )
    if str(getattr(backing, "compatibilityMode", "") or "") == _PHYSICAL_RDM:
        return (
            "the disk is a raw device mapping in physical mode: snapshots leave it out;"
            " use virtual mode, or back it up from inside the guest"
        )
    sharing = str(getattr(backing, "sharing", "") or "")
    if sharing not in _UNSHARED:
        return (
            f"the disk is shared between VMs (multi-writer, {sharing}): it cannot be part of a snapshot;"
            " back it up from inside the guest"
        )
    bus = str(getattr(controller, "sharedBus", "") or "")
    if bus not in _UNSHARED:
        return (
            f"the disk is on a SCSI controller with a shared bus ({bus}): it cannot be part of a snapshot;"
            " move it to a controller of its own, or back it up from inside the guest"
        )
    if not str(getattr(backing, "fileName", "") or ""):
        return "the disk is no file on a datastore: it cannot be part of a snapshot; back it up from inside the guest"
    if isinstance(backing, _d.VirtualDisk.LocalPMemBackingInfo):
        return (
            "the disk is in persistent memory: snapshots leave it out; back it up from inside the guest"
        )
    return ""


def _disk_info(disk: Any, by_key: Mapping[int, Any]) -> DiskInfo:
    backing = disk.backing
    controller = by_key.get(disk.controllerKey)
    path = str(getattr(backing, "fileName", "") or "")
    bus = int(getattr(controller, "busNumber", 0) or 0)
    return DiskInfo(
        key=int(disk.key),
        label=str(getattr(disk.deviceInfo, "label", "") or f"Disk {disk.key}"),
        path=path,
        base_path=_base_path(backing),
        uuid=str(getattr(backing, "uuid", "") or ""),
        capacity_bytes=capacity_bytes(disk),
        datastore=split_path(path)[0],
        controller=f"{controller_kind(controller)} ({bus}:{int(disk.unitNumber or 0)})",
        disk_mode=str(getattr(backing, "diskMode", "") or ""),
        # Of a delta these say how the delta was made: what the disk is its base says.
        thin=_of_base(backing, "thinProvisioned"),
        change_id=str(getattr(backing, "changeId", "") or ""),
        backup_obstacle=backup_obstacle(disk, controller),
        eager=_of_base(backing, "eagerlyScrub"),
        is_rdm=isinstance(backing, _RAW_MAPPINGS),
        encrypted=getattr(backing, "keyId", None) is not None,
    )


def base_of(backing: Any) -> Any:
    """The root of a chain of backings, below all deltas."""
    parent = getattr(backing, "parent", None)
    while parent is not None:
        backing, parent = parent, getattr(parent, "parent", None)
    return backing


def _of_base(backing: Any, name: str) -> bool:
    """The delta's own word where the base has none."""
    told = getattr(base_of(backing), name, None)
    return bool(getattr(backing, name, False) if told is None else told)


def _base_path(backing: Any) -> str:
    return str(getattr(base_of(backing), "fileName", "") or "")
