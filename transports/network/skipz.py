"""SkipZ: only the runs that are not zero. Head 8 bytes, then (offset, length, bytes) ascending."""

from __future__ import annotations

from struct import Struct
from typing import Final

from transports.network.fastlz import CorruptBlockError

_HEAD: Final = Struct("<II")  # 8 = fragment bytes 4 + 0 4
_RUN: Final = Struct("<II")  # 8 = offset 4 + length 4
_ZEROS: Final = bytes(1 << 20)


def decompress(block: bytes | bytearray, target: memoryview) -> None:
    """Fill the whole of `target`. CorruptBlockError unless the block describes exactly that much."""
    if len(block) < _HEAD.size:
        raise CorruptBlockError("the SkipZ block is shorter than its head")
    total, _ = _HEAD.unpack_from(block)
    if total != len(target):
        raise CorruptBlockError(f"the SkipZ block describes {total} bytes instead of {len(target)}")
    at, filled = _HEAD.size, 0
    view = memoryview(block)
    while at < len(view):
        if at + _RUN.size > len(view):
            raise CorruptBlockError("the SkipZ block ends inside a run")
        offset, length = _RUN.unpack_from(view, at)
        at += _RUN.size
        if offset < filled or length == 0 or offset + length > total or at + length > len(view):
            raise CorruptBlockError(f"the SkipZ run of {length} bytes at {offset} does not fit")
        _zero(target[filled:offset])
        target[offset : offset + length] = view[at : at + length]
        at += length
        filled = offset + length
    _zero(target[filled:])


def _zero(part: memoryview) -> None:
    for start in range(0, len(part), len(_ZEROS)):
        piece = part[start : start + len(_ZEROS)]
        piece[:] = _ZEROS[: len(piece)]
