"""Opening disks over SAN."""

from __future__ import annotations

import threading
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import numpy as np

from transports.base import DatastoreRef, DiskReader, DiskRef, DiskWriter, TransportMode
from transports.direct_san import library
from transports.direct_san.chain import ResolvedDisk, resolve_disk
from transports.direct_san.errors import DamagedMetadataError, NotForSanError
from transports.direct_san.luns import OpenDatastore, Wait, open_datastore
from transports.direct_san.runs import Kind, RunMap, make_map
from transports.errors import (
    TransientTransportError,
    TransportUnavailableError,
)
from transports.extent_map import HOLE, ExtentMap
from transports.extent_reader import ExtentReader, ExtentWriter
from transports.machine import Machine
from transports.vmdk import below_datastore

_VMFS: Final = "VMFS"
_PATIENCE_S: Final = 15.0
"""For a LUN that was presented just now to appear after a scan."""
_AGAIN_S: Final = 1.0
"""Before metadata that made no sense is read once more."""


def wait_for(seconds: float) -> None:
    """Nobody wakes it: opening a disk has no cancel, and these waits are short."""
    threading.Event().wait(seconds)


def missing(machine: Machine) -> str:
    """What this machine lacks to read over SAN, for people; empty: nothing."""
    lacks = library.missing()
    if lacks:
        return lacks
    if not (Path(machine.sys_path) / "block").is_dir():
        return f"{machine.sys_path}/block shows no block devices"
    return ""


def open_reader(
    machine: Machine,
    disk: DiskRef,
    *,
    mode: TransportMode = TransportMode.DIRECT_SAN,
    wait: Wait = wait_for,
) -> DiskReader:
    """Open a disk of a snapshot (or of a VM that is off) for reading.

    TransportUnavailableError when it cannot be read this way, TransientTransportError when its metadata made no
    sense twice: ESXi may be changing it.
    """
    datastore = _storage(machine, disk)
    opened = open_datastore(machine, datastore, write=False, wait=wait, patience_s=_PATIENCE_S)
    with _closed_on_error(opened):
        resolved = _resolve(opened, datastore, disk, wait)
        return ExtentReader(opened.files, extent_map(resolved.runs), mode=mode, whole_chain=True)


def open_writer(
    machine: Machine,
    disk: DiskRef,
    *,
    mode: TransportMode = TransportMode.DIRECT_SAN,
    wait: Wait = wait_for,
) -> DiskWriter:
    """Open a disk of a VM that is off for writing: one whose every block is there already, as of an eagerly
    zeroed thick disk. Errors as open_reader.
    """
    datastore = _storage(machine, disk)
    opened = open_datastore(machine, datastore, write=True, wait=wait, patience_s=_PATIENCE_S)
    with _closed_on_error(opened):
        resolved = _resolve(opened, datastore, disk, wait)
        if len(resolved.links) > 1 or resolved.has_sparse:
            raise _unavailable(
                disk, "stands on a snapshot, and direct SAN writes only disks without one"
            )
        if not resolved.runs.size or resolved.runs.holds(Kind.ZERO):
            raise _unavailable(
                disk,
                "is not eagerly zeroed: some of its blocks are not there yet, and direct SAN never allocates",
            )
        return ExtentWriter(opened.files, extent_map(resolved.runs), mode=mode)


def extent_map(runs: RunMap) -> ExtentMap:
    """As the reader takes it: what is not data is zeros."""
    kinds = np.where(runs.kinds == Kind.DATA, Kind.DATA, Kind.ZERO)
    joined = make_map(runs.size, runs.starts, kinds, runs.targets, runs.devices)
    places = np.where(joined.kinds == Kind.DATA, joined.targets, HOLE)
    columns = (array("q", column.tobytes()) for column in (joined.starts, places, joined.devices))
    return ExtentMap.of_columns(runs.size, *columns)


def _storage(machine: Machine, disk: DiskRef) -> DatastoreRef:
    lacks = missing(machine)
    if lacks:
        raise TransportUnavailableError(f"direct SAN is not to be had here: {lacks}")
    if disk.storage is None:
        raise _unavailable(disk, f"lies on datastore {disk.datastore}, and nobody said where that lies")
    if disk.storage.kind.upper() != _VMFS:
        raise _unavailable(disk, f"lies on a {disk.storage.kind} datastore; direct SAN reads VMFS")
    return disk.storage


def _resolve(opened: OpenDatastore, datastore: DatastoreRef, disk: DiskRef, wait: Wait) -> ResolvedDisk:
    """Twice at most: metadata that ESXi changes just now is in order a moment later."""
    try:
        return _resolve_once(opened, datastore, disk)
    except DamagedMetadataError:
        wait(_AGAIN_S)
    try:
        return _resolve_once(opened, datastore, disk)
    except DamagedMetadataError as error:
        raise TransientTransportError(
            f"the metadata of {disk.path} on its LUNs makes no sense: {error}; it is read again, and when that "
            "does not help another mode must read this disk"
        ) from error


def _resolve_once(opened: OpenDatastore, datastore: DatastoreRef, disk: DiskRef) -> ResolvedDisk:
    volume = opened.look(datastore)
    path = below_datastore(disk.path)
    try:
        names = frozenset(
            name for name in (volume.uuid, volume.label, datastore.name, disk.datastore) if name
        )
        resolved = resolve_disk(volume.file, path, names)
    except NotForSanError as error:
        raise _unavailable(disk, str(error)) from error
    if resolved.runs.size != disk.capacity_bytes:
        raise DamagedMetadataError(
            f"it has {resolved.runs.size} bytes on the LUN and {disk.capacity_bytes} in vSphere"
        )
    return resolved


def _unavailable(disk: DiskRef, reason: str) -> TransportUnavailableError:
    return TransportUnavailableError(
        f"disk {disk.path} of VM {disk.vm_name} {reason}; use another mode"
    )


@contextmanager
def _closed_on_error(opened: OpenDatastore) -> Iterator[None]:
    try:
        yield
    except BaseException:
        opened.close()
        raise
