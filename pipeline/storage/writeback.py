"""A hint to the kernel: begin to write what was just written.

Without it the kernel waits until much is dirty or old, and a sync at the end finds everything still to do.
"""

from __future__ import annotations

import ctypes
from typing import Any, Final

SYNC_FILE_RANGE_WRITE: Final = 2  # linux/fs.h: start writing, do not wait


def _function() -> Any:
    """sync_file_range of the C library; None where it has none."""
    function = getattr(ctypes.CDLL(None), "sync_file_range", None)
    if function is not None:
        function.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
    return function


_SYNC_FILE_RANGE: Final = _function()


def start_writeback(fd: int, offset: int, length: int) -> None:
    """Begin to write a range of a file to its disk. Promises nothing and reports nothing: a file system
    that cannot ignores it, and an error of the disk comes from the fsync that must follow.
    """
    if _SYNC_FILE_RANGE is not None:
        _SYNC_FILE_RANGE(fd, offset, length, SYNC_FILE_RANGE_WRITE)
