"""Writing past the page cache, and room made beforehand."""

from __future__ import annotations

import ctypes
import errno
import os
from typing import Any, Final

ALIGNMENT_BYTES: Final = 4096
"""Of memory, offset and length in direct writes: the largest sector that disks have."""
_NO_PREALLOCATION: Final = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL})


def _function() -> Any:
    """fallocate of the C library. (posix_fallocate writes zeros where a file system has no such call.)"""
    function = getattr(ctypes.CDLL(None, use_errno=True), "fallocate", None)
    if function is not None:
        function.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    return function


_FALLOCATE: Final = _function()


def open_direct(fd: int) -> int:
    """A second descriptor of a file, for direct writes; -1 where the file system has none."""
    try:
        return os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_DIRECT | os.O_CLOEXEC)
    except OSError:
        return -1


def is_aligned(buffer: memoryview) -> bool:
    """Whether memory may be written from directly. Read-only memory says no: its place is not told."""
    if buffer.readonly:
        return False
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer)) % ALIGNMENT_BYTES == 0


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
