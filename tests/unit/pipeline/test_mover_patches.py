"""Increments of which changed blocks are stored as patches."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator

import pytest

from pipeline.errors import CancelledError, IntegrityError, StorageUnavailableError
from pipeline.mover import MoverOptions
from pipeline.repository.format import BlobKind, Encoding
from pipeline.repository.index import BlobEntry, read_index_object
from pipeline.repository.layout import INDEX
from pipeline.stages import bases
from pipeline.testing.builders import (
    BLOCK_SIZE_BYTES,
    ManualClock,
    Workbench,
    disk_point,
    restore_point,
)
from pipeline.testing.disks import MemoryDisk
from pipeline.testing.storage import MemoryStorage
from pipeline.verify import image_sha256
from transports.base import SECTOR_BYTES, Extent

BLOCKS = 40
CAPACITY_BYTES = BLOCKS * BLOCK_SIZE_BYTES + 1024


@pytest.fixture
def bench() -> Workbench:
    clock = ManualClock()
    made = Workbench(MemoryStorage(clock), clock)
    made.repository.makes_patches = True
    return made


def entries(bench: Workbench) -> Iterator[BlobEntry]:
    for listed in bench.storage.list(INDEX):
        for segment in read_index_object(bench.storage, bench.repository.keyring, listed.name):
            yield from segment.entries


def patches(bench: Workbench) -> list[BlobEntry]:
    return [entry for entry in entries(bench) if entry.encoding == Encoding.PATCH]


def increment(
    bench: Workbench, image: bytearray, extents: list[Extent], base: str, **more: object
) -> str:
    plan = bench.plan(len(image), previous=base, changed=extents)
    return bench.backup(image, plan=plan, **more).map_root  # type: ignore[arg-type]


def changed(image: bytearray, rng: random.Random, blocks: int) -> list[Extent]:
    """One sector in each of the first blocks."""
    extents = []
    for number in range(blocks):
        offset = number * BLOCK_SIZE_BYTES + rng.randrange(8) * SECTOR_BYTES
        image[offset : offset + SECTOR_BYTES] = rng.randbytes(SECTOR_BYTES)
        extents.append(Extent(offset=offset, length=SECTOR_BYTES))
    return extents


def test_a_changed_sector_is_stored_instead_of_its_block(bench: Workbench) -> None:
    rng = random.Random(1)
    image = bytearray(rng.randbytes(CAPACITY_BYTES))
    full = bench.backup(image)
    extents = changed(image, rng, 20)
    plan = bench.plan(CAPACITY_BYTES, previous=full.map_root, changed=extents)
    second = bench.backup(image, plan=plan, options=MoverOptions(workers=2, verify_every=1))
    assert len(patches(bench)) == 20
    assert second.stats.blocks.new == 20
    assert second.stats.stored_bytes < full.stats.stored_bytes / 4
    assert bench.restored(second.map_root, CAPACITY_BYTES) == image
    assert image_sha256(
        repository=bench.repository, map_root=second.map_root, capacity_bytes=CAPACITY_BYTES
    )
    bench.commit(restore_point(disk_point(second.map_root, CAPACITY_BYTES)))
    assert bench.problems() == ()


def test_a_patch_of_a_patch_is_made_of_its_base(bench: Workbench) -> None:
    rng = random.Random(2)
    image = bytearray(rng.randbytes(CAPACITY_BYTES))
    root = bench.backup(image).map_root
    images = []
    for _ in range(25):
        root = increment(bench, image, changed(image, rng, 5), root)
        images.append((root, bytes(image)))
    found = patches(bench)
    assert found
    assert not {entry.base_id for entry in found} & {entry.blob_id for entry in found}
    # What grows with each day is stored whole again after some days.
    assert len(found) < 25 * 5
    for each_root, each_image in images:
        assert bench.restored(each_root, CAPACITY_BYTES) == each_image


def test_without_the_feature_no_patch_is_made(bench: Workbench) -> None:
    bench.repository.makes_patches = False
    rng = random.Random(3)
    image = bytearray(rng.randbytes(CAPACITY_BYTES))
    root = bench.backup(image).map_root
    increment(bench, image, changed(image, rng, 20), root)
    assert patches(bench) == []


def test_known_content_is_not_stored_as_a_patch(bench: Workbench) -> None:
    """Deduplication comes first."""
    rng = random.Random(4)
    image = bytearray(rng.randbytes(CAPACITY_BYTES))
    first = bytes(image)
    root = bench.backup(image).map_root
    extents = changed(image, rng, 10)
    root = increment(bench, image, extents, root)
    before = len(list(entries(bench)))
    third = bench.backup(first, plan=bench.plan(CAPACITY_BYTES, previous=root, changed=extents))
    assert third.stats.blocks.deduplicated == 10
    # At most the nodes of the map.
    assert len(list(entries(bench))) <= before + 1


def test_a_base_that_cannot_be_read_means_a_whole_block(bench: Workbench) -> None:
    rng = random.Random(5)
    image = bytearray(rng.randbytes(CAPACITY_BYTES))
    root = bench.backup(image).map_root
    storage = bench.storage
    assert isinstance(storage, MemoryStorage)
    for name in [name for name in storage.objects if name.startswith("packs/")]:
        data = bytearray(storage.read(name))
        data[len(data) // 2] ^= 1
        storage.replace(name, bytes(data))
    known = {entry.blob_id for entry in entries(bench)}
    second = increment(bench, image, changed(image, rng, BLOCKS), root)
    new = [entry for entry in entries(bench) if entry.blob_id not in known]
    whole = [
        entry for entry in new if entry.encoding != Encoding.PATCH and entry.kind == BlobKind.BLOCK
    ]
    # One block of each pack had the flipped bit.
    assert 0 < len(whole) < len(new) / 2
    assert second == bench.backup(image).map_root


def test_an_increment_of_patches_goes_on_where_it_was_cut(bench: Workbench) -> None:
    rng = random.Random(6)
    image = bytearray(rng.randbytes(CAPACITY_BYTES))
    root = bench.backup(image).map_root
    extents = changed(image, rng, 30)
    plan = bench.plan(CAPACITY_BYTES, previous=root, changed=extents)
    options = MoverOptions(workers=2, checkpoint_every_s=0.0)

    def fail_at(offset: int) -> None:
        if offset >= 15 * BLOCK_SIZE_BYTES:
            raise CancelledError("cut")

    with pytest.raises(CancelledError):
        bench.backup(
            MemoryDisk(image, before_read=fail_at, requests_in_flight=1),
            plan=plan,
            work_id="w",
            options=options,
        )
    assert patches(bench)
    second = MemoryDisk(image)
    backup = bench.backup(second, plan=plan, work_id="w", options=options)
    assert min(extent.offset for extent in second.reads) >= 14 * BLOCK_SIZE_BYTES
    assert bench.restored(backup.map_root, CAPACITY_BYTES) == image


def test_a_restore_names_a_patch_whose_base_is_damaged(bench: Workbench) -> None:
    rng = random.Random(7)
    image = bytearray(rng.randbytes(CAPACITY_BYTES))
    root = bench.backup(image).map_root
    storage = bench.storage
    assert isinstance(storage, MemoryStorage)
    packs = [name for name in storage.objects if name.startswith("packs/")]
    root = increment(bench, image, changed(image, rng, BLOCKS), root)
    for name in packs:
        storage.delete(name)
    with pytest.raises(IntegrityError, match="missing from"):
        bench.restored(root, CAPACITY_BYTES)


class SlowPacks(MemoryStorage):
    """Counts reads of packs; may fail them."""

    def __init__(self, clock: ManualClock) -> None:
        super().__init__(clock)
        self.reads: list[int] = []
        self.error: Exception | None = None

    def read_range(self, name: str, offset: int, length: int) -> bytes:
        if name.startswith("packs/"):
            self.reads.append(length)
            if self.error is not None:
                raise self.error
        return super().read_range(name, offset, length)


@pytest.fixture
def counted() -> Workbench:
    clock = ManualClock()
    made = Workbench(SlowPacks(clock), clock, pack_target_bytes=1 << 30)
    made.repository.makes_patches = True
    return made


def test_bases_are_read_ahead_in_few_reads(counted: Workbench) -> None:
    """The reader waits until the bases of its next blocks are there."""
    storage = counted.storage
    assert isinstance(storage, SlowPacks)
    rng = random.Random(8)
    image = bytearray(rng.randbytes(CAPACITY_BYTES))
    root = counted.backup(image).map_root
    extents = changed(image, rng, BLOCKS)
    storage.reads.clear()
    came = threading.Event()

    def wait(_offset: int) -> None:
        assert came.wait(60), "nobody read ahead"

    honest = storage.read_range

    def noted(name: str, offset: int, length: int) -> bytes:
        data = honest(name, offset, length)
        if length > 10 * BLOCK_SIZE_BYTES:
            came.set()
        return data

    storage.read_range = noted  # type: ignore[method-assign]
    plan = counted.plan(CAPACITY_BYTES, previous=root, changed=extents)
    disk = MemoryDisk(image, before_read=wait, requests_in_flight=1)
    backup = counted.backup(disk, plan=plan)
    assert len(patches(counted)) == BLOCKS
    assert len(storage.reads) < 5
    assert counted.restored(backup.map_root, CAPACITY_BYTES) == image


def test_more_bases_than_may_wait(counted: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bases, "AHEAD_BYTES", 1)
    monkeypatch.setattr(bases, "AHEAD_BLOCKS", 3)
    rng = random.Random(9)
    image = bytearray(rng.randbytes(CAPACITY_BYTES))
    root = counted.backup(image).map_root
    # Blocks that need no base, among those that do.
    extents = changed(image, rng, BLOCKS)
    for number in range(0, BLOCKS, 3):
        at = number * BLOCK_SIZE_BYTES
        image[at : at + BLOCK_SIZE_BYTES] = bytes(BLOCK_SIZE_BYTES)
    plan = counted.plan(CAPACITY_BYTES, previous=root, changed=extents)
    backup = counted.backup(MemoryDisk(image, requests_in_flight=7, max_request_bytes=512), plan=plan)
    assert counted.restored(backup.map_root, CAPACITY_BYTES) == image
    assert len(patches(counted)) == BLOCKS - len(range(0, BLOCKS, 3))


def test_storage_that_fails_while_reading_ahead_ends_the_backup(counted: Workbench) -> None:
    storage = counted.storage
    assert isinstance(storage, SlowPacks)
    rng = random.Random(10)
    image = bytearray(rng.randbytes(CAPACITY_BYTES))
    root = counted.backup(image).map_root
    counted = counted.on(storage)
    counted.repository.makes_patches = True
    storage.error = StorageUnavailableError("the storage went away")
    with pytest.raises(StorageUnavailableError):
        increment(counted, image, changed(image, rng, BLOCKS), root)
    storage.error = None
    assert counted.restored(root, CAPACITY_BYTES) != image


def test_a_cancel_ends_reading_ahead(counted: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bases, "AHEAD_BYTES", 1)
    monkeypatch.setattr(bases, "AHEAD_BLOCKS", 1)
    rng = random.Random(11)
    image = bytearray(rng.randbytes(CAPACITY_BYTES))
    root = counted.backup(image).map_root
    cancel = threading.Event()
    plan = counted.plan(CAPACITY_BYTES, previous=root, changed=changed(image, rng, BLOCKS))
    disk = MemoryDisk(image, before_read=lambda _offset: cancel.set(), requests_in_flight=1)
    with pytest.raises(CancelledError):
        counted.backup(disk, plan=plan, cancel=cancel)
