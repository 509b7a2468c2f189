"""Restore points, forgetting, pruning beside writers; on storage in memory."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta, timezone
from uuid import uuid4

import pytest

from pipeline.crypto.aead import Aead
from pipeline.errors import (
    IntegrityError,
    RepositoryExistsError,
    RestorePointNotFoundError,
    RestorePointRefusedError,
)
from pipeline.model import RestorePoint
from pipeline.planning import ZERO_ROOT
from pipeline.repository import Repository
from pipeline.repository.keys import unwrap_master_key, wrap_master_key
from pipeline.repository.repository import Repository as Whole
from pipeline.testing.builders import (
    BLOCK_SIZE_BYTES,
    CHEAP_KDF,
    PASSWORD,
    ManualClock,
    Workbench,
    disk_point,
    restore_point,
    vm_identity,
)
from pipeline.testing.disks import MemoryDisk
from pipeline.testing.storage import MemoryStorage

CAPACITY_BYTES = 30 * BLOCK_SIZE_BYTES


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def storage(clock: ManualClock) -> MemoryStorage:
    return MemoryStorage(clock)


@pytest.fixture
def bench(storage: MemoryStorage, clock: ManualClock) -> Workbench:
    return Workbench(storage, clock)


def noise(seed: int) -> bytes:
    return random.Random(seed).randbytes(CAPACITY_BYTES)


def backed_up(bench: Workbench, seed: int, **more: object) -> RestorePoint:
    root = bench.backup(noise(seed)).map_root
    return bench.commit(restore_point(disk_point(root, CAPACITY_BYTES), **more))  # type: ignore[arg-type]


def packs(storage: MemoryStorage) -> set[str]:
    return {name for name in storage.objects if name.startswith("packs/")}


# ---- creating -------------------------------------------------------------------------------------


def test_create_and_open(storage: MemoryStorage, clock: ManualClock) -> None:
    made = Repository.create(storage, PASSWORD, clock=clock, block_size_bytes=8192, kdf_cost=CHEAP_KDF)
    opened = Repository.open_with_password(storage, PASSWORD, clock=clock)
    assert (opened.id, opened.key_material, opened.block_size_bytes) == (
        made.id,
        made.key_material,
        8192,
    )
    again = Repository.open_with_key(storage, made.key_material, expected_id=made.id, clock=clock)
    assert again.id == made.id
    with pytest.raises(RepositoryExistsError, match="already"):
        Repository.create(storage, PASSWORD, clock=clock, kdf_cost=CHEAP_KDF)
    assert made.key_material not in repr(made.keyring)


@pytest.mark.parametrize("size", [0, 2048, 5000, 32 << 20])
def test_block_sizes_outside_of_the_format_are_refused(
    storage: MemoryStorage, clock: ManualClock, size: int
) -> None:
    with pytest.raises(ValueError, match="block size"):
        Repository.create(storage, PASSWORD, clock=clock, block_size_bytes=size, kdf_cost=CHEAP_KDF)
    with pytest.raises(ValueError, match="password"):
        Repository.create(storage, "", clock=clock, kdf_cost=CHEAP_KDF)
    assert storage.objects == {}


def test_several_passwords_open_one_repository(
    storage: MemoryStorage, bench: Workbench, clock: ManualClock
) -> None:
    keyring = bench.repository.keyring
    second = wrap_master_key(keyring.master_key, "Straße", keyring.repository_id, CHEAP_KDF)
    storage.put(f"keys/{'0' * 32}", second)
    for password in (PASSWORD, "Straße"):
        assert Whole.open_with_password(storage, password, clock=clock).id == bench.repository.id
    assert unwrap_master_key(second, "Strasse", keyring.repository_id) is None
    assert unwrap_master_key(second, "Straße", bytes(16)) is None, "bound to its repository"


@pytest.mark.parametrize("aead", Aead)
def test_either_algorithm_works_and_is_written_down(aead: Aead, clock: ManualClock) -> None:
    bench = Workbench(MemoryStorage(clock), clock, aead=aead)
    point = backed_up(bench, 1)
    assert bench.on(bench.storage).repository.aead is aead
    assert bench.restored(point.disks[0].map_root, CAPACITY_BYTES) == noise(1)
    assert bench.problems() == ()


# ---- restore points -------------------------------------------------------------------------------


def test_a_point_comes_back_as_it_was(bench: Workbench) -> None:
    point = backed_up(bench, 1)
    assert bench.repository.point(point.id) == point
    assert bench.on(bench.storage).repository.points() == (point,)


def test_points_are_sorted_by_age_and_times_are_normalised(bench: Workbench) -> None:
    start = datetime(2025, 1, 1, tzinfo=UTC)
    made = [
        bench.commit(restore_point(created_at=start + timedelta(hours=hours))) for hours in (5, 1, 3)
    ]
    local = timezone(timedelta(hours=2))
    moved = bench.commit(restore_point(created_at=datetime(2025, 1, 1, 4, tzinfo=local)))
    found = [point.id for point in bench.repository.points()]
    assert found == [made[1].id, moved.id, made[2].id, made[0].id]


def test_committing_again_is_no_change(bench: Workbench) -> None:
    point = backed_up(bench, 1)
    assert not bench.repository.commit_point(point)
    assert not bench.on(bench.storage).repository.commit_point(point)


def test_a_point_that_cannot_be_read_later_is_refused(bench: Workbench) -> None:
    for point in (
        restore_point(point_id="not-a-uuid"),
        restore_point(point_id=str(uuid4()).upper()),
        restore_point(disk_point("ab", 1)),
        restore_point(created_at=datetime(2025, 1, 1)),  # noqa: DTZ001 - the mistake to catch
    ):
        with pytest.raises(RestorePointRefusedError, match="cannot be stored"):
            bench.repository.commit_point(point)


def test_a_disk_of_zeros_needs_nothing(bench: Workbench) -> None:
    bench.commit(restore_point(disk_point(ZERO_ROOT, 1 << 41)))
    assert bench.problems() == ()
    assert packs(bench.storage) == set()  # type: ignore[arg-type]


def test_unknown_points(bench: Workbench) -> None:
    for name in (str(uuid4()), "nonsense", "../points"):
        with pytest.raises(RestorePointNotFoundError):
            bench.repository.point(name)
    assert bench.repository.forget([str(uuid4())]) == 0


def test_the_work_record_goes_with_the_commit(bench: Workbench, storage: MemoryStorage) -> None:
    first = bench.backup(noise(1), work_id="task-1")
    bench.backup(noise(2), work_id="task-2")
    bench.commit(restore_point(disk_point(first.map_root, CAPACITY_BYTES)))
    assert [name for name in storage.objects if name.startswith("work/")] == ["work/task-2"]


def test_points_of_several_vms_have_chains_of_their_own(bench: Workbench) -> None:
    for number in (1, 2, 1, 2, 1):
        bench.commit(restore_point(vm=vm_identity(number)))
    catalogue = bench.repository._catalogue.load()
    chain = sorted(
        (stored.point.vm.name, stored.sequence, bool(stored.predecessor))
        for stored in catalogue.points.values()
    )
    assert chain == [
        ("vm01", 1, False),
        ("vm01", 2, True),
        ("vm01", 3, True),
        ("vm02", 1, False),
        ("vm02", 2, True),
    ]


# ---- pruning --------------------------------------------------------------------------------------


def test_nothing_needed_is_removed(
    bench: Workbench, storage: MemoryStorage, clock: ManualClock
) -> None:
    kept = backed_up(bench, 1)
    gone = backed_up(bench, 2)
    before = packs(storage)
    clock.now_s += 10
    assert bench.repository.prune(keep_work_ids=(), min_age_s=0).removed_packs == 0
    bench.repository.forget([gone.id])
    report = bench.repository.prune(keep_work_ids=(), min_age_s=0)
    assert report.removed_packs > 0
    assert report.removed_bytes > CAPACITY_BYTES / 2
    assert report.kept_packs == len(packs(storage)) < len(before)
    assert bench.problems() == ()
    assert bench.restored(kept.disks[0].map_root, CAPACITY_BYTES) == noise(1)


def test_young_packs_stay(bench: Workbench, storage: MemoryStorage, clock: ManualClock) -> None:
    bench.backup(noise(1), work_id="ends-here")
    before = packs(storage)
    clock.now_s += 100
    report = bench.repository.prune(keep_work_ids=(), min_age_s=200)
    assert packs(storage) == before
    assert (report.removed_packs, report.doomed_packs) == (0, 0)
    clock.now_s += 200
    assert bench.repository.prune(keep_work_ids=(), min_age_s=200).doomed_packs > 0
    assert packs(storage) == before
    clock.now_s += 201
    bench.repository.prune(keep_work_ids=(), min_age_s=200)
    assert packs(storage) == set()
    assert not [name for name in storage.objects if name.startswith("work/")]


def test_a_kept_work_is_not_touched(
    bench: Workbench, storage: MemoryStorage, clock: ManualClock
) -> None:
    result = bench.backup(noise(1), work_id="task-1")
    clock.now_s += 1000
    bench.repository.prune(keep_work_ids=["task-1"], min_age_s=0)
    disk = MemoryDisk(noise(1))
    assert bench.backup(disk, work_id="task-1").map_root == result.map_root
    assert disk.reads == []
    bench.commit(restore_point(disk_point(result.map_root, CAPACITY_BYTES)))
    assert bench.problems() == ()


def test_a_writer_that_found_a_blob_before_it_was_doomed_can_commit(
    bench: Workbench, storage: MemoryStorage, clock: ManualClock
) -> None:
    """The writer looked into the index, then the only point with these blobs was forgotten and pruned."""
    old = backed_up(bench, 1)
    clock.now_s += 1000
    writer = bench.on(storage)
    disk = MemoryDisk(noise(1))
    forgotten = False

    def forget_and_prune(_offset: int) -> None:
        nonlocal forgotten
        if not forgotten:
            forgotten = True
            bench.repository.forget([old.id])
            clock.now_s += 1000
            report = bench.repository.prune(keep_work_ids=["task-1"], min_age_s=0)
            assert report.doomed_packs > 0
            assert report.removed_packs == 0

    disk._before_read = forget_and_prune
    result = writer.backup(disk, work_id="task-1")
    assert result.stats.blocks.deduplicated == 30
    clock.now_s += 1000
    assert bench.repository.prune(keep_work_ids=["task-1"], min_age_s=0).removed_packs == 0
    point = bench.commit(restore_point(disk_point(result.map_root, CAPACITY_BYTES)))
    clock.now_s += 1000
    for _ in range(2):
        bench.repository.prune(keep_work_ids=(), min_age_s=0)
        assert bench.problems() == ()
    assert bench.restored(point.disks[0].map_root, CAPACITY_BYTES) == noise(1)


def test_a_writer_whose_blobs_are_gone_is_refused(
    bench: Workbench, storage: MemoryStorage, clock: ManualClock
) -> None:
    """As above, but the server did not say that the work goes on: no wrong point comes of it."""
    old = backed_up(bench, 1)
    clock.now_s += 1000
    result = bench.on(storage).backup(noise(1), work_id="task-1")
    bench.repository.forget([old.id])
    clock.now_s += 1000
    bench.repository.prune(keep_work_ids=(), min_age_s=0)
    with pytest.raises((RestorePointRefusedError, IntegrityError)):
        bench.repository.commit_point(restore_point(disk_point(result.map_root, CAPACITY_BYTES)))


def test_mostly_dead_packs_are_rewritten(
    bench: Workbench, storage: MemoryStorage, clock: ManualClock
) -> None:
    image = bytearray(noise(1))
    first = backed_up(bench, 1)
    image[: 25 * BLOCK_SIZE_BYTES] = noise(2)[: 25 * BLOCK_SIZE_BYTES]
    second = bench.commit(
        restore_point(disk_point(bench.backup(image).map_root, CAPACITY_BYTES), previous=first)
    )
    clock.now_s += 10
    bench.repository.forget([first.id])
    report = bench.repository.prune(keep_work_ids=(), min_age_s=0)
    assert 5 * BLOCK_SIZE_BYTES < report.rewritten_bytes < 10 * BLOCK_SIZE_BYTES
    assert bench.problems() == ()
    assert bench.restored(second.disks[0].map_root, CAPACITY_BYTES) == image


def test_many_small_index_objects_become_few(
    bench: Workbench, storage: MemoryStorage, clock: ManualClock
) -> None:
    points = [backed_up(bench, seed) for seed in range(8)]
    clock.now_s += 10
    before = [name for name in storage.objects if name.startswith("index/")]
    bench.repository.prune(keep_work_ids=(), min_age_s=0)
    after = [name for name in storage.objects if name.startswith("index/")]
    assert len(after) == 1 < len(before)
    assert bench.problems() == ()
    for seed, point in enumerate(points):
        assert bench.restored(point.disks[0].map_root, CAPACITY_BYTES) == noise(seed)


def test_forgotten_records_go_when_nobody_refers_to_them(
    bench: Workbench, storage: MemoryStorage, clock: ManualClock
) -> None:
    points = [backed_up(bench, seed) for seed in range(3)]
    bench.repository.forget([points[0].id, points[1].id])
    clock.now_s += 10
    bench.repository.prune(keep_work_ids=(), min_age_s=0)
    records = [name for name in storage.objects if name.startswith("forgotten/")]
    assert records == [f"forgotten/{points[1].id}"]
    assert bench.problems() == ()
