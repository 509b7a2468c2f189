"""One file or block device, read and written past the page cache as far as it allows."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from transports.base import SECTOR_BYTES
from transports.directio import (
    ALIGNMENT_BYTES,
    BOUNCE_BYTES,
    AlignedMemory,
    is_aligned,
    open_direct,
)
from transports.errors import (
    OutOfSpaceError,
    PermanentTransportError,
    TransientTransportError,
    TransportUnavailableError,
)

_BLKSSZGET: Final = 0x1268
"""ioctl: logical sector size of a block device, which direct input and output must keep to."""
_ANY_MEMORY, _ALIGNED_MEMORY, _LARGE_SECTORS, _CACHED = range(4)
"""Ways of input and output, from the most that may be asked of the storage to the least."""
_PASSING: Final = frozenset(
    {
        errno.EIO,
        errno.ENXIO,
        errno.ENODEV,
        errno.ESTALE,
        errno.ETIMEDOUT,
        errno.EREMOTEIO,
        errno.ENOLINK,
        errno.EAGAIN,
        errno.ENOMEM,
        errno.EHOSTDOWN,
    }
)
"""A path to the storage that was lost: opening again may find another."""


@contextmanager
def translated(doing: str, path: str) -> Iterator[None]:
    """Turn an OSError into this package's, by what the caller can do."""
    try:
        yield
    except OSError as error:
        text = f"{doing} {path}: {error.strerror or error}"
        if error.errno in _PASSING:
            raise TransientTransportError(text) from error
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OutOfSpaceError(f"{text}; make room there") from error
        raise PermanentTransportError(text) from error


