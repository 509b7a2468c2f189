"""What the model test found prune to do wrong, each by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from pipeline.repository.doomed import read_doomed
from pipeline.repository.maps import blocks
from pipeline.repository.work import WorkRecord, WorkState, write_work
from pipeline.storage.base import StoredObject
from pipeline.storage.wrapper import StorageWrapper
from pipeline.testing.builders import (
    BLOCK_SIZE_BYTES,
    ManualClock,
    Workbench,
    disk_point,
    restore_point,
    vm_identity,
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
    begin(bench, "writer", clock())
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
    assert list(read_doomed(storage, bench.repository.keyring)) == []
    assert bench.restored(point.disks[0].map_root, len(image)) == image


class LateDeletions(StorageWrapper):
    """Lists an object for a while after it was deleted."""

    def __init__(self, inner: MemoryStorage, late_s: float, clock: ManualClock) -> None:
        super().__init__(inner)
        self._late_s = late_s
        self._clock = clock
        self._gone: dict[str, tuple[float, StoredObject]] = {}

    def delete(self, name: str) -> None:
        for entry in self.inner.list(f"{name.partition('/')[0]}/"):
            if entry.name == name:
                self._gone[name] = (self._clock(), entry)
        super().delete(name)

    def list(self, prefix: str) -> Iterator[StoredObject]:
        late = [
            entry
            for name, (deleted_at_s, entry) in self._gone.items()
            if name.startswith(prefix) and self._clock() < deleted_at_s + self._late_s
        ]
        yield from sorted((*self.inner.list(prefix), *late), key=lambda entry: entry.name)


def begin(bench: Workbench, work_id: str, begun_at_s: float) -> None:
    repository = bench.repository
    record = WorkRecord(
        state=WorkState.BEGUN,
        begun_at_s=begun_at_s,
        capacity_bytes=len(IMAGE),
        read_mode="full",
        base_root="",
    )
    write_work(bench.storage, repository.keyring, repository.aead, work_id, record)


def test_an_index_object_that_is_listed_late_after_it_went_does_not_end_a_doom() -> None:
    clock = ManualClock()
    memory = MemoryStorage(clock)
    bench = Workbench(LateDeletions(memory, 30.0, clock), clock)
    disk = disk_point(bench.backup(IMAGE).map_root, len(IMAGE))
    point = bench.commit(restore_point(disk))
    before = packs_of(memory)
    clock.now_s += 100
    begin(bench, "writer", clock())  # and finds every block in the index
    bench.repository.forget([point.id])
    for _ in range(4):
        clock.now_s += 40
        bench.repository.prune(keep_work_ids=["writer"], min_age_s=50)
        assert packs_of(memory) == before
    later = bench.commit(restore_point(disk))
    assert bench.restored(later.disks[0].map_root, len(IMAGE)) == IMAGE
    bench.repository.forget([later.id])
    for _ in range(4):
        clock.now_s += 100
        bench.repository.prune(keep_work_ids=(), min_age_s=50)
    assert packs_of(memory) == set()
    assert list(read_doomed(memory, bench.repository.keyring)) == []


def test_a_writer_whose_clock_is_ahead_keeps_what_it_may_have_found() -> None:
    clock = ManualClock()
    storage = MemoryStorage(clock)
    bench = Workbench(storage, clock)
    disk = disk_point(bench.backup(IMAGE).map_root, len(IMAGE))
    point = bench.commit(restore_point(disk))
    before = packs_of(storage)
    clock.now_s += 100
    begin(bench, "writer", clock() + 30)
    bench.repository.forget([point.id])
    bench.repository.prune(keep_work_ids=["writer"], min_age_s=50)
    assert [record.doomed_at_s for record in read_doomed(storage, bench.repository.keyring)] == [
        clock()
    ]
    clock.now_s += 1000
    bench.repository.prune(keep_work_ids=["writer"], min_age_s=50)
    assert packs_of(storage) == before
    later = bench.commit(restore_point(disk))
    assert bench.restored(later.disks[0].map_root, len(IMAGE)) == IMAGE


def test_a_restore_that_takes_long_finds_what_prune_moved() -> None:
    clock = ManualClock()
    storage = MemoryStorage(clock)
    bench = Workbench(storage, clock)
    kept = IMAGE[: 10 * BLOCK_SIZE_BYTES]
    old = bench.commit(restore_point(disk_point(bench.backup(IMAGE).map_root, len(IMAGE))))
    point = bench.commit(restore_point(disk_point(bench.backup(kept).map_root, len(kept))))
    root = bytes.fromhex(point.disks[0].map_root)
    reader = bench.on(storage).repository.reader()
    wanted = dict(blocks(reader.load_node, root, 10))
    batches = reader.plan(wanted.values())
    other = bench.on(storage).repository.reader()
    before = packs_of(storage)
    bench.repository.forget([old.id])
    for _ in range(2):
        clock.now_s += 100
        bench.repository.prune(keep_work_ids=(), min_age_s=50)
    assert before - packs_of(storage), "blocks were moved"
    found = {}
    for batch in batches:
        fetched = reader.fetch(batch)
        for each in batch.wanted:
            out = memoryview(bytearray(BLOCK_SIZE_BYTES))
            found[each.blob_id] = bytes(reader.decode(fetched, each, out))
    assert b"".join(found[wanted[number]] for number in range(10)) == kept
    assert b"".join(other.load_block(wanted[number]) for number in range(10)) == kept


class PrunedMeanwhile(StorageWrapper):
    """Calls `prune` once, when the first pack is read."""

    def __init__(self, inner: MemoryStorage, prune: Callable[[], None]) -> None:
        super().__init__(inner)
        self._prune: Callable[[], None] | None = prune

    def read_range(self, name: str, offset: int, length: int) -> bytes:
        prune, self._prune = self._prune, None
        if prune is not None:
            prune()
        return super().read_range(name, offset, length)


@pytest.mark.parametrize("read_data", [False, True])
def test_a_check_that_takes_long_takes_nothing_for_lost_that_prune_moved(*, read_data: bool) -> None:
    clock = ManualClock()
    storage = MemoryStorage(clock)
    bench = Workbench(storage, clock)
    kept = IMAGE[: 10 * BLOCK_SIZE_BYTES]
    old = bench.commit(restore_point(disk_point(bench.backup(IMAGE).map_root, len(IMAGE))))
    gone = bench.backup(bytes(reversed(IMAGE)))
    other = bench.commit(restore_point(disk_point(gone.map_root, len(IMAGE)), vm=vm_identity(2)))
    bench.commit(restore_point(disk_point(bench.backup(kept).map_root, len(kept))))
    before = packs_of(storage)

    def prune() -> None:
        bench.repository.forget([old.id, other.id])
        for _ in range(3):
            clock.now_s += 100
            bench.repository.prune(keep_work_ids=(), min_age_s=50)

    checked = bench.on(PrunedMeanwhile(storage, prune)).repository
    report = checked.check(read_data=read_data, workers=1)
    assert before - packs_of(storage), "blocks were moved"
    assert report.problems == ()
    assert report.damage == ()
