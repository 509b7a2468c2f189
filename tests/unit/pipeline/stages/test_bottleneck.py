"""What a running backup says of its bottleneck."""

from __future__ import annotations

import threading

from pipeline.model import Bottleneck
from pipeline.progress import MoverProgress
from pipeline.stages.flow import Meter, share
from pipeline.testing.builders import BLOCK_SIZE_BYTES, ManualClock, Workbench
from pipeline.testing.disks import MemoryDisk
from pipeline.testing.storage import MemoryStorage

LONG_S = 120
"""The test's patience, not a measure: it goes on with the event."""


def test_work_under_way_counts() -> None:
    clock = ManualClock()
    meter = Meter(clock)
    with meter:
        clock.now_s += 3
        assert meter.busy_s == 3
        with meter:
            clock.now_s += 2
            assert meter.busy_s == 7
        assert meter.busy_s == 7
    clock.now_s += 10
    assert meter.busy_s == 7
    assert share(meter.busy_s, 2, 15) == 7 / 30


def test_a_slow_source_is_named_while_it_is_read() -> None:
    """A source that takes ten seconds for each answer, and a repository that takes no time."""
    clock = ManualClock()
    bench = Workbench(MemoryStorage(clock), clock)
    named = threading.Event()
    reads: list[int] = []

    def before_read(offset: int) -> None:
        reads.append(offset)
        clock.now_s += 10
        if len(reads) == 5:
            assert named.wait(LONG_S), "no progress named the source"

    def progress(seen: MoverProgress) -> None:
        if reads and seen.stages.bottleneck is Bottleneck.SOURCE and seen.stages.source > 0.5:
            named.set()

    disk = MemoryDisk(bytes(range(256)) * (20 * BLOCK_SIZE_BYTES // 256), before_read=before_read)
    backup = bench.backup(disk, progress=progress)
    assert backup.stats.stages.bottleneck is Bottleneck.SOURCE
    assert backup.stats.stages.source > 0.9
