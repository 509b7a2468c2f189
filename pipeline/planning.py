"""What to read of a disk, computed without reading anything."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from pipeline.model import ReadMode
from transports.base import Extent

ZERO_ROOT: Final = "0" * 64
REASON_FIRST: Final = "no earlier restore point of this disk"
REASON_NO_TRACKING: Final = "changed block tracking gave no answer"


class BlockRanges:
    """Ascending runs of blocks, [first, end), that do not touch; 16 bytes for each."""

    __slots__ = ("_bounds",)

    def __init__(self, runs: Iterable[tuple[int, int]] = ()) -> None:
        """Takes runs in any order, overlapping or not."""
        self._bounds = array("Q")
        previous_first = 0
        remaining = iter(runs)
        for first, end in remaining:
            if first < previous_first:
                # Out of order: rare (listings ascend), so a sorted copy in memory does no harm.
                everything = sorted([*self, (first, end), *remaining])
                self._bounds = array("Q")
                for each_first, each_end in everything:
                    self._append(each_first, each_end)
                return
            previous_first = first
            self._append(first, end)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        bounds = self._bounds
        for at in range(0, len(bounds), 2):
            yield bounds[at], bounds[at + 1]

    def __len__(self) -> int:
        """Number of runs."""
        return len(self._bounds) // 2

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BlockRanges) and self._bounds == other._bounds

    def __hash__(self) -> int:
        return hash(tuple(self._bounds))

    def __repr__(self) -> str:
        return f"BlockRanges({list(self)!r})"

    @property
    def block_count(self) -> int:
        return sum(end - first for first, end in self)

    def intersection(self, other: BlockRanges) -> BlockRanges:
        return BlockRanges(_intersect(iter(self), iter(other)))

    def difference(self, other: BlockRanges) -> BlockRanges:
        return BlockRanges(_subtract(iter(self), iter(other)))

    def _append(self, first: int, end: int) -> None:
        if first >= end:
            return
        if self._bounds and first <= self._bounds[-1]:
            self._bounds[-1] = max(self._bounds[-1], end)
        else:
            self._bounds.append(first)
            self._bounds.append(end)


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupPlan:
    """What the data mover does with one disk."""

    read_mode: ReadMode
    reason: str
    """Why not an increment; empty for one."""
    capacity_bytes: int
    block_size_bytes: int
    base_root: str
    """Map that blocks outside of all ranges are taken from; 64 zeros: they are zeros."""
    read: BlockRanges
    zero: BlockRanges
    """Changed blocks that are known to hold zeros now, and are not read."""
    changed_bytes: int
    """Bytes that had to be considered: what change tracking named, or all that is read."""

    @property
    def block_count(self) -> int:
        return -(-self.capacity_bytes // self.block_size_bytes)

    @property
    def read_bytes(self) -> int:
        """Bytes that will be read."""
        return bytes_of(self.read, self.capacity_bytes, self.block_size_bytes)


def bytes_of(blocks: BlockRanges, capacity_bytes: int, block_size_bytes: int) -> int:
    """How many bytes of the disk these blocks are; the last one may be short."""
    return sum(
        min(end * block_size_bytes, capacity_bytes) - first * block_size_bytes for first, end in blocks
    )


def plan_backup(
    *,
    capacity_bytes: int,
    block_size_bytes: int,
    previous_map_root: str = "",
    previous_capacity_bytes: int = 0,
    changed: Iterable[Extent] | None,
    allocated: Iterable[Extent] | None,
    full_read_reason: str = "",
) -> BackupPlan:
    """Decide how a disk is read.

    `previous_map_root` empty: there is nothing to build on. `previous_capacity_bytes` 0: as now.
    `changed` None: change tracking cannot answer. `allocated` None: the transport mode cannot tell, so
    everything may hold data; what is not listed reads as zeros. `full_read_reason` not empty: read
    everything whatever tracking says.

    Extents may come in any order, overlap, and reach beyond the disk; they are widened to the block grid
    and clipped. Each iterable is consumed once.
    """
    if capacity_bytes < 0 or block_size_bytes <= 0:
        raise ValueError(f"a disk of {capacity_bytes} bytes in blocks of {block_size_bytes}")
    count = -(-capacity_bytes // block_size_bytes)
    everything = BlockRanges([(0, count)])
    held = everything if allocated is None else blocks_of(allocated, capacity_bytes, block_size_bytes)
    reason = _reason_for_full(
        previous_map_root, previous_capacity_bytes, capacity_bytes, changed, full_read_reason
    )
    if reason or changed is None:
        return BackupPlan(
            read_mode=ReadMode.FULL_SCAN if previous_map_root else ReadMode.FULL,
            reason=reason,
            capacity_bytes=capacity_bytes,
            block_size_bytes=block_size_bytes,
            base_root=ZERO_ROOT,
            read=held,
            zero=BlockRanges(),
            changed_bytes=bytes_of(held, capacity_bytes, block_size_bytes),
        )
    counted = _ByteCount(capacity_bytes)
    touched = blocks_of(counted.each(changed), capacity_bytes, block_size_bytes)
    return BackupPlan(
        read_mode=ReadMode.INCREMENT,
        reason="",
        capacity_bytes=capacity_bytes,
        block_size_bytes=block_size_bytes,
        base_root=previous_map_root,
        read=touched.intersection(held),
        zero=touched.difference(held),
        changed_bytes=counted.total,
    )


def _reason_for_full(
    previous_map_root: str,
    previous_capacity_bytes: int,
    capacity_bytes: int,
    changed: Iterable[Extent] | None,
    full_read_reason: str,
) -> str:
    if not previous_map_root:
        return full_read_reason or REASON_FIRST
    if full_read_reason:
        return full_read_reason
    if previous_capacity_bytes not in {0, capacity_bytes}:
        # vSphere's tracking is not to be trusted across a resize, in either direction.
        return f"the disk was resized from {previous_capacity_bytes} to {capacity_bytes} bytes"
    return REASON_NO_TRACKING if changed is None else ""


class _ByteCount:
    """Adds up the bytes of extents that pass through, clipped to the disk."""

    def __init__(self, capacity_bytes: int) -> None:
        self._capacity_bytes = capacity_bytes
        self.total = 0

    def each(self, extents: Iterable[Extent]) -> Iterator[Extent]:
        for extent in extents:
            self.total += max(0, min(extent.end, self._capacity_bytes) - max(0, extent.offset))
            yield extent


def blocks_of(extents: Iterable[Extent], capacity_bytes: int, block_size_bytes: int) -> BlockRanges:
    """The blocks that these extents touch, clipped to the disk."""
    return BlockRanges(
        (
            max(0, extent.offset) // block_size_bytes,
            -(-min(extent.end, capacity_bytes) // block_size_bytes),
        )
        for extent in extents
    )


def _intersect(
    left: Iterator[tuple[int, int]], right: Iterator[tuple[int, int]]
) -> Iterator[tuple[int, int]]:
    one, other = next(left, None), next(right, None)
    while one is not None and other is not None:
        first, end = max(one[0], other[0]), min(one[1], other[1])
        if first < end:
            yield first, end
        if one[1] <= other[1]:
            one = next(left, None)
        else:
            other = next(right, None)


def _subtract(
    left: Iterator[tuple[int, int]], right: Iterator[tuple[int, int]]
) -> Iterator[tuple[int, int]]:
    other = next(right, None)
    for run_first, end in left:
        first = run_first
        while other is not None and other[1] <= first:
            other = next(right, None)
        while other is not None and other[0] < end:
            if first < other[0]:
                yield first, other[0]
            first = max(first, other[1])
            if other[1] >= end:
                break
            other = next(right, None)
        if first < end:
            yield first, end
