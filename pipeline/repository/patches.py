"""Patches: the pieces of a block in which it differs from another one. Section 5 of the format.

The decoded payload of a patch is a bitmap of pieces, then the pieces whose bit is set, back to back. All
that is done for each piece is done inside the interpreter's C code: 0.15 ms for a block of 1 MiB.
"""

from __future__ import annotations

import operator
import re
from dataclasses import dataclass
from functools import lru_cache
from itertools import compress
from struct import Struct
from typing import Final

from pipeline.errors import IntegrityError
from pipeline.repository.format import (
    BLOB_ID_BYTES,
    MAX_BLOB_RAW_BYTES,
    MIN_PATCH_PIECE_BYTES,
    PATCH_HEAD,
    PATCH_PIECE_BYTES,
    Encoding,
)
from pipeline.storage.base import Buffer

PAGE_BYTES: Final = 4096
"""Blocks are compared by pages first, and only pages that differ by pieces."""
SAMPLE_PAGES: Final = 32
"""Where most pages differ, so many tell whether it is worth looking at all of them."""
PIECES_OF_PAGE: Final = PAGE_BYTES // PATCH_PIECE_BYTES
CHANGED_SHARE_MAX: Final = 0.75
"""A block of which more pieces differ is stored whole; what would be saved is not worth a second read."""
CLEARLY_SMALLER_SHARE: Final = 0.8
"""A patch is taken when it is at most so much of what the whole block would take."""
_TO_DIGITS: Final = b"01" + bytes(254)
_ONES: Final = re.compile(b"1+")


@dataclass(frozen=True, slots=True)
class PatchHead:
    """What stands before the payload of a patch."""

    base_id: bytes
    piece_bytes: int
    encoding: Encoding
    """Of the payload: RAW or ZSTD."""


def difference(base: Buffer, content: bytes | bytearray) -> tuple[bytes, float] | None:
    """The payload of a patch that makes `content` from `base`, and the share of pieces in it. None when
    their lengths differ or too much changed.
    """
    if len(base) != len(content) or not content:
        return None
    pages = _pieces(len(content), PAGE_BYTES)
    old_pages, new_pages = pages.unpack(base), pages.unpack(content)
    changed = bytes(map(operator.ne, old_pages, new_pages))
    old, new = list(compress(old_pages, changed)), list(compress(new_pages, changed))
    if len(new) > CHANGED_SHARE_MAX * len(changed) and _is_all_new(
        old[:SAMPLE_PAGES], new[:SAMPLE_PAGES]
    ):
        return None
    fine, pieces = _finer(old, new)
    mask = bytearray(-(-len(content) // PATCH_PIECE_BYTES))
    for at, page in enumerate(compress(range(len(changed)), changed)):
        part = fine[at * PIECES_OF_PAGE : (at + 1) * PIECES_OF_PAGE]
        mask[page * PIECES_OF_PAGE : page * PIECES_OF_PAGE + len(part)] = part
    share = mask.count(1) / len(mask)
    if share > CHANGED_SHARE_MAX:
        return None
    return b"".join((_packed_bits(mask), *compress(pieces, fine))), share


def _finer(old: list[bytes], new: list[bytes]) -> tuple[bytes, tuple[bytes, ...]]:
    """Which pieces of these pages differ, and the new pieces."""
    fine_old, fine_new = b"".join(old), b"".join(new)
    layout = _pieces(len(fine_new), PATCH_PIECE_BYTES)
    pieces = layout.unpack(fine_new)
    return bytes(map(operator.ne, layout.unpack(fine_old), pieces)), pieces


def _is_all_new(old: list[bytes], new: list[bytes]) -> bool:
    fine, _ = _finer(old, new)
    return fine.count(1) > CHANGED_SHARE_MAX * len(fine)


def patch_into(
    out: memoryview | bytearray, base: Buffer, payload: Buffer, piece_bytes: int, what: str
) -> None:
    """Fill `out` with `base` and the pieces of a patch. Raises IntegrityError for a payload that cannot
    be.
    """
    raw_length = len(out)
    count = -(-raw_length // piece_bytes)
    bitmap_bytes = -(-count // 8)
    if len(base) != raw_length or len(payload) < bitmap_bytes:
        raise IntegrityError(f"{what} is damaged: a patch that does not fit its base")
    bits = int.from_bytes(payload[:bitmap_bytes], "little")
    if bits >> count:
        raise IntegrityError(f"{what} is damaged: a patch with pieces beyond its block")
    out[:] = base
    pieces = memoryview(payload)[bitmap_bytes:]
    at = 0
    for run in _ONES.finditer(f"{bits:0{count}b}".encode()[::-1]):
        start, end = run.start() * piece_bytes, min(run.end() * piece_bytes, raw_length)
        part = pieces[at : at + end - start]
        if len(part) != end - start:
            raise IntegrityError(f"{what} is damaged: a patch that ends before its pieces")
        out[start:end] = part
        at += end - start
    if at != len(pieces):
        raise IntegrityError(f"{what} is damaged: a patch that goes on after its pieces")


def payload_limit(raw_length: int, piece_bytes: int) -> int:
    """Bytes that the payload of a patch has at most."""
    return raw_length + raw_length // piece_bytes // 8 + 1


def pack_head(base_id: bytes, encoding: Encoding) -> bytes:
    return PATCH_HEAD.pack(base_id, PATCH_PIECE_BYTES, encoding, bytes(3))


def parse_head(body: Buffer, what: str) -> PatchHead:
    """Raises IntegrityError."""
    if len(body) < PATCH_HEAD.size:
        raise IntegrityError(f"{what} is damaged: a patch without a head")
    base_id, piece_bytes, encoding, reserved = PATCH_HEAD.unpack_from(body)
    if (
        not MIN_PATCH_PIECE_BYTES <= piece_bytes <= MAX_BLOB_RAW_BYTES
        or piece_bytes & (piece_bytes - 1)
        or encoding not in {Encoding.RAW, Encoding.ZSTD}
        or any(reserved)
        or base_id == bytes(BLOB_ID_BYTES)
    ):
        raise IntegrityError(f"{what} is damaged: a patch with a head that cannot be")
    return PatchHead(base_id, piece_bytes, Encoding(encoding))


def _packed_bits(mask: bytearray) -> bytes:
    """Bit i of the little-endian result is mask[i]."""
    digits = mask[::-1].translate(_TO_DIGITS)
    return int(digits, 2).to_bytes(-(-len(mask) // 8), "little")


@lru_cache(maxsize=8)
def _pieces(length: int, piece_bytes: int) -> Struct:
    """Takes a block apart into pieces, the last of which may be short."""
    whole, rest = divmod(length, piece_bytes)
    return Struct(f"{piece_bytes}s" * whole + (f"{rest}s" if rest else ""))
