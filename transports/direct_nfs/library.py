"""libnfs as this process finds it: its functions with their types.

Written against libnfs 4 and 5 (Debian's libnfs13 and libnfs14). Version 6 orders arguments otherwise and is not
loaded. The library is LGPL; it is loaded where it is installed and nothing of it is part of vmhaul.
"""

from __future__ import annotations

import ctypes
from functools import lru_cache
from typing import Any, Final

NAMES: Final = ("libnfs.so.13", "libnfs.so.14")
SMALL_WRITES: Final = "libnfs.so.13"
"""Library 4.0 sends a write of version 4 in pieces of less than 4 KiB."""
_CONTEXT: Final = ctypes.c_void_p
_HANDLE: Final = ctypes.c_void_p
_TEXT: Final = ctypes.c_char_p
STAT_FIELDS: Final = 32
"""struct nfs_stat_64 has 17 to 20 fields of 64 bits, by version."""
STAT_MODE: Final = 2
STAT_SIZE: Final = 7
Stat: Final = ctypes.c_uint64 * STAT_FIELDS


class DirectoryEntry(ctypes.Structure):
    """The beginning of struct nfsdirent; the rest differs by version and is not looked at."""

    _fields_ = (("next", ctypes.c_void_p), ("name", ctypes.c_char_p))


_FUNCTIONS: Final[dict[str, tuple[Any, tuple[Any, ...]]]] = {
    "nfs_init_context": (_CONTEXT, ()),
    "nfs_destroy_context": (None, (_CONTEXT,)),
    "nfs_get_error": (_TEXT, (_CONTEXT,)),
    "nfs_set_version": (ctypes.c_int, (_CONTEXT, ctypes.c_int)),
    "nfs_set_uid": (None, (_CONTEXT, ctypes.c_int)),
    "nfs_set_gid": (None, (_CONTEXT, ctypes.c_int)),
    "nfs_set_timeout": (None, (_CONTEXT, ctypes.c_int)),
    "nfs_set_autoreconnect": (None, (_CONTEXT, ctypes.c_int)),
    "nfs_set_tcp_syncnt": (None, (_CONTEXT, ctypes.c_int)),
    "nfs_get_fd": (ctypes.c_int, (_CONTEXT,)),
    "nfs4_set_client_name": (None, (_CONTEXT, _TEXT)),
    "nfs4_set_verifier": (None, (_CONTEXT, _TEXT)),
    "nfs_mount": (ctypes.c_int, (_CONTEXT, _TEXT, _TEXT)),
    "nfs_open": (ctypes.c_int, (_CONTEXT, _TEXT, ctypes.c_int, ctypes.POINTER(_HANDLE))),
    "nfs_close": (ctypes.c_int, (_CONTEXT, _HANDLE)),
    "nfs_fstat64": (ctypes.c_int, (_CONTEXT, _HANDLE, ctypes.POINTER(ctypes.c_uint64 * STAT_FIELDS))),
    "nfs_pread": (
        ctypes.c_int,
        (_CONTEXT, _HANDLE, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_void_p),
    ),
    "nfs_pwrite": (
        ctypes.c_int,
        (_CONTEXT, _HANDLE, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_void_p),
    ),
    "nfs_fsync": (ctypes.c_int, (_CONTEXT, _HANDLE)),
    "nfs_access2": (ctypes.c_int, (_CONTEXT, _TEXT)),
    "nfs_opendir": (ctypes.c_int, (_CONTEXT, _TEXT, ctypes.POINTER(ctypes.c_void_p))),
    "nfs_readdir": (ctypes.POINTER(DirectoryEntry), (_CONTEXT, ctypes.c_void_p)),
    "nfs_closedir": (None, (_CONTEXT, ctypes.c_void_p)),
}


@lru_cache(maxsize=1)
def load_library() -> Any:
    """None where it is not installed."""
    for name in NAMES:
        try:
            library = ctypes.CDLL(name)
            for function, (result, arguments) in _FUNCTIONS.items():
                found = getattr(library, function)
                found.restype, found.argtypes = result, arguments
        except (OSError, AttributeError):
            continue
        return library
    return None


def writes_version_4_in_pieces() -> bool:
    """Whether writes of version 4 through this machine's library take many times as long as any other way."""
    library = load_library()
    return library is not None and str(library._name) == SMALL_WRITES  # noqa: SLF001 - its only name


def library_missing() -> str:
    """Empty when it is there."""
    if load_library() is not None:
        return ""
    return "libnfs is not installed (Debian: apt install libnfs13 or libnfs14)"
