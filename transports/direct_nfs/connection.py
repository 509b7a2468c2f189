"""One connection to an export, through the library. Used by one thread at a time."""

from __future__ import annotations

import ctypes
import errno
import os
import secrets
import socket
import stat
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Final

import numpy as np

from transports.base import SECTOR_BYTES, DatastoreRef
from transports.direct_nfs.library import STAT_MODE, STAT_SIZE, Stat, library_missing, load_library
from transports.errors import (
    OutOfSpaceError,
    TransientTransportError,
    TransportError,
    TransportUnavailableError,
)
from transports.nfs_options import NfsOptions

NFS_PORT: Final = 2049
PORTMAPPER_PORT: Final = 111
_V4: Final = 4
_SMALL_WRITE_BYTES: Final = 7 * SECTOR_BYTES
"""Library 4.0 makes room of 4 KiB for a write of version 4, its head included, and says so when it is too little."""
_NO_ROOM: Final = "Failed to encode"
_SYN_TRIES: Final = 3
"""Of a TCP connection: seven seconds for a server that drops what comes."""
_UNHEARD_MS: Final = 7000
"""Within the part of a lease that is left for writes on their way: a quarter of 30 s."""
_ROOT: Final = 0
_REFUSED: Final = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
"""The library also says EPERM (-1) of what it could not do for reasons of its own."""
_SILENT: Final = frozenset({errno.EINTR, errno.EIO, errno.ETIMEDOUT, errno.EFAULT})
"""The library's numbers for a time-out, a connection that ended, and one that was not made."""
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_GONE: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG})


def versions_of(storage: DatastoreRef, *, write: bool) -> tuple[int, ...]:
    """NFS versions to try. The library speaks 4.0, which servers of 4.1 mostly do as well; a file that nobody
    else has open is the same by whichever version it is reached. Writes of version 3 are much larger.
    """
    if storage.kind != "NFS41":
        return (3,)
    return (3, _V4) if write else (_V4, 3)


class ServerSilentError(TransportUnavailableError):
    """The server was not reached, or did not answer in time."""


def connect(storage: DatastoreRef, options: NfsOptions, *, write: bool = False) -> Connection:
    """TransportUnavailableError with what every address and version said."""
    said: list[TransportUnavailableError] = []
    for version in versions_of(storage, write=write):
        for host in storage.nfs_hosts:
            try:
                return Connection(host, storage.nfs_path, version, options, write=write)
            except TransportUnavailableError as error:
                said.append(error)
    if not said:
        raise TransportUnavailableError(
            f"vCenter names no server for the NFS datastore {storage.name}; look at its properties there"
        )
    silent = all(isinstance(error, ServerSilentError) for error in said)
    kind = ServerSilentError if silent else TransportUnavailableError
    raise kind("; ".join(dict.fromkeys(str(error) for error in said))) from said[-1]


class Connection:
    """An export, reached. After TransientTransportError it MUST only be closed."""

    def __init__(
        self, host: str, export: str, version: int, options: NfsOptions, *, write: bool = False
    ) -> None:
        """TransportUnavailableError says what to do."""
        self.host = host
        self.export = export
        self.version = version
        self.request_bytes = options.request_bytes
        self.write_bytes = options.request_bytes
        library = load_library()
        if library is None:
            raise TransportUnavailableError(library_missing())
        self.library = library
        _check_answers(host, NFS_PORT if version == _V4 else PORTMAPPER_PORT, options.connect_timeout_s)
        self.context: Any = library.nfs_init_context()
        self.broken = False
        self._prepare(options)
        try:
            result = library.nfs_mount(self.context, host.encode(), os.fsencode(export))
            self.check(
                result, f"NFS {version} export {host}:{export} is not given to this proxy", opening=True
            )
            if write:
                self._give_up_unheard_writes()
        except BaseException:
            self.close()
            raise

    def _prepare(self, options: NfsOptions) -> None:
        library, context = self.library, self.context
        library.nfs_set_version(context, self.version)
        # ESXi makes a disk's files as root and for root alone.
        library.nfs_set_uid(context, _ROOT)
        library.nfs_set_gid(context, _ROOT)
        library.nfs_set_timeout(context, int(options.io_timeout_s * 1000))
        library.nfs_set_autoreconnect(context, 0)
        library.nfs_set_tcp_syncnt(context, _SYN_TRIES)
        # Two connections with one name are one client to a server of version 4, and take each other's state.
        name = secrets.token_hex(16).encode()
        library.nfs4_set_client_name(context, b"vmhaul-" + name)
        library.nfs4_set_verifier(context, name[:8])

    @property
    def address(self) -> str:
        return f"{self.host}:{self.export}"

    def _give_up_unheard_writes(self) -> None:
        """Let the kernel drop the connection, with what it still holds, when the server acknowledges nothing for seconds:
        else a write could reach the disk long after, when somebody else writes to it.
        """
        with socket.socket(fileno=os.dup(self.library.nfs_get_fd(self.context))) as connected:
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNHEARD_MS)

    def open(self, path: str, *, write: bool = False) -> RemoteFile:
        """A file that exists, by its path below the export. TransportUnavailableError when it cannot be."""
        # O_SYNC: what a write brings is on stable storage when it is answered, so that nothing is lost, unseen, with
        # a server that restarts between a write and its commit.
        flags = os.O_RDWR | os.O_SYNC if write else os.O_RDONLY
        handle = ctypes.c_void_p()
        result = self.library.nfs_open(self.context, _encoded(path), flags, ctypes.byref(handle))
        doing = f"{path} on {self.address} cannot be opened for {'writing' if write else 'reading'}"
        self.check(result, doing, opening=True)
        return RemoteFile(self, path, handle)

    def access(self, path: str) -> int:
        """os.R_OK, os.W_OK and os.X_OK, as far as the server grants them; asked of the server alone."""
        result = self.library.nfs_access2(self.context, _encoded(path))
        self.check(
            result, f"access rights to {path or '/'} on {self.address} are not told", opening=True
        )
        return int(result)

    def names(self, path: str) -> Iterator[str]:
        """What a directory holds."""
        directory = ctypes.c_void_p()
        result = self.library.nfs_opendir(self.context, _encoded(path), ctypes.byref(directory))
        self.check(result, f"directory {path or '/'} on {self.address} cannot be listed", opening=True)
        try:
            while entry := self.library.nfs_readdir(self.context, directory):
                name = os.fsdecode(entry.contents.name or b"")
                if name not in ("", ".", ".."):
                    yield name
        finally:
            self.library.nfs_closedir(self.context, directory)

    def close(self) -> None:
        if self.context is not None:
            self.library.nfs_destroy_context(self.context)
            self.context = None

    def said(self) -> str:
        """The library's words for what went wrong last."""
        return os.fsdecode(self.library.nfs_get_error(self.context) or b"")

    def check(self, result: int, doing: str, *, opening: bool = False) -> None:
        if result >= 0:
            return
        error = _error(-result, f"{doing}: {_reason(-result, self.said())}", opening=opening)
        self.broken = self.broken or isinstance(error, TransientTransportError)
        raise error