class DirectFile:
    """A file that is read and written at offsets; any number of threads at a time.

    Which memory and which offsets direct input takes differs by kernel, driver and file system, and not all
    tell: what is refused with EINVAL is tried with aligned memory, with larger alignment, then through the
    page cache.
    """

    def __init__(
        self, path: str, *, write: bool = False, direct: bool = True, exclusive: bool = False
    ) -> None:
        """TransportUnavailableError when it cannot be opened. `exclusive`: nor when it is a block device that
        is mounted or part of another one.
        """
        self.path = path
        flags = os.O_RDWR if write else os.O_RDONLY
        try:
            self._fd = os.open(path, flags | os.O_CLOEXEC | (os.O_EXCL if exclusive else 0))
        except OSError as error:
            what = (
                "something else on this machine uses it"
                if error.errno == errno.EBUSY
                else ("the proxy must run as root or as a user who may")
            )
            raise TransportUnavailableError(
                f"{path} cannot be opened for {'writing' if write else 'reading'}: {error.strerror}; {what}"
            ) from error
        self._direct_fd = -1
        self._sync_error: OSError | None = None
        self.wrote_through_cache = False
        """Something was written through the page cache, all or the unaligned end of a write: of a device that is lost
        it never gets there."""
        try:
            with translated("asking the size of", path):
                self.size_bytes = os.lseek(self._fd, 0, os.SEEK_END)
                self._sector_bytes = _sector_bytes(self._fd)
                # What the kernel kept of an earlier look may not be so any more.
                os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)
        except BaseException:
            self.close()
            raise
        if direct:
            self._direct_fd = open_direct(self._fd, flags)
        self._way = _ANY_MEMORY if self._direct_fd >= 0 else _CACHED
        self._turn = threading.Lock()
        self._memory = AlignedMemory()

    @property
    def is_direct(self) -> bool:
        """Whether the page cache is passed by; may become False with the first access."""
        return self._way < _CACHED

    def device_number(self) -> tuple[int, int] | None:
        """Major and minor number; None for a regular file."""
        found = os.fstat(self._fd)
        if not stat.S_ISBLK(found.st_mode):
            return None
        return os.major(found.st_rdev), os.minor(found.st_rdev)

    def fileno(self) -> int:
        return self._fd

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill the whole buffer. TransientTransportError when it ends early or the path to it is lost."""
        with translated("reading", self.path):
            while (way := self._way) < _CACHED:
                try:
                    self._read_direct(way, offset, buffer)
                except OSError as error:
                    if error.errno != errno.EINVAL:
                        raise
                    self._ask_less(way)
                else:
                    return
            _at_least(self._open_fd(), offset, buffer, len(buffer), self.path)

    def write_from(self, offset: int, buffer: memoryview) -> None:
        """Write the whole buffer. OutOfSpaceError, TransientTransportError, PermanentTransportError."""
        with translated("writing", self.path):
            done = 0
            while (way := self._way) < _CACHED and done < len(buffer):
                try:
                    count = self._write_direct(way, offset + done, buffer[done:])
                except OSError as error:
                    if error.errno != errno.EINVAL:
                        raise
                    self._ask_less(way)
                    continue
                if not count:
                    break
                done += count
            while done < len(buffer):
                self.wrote_through_cache = True
                done += os.pwrite(self._open_fd(), buffer[done:], offset + done)

    def flush(self) -> None:
        """Once it has failed it fails for good: the kernel tells of lost pages once, and then calls them clean."""
        with translated("syncing", self.path):
            if self._sync_error is not None:
                raise self._sync_error
            try:
                os.fsync(self._open_fd())
            except OSError as error:
                self._sync_error = error
                raise

    def close(self) -> None:
        """May be called twice; raises nothing. No thread may be reading or writing."""
        fds = (self._direct_fd, self._fd)
        self._fd = self._direct_fd = -1
        self._way = _CACHED
        for fd in fds:
            if fd >= 0:
                with contextlib.suppress(OSError):
                    os.close(fd)

    def _open_fd(self) -> int:
        if self._fd < 0:
            raise TransientTransportError(f"{self.path} was closed")
        return self._fd

    def _ask_less(self, refused: int) -> None:
        """After a refusal; another thread may have met it already."""
        with self._turn:
            if self._way == refused:
                self._way += 1

    def _unit_bytes(self, way: int) -> int:
        return max(self._sector_bytes, ALIGNMENT_BYTES) if way == _LARGE_SECTORS else self._sector_bytes

    def _read_direct(self, way: int, offset: int, buffer: memoryview) -> None:
        unit = self._unit_bytes(way)
        whole = offset % unit == 0 and len(buffer) % unit == 0
        if whole and (way == _ANY_MEMORY or is_aligned(buffer)):
            _at_least(self._direct_fd, offset, buffer, len(buffer), self.path)
            return
        room = self._memory.room()
        done = 0
        while done < len(buffer):
            start = (offset + done) // unit * unit
            skip = offset + done - start
            wanted = min(len(buffer) - done, BOUNCE_BYTES - skip)
            asked = -(-(skip + wanted) // unit) * unit
            # The end of a file of odd length: fewer bytes come than were asked for.
            got = _at_least(self._direct_fd, start, room[:asked], skip + wanted, self.path)
            wanted = min(wanted, got - skip)
            _copy(buffer[done : done + wanted], room[skip : skip + wanted])
            done += wanted

    def _write_direct(self, way: int, offset: int, buffer: memoryview) -> int:
        """How many bytes went past the page cache; none: the rest must go through it."""
        unit = self._unit_bytes(way)
        length = len(buffer) - len(buffer) % unit
        if not length or offset % unit:
            return 0
        part = buffer[:length]
        if way != _ANY_MEMORY and not is_aligned(part):
            part = self._memory.copy_of(part)
        written = os.pwrite(self._direct_fd, part, offset)
        return written - written % unit


def _sector_bytes(fd: int) -> int:
    if not stat.S_ISBLK(os.fstat(fd).st_mode):
        return SECTOR_BYTES
    answer = bytearray(4)
    fcntl.ioctl(fd, _BLKSSZGET, answer, True)
    return max(SECTOR_BYTES, int.from_bytes(answer, "little"))


def _at_least(fd: int, offset: int, buffer: memoryview, length: int, path: str) -> int:
    """Read until `length` bytes have come; how many did."""
    done = 0
    while done < length:
        count = os.preadv(fd, [buffer[done:]], offset + done)
        if count == 0:
            raise TransientTransportError(
                f"{path} ends at byte {offset + done}, before what was to be read"
            )
        done += count
    return done


def _copy(target: memoryview, source: memoryview) -> None:
    """As target[:] = source, but other threads run meanwhile."""
    ctypes.memmove(
        ctypes.addressof(ctypes.c_char.from_buffer(target)),
        ctypes.addressof(ctypes.c_char.from_buffer(source)),
        len(source),
    )
