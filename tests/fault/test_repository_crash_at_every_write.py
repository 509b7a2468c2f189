"""The process dies before its n-th write to the storage, for every n. Whatever it was doing, the
repository is sound, committed restore points restore, and the work can be done again to the end.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from pipeline.errors import RepositoryNotFoundError
from pipeline.model import RestorePoint
from pipeline.mover import MoverOptions
from pipeline.repository import Repository
from pipeline.testing.builders import (
    BLOCK_SIZE_BYTES,
    CHEAP_KDF,
    PASSWORD,
    ManualClock,
    Workbench,
    disk_point,
    restore_point,
)
from pipeline.testing.disks import MemoryDisk
from pipeline.testing.storage import Crash, CrashingStorage, MemoryStorage
from transports.base import Extent

BLOCKS = 60
CAPACITY_BYTES = BLOCKS * BLOCK_SIZE_BYTES - 512
MOST_WRITES = 400


def image_of(seed: int) -> bytearray:
    """Blocks of noise, text and zeros, some of them twice."""
    rng = random.Random(seed)
    blocks = [rng.randbytes(BLOCK_SIZE_BYTES) for _ in range(BLOCKS // 3)]
    blocks += [bytes([n]) * BLOCK_SIZE_BYTES for n in range(BLOCKS // 3)]
    blocks += [bytes(BLOCK_SIZE_BYTES)] * 5
    chosen = [rng.choice(blocks) for _ in range(BLOCKS)]
    return bytearray(b"".join(chosen)[:CAPACITY_BYTES])


@dataclass
class Before:
    """A repository with one committed point, before the writer that will die."""

    storage: MemoryStorage
    bench: Workbench
    point: RestorePoint
    image: bytearray


def before() -> Before:
    clock = ManualClock()
    storage = MemoryStorage(clock)
    bench = Workbench(storage, clock)
    image = image_of(1)
    backup = bench.backup(image)
    point = bench.commit(restore_point(disk_point(backup.map_root, CAPACITY_BYTES)))
    return Before(storage, bench, point, image)


def dying(scene: Before, crash_at: int, body: Callable[[Workbench], None]) -> bool:
    """Run `body` in a process that dies at its n-th write; True when it did die."""
    try:
        body(scene.bench.on(CrashingStorage(scene.storage, crash_at)))
    except Crash:
        return True
    return False


def for_every_write(body: Callable[[Before, int], bool]) -> None:
    """`body` runs a fresh scene and says whether it died; ends with the first that did not."""
    for crash_at in range(1, MOST_WRITES):
        if not body(before(), crash_at):
            assert crash_at > 2, "nothing was written at all"
            return
    pytest.fail(f"still dying after {MOST_WRITES} writes")


@pytest.mark.parametrize("checkpoint_every_s", [0.0, 1e9])
def test_backup_and_commit(checkpoint_every_s: float) -> None:
    changed = [Extent(offset=5 * BLOCK_SIZE_BYTES, length=40 * BLOCK_SIZE_BYTES)]
    image = image_of(1)
    image[changed[0].offset : changed[0].end] = image_of(2)[changed[0].offset : changed[0].end]
    options = MoverOptions(workers=2, checkpoint_every_s=checkpoint_every_s, verify_every=1)
    point_id = "6f1c2b44-0000-4000-8000-000000000002"

    def work(bench: Workbench, scene: Before) -> None:
        plan = bench.plan(CAPACITY_BYTES, previous=scene.point.disks[0].map_root, changed=changed)
        backup = bench.backup(MemoryDisk(image), plan=plan, work_id="task-1", options=options)
        disk = disk_point(backup.map_root, CAPACITY_BYTES)
        bench.commit(restore_point(disk, previous=scene.point, point_id=point_id))

    def one(scene: Before, crash_at: int) -> bool:
        died = dying(scene, crash_at, lambda bench: work(bench, scene))
        survivor = scene.bench.on(scene.storage)
        assert survivor.problems() == (), f"after a crash before write {crash_at}"
        committed = {point.id: point for point in survivor.repository.points()}
        assert scene.point.id in committed
        assert survivor.restored(scene.point.disks[0].map_root, CAPACITY_BYTES) == scene.image
        if died and point_id in committed:
            # Only the tidying after the commit was left to do.
            assert survivor.restored(committed[point_id].disks[0].map_root, CAPACITY_BYTES) == image
        work(survivor, scene)  # the next attempt
        final = survivor.repository.point(point_id)
        assert survivor.restored(final.disks[0].map_root, CAPACITY_BYTES) == image
        assert survivor.problems() == ()
        assert [name for name in scene.storage.objects if name.startswith("work/task")] == []
        return died

    for_every_write(one)


def test_another_attempt_does_not_read_what_is_durable() -> None:
    image = image_of(3)
    saved = []

    def one(scene: Before, crash_at: int) -> bool:
        options = MoverOptions(workers=2, checkpoint_every_s=0.0)

        def work(bench: Workbench) -> None:
            bench.backup(MemoryDisk(image), work_id="task-1", options=options)

        died = dying(scene, crash_at, work)
        disk = MemoryDisk(image)
        backup = scene.bench.on(scene.storage).backup(disk, work_id="task-1", options=options)
        assert scene.bench.restored(backup.map_root, CAPACITY_BYTES) == image
        assert backup.stats.read_bytes == CAPACITY_BYTES, "figures are of the whole disk"
        saved.append(CAPACITY_BYTES - sum(extent.length for extent in disk.reads))
        return died

    for_every_write(one)
    assert saved[0] == 0
    assert saved[-1] == CAPACITY_BYTES, "a finished work is answered from its record"
    assert any(0 < count < CAPACITY_BYTES for count in saved)


def test_forget_and_prune() -> None:
    image = image_of(1)
    image[: 45 * BLOCK_SIZE_BYTES] = image_of(9)[: 45 * BLOCK_SIZE_BYTES]
    rewritten = []

    def one(scene: Before, crash_at: int) -> bool:
        bench = scene.bench
        second = bench.backup(image)
        kept = bench.commit(
            restore_point(disk_point(second.map_root, CAPACITY_BYTES), previous=scene.point)
        )
        scene.bench.clock.now_s += 10  # type: ignore[attr-defined]

        def work(bench: Workbench) -> None:
            bench.repository.forget([scene.point.id])
            report = bench.repository.prune(keep_work_ids=(), min_age_s=1)
            rewritten.append(report.rewritten_bytes)

        died = dying(scene, crash_at, work)
        survivor = scene.bench.on(scene.storage)
        assert survivor.problems() == (), f"after a crash before write {crash_at}"
        assert survivor.restored(kept.disks[0].map_root, CAPACITY_BYTES) == image
        for _ in range(2):  # the first dooms, the second deletes
            scene.bench.clock.now_s += 10  # type: ignore[attr-defined]
            work(survivor)
        assert survivor.problems() == ()
        assert [point.id for point in survivor.repository.points()] == [kept.id]
        assert survivor.restored(kept.disks[0].map_root, CAPACITY_BYTES) == image
        fresh = packs_of_a_repository_with_only(image)
        assert len(packs(scene.storage)) <= fresh + 2, "space came back"
        assert not [name for name in scene.storage.objects if name.startswith("doomed/")]
        return died

    for_every_write(one)
    assert max(rewritten) > 0, "packs that are partly needed were rewritten"


def packs(storage: MemoryStorage) -> list[str]:
    return [name for name in storage.objects if name.startswith("packs/")]


def packs_of_a_repository_with_only(image: bytearray) -> int:
    bench = Workbench(storage := MemoryStorage(), ManualClock())
    bench.backup(image)
    return len(packs(storage))


def test_create() -> None:
    for crash_at in range(1, 10):
        clock = ManualClock()
        storage = MemoryStorage(clock)
        try:
            Repository.create(
                CrashingStorage(storage, crash_at), PASSWORD, clock=clock, kdf_cost=CHEAP_KDF
            )
        except Crash:
            with pytest.raises(RepositoryNotFoundError):
                Repository.open_with_password(storage, PASSWORD, clock=clock)
            Repository.create(storage, PASSWORD, clock=clock, kdf_cost=CHEAP_KDF)
            Repository.open_with_password(storage, PASSWORD, clock=clock)
            continue
        assert crash_at == 3  # key object, configuration
        return
    pytest.fail("create never ended")
