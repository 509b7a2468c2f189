"""libnbd (LGPL), as this process finds it: what is used of it, with types. Written against version 1.14."""

from __future__ import annotations

import ctypes
from functools import lru_cache
from typing import Any, Final

NAME: Final = "libnbd.so.0"
ALLOCATION: Final = b"base:allocation"
ZERO: Final = 2
"""Flag of an extent: it reads as zeros."""
_HANDLE: Final = ctypes.c_void_p


class Completion(ctypes.Structure):
    """nbd_completion_callback; all NULL: nobody is called, the caller asks."""

    _fields_ = (
        ("callback", ctypes.c_void_p),
        ("user_data", ctypes.c_void_p),
        ("free", ctypes.c_void_p),
    )


ExtentFunction: Final = ctypes.CFUNCTYPE(
    ctypes.c_int,
    ctypes.c_void_p,
    ctypes.c_char_p,
    ctypes.c_uint64,
    ctypes.POINTER(ctypes.c_uint32),
    ctypes.c_size_t,
    ctypes.POINTER(ctypes.c_int),
)


class ExtentCallback(ctypes.Structure):
    """nbd_extent_callback."""

    _fields_ = (
        ("callback", ExtentFunction),
        ("user_data", ctypes.c_void_p),
        ("free", ctypes.c_void_p),
    )


_MOVE: Final = (
    _HANDLE,
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_uint64,
    Completion,
    ctypes.c_uint32,
)
_FUNCTIONS: Final[dict[str, tuple[Any, tuple[Any, ...]]]] = {
    "nbd_create": (_HANDLE, ()),
    "nbd_close": (None, (_HANDLE,)),
    "nbd_get_error": (ctypes.c_char_p, ()),
    "nbd_get_errno": (ctypes.c_int, ()),
    "nbd_add_meta_context": (ctypes.c_int, (_HANDLE, ctypes.c_char_p)),
    "nbd_can_meta_context": (ctypes.c_int, (_HANDLE, ctypes.c_char_p)),
    "nbd_can_flush": (ctypes.c_int, (_HANDLE,)),
    "nbd_get_size": (ctypes.c_int64, (_HANDLE,)),
    "nbd_poll": (ctypes.c_int, (_HANDLE, ctypes.c_int)),
    "nbd_aio_connect_socket": (ctypes.c_int, (_HANDLE, ctypes.c_int)),
    "nbd_aio_is_connecting": (ctypes.c_int, (_HANDLE,)),
    "nbd_aio_is_ready": (ctypes.c_int, (_HANDLE,)),
    "nbd_aio_pread": (ctypes.c_int64, _MOVE),
    "nbd_aio_pwrite": (ctypes.c_int64, _MOVE),
    "nbd_aio_flush": (ctypes.c_int64, (_HANDLE, Completion, ctypes.c_uint32)),
    "nbd_aio_block_status": (
        ctypes.c_int64,
        (_HANDLE, ctypes.c_uint64, ctypes.c_uint64, ExtentCallback, Completion, ctypes.c_uint32),
    ),
    "nbd_aio_peek_command_completed": (ctypes.c_int64, (_HANDLE,)),
    "nbd_aio_command_completed": (ctypes.c_int, (_HANDLE, ctypes.c_uint64)),
    "nbd_aio_disconnect": (ctypes.c_int, (_HANDLE, ctypes.c_uint32)),
}


@lru_cache(maxsize=1)
def load_libnbd() -> Any:
    """None where it is not installed."""
    try:
        library = ctypes.CDLL(NAME)
        for function, (result, arguments) in _FUNCTIONS.items():
            found = getattr(library, function)
            found.restype, found.argtypes = result, arguments
    except (OSError, AttributeError):
        return None
    return library
