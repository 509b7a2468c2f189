"""Garbage collection and patches: what the index names can be read, whatever was forgotten."""

from __future__ import annotations

import random

import pytest

from pipeline.testing.builders import (
    BLOCK_SIZE_BYTES,
    ManualClock,
    Workbench,
    disk_point,
    restore_point,
)
from pipeline.testing.storage import MemoryStorage
from transports.base import SECTOR_BYTES, Extent

BLOCKS = 48
CAPACITY_BYTES = BLOCKS * BLOCK_SIZE_BYTES


@pytest.mark.parametrize("seed", range(6))
def test_no_patch_stays_in_the_index_without_its_base(seed: int) -> None:
    clock = ManualClock()
    bench = Workbench(MemoryStorage(clock), clock)
    assert bench.repository.makes_patches
    rng = random.Random(seed)
    image = bytearray(rng.randbytes(CAPACITY_BYTES))
    root, points, previous = "", [], None
    for _ in range(6):
        extents = []
        for block in rng.sample(range(BLOCKS), 20):
            offset = block * BLOCK_SIZE_BYTES + rng.randrange(8) * SECTOR_BYTES
            length = SECTOR_BYTES if rng.random() < 0.7 else BLOCK_SIZE_BYTES
            offset = offset if length == SECTOR_BYTES else block * BLOCK_SIZE_BYTES
            image[offset : offset + length] = rng.randbytes(length)
            extents.append(Extent(offset=offset, length=length))
        plan = bench.plan(CAPACITY_BYTES, previous=root, changed=extents if root else None)
        root = bench.backup(image, plan=plan).map_root
        previous = bench.commit(restore_point(disk_point(root, CAPACITY_BYTES), previous=previous))
        points.append((previous, bytes(image)))
    while points:
        gone = points.pop(rng.randrange(len(points)))
        bench.repository.forget([gone[0].id])
        for _ in range(2):
            clock.now_s += 10
            bench.repository.prune(keep_work_ids=(), min_age_s=0)
        # Every blob of every pack, needed or not.
        assert bench.problems() == ()
        for point, content in points:
            assert bench.restored(point.disks[0].map_root, CAPACITY_BYTES) == content
        # A guest that comes back to what was forgotten finds old blobs in the index.
        again = bench.backup(gone[1])
        assert bench.restored(again.map_root, CAPACITY_BYTES) == gone[1]
