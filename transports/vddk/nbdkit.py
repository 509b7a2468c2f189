"""One nbdkit with the vddk plugin, and the connection to it. Used by one thread at a time."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Final

from transports.base import DiskRef, TransportMode
from transports.errors import TransientTransportError, TransportUnavailableError
from transports.vddk.libnbd import (
    ALLOCATION,
    ZERO,
    Completion,
    ExtentCallback,
    ExtentFunction,
    load_libnbd,
)
from transports.vddk_options import VddkOptions
from transports.vsphere.model import ServerAddress

_POLL_MS: Final = 1000
_END_S: Final = 30.0
"""For VDDK to log out and end its session with the host: a snapshot is removed after that."""
_SAID_LINES: Final = 5
_SAID_BYTES: Final = 16 << 10
_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO


def vddk_missing(options: VddkOptions) -> str:
    """What this machine lacks for reading through VDDK; empty: nothing."""
    if load_libnbd() is None:
        return "libnbd is not installed (Debian: apt install libnbd0)"
    if shutil.which(options.nbdkit) is None:
        return "nbdkit is not installed (Debian: apt install nbdkit)"
    if not list(Path(options.libdir).glob("lib64/libvixDiskLib.so*")):
        return f"vddk_libdir {options.libdir} holds no VDDK: there is no lib64/libvixDiskLib.so in it"
    return _password_problem(options.password_file)


def _password_problem(path: str) -> str:
    try:
        found = Path(path).stat()
    except OSError as error:
        return f"vddk_password_file {path} cannot be read: {error.strerror}"
    if found.st_mode & _OTHERS:
        return f"vddk_password_file {path} is open to other users of this machine; chmod 600 it"
    return ""


class NbdkitDisk:
    """A disk that nbdkit has open. After an exception it MUST only be closed."""

    def __init__(
        self,
        server: ServerAddress,
        disk: DiskRef,
        mode: TransportMode,
        options: VddkOptions,
        *,
        write: bool,
    ) -> None:
        """TransportUnavailableError with what nbdkit said."""
        lacks = vddk_missing(options)
        if lacks:
            raise TransportUnavailableError(f"{lacks}; or set network_client to native")
        self._library: Any = load_libnbd()
        self._path = disk.path
        self._options = options
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the disk is open
        self._handle: Any = None
        self._process: subprocess.Popen[bytes] | None = None
        try:
            self._start(arguments(server, disk, mode, options, write=write))
            self.size_bytes = self._number(self._library.nbd_get_size(self._handle))
            self.can_tell_extents = self._library.nbd_can_meta_context(self._handle, ALLOCATION) == 1
            if self.size_bytes != disk.capacity_bytes:
                raise TransportUnavailableError(
                    f"VDDK sees {self.size_bytes} bytes and {disk.path} has {disk.capacity_bytes}; it was resized or "
                    "is another disk"
                )
        except BaseException:
            self.close()
            raise

    def _start(self, command: list[str]) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                command, stdin=theirs.fileno(), stdout=theirs.fileno(), stderr=self._log, close_fds=True
            )
        library = self._library
        self._handle = library.nbd_create()
        library.nbd_add_meta_context(self._handle, ALLOCATION)
        if library.nbd_aio_connect_socket(self._handle, ours.detach()) < 0:
            raise self._unavailable()
        for _ in range(max(1, int(self._options.open_timeout_s * 1000 / _POLL_MS))):
            if not library.nbd_aio_is_connecting(self._handle):
                break
            if library.nbd_poll(self._handle, _POLL_MS) < 0:
                raise self._unavailable()
        if library.nbd_aio_is_ready(self._handle) != 1:
            raise self._unavailable()

    # -- moving bytes

    def read(self, address: int, length: int, offset: int) -> int:
        """Begin a read into memory that stays where it is; the number of the request."""
        return self._number(
            self._library.nbd_aio_pread(self._handle, address, length, offset, Completion(), 0)
        )

    def write(self, address: int, length: int, offset: int) -> int:
        return self._number(
            self._library.nbd_aio_pwrite(self._handle, address, length, offset, Completion(), 0)
        )

    def flush(self) -> None:
        if self._library.nbd_can_flush(self._handle) == 1:
            self.wait(self._number(self._library.nbd_aio_flush(self._handle, Completion(), 0)))

    def extents(self, offset: int, length: int) -> list[tuple[int, bool]]:
        """Runs from `offset` on, with whether they read as zeros; may end before or after the range."""
        found: list[tuple[int, bool]] = []

        def take(_: Any, context: bytes, __: int, entries: Any, count: int, ___: Any) -> int:
            if context == ALLOCATION:
                found.extend((entries[n], bool(entries[n + 1] & ZERO)) for n in range(0, count, 2))
            return 0

        function = ExtentFunction(take)
        callback = ExtentCallback(function, None, None)
        self.wait(
            self._number(
                self._library.nbd_aio_block_status(
                    self._handle, length, offset, callback, Completion(), 0
                )
            )
        )
        return found

    def next_done(self) -> int:
        """Number of a request that has been answered. TransientTransportError when one failed, or none is
        answered in time.
        """
        library, handle = self._library, self._handle
        for _ in range(max(1, int(self._options.io_timeout_s * 1000 / _POLL_MS))):
            number = library.nbd_aio_peek_command_completed(handle)
            if number > 0:
                if library.nbd_aio_command_completed(handle, number) != 1:
                    raise self._lost()
                return int(number)
            if library.nbd_poll(handle, _POLL_MS) < 0:
                raise self._lost()
        raise TransientTransportError(
            f"VDDK did not answer for {self._path} in {self._options.io_timeout_s:.0f} s"
        )

    def wait(self, number: int) -> None:
        """For one request while no other is in flight."""
        done = self.next_done()
        assert done == number

    def close(self) -> None:
        """Lets VDDK end its session; raises nothing."""
        handle, self._handle = self._handle, None
        if handle is not None:
            self._library.nbd_aio_disconnect(handle, 0)
            # What it was told is on its way when the socket closes.
            self._library.nbd_close(handle)
        process, self._process = self._process, None
        if process is not None:
            with suppress(subprocess.TimeoutExpired):
                process.wait(_END_S)
            process.kill()
            process.wait()
        self._log.close()

    # -- what went wrong

    def _number(self, result: int) -> int:
        if result < 0:
            raise self._lost()
        return int(result)

    def _lost(self) -> TransientTransportError:
        return TransientTransportError(f"{self._path} through VDDK: {self._reason()}")

    def _unavailable(self) -> TransportUnavailableError:
        return TransportUnavailableError(
            f"{self._path} cannot be opened through VDDK: {self._reason()}; look at the VDDK settings of this proxy, or "
            "set network_client to native"
        )

    def _reason(self) -> str:
        """nbdkit's last words: its clients are told little."""
        said = self._log_tail() or os.fsdecode(self._library.nbd_get_error() or b"no reason was given")
        return " / ".join(said.splitlines()[-_SAID_LINES:])

    def _log_tail(self) -> str:
        if self._process is not None:
            # Its reason may come with its end.
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(1)
        end = self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, end - _SAID_BYTES))
        return self._log.read().decode(errors="replace").strip()


def arguments(
    server: ServerAddress, disk: DiskRef, mode: TransportMode, options: VddkOptions, *, write: bool
) -> list[str]:
    """The command; nothing in it is secret. It ends with its connection, so with the mover, however that ends
    (--exit-with-parent would end it with the thread that began it).
    """
    command = [options.nbdkit, "--single", "--foreground"]
    if not write:
        command.append("--readonly")
    command += [
        options.plugin,
        f"libdir={options.libdir}",
        f"server={server.host}",
        f"port={server.port}",
        f"user={options.user}",
        f"password=+{options.password_file}",
        f"thumbprint={server.thumbprint_sha1}",
        f"vm=moref={disk.vm_moref}",
        f"transports={mode.value}",
        f"file={disk.path}",
    ]
    if disk.snapshot_moref is not None:
        command.append(f"snapshot={disk.snapshot_moref}")
    return command


def address_of(array: Any) -> int:
    """Where a numpy array's bytes lie."""
    return int(array.ctypes.data)
