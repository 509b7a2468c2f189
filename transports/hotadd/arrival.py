"""Which block device is the disk that was attached a moment ago."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from time import monotonic
from typing import Final

from transports import block_devices
from transports.base import DiskRef, Presented
from transports.block_devices import BlockDevice, identity, list_devices, with_wwid
from transports.errors import TransientTransportError, TransportUnavailableError
from transports.extent_reader import DirectFile
from transports.machine import Machine
from transports.scsi_names import naa_of_uuid

WAIT_S: Final = 30.0
_POLL_S: Final = 0.1
_SCAN_EVERY_S: Final = 2.0
_SETTLE_S: Final = 3.0
"""A device with the disk's name that was there before: the disk was presented earlier already, or the kernel has
not forgotten a device that is gone, and the true one is about to come."""
_VMWARE_DRIVERS: Final = ("vmw_pvscsi", "mptspi", "mptsas", "BusLogic")
_UNIT_IS_TARGET: Final = ("vmw_pvscsi", "mptspi", "BusLogic")
"""Of these the guest's target is vSphere's unit number. SAS numbers its targets by itself."""


def await_device(
    machine: Machine, presented: Presented, before: Sequence[BlockDevice], *, wait_s: float
) -> BlockDevice:
    """The device of the disk, as soon as the guest shows it with its size. TransportUnavailableError after
    `wait_s`, or when it cannot be told from others.

    `before`: the devices before the disk was asked for.
    """
    pause = threading.Event()
    began = monotonic()
    scanned_at = float("-inf")
    while True:
        device = find(machine, presented, before)
        now = monotonic()
        is_old = device in before
        if (
            device is not None
            and device.size_bytes
            and (not is_old or now - began >= min(_SETTLE_S, wait_s))
        ):
            return device
        if now - began >= wait_s:
            raise _not_found(presented, wait_s)
        if now - scanned_at >= _SCAN_EVERY_S:
            block_devices.scan(machine)
            scanned_at = now
        pause.wait(_POLL_S)


def find(machine: Machine, presented: Presented, before: Sequence[BlockDevice]) -> BlockDevice | None:
    """By the disk's own name where the guest shows one, else by its place among what has come since."""
    devices = [device for device in list_devices(machine) if device.address is not None]
    known = {identity(device) for device in before}
    if presented.disk_uuid:
        named = with_wwid(devices, naa_of_uuid(presented.disk_uuid))
        if named:
            here = [device for device in named if not _is_elsewhere(machine, device, presented)]
            return _the_one(here, presented, known) if here else None
    return _at_its_place(machine, devices, presented, known)


def _is_elsewhere(machine: Machine, device: BlockDevice, presented: Presented) -> bool:
    """A disk with that name at another unit: a copy of it that bears the same name, or what the kernel did not
    forget.
    """
    if device.address is None or presented.unit < 0:
        return False
    driver = block_devices.scsi_hosts(machine).get(device.address.host, "")
    return driver in _UNIT_IS_TARGET and device.address.target != presented.unit


def _the_one(
    named: Sequence[BlockDevice], presented: Presented, known: set[tuple[object, ...]]
) -> BlockDevice:
    """Of several with that name: what an earlier attachment left in the kernel is not it."""
    named = [device for device in named if identity(device) not in known] or named
    if len(named) > 1:
        named = [d for d in named if d.address and d.address.target == presented.unit] or named
    if len(named) > 1:
        raise _ambiguous(presented, named)
    return named[0]


def _at_its_place(
    machine: Machine,
    devices: Sequence[BlockDevice],
    presented: Presented,
    known: set[tuple[object, ...]],
) -> BlockDevice | None:
    """A VM without disk.EnableUUID: the disk is one without a name, new, of that size, at that unit. Which of
    the guest's SCSI hosts is which controller of vSphere is a matter of order only: so two such disks that
    differ in nothing but their host are not told apart.
    """
    candidates = [
        device
        for device in devices
        if not device.wwids
        and identity(device) not in known
        and device.address is not None
        and device.address.target == presented.unit
        and device.size_bytes == presented.disk.capacity_bytes
    ]
    if len(candidates) > 1:
        raise _ambiguous(presented, candidates)
    host = _host_of(machine, presented.controller_bus)
    for device in candidates:
        assert device.address is not None
        if host is None or device.address.host == host:
            return device
    return None


def _host_of(machine: Machine, bus: int) -> int | None:
    """Linux's number of the SCSI host that is controller `bus`; None when that cannot be said."""
    hosts = block_devices.scsi_hosts(machine)
    numbers = [number for number, driver in hosts.items() if driver in _VMWARE_DRIVERS] or list(hosts)
    return numbers[bus] if 0 <= bus < len(numbers) else None


def open_device(machine: Machine, device: BlockDevice, disk: DiskRef, *, write: bool) -> DirectFile:
    """TransportUnavailableError for a device that is not the disk, or that something else uses,
    TransientTransportError when its name passed to another just now.
    """
    if device.size_bytes != disk.capacity_bytes:
        raise _wrong_size(device, disk, device.size_bytes)
    if write and (users := block_devices.holders(machine, device)):
        raise TransportUnavailableError(
            f"{device.node} is used by {', '.join(users)} on this proxy, so it is not written to; keep LVM, "
            "multipath and RAID away from disks that are attached for restores (see the guide to HotAdd)"
        )
    # Alone: a disk that is mounted or part of a volume is refused.
    file = DirectFile(device.node, write=write, exclusive=write)
    try:
        if device.number is not None and file.device_number() not in (None, device.number):
            raise TransportUnavailableError(
                f"{device.node} is not the device that the kernel lists under that name; check dev_path in proxy.toml"
            )
        if file.size_bytes != disk.capacity_bytes:
            raise _wrong_size(device, disk, file.size_bytes)
        if not block_devices.is_still(machine, device):
            raise TransientTransportError(
                f"{device.node} went, or became another device, while it was opened for {disk.path}"
            )
    except BaseException:
        file.close()
        raise
    return file


def _wrong_size(device: BlockDevice, disk: DiskRef, size_bytes: int) -> TransportUnavailableError:
    return TransportUnavailableError(
        f"{device.node} has {size_bytes} bytes and {disk.path} {disk.capacity_bytes}: it is another disk"
    )


def _ambiguous(presented: Presented, devices: Sequence[BlockDevice]) -> TransportUnavailableError:
    names = ", ".join(device.node for device in devices)
    return TransportUnavailableError(
        f"{names} may each be {presented.disk.path}; set disk.EnableUUID of the proxy's VM to TRUE, and restart "
        "that VM when the devices are left of disks that are gone"
    )


def _not_found(presented: Presented, wait_s: float) -> TransportUnavailableError:
    return TransportUnavailableError(
        f"{presented.disk.path} was attached as disk {presented.controller_bus}:{presented.unit}, but this "
        f"machine did not show it within {wait_s:.0f} s; set disk.EnableUUID of the proxy's VM to TRUE, and "
        "check that the guest sees new disks"
    )
