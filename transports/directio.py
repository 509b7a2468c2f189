"""Reading and writing past the page cache, room made beforehand, and where a file has holes."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import threading
from collections.abc import Iterator
from typing import Any, Final

ALIGNMENT_BYTES: Final = 4096
"""Of memory, offset and length in direct input and output: the largest sector that disks have."""
BOUNCE_BYTES: Final = 1 << 20
"""Aligned memory for what is not aligned, for each thread that needs it."""
_NO_PREALLOCATION: Final = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL})


def _function() -> Any:
    """fallocate of the C library. (posix_fallocate writes zeros where a file system has no such call.)"""
    function = getattr(ctypes.CDLL(None, use_errno=True), "fallocate", None)
    if function is not None:
        function.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    return function


_FALLOCATE: Final = _function()


class AlignedMemory:
    """A piece of aligned memory for each thread, made when a thread first asks."""

    def __init__(self) -> None:
        self._local = threading.local()

    def room(self) -> memoryview:
        """BOUNCE_BYTES, the same for the same thread each time."""
        memory: memoryview | None = getattr(self._local, "memory", None)
        if memory is None:
            memory = self._local.memory = memoryview(mmap.mmap(-1, BOUNCE_BYTES))
        return memory

    def copy_of(self, data: memoryview) -> memoryview:
        """As much of the data as fits, in memory that is aligned."""
        part = self.room()[: min(len(data), BOUNCE_BYTES)]
        part[:] = data[: len(part)]
        return part


def open_direct(fd: int, flags: int = os.O_WRONLY) -> int:
    """A second descriptor of a file, past the page cache; -1 where the file system has none."""
    try:
        return os.open(f"/proc/self/fd/{fd}", flags | os.O_DIRECT | os.O_CLOEXEC)
    except OSError:
        return -1


def is_aligned(buffer: memoryview) -> bool:
    """Whether memory may be read to or written from directly. Read-only memory says no: its place is not
    told.
    """
    if buffer.readonly:
        return False
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer)) % ALIGNMENT_BYTES == 0


def write_direct(fd: int, data: memoryview, offset: int, memory: AlignedMemory) -> int:
    """Write data of an aligned length at an aligned offset; how many bytes went. Fewer: the other way tells
    why (a disk that ran full). OSError; EINVAL: this file system wants another alignment.
    """
    aligned = data if is_aligned(data) else None
    done = 0
    while done < len(data):
        part = memory.copy_of(data[done:]) if aligned is None else aligned[done:]
        written = os.pwrite(fd, part, offset + done)
        done += written
        if written % ALIGNMENT_BYTES:
            break
    return done


def data_runs(fd: int, offset: int, end: int) -> Iterator[tuple[int, int]]:
    """(start, stop) of what the file system holds data of in [offset, end), ascending. OSError."""
    at = offset
    while at < end:
        start = _seek(fd, at, os.SEEK_DATA)
        if start is None or start >= end:
            return
        stop = _seek(fd, start, os.SEEK_HOLE)
        at = end if stop is None else min(stop, end)
        yield start, at


def _seek(fd: int, at: int, whence: int) -> int | None:
    """None past the last data."""
    try:
        return os.lseek(fd, at, whence)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return None
        raise


def preallocate(fd: int, offset: int, length: int) -> bool:
    """Reserve room for a range, which then reads as zeros as before; False where the file system cannot.
    Raises OSError, as for a full disk.
    """
    if _FALLOCATE is None:
        return False
    if _FALLOCATE(fd, 0, offset, length) == 0:
        return True
    number = ctypes.get_errno()
    if number in _NO_PREALLOCATION:
        return False
    raise OSError(number, os.strerror(number))
