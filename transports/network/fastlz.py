"""FastLZ blocks, levels 1 and 2, without any length in front. Only decoding: writes travel stored."""

from __future__ import annotations

from typing import Final

_LEVEL_2: Final = 1
_LONG_MATCH: Final = 7
_FAR: Final = 31 * 256 + 255  # level 2: the distance follows in two bytes more


class CorruptBlockError(Exception):
    """The block does not decode to the length that was announced."""


def decompress(block: bytes | bytearray, target: memoryview) -> None:
    """Fill the whole of `target`. CorruptBlockError unless the block holds exactly that much."""
    try:
        _decompress(block, target)
    except (IndexError, ValueError) as error:
        raise CorruptBlockError("the FastLZ block ends early or is too long") from error


def _decompress(block: bytes | bytearray, target: memoryview) -> None:
    if not block:
        raise CorruptBlockError("the FastLZ block is empty")
    level = block[0] >> 5
    if level > _LEVEL_2:
        raise CorruptBlockError(f"FastLZ level {level + 1} is unknown")
    end, limit = len(block), len(target)
    control = block[0] & 31  # the first instruction is a literal run; its top bits are the level
    at, out = 1, 0
    while True:
        kind = control >> 5
        if kind == 0:
            length = control + 1
            if at + length > end or out + length > limit:
                raise CorruptBlockError("a FastLZ literal run passes the end")
            target[out : out + length] = block[at : at + length]
            at += length
        else:
            length, distance, at = _match(block, at, control, level)
            if distance > out or out + length > limit:
                raise CorruptBlockError("a FastLZ match lies outside of the block")
            _copy(target, out, distance, length)
        out += length
        if at >= end:
            break
        control = block[at]
        at += 1
    if out != limit:
        raise CorruptBlockError(f"the FastLZ block holds {out} bytes instead of {limit}")


def _match(block: bytes | bytearray, at: int, control: int, level: int) -> tuple[int, int, int]:
    """Length, distance and the position behind the instruction."""
    length = (control >> 5) + 2
    if control >> 5 == _LONG_MATCH:
        while True:
            more = block[at]
            at += 1
            length += more
            if level != _LEVEL_2 or more != 255:  # noqa: PLR2004 (a full byte: another follows)
                break
    distance = (control & 31) << 8 | block[at]
    at += 1
    if level == _LEVEL_2 and distance == _FAR:
        distance = (block[at] << 8 | block[at + 1]) + _FAR
        at += 2
    return length, distance + 1, at


def _copy(target: memoryview, out: int, distance: int, length: int) -> None:
    """Copy from `distance` bytes back; the source may run into what is being written."""
    start = out - distance
    if distance >= length:
        target[out : out + length] = target[start : start + length]
        return
    pattern = bytes(target[start:out])
    repeated = pattern * (length // distance + 1)
    target[out : out + length] = repeated[:length]
