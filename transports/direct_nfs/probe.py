"""Whether this machine reaches an NFS datastore, and what it may do there. Nothing is created for it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Final, Protocol

from transports.base import DatastoreRef
from transports.direct_nfs.clients import by_client
from transports.direct_nfs.connection import NFS_PORT, connect
from transports.direct_nfs.disks import KINDS
from transports.direct_nfs.hops import hops
from transports.direct_nfs.library import writes_version_4_in_pieces
from transports.direct_nfs.mounts import NfsMount
from transports.errors import TransportUnavailableError
from transports.machine import Machine
from transports.nfs_options import NfsOptions
from transports.reached import Reached

_CONNECT_S: Final = 5.0
_ANSWER_S: Final = 10.0
_DIRECTORIES: Final = 50
"""That are looked into for a disk; a datastore has one for each VM."""
_DISK: Final = "-flat.vmdk"


class _Tree(Protocol):
    def names(self, path: str) -> Iterator[str]: ...
    def access(self, path: str) -> int: ...


def probe(options: NfsOptions, machine: Machine, storage: DatastoreRef) -> Reached | None:
    """None: not an NFS datastore."""
    if storage.kind not in KINDS:
        return None
    quick = replace(
        options,
        connect_timeout_s=min(options.connect_timeout_s, _CONNECT_S),
        io_timeout_s=min(options.io_timeout_s, _ANSWER_S),
    )
    try:
        return by_client(
            quick,
            machine,
            storage,
            library=lambda: _through_library(quick, storage),
            mount=_through_mount,
        )
    except TransportUnavailableError as error:
        return Reached(readable=False, writable=False, reason=str(error))


def _through_library(options: NfsOptions, storage: DatastoreRef) -> Reached:
    connection = connect(storage, options)
    try:
        found = _judge(connection, connection.address, hops(connection.host, NFS_PORT))
    finally:
        connection.close()
    if not found.writable or not writes_version_4_in_pieces():
        return found
    writing = connect(storage, options, write=True)
    writing.close()
    if writing.version == 3:  # noqa: PLR2004 - NFS 3
        return found
    return replace(
        found,
        writable=False,
        reason=f"{writing.address} speaks NFS 4 only, which this machine's libnfs writes in pieces of 4 KiB: any other "
        "mode is faster; use libnfs 5 (Debian 13), or let the server speak NFS 3 as well",
    )


def _through_mount(mount: NfsMount, root: Path) -> Reached:
    server = mount.address or mount.host
    return _judge(_Directory(root), f"{mount.host}:{mount.path}", hops(server, NFS_PORT))


def _judge(tree: _Tree, address: str, hop_count: int) -> Reached:
    """By a disk, where there is one: with root squashed, directories are open and disks are not."""
    disk = _some_disk(tree)
    granted = tree.access(disk)
    readable = bool(granted & os.R_OK)
    writable = readable and bool(granted & os.W_OK)
    reason = ""
    if not writable:
        which = disk or "the directory itself"
        reason = (
            f"{address} gives this proxy no right to {'write' if readable else 'read'} {which}: allow its address "
            f"{'read and write' if readable else 'access'} as root (no root squash)"
        )
    return Reached(readable=readable, writable=writable, hops=hop_count, reason=reason)


def _some_disk(tree: _Tree) -> str:
    """Empty when there is none in sight."""
    for name in islice(tree.names(""), _DIRECTORIES):
        try:
            found = next((file for file in tree.names(name) if file.endswith(_DISK)), None)
        except TransportUnavailableError:
            continue  # a file, or a directory for somebody else
        if found is not None:
            return f"{name}/{found}"
    return ""


class _Directory:
    """A mounted export."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def names(self, path: str) -> Iterator[str]:
        try:
            with os.scandir(self._root / path) as entries:
                yield from (entry.name for entry in entries)
        except OSError as error:
            raise TransportUnavailableError(
                f"{self._root / path} cannot be listed: {error.strerror}; run the proxy as root and give it access as "
                "root on the export"
            ) from error

    def access(self, path: str) -> int:
        file = self._root / path
        return sum(right for right in (os.R_OK, os.W_OK) if os.access(file, right))
