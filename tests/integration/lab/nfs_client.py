"""Reads a whole file from an NFS server through libnfs, with nothing of the product in between."""

import ctypes
from typing import Any

_PIECE_BYTES = 1 << 20


def _library() -> Any:
    library = ctypes.CDLL("libnfs.so.13")
    library.nfs_init_context.restype = ctypes.c_void_p
    library.nfs_get_error.restype = ctypes.c_char_p
    return library


def read_file(host: str, export: str, path: str, *, version: int) -> bytes:
    """The whole file; AssertionError with the library's words when something fails."""
    nfs = _library()
    context = ctypes.c_void_p(nfs.nfs_init_context())

    def good(result: int) -> int:
        assert result >= 0, (result, nfs.nfs_get_error(context))
        return result

    try:
        nfs.nfs_set_version(context, version)
        good(nfs.nfs_mount(context, host.encode(), export.encode()))
        handle = ctypes.c_void_p()
        good(nfs.nfs_open(context, path.encode(), 0, ctypes.byref(handle)))
        piece = ctypes.create_string_buffer(_PIECE_BYTES)
        found = b""
        while length := good(
            nfs.nfs_pread(
                context, handle, ctypes.c_uint64(len(found)), ctypes.c_uint64(_PIECE_BYTES), piece
            )
        ):
            found += piece.raw[:length]
        good(nfs.nfs_close(context, handle))
        return found
    finally:
        nfs.nfs_destroy_context(context)
