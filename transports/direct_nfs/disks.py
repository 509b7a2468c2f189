"""A disk on an export: its descriptor is read, then its flat file is opened."""

from __future__ import annotations

from functools import partial
from pathlib import Path, PurePosixPath
from typing import Final

from transports.base import DatastoreRef, DiskReader, DiskRef, DiskWriter, TransportMode
from transports.direct_file import DirectFile, translated
from transports.direct_nfs.clients import by_client
from transports.direct_nfs.connection import Connection, connect
from transports.direct_nfs.mounts import NfsMount
from transports.direct_nfs.remote_file import SharedFile
from transports.directio import data_runs
from transports.errors import TransientTransportError, TransportUnavailableError
from transports.extent_map import ExtentMap
from transports.extent_reader import ExtentReader, ExtentWriter, File
from transports.machine import Machine
from transports.nfs_options import NfsOptions
from transports.vmdk import MAX_DESCRIPTOR_BYTES, below_datastore, flat_file, parse_descriptor

MODE: Final = TransportMode.DIRECT_NFS
KINDS: Final = frozenset({"NFS", "NFS41"})


def open_reader(options: NfsOptions, machine: Machine, disk: DiskRef) -> DiskReader:
    """TransportUnavailableError with the reason when another mode has to do."""
    if disk.is_delta:
        raise TransportUnavailableError(
            f"{disk.path} lies above an earlier snapshot, and what deltas hold is not read over NFS; remove the "
            "VM's earlier snapshots or use another mode"
        )
    file, extents = _open(options, machine, disk, write=False)
    return ExtentReader([file], extents, mode=MODE, requests_in_flight=options.connections)


def open_writer(options: NfsOptions, machine: Machine, disk: DiskRef) -> DiskWriter:
    """Of a disk that vSphere has made. TransportUnavailableError when another mode has to do."""
    file, extents = _open(options, machine, disk, write=True)
    return ExtentWriter([file], extents, mode=MODE, threads=options.connections)


def _open(
    options: NfsOptions, machine: Machine, disk: DiskRef, *, write: bool
) -> tuple[File, ExtentMap]:
    storage = disk.storage
    if storage is None or storage.kind not in KINDS:
        raise TransportUnavailableError(
            f"{disk.path} is not known to lie on an NFS datastore; use another mode for it"
        )
    return by_client(
        options,
        machine,
        storage,
        library=lambda: _through_library(options, storage, disk, write=write),
        mount=lambda mount, root: _through_mount(mount, root, disk, write=write),
    )


def _through_library(
    options: NfsOptions, storage: DatastoreRef, disk: DiskRef, *, write: bool
) -> tuple[File, ExtentMap]:
    below = below_datastore(disk.path)
    connection = connect(storage, options, write=write)
    try:
        content = _descriptor(connection, below)
        flat = _beside(
            below, flat_file(parse_descriptor(content, disk.path), disk.path, disk.capacity_bytes)
        )
    finally:
        connection.close()
    file = SharedFile(
        # Where the first was reached the others will be.
        partial(
            Connection, connection.host, connection.export, connection.version, options, write=write
        ),
        flat,
        write=write,
        connections=options.connections,
    )
    try:
        _check_size(file.size_bytes, flat, disk)
    except BaseException:
        file.close()
        raise
    return file, ExtentMap.whole(disk.capacity_bytes)


def _descriptor(connection: Connection, below: str) -> bytes:
    file = connection.open(below)
    try:
        content = bytearray(min(file.size_bytes(), MAX_DESCRIPTOR_BYTES + 1))
        if content:
            file.read_into(0, memoryview(content))
    except TransientTransportError as error:
        raise TransportUnavailableError(str(error)) from error
    finally:
        file.close()
    return bytes(content)


def _through_mount(
    mount: NfsMount, root: Path, disk: DiskRef, *, write: bool
) -> tuple[File, ExtentMap]:
    if write and mount.read_only:
        raise TransportUnavailableError(
            f"{mount.point} is mounted read-only; mount it for writing or restore in another mode"
        )
    below = below_datastore(disk.path)
    try:
        with (root / below).open("rb") as descriptor:
            content = descriptor.read(MAX_DESCRIPTOR_BYTES + 1)
    except OSError as error:
        raise TransportUnavailableError(
            f"{root / below} cannot be read: {error.strerror}; the export must give this machine access as root, "
            "and the proxy must run as root to read through a mount"
        ) from error
    flat = _beside(
        below, flat_file(parse_descriptor(content, disk.path), disk.path, disk.capacity_bytes)
    )
    file = DirectFile(str(root / flat), write=write)
    try:
        _check_size(file.size_bytes, flat, disk)
        return file, _allocation(file, write=write)
    except BaseException:
        file.close()
        raise


def _allocation(file: DirectFile, *, write: bool) -> ExtentMap:
    """Servers of version 4.2 tell where a file has holes; through others everything is data."""
    if write:
        return ExtentMap.whole(file.size_bytes)
    with translated("asking for the holes of", file.path):
        return ExtentMap.of_data(file.size_bytes, data_runs(file.fileno(), 0, file.size_bytes))


def _beside(below: str, name: str) -> str:
    return str(PurePosixPath(below).with_name(name))


def _check_size(size_bytes: int, flat: str, disk: DiskRef) -> None:
    if size_bytes != disk.capacity_bytes:
        raise TransportUnavailableError(
            f"{flat} has {size_bytes} bytes and the disk {disk.path} has {disk.capacity_bytes}; it is not what the "
            "descriptor says, or was resized: use another mode"
        )
