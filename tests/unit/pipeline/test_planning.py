from __future__ import annotations

import random

import pytest

from pipeline.model import ReadMode
from pipeline.planning import (
    REASON_FIRST,
    REASON_NO_TRACKING,
    ZERO_ROOT,
    BackupPlan,
    BlockRanges,
    plan_backup,
)
from transports.base import Extent

BLOCK = 1000
ROOT = "ab" * 32


def extents(*pairs: tuple[int, int]) -> list[Extent]:
    """(offset, end) pairs."""
    return [Extent(offset=offset, length=end - offset) for offset, end in pairs]


def plan(
    capacity: int = 10_500,
    *,
    previous: str = "",
    previous_capacity: int = 0,
    changed: list[Extent] | None = None,
    allocated: list[Extent] | None = None,
    reason: str = "",
) -> BackupPlan:
    return plan_backup(
        capacity_bytes=capacity,
        block_size_bytes=BLOCK,
        previous_map_root=previous,
        previous_capacity_bytes=previous_capacity,
        changed=changed,
        allocated=allocated,
        full_read_reason=reason,
    )


def test_a_first_backup_reads_what_is_allocated() -> None:
    made = plan(allocated=extents((100, 200), (2999, 4001)))
    assert made.read_mode is ReadMode.FULL
    assert made.reason == REASON_FIRST
    assert list(made.read) == [(0, 1), (2, 5)]
    assert made.base_root == ZERO_ROOT
    assert made.read_bytes == made.changed_bytes == 4 * BLOCK


def test_a_mode_that_cannot_tell_has_everything_read() -> None:
    made = plan(allocated=None)
    assert list(made.read) == [(0, 11)]
    assert made.read_bytes == 10_500, "the last block is short"


def test_an_increment_reads_changed_blocks_only() -> None:
    made = plan(previous=ROOT, changed=extents((1999, 2001), (5000, 6000), (10_400, 99_999)))
    assert made.read_mode is ReadMode.INCREMENT
    assert made.reason == ""
    assert made.base_root == ROOT
    assert list(made.read) == [(1, 3), (5, 6), (10, 11)]
    assert made.changed_bytes == 2 + 1000 + 100, "clipped to the disk"
    assert made.read_bytes == 3 * BLOCK + 500


def test_changed_blocks_that_are_not_allocated_are_zeros() -> None:
    made = plan(
        previous=ROOT, changed=extents((0, 3000), (6000, 8000)), allocated=extents((1500, 1600))
    )
    assert list(made.read) == [(1, 2)]
    assert list(made.zero) == [(0, 1), (2, 3), (6, 8)]


def test_no_change_reads_nothing() -> None:
    made = plan(previous=ROOT, changed=[])
    assert made.read_mode is ReadMode.INCREMENT
    assert made.read_bytes == made.changed_bytes == made.read.block_count == 0


@pytest.mark.parametrize("previous_capacity", [9_000, 20_000])
def test_a_resized_disk_is_read_as_a_whole(previous_capacity: int) -> None:
    made = plan(previous=ROOT, previous_capacity=previous_capacity, changed=[])
    assert made.read_mode is ReadMode.FULL_SCAN
    assert made.reason == f"the disk was resized from {previous_capacity} to 10500 bytes"
    assert made.base_root == ZERO_ROOT
    assert list(made.read) == [(0, 11)]


def test_without_an_answer_of_tracking_everything_is_compared() -> None:
    made = plan(previous=ROOT, previous_capacity=10_500, changed=None, allocated=extents((0, 10)))
    assert (made.read_mode, made.reason) == (ReadMode.FULL_SCAN, REASON_NO_TRACKING)
    assert list(made.read) == [(0, 1)]


def test_the_servers_reason_wins() -> None:
    made = plan(previous=ROOT, changed=[], reason="an active full was asked for")
    assert (made.read_mode, made.reason) == (ReadMode.FULL_SCAN, "an active full was asked for")
    assert plan(reason="the VM was reverted").reason == "the VM was reverted"


def test_extents_may_come_in_any_order_and_overlap() -> None:
    made = plan(previous=ROOT, changed=extents((7000, 7001), (0, 1), (500, 2500), (0, 1), (6999, 7001)))
    assert list(made.read) == [(0, 3), (6, 8)]


def test_an_empty_disk_has_no_blocks() -> None:
    made = plan(capacity=0)
    assert made.block_count == made.read_bytes == made.read.block_count == 0


def test_many_ranges_are_small() -> None:
    """What change tracking names at worst on a disk of 2 TiB: every other block."""
    count = 1 << 20
    ranges = BlockRanges((2 * n, 2 * n + 1) for n in range(count))
    assert ranges.block_count == len(ranges) == count


def test_range_arithmetic_equals_that_of_sets() -> None:
    rng = random.Random(5)
    for _ in range(300):
        pairs = [
            [(start := rng.randrange(60), start + rng.randrange(6)) for _ in range(rng.randrange(8))]
            for _ in range(2)
        ]
        one, other = (BlockRanges(p) for p in pairs)
        one_set, other_set = ({n for first, end in p for n in range(first, end)} for p in pairs)
        assert {n for first, end in one for n in range(first, end)} == one_set
        assert list(one.intersection(other)) == runs(one_set & other_set)
        assert list(one.difference(other)) == runs(one_set - other_set)
        assert one.block_count == len(one_set)


def runs(blocks: set[int]) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    for block in sorted(blocks):
        if found and found[-1][1] == block:
            found[-1] = (found[-1][0], block + 1)
        else:
            found.append((block, block + 1))
    return found


def test_nonsense_is_refused() -> None:
    with pytest.raises(ValueError, match="disk of"):
        plan(capacity=-1)
