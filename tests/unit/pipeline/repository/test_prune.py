"""What the model test found prune to do wrong, each by itself."""

from __future__ import annotations

from pipeline.repository.doomed import read_doomed
from pipeline.repository.work import WorkRecord, WorkState, write_work
from pipeline.testing.builders import (
    BLOCK_SIZE_BYTES,
    ManualClock,
    Workbench,
    disk_point,
    restore_point,
)
from pipeline.testing.storage import MemoryStorage

IMAGE = b"".join(bytes([n]) * BLOCK_SIZE_BYTES for n in range(1, 30))


def packs_of(storage: MemoryStorage) -> set[str]:
    return {name for name in storage.objects if name.startswith("packs/")}


def test_a_pack_that_came_back_is_doomed_anew() -> None:
    clock = ManualClock()
    storage = MemoryStorage(clock)
    bench = Workbench(storage, clock)
    disk = disk_point(bench.backup(IMAGE).map_root, len(IMAGE))
    repository = bench.repository
    for _ in range(2):  # the second point brings the doomed packs of the first back
        point = bench.commit(restore_point(disk))
        repository.forget([point.id])
        clock.now_s += 100
        if not any(name.startswith("doomed/") for name in storage.objects):
            repository.prune(keep_work_ids=(), min_age_s=50)
    before = packs_of(storage)
    # Begins while the index names the packs, long after they were doomed for the first time.
    begun = WorkRecord(
        state=WorkState.BEGUN,
        begun_at_s=clock(),
        capacity_bytes=len(IMAGE),
        read_mode="full",
        base_root="",
    )
    write_work(storage, repository.keyring, repository.aead, "writer", begun)
    clock.now_s += 1
    repository.prune(keep_work_ids=["writer"], min_age_s=50)
    assert packs_of(storage) == before
    point = bench.commit(restore_point(disk))
    assert bench.restored(point.disks[0].map_root, len(IMAGE)) == IMAGE
    assert bench.problems() == ()


def test_packs_of_little_are_not_written_again_and_again() -> None:
    clock = ManualClock()
    storage = MemoryStorage(clock)
    bench = Workbench(storage, clock, pack_target_bytes=1)
    image = b"\1" * BLOCK_SIZE_BYTES  # a blob that is smaller than what a pack has besides
    point = bench.commit(restore_point(disk_point(bench.backup(image).map_root, len(image))))
    before = packs_of(storage)
    for _ in range(3):
        clock.now_s += 100
        report = bench.repository.prune(keep_work_ids=(), min_age_s=50)
        assert report.rewritten_bytes == 0
    assert packs_of(storage) == before
    assert read_doomed(storage, bench.repository.keyring) == []
    assert bench.restored(point.disks[0].map_root, len(image)) == image
