"""From a saved ConfigInfo to what vSphere needs to make the VM again. Pure: no call leaves here.

The VM is made without disks: CreateVM would put all of them into one directory, and each needs its own
size and provisioning. They are added afterwards at the controller positions that the saved
configuration names.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from pyVmomi import vim

from transports.vsphere.config_export import SavedConfig
from transports.vsphere.devices import base_of, controllers, disks
from transports.vsphere.model import NewDisk, VmPlacement

_d: Any = vim.vm.device
_Spec: Any = vim.vm.device.VirtualDeviceSpec

MARK_KEY: Final = "vmhaul.mark"

# vSphere makes these by itself in every VM.
_DEFAULT_DEVICES: Final = (
    _d.VirtualIDEController,
    _d.VirtualPS2Controller,
    _d.VirtualPCIController,
    _d.VirtualSIOController,
    _d.VirtualKeyboard,
    _d.VirtualPointingDevice,
    _d.VirtualVMCIDevice,
    _d.VirtualVideoCard,
)
# These stand for something on the old host, which the new one need not have.
_HOST_DEVICES: Final = (
    (_d.VirtualSerialPort, "serial port"),
    (_d.VirtualParallelPort, "parallel port"),
    (_d.VirtualUSB, "USB device"),
    (_d.VirtualPCIPassthrough, "PCI passthrough device"),
    (_d.VirtualSCSIPassthrough, "SCSI passthrough device"),
    (_d.VirtualSriovEthernetCard, "SR-IOV network card"),
    (_d.VirtualTPM, "virtual TPM"),
)
# Written by the host for the old VM's files and its last run.
_DROPPED_OPTIONS: Final = re.compile(
    r"^(nvram|ctkEnabled|.*\.ctkEnabled|sched\.swap\.derivedName|.*\.filename|migrate\..*|vmotion\..*"
    r"|numa\.autosize\..*|vmware\.tools\..*|tools\.remindInstall|vmhaul\..*|encryption\.bundle)$",
    re.IGNORECASE,
)
_COPIED: Final = (
    "annotation",
    "firmware",
    "alternateGuestName",
    "flags",
    "cpuAllocation",
    "memoryAllocation",
    "cpuHotAddEnabled",
    "cpuHotRemoveEnabled",
    "memoryHotAddEnabled",
    "latencySensitivity",
    "swapPlacement",
    "nestedHVEnabled",
    "vPMCEnabled",
    "memoryReservationLockedToMax",
    "maxMksConnections",
)

Position = tuple[str, int, int]
"""Controller class, bus number, unit: where a disk sits; the same in the old and the new VM."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """A network of the target, ready to be a card's backing."""

    name: str
    backing: Any
    is_substitute: bool = False
    """True when the wanted network does not exist there: the card is then left disconnected."""


@dataclass(slots=True, kw_only=True)
class VmSpec:
    spec: Any
    warnings: list[str] = field(default_factory=list)


def vm_spec(
    saved: SavedConfig, placement: VmPlacement, network: Callable[[str], Network | None], *, mark: str
) -> VmSpec:
    """ConfigSpec of the VM without disks, and what could not be kept.

    `network` finds the target's network for a name; None leaves the card out.
    """
    config = saved.config_info()
    result = VmSpec(
        spec=vim.vm.ConfigSpec(
            name=placement.name,
            version=config.version,
            guestId=config.guestId,
            numCPUs=config.hardware.numCPU,
            memoryMB=config.hardware.memoryMB,
            files=vim.vm.FileInfo(vmPathName=f"[{placement.datastore}]"),
        )
    )
    spec = result.spec
    for name in _COPIED:
        value = getattr(config, name, None)
        if value is not None and value != "":
            setattr(spec, name, value)
    if config.hardware.numCoresPerSocket:
        spec.numCoresPerSocket = config.hardware.numCoresPerSocket
    if config.defaultPowerOps is not None:
        spec.powerOpInfo = config.defaultPowerOps
    if config.bootOptions is not None:
        # The order names devices by key, and their new keys are not known yet.
        config.bootOptions.bootOrder = []
        spec.bootOptions = config.bootOptions
    if config.cpuFeatureMask:
        spec.cpuFeatureMask = [
            vim.vm.ConfigSpec.CpuIdInfoSpec(operation="add", info=info)
            for info in config.cpuFeatureMask
        ]
    if config.vAppConfig is not None:
        result.warnings.append("the VM's vApp options were not restored; set them again where needed")
    if placement.keep_identity:
        spec.uuid, spec.instanceUuid = config.uuid, config.instanceUuid
    spec.extraConfig = [
        *(option for option in config.extraConfig or [] if not _DROPPED_OPTIONS.match(str(option.key))),
        vim.option.OptionValue(key=MARK_KEY, value=mark),
    ]
    spec.deviceChange = list(_device_changes(config, saved, placement, network, result.warnings))
    return result


