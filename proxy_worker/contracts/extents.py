"""Extents in a message: what changed on a disk, in as few characters as will do.

Form: base64url of a zstandard frame of `version, grain exponent, count, (gap, length)*`, all unsigned LEB128, gaps and
lengths in grains of 2**exponent bytes. Extents are widened to whole grains: tracking may name too much, never too
little. A list that would take more than MAX_PACKED_CHARS is widened further until it does not.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

import zstandard

from proxy_worker.contracts.base64url import decode_base64url, encode_base64url
from transports.base import Extent

MAX_PACKED_CHARS: Final = 256 * 1024
"""Of a message that waits in Redis and in the job database. At 64 KiB grains about 100,000 scattered changes."""
_MAX_PLAIN_BYTES: Final = 16 << 20
"""No list that fits into MAX_PACKED_CHARS needs more, unless somebody made it to hurt."""
_VERSION: Final = 1
_FINEST: Final = 16
"""64 KiB: what change tracking of vSphere counts in; blocks of a repository are larger."""
_COARSEST: Final = 46
"""64 TiB: a whole disk in one grain."""


def pack_extents(extents: Iterable[Extent], *, max_chars: int = MAX_PACKED_CHARS) -> str:
    """Text that unpack_extents() makes into extents that cover the given ones; never empty."""
    found = sorted(extents)
    for exponent in range(_FINEST, _COARSEST + 1):
        found = _widened(found, 1 << exponent)
        packed = encode_base64url(zstandard.compress(_plain(found, exponent), 9))
        if len(packed) <= max_chars:
            return packed
    raise ValueError(f"no list of extents fits into {max_chars} characters")


def unpack_extents(text: str, *, size_bytes: int) -> list[Extent]:
    """Ascending, merged, clipped to a disk of `size_bytes`. ValueError for what pack_extents() does not make."""
    try:
        plain = zstandard.ZstdDecompressor().decompress(
            decode_base64url(text), max_output_size=_MAX_PLAIN_BYTES
        )
    except zstandard.ZstdError as error:
        raise ValueError(f"the list of extents cannot be unpacked: {error}") from error
    numbers = _numbers(plain)
    version, exponent, count = next(numbers, -1), next(numbers, -1), next(numbers, -1)
    if version != _VERSION or not _FINEST <= exponent <= _COARSEST or count < 0:
        raise ValueError("the list of extents has another form than this release knows")
    found: list[Extent] = []
    end = 0
    for _ in range(count):
        gap, length = next(numbers, -1), next(numbers, -1)
        if gap < (1 if found else 0) or length < 1:
            raise ValueError("the list of extents ends early or is out of order")
        offset = end + (gap << exponent)
        end = offset + (length << exponent)
        if offset >= size_bytes:
            raise ValueError("the list of extents goes past the end of the disk")
        found.append(Extent(offset=offset, length=min(end, size_bytes) - offset))
    if next(numbers, None) is not None:
        raise ValueError("the list of extents goes on after its end")
    return found


def _widened(extents: Sequence[Extent], grain: int) -> list[Extent]:
    """On whole grains, merged where they touch. `extents` ascend."""
    wide: list[Extent] = []
    for extent in extents:
        if extent.length <= 0 or extent.offset < 0:
            raise ValueError(f"{extent} is no run of bytes of a disk")
        start = extent.offset // grain * grain
        end = -(-extent.end // grain) * grain
        if wide and start <= wide[-1].end:
            last = wide[-1]
            wide[-1] = Extent(offset=last.offset, length=max(end, last.end) - last.offset)
        else:
            wide.append(Extent(offset=start, length=end - start))
    return wide


def _plain(extents: Sequence[Extent], exponent: int) -> bytes:
    out = bytearray()
    for number in (_VERSION, exponent, len(extents)):
        _append(out, number)
    end = 0
    for extent in extents:
        _append(out, (extent.offset - end) >> exponent)
        _append(out, extent.length >> exponent)
        end = extent.end
    return bytes(out)


def _append(out: bytearray, number: int) -> None:
    while number > 0x7F:  # noqa: PLR2004 - seven bits a byte
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)


def _numbers(plain: bytes) -> Iterator[int]:
    number = shift = 0
    for byte in plain:
        number |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:  # noqa: PLR2004 - the last of its number
            yield number
            number = shift = 0
        elif shift > 63:  # noqa: PLR2004 - more bits than any disk has bytes
            raise ValueError("the list of extents holds a number that is too large")
    if shift:
        raise ValueError("the list of extents ends within a number")
