"""HotAdd (virtual appliance): the proxy is a VM, and the disk is attached to it as one more of its own.

The backup server attaches and detaches (`Presenter`); this package finds the block device that the guest then
shows, makes sure that it is the right one, and reads or writes it past the page cache. What it promises: the
device is let go before the disk is withdrawn, and a disk that was presented is withdrawn however opening ends.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from transports import block_devices
from transports.base import DiskReader, DiskRef, DiskWriter, Presenter, TransportMode
from transports.block_devices import BlockDevice
from transports.errors import PermanentTransportError, TransportError
from transports.extent_reader import DirectFile, ExtentMap, ExtentReader, ExtentWriter
from transports.hotadd.arrival import WAIT_S, await_device, open_device
from transports.machine import Machine, own_vm_uuid

__all__ = ["missing", "open_reader", "open_writer"]

_MODE = TransportMode.HOTADD
_VENDOR = "vmware"


def missing(machine: Machine) -> str:
    """What this machine lacks; empty when disks can be attached to it, as far as it can tell."""
    if not own_vm_uuid(machine):
        return (
            "the machine shows no SMBIOS UUID, by which its VM is found: it is no VM, or the worker does not "
            "run as root; vm_uuid in proxy.toml names the VM where the guest cannot"
        )
    if not machine.vm_uuid and (vendor := _vendor(machine)) and _VENDOR not in vendor.lower():
        return f"the machine is no VM of vSphere (its vendor is {vendor})"
    try:
        block_devices.list_devices(machine)
    except PermanentTransportError as error:
        return str(error)
    return ""


def open_reader(
    presenter: Presenter, machine: Machine, disk: DiskRef, *, wait_s: float = WAIT_S
) -> DiskReader:
    """TransportUnavailableError when the disk is not attached, or the guest does not show it in `wait_s`."""
    device, file = _open(presenter, machine, disk, write=False, wait_s=wait_s)
    return ExtentReader(
        [file],
        ExtentMap.whole(disk.capacity_bytes),
        mode=_MODE,
        on_close=lambda: _let_go(presenter, machine, device),
    )


def open_writer(
    presenter: Presenter, machine: Machine, disk: DiskRef, *, wait_s: float = WAIT_S
) -> DiskWriter:
    """Errors as open_reader; also when something else on this machine uses the disk."""
    device, file = _open(presenter, machine, disk, write=True, wait_s=wait_s)
    return ExtentWriter(
        [file],
        ExtentMap.whole(disk.capacity_bytes),
        mode=_MODE,
        on_close=lambda: _let_go(presenter, machine, device),
    )


def _open(
    presenter: Presenter, machine: Machine, disk: DiskRef, *, write: bool, wait_s: float
) -> tuple[BlockDevice, DirectFile]:
    before = block_devices.list_devices(machine)
    presented = presenter.present(_MODE, write=write)
    try:
        device = await_device(machine, presented, before, wait_s=wait_s)
        try:
            return device, open_device(machine, device, disk, write=write)
        except BaseException:
            _delete(machine, device)
            raise
    except BaseException:
        presenter.withdraw(_MODE)
        raise


def _let_go(presenter: Presenter, machine: Machine, device: BlockDevice) -> None:
    _delete(machine, device)
    presenter.withdraw(_MODE)


def _delete(machine: Machine, device: BlockDevice) -> None:
    # vSphere takes the disk away all the same; a kernel that is told before has nothing to complain of.
    with contextlib.suppress(TransportError):
        block_devices.delete(machine, device)


def _vendor(machine: Machine) -> str:
    try:
        return (Path(machine.sys_path) / "class/dmi/id/sys_vendor").read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""
