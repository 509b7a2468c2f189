"""Committing restore points beside damage."""

from __future__ import annotations

import random

import pytest

from pipeline.errors import RestorePointNotFoundError, RestorePointRefusedError
from pipeline.repair import repair
from pipeline.repository import layout
from pipeline.testing.builders import (
    BLOCK_SIZE_BYTES,
    ManualClock,
    Workbench,
    disk_point,
    restore_point,
)
from pipeline.testing.storage import MemoryStorage

BLOCKS = 1030
"""More than one map node names."""


def test_a_point_is_committed_whose_predecessor_has_lost_its_map() -> None:
    clock = ManualClock()
    storage = MemoryStorage(clock)
    bench = Workbench(storage, clock)
    image = bytearray(random.Random(1).randbytes(64) * (BLOCKS * BLOCK_SIZE_BYTES // 64))
    image[0] ^= 1
    old = bench.commit(restore_point(disk_point(bench.backup(image).map_root, len(image))))
    root = bytes.fromhex(old.disks[0].map_root)
    place = bench.repository.index_loader().refresh().find(root)
    assert place is not None
    storage.delete(layout.pack_name(place.pack_id))
    assert repair(bench.on(storage).repository).lost
    bench = bench.on(storage)
    image[0] ^= 3
    new = bench.commit(restore_point(disk_point(bench.backup(image).map_root, len(image))))
    assert bench.restored(new.disks[0].map_root, len(image)) == image


def test_a_planted_record_does_not_keep_from_restoring_or_forgetting() -> None:
    storage = MemoryStorage()
    bench = Workbench(storage, ManualClock())
    point = bench.commit(restore_point())
    storage.put(f"forgotten/{point.id}", b"planted")
    repository = bench.on(storage).repository
    assert repository.points() == (point,)
    assert repository.point(point.id) == point
    assert not repository.commit_point(point)
    assert repository.forget([point.id]) == 1
    assert bench.on(storage).repository.points() == ()
    with pytest.raises(RestorePointNotFoundError):
        repository.point(point.id)
    with pytest.raises(RestorePointRefusedError, match="forgotten"):
        repository.commit_point(point)
