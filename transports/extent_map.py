"""Where the bytes of a disk lie on files and devices: runs, in the order of the disk."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from transports.base import Extent


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Bytes of the disk that lie in one piece, or that are zeros and lie nowhere."""

    offset: int
    """Of the disk."""
    length: int
    device_offset: int | None
    """None: zeros that nobody reads (a hole, or allocated and not yet zeroed)."""
    device: int = 0
    """Which of the reader's files, by number."""

    @property
    def end(self) -> int:
        return self.offset + self.length


HOLE = -1
"""In a column of places: zeros that lie nowhere."""


class ExtentMap:
    """All runs of a disk. Takes 24 bytes a run; runs that go on from each other are joined."""

    def __init__(self, runs: Iterable[Run]) -> None:
        """Runs must follow one another without gap from 0: ValueError. Empty runs are left out."""
        self._starts = array("q")
        self._places = array("q")
        self._devices = array("q")
        self._size_bytes = 0
        self._has_holes = False
        for run in runs:
            self._add(run)

    @classmethod
    def whole(cls, size_bytes: int) -> ExtentMap:
        """A disk that is one file or device from its beginning."""
        return cls([Run(offset=0, length=size_bytes, device_offset=0)])

    @classmethod
    def of_data(cls, size_bytes: int, data: Iterable[tuple[int, int]]) -> ExtentMap:
        """A disk that is one file, of which only [start, stop) ranges, ascending, hold data."""
        return cls(_with_holes(size_bytes, data))

    @classmethod
    def of_columns(
        cls, size_bytes: int, starts: array[int], places: array[int], devices: array[int]
    ) -> ExtentMap:
        """Of many runs at once: starts ascend from 0 to below the size, places are HOLE for zeros, and what goes
        on is joined already: ValueError. The columns ("q") are the map's from now on.
        """
        if (
            not len(starts) == len(places) == len(devices)
            or (len(starts) > 0) != (size_bytes > 0)
            or (len(starts) and (starts[0] != 0 or starts[-1] >= size_bytes))
        ):
            raise ValueError(f"columns of {len(starts)} runs do not make up {size_bytes} bytes")
        made = cls(())
        made._starts, made._places, made._devices = starts, places, devices
        made._size_bytes = size_bytes
        made._has_holes = HOLE in places
        return made

    @property
    def size_bytes(self) -> int:
        return self._size_bytes

    @property
    def has_holes(self) -> bool:
        return self._has_holes

    def __len__(self) -> int:
        return len(self._starts)

    def runs(self, offset: int, length: int) -> Iterator[Run]:
        """The runs of a range, cut to it. ValueError for what is no range of the disk."""
        end = offset + length
        if offset < 0 or length < 0:
            raise ValueError(f"[{offset}, +{length}) is no range of a disk")
        if end > self._size_bytes:
            raise ValueError(f"[{offset}, {end}) reaches past the end of the disk, {self._size_bytes}")
        at = bisect_right(self._starts, offset) - 1
        while offset < end:
            stop = min(self._end_of(at), end)
            place = self._places[at]
            yield Run(
                offset=offset,
                length=stop - offset,
                device_offset=None if place == HOLE else place + offset - self._starts[at],
                device=self._devices[at],
            )
            offset = stop
            at += 1

    def allocated(self, offset: int, length: int) -> Iterator[Extent]:
        """Parts of a range that lie somewhere, ascending and merged."""
        start, stop = 0, 0
        for run in self.runs(offset, length):
            if run.device_offset is None:
                continue
            if run.offset != stop:
                if stop > start:
                    yield Extent(offset=start, length=stop - start)
                start = run.offset
            stop = run.end
        if stop > start:
            yield Extent(offset=start, length=stop - start)

    def _end_of(self, at: int) -> int:
        return self._starts[at + 1] if at + 1 < len(self._starts) else self._size_bytes

    def _add(self, run: Run) -> None:
        if run.offset != self._size_bytes or run.length < 0:
            raise ValueError(
                f"run [{run.offset}, +{run.length}) does not follow the one before, which ends at "
                f"{self._size_bytes}"
            )
        if run.length == 0:
            return
        place = HOLE if run.device_offset is None else run.device_offset
        if run.device_offset is not None and place < 0:
            raise ValueError(f"run [{run.offset}, +{run.length}) lies before its device's beginning")
        self._has_holes = self._has_holes or place == HOLE
        if not self._goes_on(place, run):
            self._starts.append(run.offset)
            self._places.append(place)
            self._devices.append(run.device)
        self._size_bytes = run.end

    def _goes_on(self, place: int, run: Run) -> bool:
        if not self._starts:
            return False
        if place == HOLE or self._places[-1] == HOLE:
            return place == self._places[-1]
        expected = self._places[-1] + run.offset - self._starts[-1]
        return place == expected and run.device == self._devices[-1]


def _with_holes(size_bytes: int, data: Iterable[tuple[int, int]]) -> Iterator[Run]:
    at = 0
    for start, stop in data:
        yield Run(offset=at, length=start - at, device_offset=None)
        yield Run(offset=start, length=stop - start, device_offset=start)
        at = stop
    yield Run(offset=at, length=size_bytes - at, device_offset=None)