def disk_spec(
    saved: SavedConfig, new: NewDisk, devices: Iterable[Any], placement: VmPlacement
) -> tuple[Any, Position]:
    """Device changes that add one disk to the new VM whose devices are `devices`, and where it will be.

    KeyError when the saved configuration has no such disk.
    """
    config = saved.config_info()
    old = next((disk for disk in disks(config.hardware.device) if disk.key == new.disk_key), None)
    if old is None:
        raise KeyError(new.disk_key)
    where = position(config.hardware.device, old)
    old_controller = controllers(config.hardware.device)[old.controllerKey]
    changes = []
    controller_key = next(
        (
            key
            for key, controller in controllers(devices).items()
            if (_class(controller), int(controller.busNumber)) == where[:2]
        ),
        None,
    )
    if controller_key is None:
        controller_key = -abs(int(old_controller.key))
        old_controller.key, old_controller.device = controller_key, []
        changes.append(_Spec(operation="add", device=old_controller))
    backing = _d.VirtualDisk.FlatVer2BackingInfo(
        fileName=f"[{new.datastore or placement.datastore}]",
        diskMode="persistent",
        thinProvisioned=new.thin,
        # As the original was, below its snapshots: direct SAN writes only where zeros were written before.
        eagerlyScrub=not new.thin and bool(getattr(base_of(old.backing), "eagerlyScrub", False)),
    )
    if placement.keep_identity and getattr(old.backing, "uuid", None):
        backing.uuid = old.backing.uuid
    disk = _d.VirtualDisk(
        key=-abs(int(old.key)) - 1,
        controllerKey=controller_key,
        unitNumber=old.unitNumber,
        capacityInKB=new.capacity_bytes >> 10,
        capacityInBytes=new.capacity_bytes,
        backing=backing,
    )
    changes.append(_Spec(operation="add", fileOperation="create", device=disk))
    return changes, where


def disk_at(devices: Iterable[Any], where: Position) -> Any:
    """The disk at a position, or None."""
    devices = list(devices)
    return next((disk for disk in disks(devices) if position(devices, disk) == where), None)


def position(devices: Iterable[Any], disk: Any) -> Position:
    controller = controllers(devices).get(disk.controllerKey)
    return _class(controller), int(getattr(controller, "busNumber", 0) or 0), int(disk.unitNumber or 0)


def boot_order(saved: SavedConfig, devices: Iterable[Any]) -> list[Any]:
    """The saved boot order with the keys that the devices have in the new VM; what is missing is left out."""
    config = saved.config_info()
    old_devices, new_devices = list(config.hardware.device), list(devices)
    old_cards, new_cards = _cards(old_devices), _cards(new_devices)
    order = []
    for entry in getattr(config.bootOptions, "bootOrder", None) or []:
        if isinstance(entry, vim.vm.BootOptions.BootableDiskDevice):
            old = next((disk for disk in disks(old_devices) if disk.key == entry.deviceKey), None)
            new = disk_at(new_devices, position(old_devices, old)) if old is not None else None
        elif isinstance(entry, vim.vm.BootOptions.BootableEthernetDevice):
            index = next((i for i, card in enumerate(old_cards) if card.key == entry.deviceKey), None)
            new = new_cards[index] if index is not None and index < len(new_cards) else None
        else:
            order.append(entry)
            continue
        if new is not None:
            entry.deviceKey = new.key
            order.append(entry)
    return order


def _device_changes(
    config: Any,
    saved: SavedConfig,
    placement: VmPlacement,
    network: Callable[[str], Network | None],
    warnings: list[str],
) -> Iterable[Any]:
    kept = []
    for device in config.hardware.device:
        if isinstance(device, (*_DEFAULT_DEVICES, _d.VirtualDisk)):
            continue
        dropped = next((name for kind, name in _HOST_DEVICES if isinstance(device, kind)), None)
        if dropped:
            warnings.append(
                f"{_label(device)} ({dropped}) was left out: it belongs to the original host"
            )
            continue
        kept.append(device)
    # New devices have negative keys in a spec, and name each other by them.
    alias = {device.key: -abs(int(device.key)) - 1 for device in kept}
    for device in kept:
        old_key = int(device.key)
        device.key = alias[old_key]
        device.controllerKey = alias.get(device.controllerKey, device.controllerKey)
        if isinstance(device, _d.VirtualController):
            device.device = []
        elif isinstance(device, _d.VirtualCdrom):
            _empty(device)
        elif isinstance(device, _d.VirtualFloppy):
            _empty_floppy(device)
        elif isinstance(device, _d.VirtualEthernetCard) and not _connect(
            device, saved.network(old_key), network, warnings, keep_mac=placement.keep_identity
        ):
            continue
        yield _Spec(operation="add", device=device)


def _connect(
    card: Any,
    name: str,
    network: Callable[[str], Network | None],
    warnings: list[str],
    *,
    keep_mac: bool,
) -> bool:
    """Give the card its network; False when there is none to give."""
    found = network(name)
    if found is None:
        warnings.append(f"{_label(card)} was left out: the target has no network for it")
        return False
    if found.is_substitute:
        warnings.append(
            f"{_label(card)} was put on network {found.name}, disconnected: the target has no network"
            f" named {name or '(unknown)'}"
        )
    card.backing = found.backing
    card.connectable = vim.vm.device.VirtualDevice.ConnectInfo(
        startConnected=not found.is_substitute, allowGuestControl=True, connected=False
    )
    if not keep_mac:
        card.macAddress, card.addressType = None, "generated"
    return True


def _empty(cdrom: Any) -> None:
    """Drives come back empty: the image or the host's drive is not ours to find."""
    cdrom.backing = _d.VirtualCdrom.RemotePassthroughBackingInfo(deviceName="", exclusive=False)
    cdrom.connectable = vim.vm.device.VirtualDevice.ConnectInfo(
        startConnected=False, allowGuestControl=True, connected=False
    )


def _empty_floppy(floppy: Any) -> None:
    floppy.backing = _d.VirtualFloppy.RemoteDeviceBackingInfo(deviceName="")
    floppy.connectable = vim.vm.device.VirtualDevice.ConnectInfo(
        startConnected=False, allowGuestControl=True, connected=False
    )


def _cards(devices: Iterable[Any]) -> list[Any]:
    return [device for device in devices if isinstance(device, _d.VirtualEthernetCard)]


def _class(device: Any) -> str:
    return type(device).__name__.rsplit(".", 1)[-1] if device is not None else ""


def _label(device: Any) -> str:
    return str(getattr(device.deviceInfo, "label", "") or f"Device {device.key}")
