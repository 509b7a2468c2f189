"""Address maps: which part of one address space lies where in another. Pure.

A file on VMFS maps to its volume, a volume to LUNs, a disk to the grains of a delta file: all are the same thing,
are composed with each other, and laid over each other where a delta hides its parent. Columns of numbers, as a
delta of a few GiB has a million runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.int64]
_NONE: Final = 0


class Kind(IntEnum):
    """What a run is."""

    ABSENT = 0  # nothing here: the parent shows through
    ZERO = 1  # zeros that nobody stored
    DATA = 2


class MapError(ValueError):
    """Numbers that describe no map: they overlap, leave gaps or point outside. Their source is damaged."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RunMap:
    """Runs from 0 to `size`, without gaps, ascending, neighbours merged. All lengths are bytes."""

    starts: Numbers
    kinds: Numbers
    devices: Numbers
    """Index of the device that `targets` counts in; 0 in spaces that have one only, and of what is no data."""
    targets: Numbers
    """Where the data begins there; 0 of what is no data."""
    size: int

    @property
    def ends(self) -> Numbers:
        return np.append(self.starts[1:], self.size).astype(np.int64)

    @property
    def lengths(self) -> Numbers:
        return self.ends - self.starts

    def rows(self) -> list[tuple[int, int, Kind, int, int]]:
        """(start, length, kind, device, target) of each run."""
        columns = (self.starts, self.lengths, self.kinds, self.devices, self.targets)
        return [
            (start, length, Kind(kind), device, target)
            for start, length, kind, device, target in zip(
                *(column.tolist() for column in columns), strict=True
            )
        ]

    def holds(self, kind: Kind) -> bool:
        return bool((self.kinds == kind).any())


def uniform(size: int, kind: Kind) -> RunMap:
    """A map of one run without data."""
    if kind is Kind.DATA:
        raise ValueError("data lies somewhere: give runs")
    return make_map(size, np.zeros(min(size, 1)), np.full(min(size, 1), kind))


def make_map(
    size: int,
    starts: npt.ArrayLike,
    kinds: npt.ArrayLike,
    targets: npt.ArrayLike | None = None,
    devices: npt.ArrayLike | None = None,
) -> RunMap:
    """A map of runs that begin at `starts` and reach to the next one. Raises MapError."""
    begin = np.asarray(starts, dtype=np.int64)
    kind = np.asarray(kinds, dtype=np.int64)
    target = np.zeros_like(begin) if targets is None else np.asarray(targets, dtype=np.int64)
    device = np.zeros_like(begin) if devices is None else np.asarray(devices, dtype=np.int64)
    if size < 0 or len({len(begin), len(kind), len(target), len(device)}) != 1:
        raise MapError("columns of different lengths")
    if (len(begin) == 0) != (size == 0) or (len(begin) and begin[0] != 0):
        raise MapError("the runs do not begin at 0")
    if len(begin) and (bool((np.diff(begin) <= 0).any()) or begin[-1] >= size):
        raise MapError("the runs do not ascend to the size")
    data = kind == Kind.DATA
    if bool((target[data] < 0).any()):
        raise MapError("a run lies before the beginning of its device")
    return _merged(size, begin, kind, np.where(data, device, _NONE), np.where(data, target, _NONE))


def _merged(size: int, starts: Numbers, kinds: Numbers, devices: Numbers, targets: Numbers) -> RunMap:
    if len(starts) > 1:
        lengths = np.diff(starts)
        goes_on = (kinds[1:] == kinds[:-1]) & (
            (kinds[1:] != Kind.DATA)
            | ((devices[1:] == devices[:-1]) & (targets[1:] == targets[:-1] + lengths))
        )
        keep = np.append(True, ~goes_on)
        starts, kinds, devices, targets = starts[keep], kinds[keep], devices[keep], targets[keep]
    return RunMap(starts=starts, kinds=kinds, devices=devices, targets=targets, size=size)


def compose(outer: RunMap, inner: RunMap) -> RunMap:
    """Where the data of `outer`, whose targets count in the space of `inner`, finally lies.

    Raises MapError when a run points beyond the end of `inner`.
    """
    if not len(outer.starts):
        return outer
    data = outer.kinds == Kind.DATA
    if bool((outer.targets + outer.lengths)[data].max(initial=0) > inner.size):
        raise MapError("a run reaches beyond what it points into")
    # So many pieces comes each outer run in: one for each inner run that it touches.
    first = np.searchsorted(inner.starts, outer.targets, side="right") - 1
    last = np.searchsorted(inner.starts, outer.targets + outer.lengths, side="left") - 1
    pieces = np.where(data, last - first + 1, 1)
    total = int(pieces.sum())
    of = np.repeat(np.arange(len(pieces)), pieces)
    number = np.arange(total) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    if not len(inner.starts):
        return outer
    piece = np.where(data[of], first[of] + number, 0)
    start_in_inner = np.maximum(outer.targets[of], inner.starts[piece])
    shift = np.where(data[of], start_in_inner - outer.targets[of], 0)
    kinds = np.where(data[of], inner.kinds[piece], outer.kinds[of])
    targets = inner.targets[piece] + start_in_inner - inner.starts[piece]
    return make_map(outer.size, outer.starts[of] + shift, kinds, targets, inner.devices[piece])


def overlay(child: RunMap, parent: RunMap) -> RunMap:
    """`child` over `parent`: what is absent in the child is the parent's; zeros beyond the parent's end.

    Both count in the same disk and their targets in the same devices.
    """
    if parent.size < child.size:
        parent = concat((parent, uniform(child.size - parent.size, Kind.ZERO)))
    starts = np.union1d(child.starts, parent.starts)
    starts = starts[starts < child.size]
    up = np.searchsorted(child.starts, starts, side="right") - 1
    down = np.searchsorted(parent.starts, starts, side="right") - 1
    own = child.kinds[up] != Kind.ABSENT
    return make_map(
        child.size,
        starts,
        np.where(own, child.kinds[up], parent.kinds[down]),
        np.where(
            own,
            child.targets[up] + starts - child.starts[up],
            parent.targets[down] + starts - parent.starts[down],
        ),
        np.where(own, child.devices[up], parent.devices[down]),
    )


def concat(maps: Iterable[RunMap]) -> RunMap:
    """One after the other."""
    parts: Sequence[RunMap] = [part for part in maps if part.size]
    if not parts:
        return make_map(0, (), ())
    bases = np.cumsum([0, *(part.size for part in parts)])
    return make_map(
        int(bases[-1]),
        np.concatenate([part.starts + base for part, base in zip(parts, bases, strict=False)]),
        np.concatenate([part.kinds for part in parts]),
        np.concatenate([part.targets for part in parts]),
        np.concatenate([part.devices for part in parts]),
    )


def window(whole: RunMap, offset: int, length: int) -> RunMap:
    """A part of a map as a map of its own. Raises MapError when it reaches beyond the end."""
    if offset < 0 or length < 0 or offset + length > whole.size:
        raise MapError(f"[{offset}, {offset + length}) is not inside of {whole.size} bytes")
    if not length:
        return make_map(0, (), ())
    first = int(np.searchsorted(whole.starts, offset, side="right")) - 1
    last = int(np.searchsorted(whole.starts, offset + length, side="left"))
    shift = np.maximum(whole.starts[first:last], offset) - whole.starts[first:last]
    return make_map(
        length,
        whole.starts[first:last] + shift - offset,
        whole.kinds[first:last],
        whole.targets[first:last] + shift,
        whole.devices[first:last],
    )
