from __future__ import annotations

import contextlib
import random
import threading
from dataclasses import replace

import pytest

from pipeline.copy import REASON_BASE_GONE, copy_disk, plan_copy
from pipeline.errors import IntegrityError, StorageUnavailableError
from pipeline.map_reader import MapDiskReader
from pipeline.model import PointKind, ReadMode, copied_point, copied_point_id
from pipeline.mover import DiskBackup, MoverOptions
from pipeline.planning import ZERO_ROOT
from pipeline.repository import layout
from pipeline.storage.wrapper import StorageWrapper
from pipeline.testing.builders import ManualClock, Workbench, disk_point, restore_point
from pipeline.testing.storage import Crash, CrashingStorage, MemoryStorage

KIB = 1024


def workbench(block_size_bytes: int = 4096) -> Workbench:
    clock = ManualClock()
    return Workbench(MemoryStorage(clock), clock, block_size_bytes=block_size_bytes)


def copy(
    source: Workbench,
    target: Workbench,
    root: str,
    size: int,
    *,
    base: str = "",
    base_size: int = 0,
    copied: str = "",
    work_id: str = "copy",
    options: MoverOptions | None = None,
) -> tuple[DiskBackup, ReadMode, str]:
    plan = plan_copy(
        source=source.repository,
        target_block_size_bytes=target.repository.block_size_bytes,
        map_root=root,
        capacity_bytes=size,
        base_map_root=base,
        base_capacity_bytes=base_size,
        copied_map_root=copied,
    )
    done = copy_disk(
        source=source.repository,
        target=target.repository,
        plan=plan,
        map_root=root,
        compression="balanced",
        work_id=work_id,
        cancel=threading.Event(),
        progress=lambda _progress: None,
        clock=target.clock,
        options=options or MoverOptions(workers=2),
    )
    return done, plan.read_mode, plan.reason


@pytest.fixture
def image() -> bytearray:
    content = random.Random(7).randbytes(300 * KIB)
    return bytearray(content + bytes(200 * KIB) + content[: 100 * KIB] + b"odd" * 171)


@pytest.mark.parametrize(("ours", "theirs"), [(4096, 4096), (16384, 4096), (4096, 65536)])
def test_a_disk_is_the_same_in_the_other_repository(image: bytearray, ours: int, theirs: int) -> None:
    source, target = workbench(ours), workbench(theirs)
    root = source.backup(image).map_root
    done, mode, _ = copy(source, target, root, len(image))
    assert mode is ReadMode.FULL
    assert target.restored(done.map_root, len(image)) == image
    assert not target.problems()


@pytest.mark.parametrize(("ours", "theirs"), [(4096, 4096), (16384, 4096), (4096, 16384)])
def test_of_an_increment_only_what_changed_is_read(image: bytearray, ours: int, theirs: int) -> None:
    source, target = workbench(ours), workbench(theirs)
    first = source.backup(image).map_root
    copied = copy(source, target, first, len(image), work_id="one")[0].map_root
    changed = bytearray(image)
    changed[64 * KIB : 68 * KIB] = b"x" * 4096
    changed[128 * KIB : 192 * KIB] = bytes(64 * KIB)  # zeros now
    changed[400 * KIB : 404 * KIB] = b"y" * 4096  # no zeros any more
    second = source.backup(changed).map_root
    done, mode, reason = copy(
        source,
        target,
        second,
        len(image),
        base=first,
        base_size=len(image),
        copied=copied,
        work_id="two",
    )
    assert (mode, reason) == (ReadMode.INCREMENT, "")
    assert done.stats.read_bytes <= 80 * KIB + 4 * max(ours, theirs)
    assert target.restored(done.map_root, len(image)) == changed


def test_only_what_the_target_lacks_is_stored(image: bytearray) -> None:
    source, target = workbench(), workbench()
    root = source.backup(image).map_root
    target.backup(bytes(image))
    done, _, _ = copy(source, target, root, len(image))
    assert done.stats.blocks.new == 0
    assert target.restored(done.map_root, len(image)) == image


def test_a_disk_that_was_resized_is_copied_as_a_whole(image: bytearray) -> None:
    source, target = workbench(), workbench()
    first = source.backup(image).map_root
    copied = copy(source, target, first, len(image), work_id="one")[0].map_root
    grown = image + b"more" * 1024
    second = source.backup(grown).map_root
    done, mode, reason = copy(
        source,
        target,
        second,
        len(grown),
        base=first,
        base_size=len(image),
        copied=copied,
        work_id="two",
    )
    assert mode is ReadMode.FULL_SCAN
    assert "resized" in reason
    assert target.restored(done.map_root, len(grown)) == grown


def test_a_base_that_the_source_lost_only_costs_reading(image: bytearray) -> None:
    source, target = workbench(), workbench()
    copied = copy(source, target, source.backup(image).map_root, len(image), work_id="one")[0]
    second = source.backup(image[:4096] + b"z" * 4096 + image[8192:]).map_root
    done, mode, reason = copy(
        source,
        target,
        second,
        len(image),
        base="ab" * 32,
        base_size=len(image),
        copied=copied.map_root,
        work_id="two",
    )
    assert (mode, reason) == (ReadMode.FULL_SCAN, REASON_BASE_GONE)
    assert target.restored(done.map_root, len(image))[4096:8192] == b"z" * 4096


