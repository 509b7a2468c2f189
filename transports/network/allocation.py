"""Bitmaps of allocated chunks, as extents. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Final

from transports.base import Extent

_USED: Final = re.compile(rb"[^\x00]+")
_RUNS_OF_BYTE: Final = tuple(
    tuple(
        (start, end)
        for start in range(8)
        if value >> start & 1 and (start == 0 or not value >> start - 1 & 1)
        for end in [next((bit for bit in range(start, 8) if not value >> bit & 1), 8)]
    )
    for value in range(256)
)


def set_runs(bitmap: bytes | bytearray, count: int) -> Iterator[tuple[int, int]]:
    """Runs [start, end) of set bits among the first `count`; the lowest bit of a byte comes first."""
    start, end = 0, 0
    for used in _USED.finditer(bitmap):
        for index in range(used.start(), used.end()):
            for low, high in _RUNS_OF_BYTE[bitmap[index]]:
                if index * 8 + low == end and end > start:
                    end = index * 8 + high
                    continue
                if end > start:
                    yield start, min(end, count)
                start, end = index * 8 + low, index * 8 + high
                if start >= count:
                    return
    if end > start and start < count:
        yield start, min(end, count)


def merged(extents: Iterable[Extent], first: int, end: int) -> Iterator[Extent]:
    """Ascending extents clipped to [first, end), those that touch joined."""
    open_start = open_end = -1
    for extent in extents:
        start, stop = max(extent.offset, first), min(extent.end, end)
        if stop <= start:
            continue
        if start == open_end:
            open_end = stop
            continue
        if open_end > open_start:
            yield Extent(offset=open_start, length=open_end - open_start)
        open_start, open_end = start, stop
    if open_end > open_start:
        yield Extent(offset=open_start, length=open_end - open_start)