class RemoteFile:
    """An open file of a connection."""

    def __init__(self, connection: Connection, path: str, handle: ctypes.c_void_p) -> None:
        self._connection = connection
        self._path = path
        self._handle: ctypes.c_void_p | None = handle

    def size_bytes(self) -> int:
        """TransportUnavailableError for what is no regular file."""
        found = Stat()
        connection = self._connection
        result = connection.library.nfs_fstat64(connection.context, self._handle, ctypes.byref(found))
        self._check(result, "its size cannot be asked", opening=True)
        if not stat.S_ISREG(found[STAT_MODE]):
            raise TransportUnavailableError(
                f"{self._named()} is not a file; use another mode for this disk"
            )
        return int(found[STAT_SIZE])

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill the whole buffer. TransientTransportError when the file ends early or the server is lost."""
        connection = self._connection
        address = np.frombuffer(buffer, np.uint8).ctypes.data
        done, length = 0, len(buffer)
        while done < length:
            wanted = min(length - done, connection.request_bytes)
            count = connection.library.nfs_pread(
                connection.context, self._handle, offset + done, wanted, address + done
            )
            done += self._moved(count, wanted, "reading", offset + done)

    def write_from(self, offset: int, buffer: memoryview) -> None:
        connection = self._connection
        address = np.frombuffer(buffer, np.uint8).ctypes.data
        done, length = 0, len(buffer)
        while done < length:
            wanted = min(length - done, connection.write_bytes)
            count = connection.library.nfs_pwrite(
                connection.context, self._handle, offset + done, wanted, address + done
            )
            if count < 0 and wanted > _SMALL_WRITE_BYTES and _NO_ROOM in connection.said():
                connection.write_bytes = _SMALL_WRITE_BYTES
                continue
            done += self._moved(count, wanted, "writing", offset + done)

    def flush(self) -> None:
        connection = self._connection
        self._check(connection.library.nfs_fsync(connection.context, self._handle), "syncing")

    def close(self) -> None:
        """Raises nothing. A server that was lost is not told."""
        handle, self._handle = self._handle, None
        connection = self._connection
        if handle is not None and connection.context is not None and not connection.broken:
            with suppress(TransportError):
                connection.check(connection.library.nfs_close(connection.context, handle), "closing")

    def _moved(self, count: int, wanted: int, doing: str, offset: int) -> int:
        self._check(count, f"{doing} at byte {offset}")
        if not 0 < count <= wanted:
            self._connection.broken = True
            raise TransientTransportError(
                f"{self._named()} ends at byte {offset}, before what was asked for"
            )
        return count

    def _check(self, result: int, doing: str, *, opening: bool = False) -> None:
        if result < 0:
            self._connection.check(result, f"{self._named()}: {doing}", opening=opening)

    def _named(self) -> str:
        return f"{self._path} on {self._connection.address}"


def _encoded(path: str) -> bytes:
    return os.fsencode("/" + path.lstrip("/"))


def _check_answers(host: str, port: int, timeout_s: float) -> None:
    """The library would wait minutes for a server that is not there."""
    try:
        socket.create_connection((host, port), timeout_s).close()
    except OSError as error:
        raise ServerSilentError(
            f"NFS server {host} does not answer at TCP port {port} ({error.strerror or error}); check its name and "
            "the firewalls between it and this proxy"
        ) from error


def _reason(number: int, text: str) -> str:
    text = text.strip() or os.strerror(number)
    if number in _REFUSED and number != errno.EPERM:
        return (
            f"{text}; the export must give this proxy's address access as root (no root squash; for restores read "
            "and write), also from ports above 1023 where the proxy does not run as root"
        )
    if number in _GONE:
        return f"{text}; the path is not there: is it the same export that the hosts have mounted?"
    return text


def _error(number: int, text: str, *, opening: bool) -> TransportError:
    if number in _FULL:
        return OutOfSpaceError(f"{text}; make room on the datastore")
    if opening and number in _SILENT:
        return ServerSilentError(text)
    if opening or number in _REFUSED or number in _GONE:
        return TransportUnavailableError(text)
    return TransientTransportError(text)