def test_an_empty_disk(image: bytearray) -> None:
    source, target = workbench(), workbench()
    done, _, _ = copy(source, target, source.backup(bytes(len(image))).map_root, len(image))
    assert done.map_root == ZERO_ROOT


def test_damage_of_the_source_is_not_copied(image: bytearray) -> None:
    source, target = workbench(), workbench()
    root = source.backup(image).map_root
    assert isinstance(source.storage, MemoryStorage)
    for name, data in source.storage.objects.items():
        if name.startswith(layout.PACKS):
            source.storage.objects[name] = data[:2000] + bytes([data[2000] ^ 1]) + data[2001:]
    with pytest.raises(IntegrityError):
        copy(source, target, root, len(image))


def test_a_prune_of_the_source_does_not_stop_the_reader(image: bytearray) -> None:
    source = workbench()
    first = source.backup(image)
    changed = bytearray(image)
    changed[: 150 * KIB] = random.Random(3).randbytes(150 * KIB)
    second = source.backup(changed)
    source.commit(restore_point(disk_point(second.map_root, len(image))))
    reader = MapDiskReader(source.repository, second.map_root, len(image))
    clock = source.clock
    assert isinstance(clock, ManualClock)
    other = source.on(source.storage)
    assert first.map_root != second.map_root
    for _ in range(3):  # found useless, armed, deleted
        other.repository.prune(keep_work_ids=(), min_age_s=0)
        clock.now_s += 10
    buffer = bytearray(len(image))
    reader.read_into(0, memoryview(buffer))
    reader.close()
    assert buffer == changed


def test_an_interrupted_copy_goes_on_where_it_was(image: bytearray) -> None:
    """The source does not answer in the middle; the next attempt reads the rest only."""
    clock = ManualClock()
    storage = FailingReads(MemoryStorage(clock))
    source, target = Workbench(storage, clock), workbench()
    root = source.backup(image).map_root
    storage.left = 8
    with pytest.raises(StorageUnavailableError):
        copy(source, target, root, len(image), options=MoverOptions(workers=1, checkpoint_every_s=0))
    storage.left = 1_000_000
    packs = sum(name.startswith(layout.PACKS) for name in stored_in(target))
    assert packs > 0, "the first attempt kept nothing"
    storage.reads = 0
    done, _, _ = copy(source, target, root, len(image))
    assert target.restored(done.map_root, len(image)) == image
    interrupted, storage.reads = storage.reads, 0
    copy(source, workbench(), root, len(image))
    assert interrupted < storage.reads, "what was durable was read again"


def stored_in(bench: Workbench) -> list[str]:
    assert isinstance(bench.storage, MemoryStorage)
    return list(bench.storage.objects)


class FailingReads(StorageWrapper):
    """Answers so many reads of packs and then none."""

    def __init__(self, inner: MemoryStorage) -> None:
        super().__init__(inner)
        self.left = 1_000_000
        self.reads = 0

    def read_range(self, name: str, offset: int, length: int) -> bytes:
        if name.startswith(layout.PACKS):
            self.left -= 1
            self.reads += 1
            if self.left < 0:
                raise StorageUnavailableError("the storage does not answer")
        return super().read_range(name, offset, length)


@pytest.mark.parametrize("crash_at", range(1, 40, 3))
def test_a_copy_that_dies_is_done_again(image: bytearray, crash_at: int) -> None:
    source, target = workbench(), workbench()
    root = source.backup(image).map_root
    dying = target.on(CrashingStorage(target.storage, crash_at))
    with contextlib.suppress(Crash):
        copy(source, dying, root, len(image), options=MoverOptions(workers=1, checkpoint_every_s=0))
    again = target.on(target.storage)
    done, _, _ = copy(source, again, root, len(image))
    assert again.restored(done.map_root, len(image)) == image
    again.commit(restore_point(disk_point(done.map_root, len(image))))
    assert again.problems() == ()


def test_what_the_copied_point_says() -> None:
    point = replace(restore_point(disk_point(ZERO_ROOT, 4096)), nvram=b"n")
    target_id = "5d3d9bd9-8d80-4d3c-8d6b-1f3a0a4f8c11"
    made = copied_point(
        point,
        source_repository_id="11111111-1111-4111-8111-111111111111",
        target_repository_id=target_id,
        map_roots={2000: "ab" * 32},
        job_name="offsite",
        previous=None,
    )
    assert made.id == copied_point_id(target_id, point.id) != point.id
    assert made.kind is PointKind.FULL
    assert (made.vm, made.created_at, made.vm_config, made.nvram) == (
        point.vm,
        point.created_at,
        point.vm_config,
        b"n",
    )
    assert made.disks[0].change_id == ""
    assert made.disks[0].map_root == "ab" * 32
    assert made.copied_from is not None
    assert (made.copied_from.point_id, made.copied_from.job_name) == (point.id, "nightly")


def test_where_a_point_was_copied_from_is_stored_with_it(image: bytearray) -> None:
    source, target = workbench(), workbench()
    point = source.commit(restore_point(disk_point(source.backup(image).map_root, len(image))))
    done = copy(source, target, point.disks[0].map_root, len(image))[0]
    made = copied_point(
        point,
        source_repository_id=source.repository.id,
        target_repository_id=target.repository.id,
        map_roots={2000: done.map_root},
        job_name="offsite",
        previous=None,
    )
    assert target.repository.commit_point(made)
    assert not target.repository.commit_point(made)
    assert target.repository.points() == (made,)
    assert source.repository.points()[0].copied_from is None
