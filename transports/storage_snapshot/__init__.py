"""Backup from storage snapshots: a direct mode over what a storage system shows to this proxy alone.

The backup server presents the disk: for NFS the same export with the snapshot's directory in the path, for LUNs
the LUNs of a clone with names of their own and the same VMFS inside. Then the direct mode that the server names
reads it; which one that is this package is told, and it knows none of them. What it promises: a clone's devices
are forgotten by the kernel before it is withdrawn, and what was presented is withdrawn however opening ends.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace

from transports import block_devices
from transports.base import (
    DiskReader,
    DiskRef,
    DiskWriter,
    Extent,
    Presented,
    Presenter,
    ReaderCapabilities,
    ReadRequest,
    TransportMode,
)
from transports.errors import TransportError, TransportUnavailableError
from transports.machine import Machine

__all__ = ["DIRECT_MODES", "missing", "open_reader", "open_writer"]

DIRECT_MODES = (TransportMode.DIRECT_SAN, TransportMode.DIRECT_NFS)
_MODE = TransportMode.STORAGE_SNAPSHOT

OpenDirect = Callable[[Presented], DiskReader]


def missing(direct: Mapping[TransportMode, str]) -> str:
    """`direct`: each direct mode with what this machine lacks for it. Empty when it has one of them."""
    if not all(direct.values()):
        return ""
    reasons = "; ".join(f"{mode.value}: {reason}" for mode, reason in direct.items())
    return f"it reads by a direct mode, and this machine has none ({reasons})"


def open_reader(
    presenter: Presenter, machine: Machine, disk: DiskRef, open_direct: OpenDirect
) -> DiskReader:
    """TransportUnavailableError when the disk is not presented, or cannot be opened as it was."""
    presented = presenter.present(_MODE, write=False)
    try:
        if presented.mode not in DIRECT_MODES:
            raise TransportUnavailableError(
                f"the server presents {disk.path} of a storage snapshot for {presented.mode}, which reads no clone"
            )
        reader = open_direct(presented)
    except BaseException:
        _let_go(presenter, machine, presented)
        raise
    return SnapshotReader(reader, lambda: _let_go(presenter, machine, presented))


def open_writer(disk: DiskRef) -> DiskWriter:
    raise TransportUnavailableError(f"{disk.path}: a storage snapshot is read, never written")


def _let_go(presenter: Presenter, machine: Machine, presented: Presented) -> None:
    # The storage takes the clone away all the same; a kernel that is told before has nothing to complain of.
    with contextlib.suppress(TransportError):
        _forget_devices(machine, presented)
    presenter.withdraw(_MODE)


def _forget_devices(machine: Machine, presented: Presented) -> None:
    """Every path of the clone's LUNs. One that something stands on stays: who put it there takes it away."""
    storage = presented.disk.storage
    wanted = () if storage is None else storage.extents
    if not wanted:
        return
    devices = block_devices.list_devices(machine)
    for extent in wanted:
        for device in block_devices.with_wwid(devices, extent.lun):
            if not device.is_multipath and not block_devices.holders(machine, device):
                block_devices.delete(machine, device)


class SnapshotReader:
    """The direct mode's reader under this mode's name; closing withdraws what was presented."""

    def __init__(self, reader: DiskReader, on_close: Callable[[], None]) -> None:
        self._reader = reader
        self._on_close: Callable[[], None] | None = on_close

    @property
    def size_bytes(self) -> int:
        return self._reader.size_bytes

    @property
    def capabilities(self) -> ReaderCapabilities:
        return replace(self._reader.capabilities, mode=_MODE)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        self._reader.read_into(offset, buffer)

    def read_many(self, requests: Iterable[ReadRequest]) -> Iterator[ReadRequest]:
        return self._reader.read_many(requests)

    def allocated_extents(self, offset: int, length: int) -> Iterator[Extent]:
        return self._reader.allocated_extents(offset, length)

    def close(self) -> None:
        self._reader.close()
        on_close, self._on_close = self._on_close, None
        if on_close is not None:
            on_close()
