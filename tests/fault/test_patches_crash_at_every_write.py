"""A backup whose blocks become patches dies before its n-th write, for every n."""

from __future__ import annotations

import random

import pytest

from pipeline.mover import MoverOptions
from pipeline.repository.format import Encoding
from pipeline.repository.index import read_index_object
from pipeline.repository.layout import INDEX
from pipeline.testing.builders import (
    BLOCK_SIZE_BYTES,
    ManualClock,
    Workbench,
    disk_point,
    restore_point,
)
from pipeline.testing.storage import Crash, CrashingStorage, MemoryStorage
from transports.base import SECTOR_BYTES, Extent

BLOCKS = 40
CAPACITY_BYTES = BLOCKS * BLOCK_SIZE_BYTES - 512
MOST_WRITES = 300


@pytest.mark.parametrize("checkpoint_every_s", [0.0, 1e9])
def test_an_increment_of_patches_dies_anywhere_and_goes_on(checkpoint_every_s: float) -> None:
    for crash_at in range(1, MOST_WRITES):
        clock = ManualClock()
        storage = MemoryStorage(clock)
        bench = Workbench(storage, clock)
        rng = random.Random(1)
        image = bytearray(rng.randbytes(CAPACITY_BYTES))
        first = bytes(image)
        root = bench.backup(image).map_root
        point = bench.commit(restore_point(disk_point(root, CAPACITY_BYTES)))
        extents = []
        for number in range(0, BLOCKS - 1, 2):
            offset = number * BLOCK_SIZE_BYTES + rng.randrange(8) * SECTOR_BYTES
            image[offset : offset + SECTOR_BYTES] = rng.randbytes(SECTOR_BYTES)
            extents.append(Extent(offset=offset, length=SECTOR_BYTES))
        plan = bench.plan(CAPACITY_BYTES, previous=root, changed=extents)
        options = MoverOptions(workers=2, checkpoint_every_s=checkpoint_every_s)

        def increment(on: Workbench) -> None:
            backup = on.backup(image, plan=plan, work_id="increment", options=options)  # noqa: B023
            on.commit(
                restore_point(disk_point(backup.map_root, CAPACITY_BYTES), previous=point)  # noqa: B023
            )

        died = False
        try:
            increment(bench.on(CrashingStorage(storage, crash_at)))
        except Crash:
            died = True
        survivor = bench.on(storage)
        assert survivor.problems() == ()
        assert survivor.restored(root, CAPACITY_BYTES) == first
        if not died:
            assert crash_at > 2
            assert patches(survivor) >= BLOCKS // 2 - 1
            return
        survivor.repository.prune(keep_work_ids=["increment"], min_age_s=0)
        if len(survivor.repository.points()) == 1:
            increment(survivor)
        (newest,) = [each for each in survivor.repository.points() if each.id != point.id]
        assert survivor.restored(newest.disks[0].map_root, CAPACITY_BYTES) == image
        assert survivor.problems() == ()
    pytest.fail(f"still dying after {MOST_WRITES} writes")


def patches(bench: Workbench) -> int:
    return sum(
        entry.encoding == Encoding.PATCH
        for listed in bench.storage.list(INDEX)
        for segment in read_index_object(bench.storage, bench.repository.keyring, listed.name)
        for entry in segment.entries
    )
