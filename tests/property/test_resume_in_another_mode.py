"""A disk that one transport mode began and another ends: modes differ in what they call allocated, and in
their answers' order. No block may be lost, whatever the first attempt knew more or less.
"""

from __future__ import annotations

import random
from collections import Counter
from contextlib import suppress

from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.model import ReadMode
from pipeline.mover import MoverOptions
from pipeline.testing.builders import BLOCK_SIZE_BYTES, ManualClock, Workbench
from pipeline.testing.disks import MemoryDisk
from pipeline.testing.storage import MemoryStorage
from transports.base import Extent
from transports.errors import TransientTransportError

BLOCKS = 40
CAPACITY_BYTES = BLOCKS * BLOCK_SIZE_BYTES + 512
OPTIONS = MoverOptions(workers=2, checkpoint_every_s=0.0)
BlockSet = st.frozensets(st.integers(0, BLOCKS), max_size=BLOCKS)


def extents(blocks: frozenset[int]) -> list[Extent]:
    return [
        Extent(
            offset=block * BLOCK_SIZE_BYTES,
            length=min(BLOCK_SIZE_BYTES, CAPACITY_BYTES - block * BLOCK_SIZE_BYTES),
        )
        for block in sorted(blocks)
    ]


def image(data: frozenset[int], seed: int) -> bytearray:
    made = bytearray(CAPACITY_BYTES)
    rng = random.Random(seed)
    for extent in extents(data):
        made[extent.offset : extent.end] = rng.randbytes(extent.length)
    return made


class Cut:
    """A disk whose reading ends after so many reads."""

    def __init__(self, content: bytearray, after: int, in_flight: int) -> None:
        self.left = after
        self.disk = MemoryDisk(content, requests_in_flight=in_flight, before_read=self._step)

    def _step(self, _offset: int) -> None:
        if not self.left:
            raise TransientTransportError("the proxy died")
        self.left -= 1


@given(
    data=BlockSet,
    more=st.tuples(BlockSet, BlockSet),
    after=st.integers(0, BLOCKS),
    in_flight=st.tuples(st.integers(1, 8), st.integers(1, 8)),
)
@example(data=frozenset(range(BLOCKS)), more=(frozenset(), frozenset()), after=7, in_flight=(4, 1))
def test_a_full_goes_on_with_what_another_mode_calls_allocated(
    data: frozenset[int],
    more: tuple[frozenset[int], frozenset[int]],
    after: int,
    in_flight: tuple[int, int],
) -> None:
    """Each mode names at least what holds data, and more as it pleases."""
    bench = Workbench(MemoryStorage(clock := ManualClock()), clock)
    content = image(data, 1)
    first = Cut(content, after, in_flight[0])
    plans = [bench.plan(CAPACITY_BYTES, allocated=extents(data | each)) for each in more]
    with suppress(TransientTransportError):
        bench.backup(first.disk, plan=plans[0], work_id="disk", options=OPTIONS)
    second = MemoryDisk(content, requests_in_flight=in_flight[1])
    done = bench.backup(second, plan=plans[1], work_id="disk", options=OPTIONS)
    assert bench.restored(done.map_root, CAPACITY_BYTES) == content
    read = Counter(extent.offset for extent in (*first.disk.reads, *second.reads))
    # Answers of the first that came out of order behind a gap are lost with it, no others.
    assert sum(read.values()) - len(read) <= in_flight[0]
    counts = done.stats.blocks
    assert counts.zero + counts.new + counts.deduplicated == BLOCKS + 1


@given(
    before=BlockSet,
    changed=BlockSet,
    more=st.tuples(BlockSet, BlockSet),
    after=st.integers(0, BLOCKS),
    full_scan=st.booleans(),
)
def test_an_increment_goes_on_whatever_more_tracking_names(
    before: frozenset[int],
    changed: frozenset[int],
    more: tuple[frozenset[int], frozenset[int]],
    after: int,
    *,
    full_scan: bool,
) -> None:
    """Tracking may name blocks that did not change, others at each question; and a second attempt may read
    everything because it does not believe tracking any more.
    """
    bench = Workbench(MemoryStorage(clock := ManualClock()), clock)
    old = image(before, 1)
    base = bench.backup(old, work_id="base")
    new = image(before, 1)
    for extent in extents(changed):
        new[extent.offset : extent.end] = random.Random(extent.offset).randbytes(extent.length)
    plans = [
        bench.plan(CAPACITY_BYTES, previous=base.map_root, changed=extents(changed | each))
        for each in more
    ]
    if full_scan:
        plans[1] = bench.plan(CAPACITY_BYTES, previous=base.map_root, changed=None)
    cut = Cut(new, after, 4)
    with suppress(TransientTransportError):
        bench.backup(cut.disk, plan=plans[0], work_id="disk", options=OPTIONS)
    done = bench.backup(MemoryDisk(new), plan=plans[1], work_id="disk", options=OPTIONS)
    assert bench.restored(done.map_root, CAPACITY_BYTES) == new
    assert plans[1].read_mode is (ReadMode.FULL_SCAN if full_scan else ReadMode.INCREMENT)
    counts = done.stats.blocks
    assert counts.zero + counts.new + counts.deduplicated + counts.unchanged == BLOCKS + 1
