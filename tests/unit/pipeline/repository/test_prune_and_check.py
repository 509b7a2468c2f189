"""Prune and check with patches, second places, kept packs and a cache of the index."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from pipeline.errors import ObjectNotFoundError, ObjectRetainedError
from pipeline.model import RestorePoint
from pipeline.repository import Repository, index_loader, layout
from pipeline.repository.check import CheckProgress
from pipeline.repository.index import read_index_object
from pipeline.repository.sampling import confidence_of, packs_for
from pipeline.storage.base import Retention
from pipeline.testing.builders import (
    BLOCK_SIZE_BYTES,
    ManualClock,
    Workbench,
    disk_point,
    restore_point,
    vm_identity,
)
from pipeline.testing.disks import MemoryDisk
from pipeline.testing.storage import MemoryStorage
from transports.base import Extent

BLOCKS = 60
CAPACITY_BYTES = BLOCKS * BLOCK_SIZE_BYTES


class KeepingStorage(MemoryStorage):
    """Keeps packs until a time."""

    def __init__(self, clock: ManualClock) -> None:
        super().__init__(clock)
        self._now = clock
        self.kept_s: dict[str, float] = {}

    @property
    def retention(self) -> Retention | None:
        return self

    def keep(self, name: str, until_s: float) -> None:
        self.kept_s[name] = max(until_s, self.kept_s.get(name, 0.0))

    def kept_until_s(self, name: str) -> float:
        if name not in self.objects:
            raise ObjectNotFoundError(name)
        return self.kept_s.get(name, 0.0)

    def delete(self, name: str) -> None:
        if self.kept_s.get(name, 0.0) > self._now():
            raise ObjectRetainedError(f"{name} is kept")
        super().delete(name)


class Site:
    """A VM whose increments are patches; every call is a new process with the machine's cache."""

    def __init__(self, cache: Path | None, storage: MemoryStorage | None = None) -> None:
        self.clock = ManualClock()
        self.storage = storage or MemoryStorage(self.clock)
        self.founder = Workbench(self.storage, self.clock)
        self.cache = cache
        self.rng = random.Random(1)
        self.image = bytearray(self.rng.randbytes(CAPACITY_BYTES))
        self.points: list[tuple[RestorePoint, bytes]] = []

    def bench(self) -> Workbench:
        repository = Repository.open_with_key(
            self.storage,
            self.founder.repository.key_material,
            expected_id=None,
            clock=self.clock,
            cache_dir=self.cache,
        )
        repository.makes_patches = True
        return Workbench(self.storage, self.clock, repository=repository)

    def backup(self, blocks: list[int]) -> None:
        bench = self.bench()
        for block in blocks:
            self.image[block * BLOCK_SIZE_BYTES + self.rng.randrange(BLOCK_SIZE_BYTES)] ^= 255
        previous = self.points[-1][0] if self.points else None
        plan = None
        if previous is not None:
            changed = [Extent(offset=b * BLOCK_SIZE_BYTES, length=BLOCK_SIZE_BYTES) for b in blocks]
            root = previous.disks[0].map_root
            plan = bench.plan(CAPACITY_BYTES, previous=root, changed=changed)
        backup = bench.backup(MemoryDisk(bytes(self.image)), plan=plan)
        point = restore_point(disk_point(backup.map_root, CAPACITY_BYTES), previous=previous)
        self.points.append((bench.commit(point), bytes(self.image)))

    def forget_all_but_last(self) -> None:
        self.bench().repository.forget([point.id for point, _ in self.points[:-1]])
        self.points = self.points[-1:]

    def prune(self, *, times: int = 3) -> None:
        for _ in range(times):
            self.clock.now_s += 100
            self.report = self.bench().repository.prune(keep_work_ids=(), min_age_s=10)

    def assert_whole(self) -> None:
        bench = self.bench()
        assert bench.problems() == ()
        for point, image in self.points:
            assert bench.restored(point.disks[0].map_root, CAPACITY_BYTES) == image

    def packs(self) -> list[str]:
        return sorted(name for name in self.storage.objects if name.startswith("packs/"))

    def patches(self) -> int:
        repository = self.bench().repository
        return sum(
            entry.encoding == 2
            for name in list(self.storage.objects)
            if name.startswith("index/")
            for segment in read_index_object(self.storage, repository.keyring, name)
            for entry in segment.entries
        )


@pytest.fixture(params=["cache", "memory"])
def cache(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path | None:
    for name in ("BULK_BYTES", "RECENT_PLACES", "RECENT_OBJECTS"):
        monkeypatch.setattr(index_loader, name, 1)  # also what is small goes into runs
    return tmp_path if request.param == "cache" else None


def test_what_patches_build_on_is_kept(cache: Path | None) -> None:
    site = Site(cache)
    site.backup([])
    for _ in range(3):
        site.backup(site.rng.sample(range(BLOCKS), 40))
    assert site.patches() > 0
    site.forget_all_but_last()
    site.prune()
    assert site.patches() > 0
    site.assert_whole()


def test_a_commit_wants_the_base_of_a_patch(cache: Path | None) -> None:
    """The base is in a pack that was doomed after the writer saw it: the commit brings it back."""
    site = Site(cache)
    site.backup([])
    bench = site.bench()
    for block in range(BLOCKS):
        site.image[block * BLOCK_SIZE_BYTES] ^= 255
    first = site.points[0][0]
    plan = bench.plan(
        CAPACITY_BYTES,
        previous=first.disks[0].map_root,
        changed=[Extent(offset=0, length=CAPACITY_BYTES)],
    )
    backup = bench.backup(MemoryDisk(bytes(site.image)), plan=plan, work_id="one")
    # A server that forgot the work: nothing says any more that the bases are needed.
    site.bench().repository.forget([first.id])
    site.clock.now_s += 100
    site.bench().repository.prune(keep_work_ids=(), min_age_s=10)
    point = restore_point(disk_point(backup.map_root, CAPACITY_BYTES))
    bench = site.bench()
    bench.repository.commit_point(point)
    site.points = [(point, bytes(site.image))]
    site.assert_whole()
    site.prune()
    site.assert_whole()


def test_packs_that_the_storage_keeps_are_left_alone(cache: Path | None) -> None:
    clock = ManualClock()
    storage = KeepingStorage(clock)
    site = Site(cache, storage)
    site.clock = clock
    site.backup([])
    first_packs = site.packs()
    for name in first_packs:
        storage.keep(name, clock() + 10_000)
    site.image = bytearray(random.Random(2).randbytes(CAPACITY_BYTES))
    site.points = []
    site.backup([])
    site.bench().repository.forget(
        [p.id for p in site.bench().repository.points() if p.id != site.points[0][0].id]
    )
    site.prune()
    assert set(first_packs) <= set(site.packs())
    assert site.report.retained_packs == len(first_packs)
    site.assert_whole()
    clock.now_s += 20_000
    site.prune()
    assert not set(first_packs) & set(site.packs())
    assert site.report.retained_packs == 0
    site.assert_whole()


def test_only_index_objects_that_change_are_written_again(cache: Path | None) -> None:
    site = Site(cache)
    for _ in range(4):
        site.image = bytearray(site.rng.randbytes(CAPACITY_BYTES))
        bench = site.bench()
        backup = bench.backup(bytes(site.image))
        number = len(site.points)
        point = restore_point(disk_point(backup.map_root, CAPACITY_BYTES), vm=vm_identity(number))
        site.points.append((bench.commit(point), bytes(site.image)))
    site.prune(times=1)  # the small objects become one
    site.image = bytearray(site.rng.randbytes(CAPACITY_BYTES))
    bench = site.bench()
    backup = bench.backup(bytes(site.image))
    extra = bench.commit(restore_point(disk_point(backup.map_root, CAPACITY_BYTES), vm=vm_identity(9)))
    before = {name for name in site.storage.objects if name.startswith("index/")}
    site.bench().repository.forget([extra.id])
    site.prune(times=1)
    after = {name for name in site.storage.objects if name.startswith("index/")}
    assert len(before & after) == 1, "the large one stayed"
    site.prune()
    site.assert_whole()


def damage_a_blob(site: Site, blob_id: bytes) -> None:
    place = site.bench().repository.index_loader().refresh().find(blob_id)
    assert place is not None
    name = layout.pack_name(place.pack_id)
    data = bytearray(site.storage.objects[name])
    data[place.offset + place.length - 1] ^= 1
    site.storage.objects[name] = bytes(data)


def test_damage_is_told_as_values(cache: Path | None) -> None:
    site = Site(cache)
    site.backup([])
    point = site.points[0][0]
    ids = block_ids(site)
    for block in (7, 8, 30):
        damage_a_blob(site, ids[block])
    report = site.bench().repository.check(read_data=True, workers=2)
    assert [(d.start_bytes, d.end_bytes, d.blob_ids, d.level) for d in report.damage] == [
        (7 * BLOCK_SIZE_BYTES, 9 * BLOCK_SIZE_BYTES, (ids[7], ids[8]), -1),
        (30 * BLOCK_SIZE_BYTES, 31 * BLOCK_SIZE_BYTES, (ids[30],), -1),
    ]
    assert {(d.point_id, d.vm_name, d.disk_key) for d in report.damage} == {
        (point.id, point.vm.name, point.disks[0].disk_key)
    }
    assert {blob.blob_id for blob in report.damaged_blobs} == {ids[7], ids[8], ids[30]}
    assert not any(blob.is_elsewhere for blob in report.damaged_blobs)
    assert sum("cannot be restored" in problem for problem in report.problems) == 2


def test_a_missing_pack_and_a_lost_node_are_told_as_values(cache: Path | None) -> None:
    site = Site(cache)
    site.backup([])
    root = bytes.fromhex(site.points[0][0].disks[0].map_root)
    damage_a_blob(site, root)
    report = site.bench().repository.check(read_data=True)
    assert [(d.level, d.blob_ids, d.end_bytes) for d in report.damage] == [(0, (root,), CAPACITY_BYTES)]
    for name in site.packs():
        del site.storage.objects[name]
    report = site.bench().repository.check()
    assert all(pack.is_gone for pack in report.damaged_packs)
    assert len(report.damaged_packs) == report.packs


def block_ids(site: Site) -> list[bytes]:
    from pipeline.repository.maps import blocks

    load = site.bench().repository.reader().load_node
    root = bytes.fromhex(site.points[0][0].disks[0].map_root)
    return [blob_id for _, blob_id in blocks(load, root, BLOCKS)]


def test_a_second_place_means_that_nothing_is_lost(cache: Path | None) -> None:
    site = Site(cache)
    writers = [site.bench(), site.bench()]
    root = writers[0].backup(bytes(site.image)).map_root
    kept = {
        name: site.storage.objects.pop(name)
        for name in list(site.storage.objects)
        if name[:5] == "index"
    }
    writers[1].backup(bytes(site.image))  # sees nothing of the other one: all of it twice
    site.storage.objects.update(kept)
    site.storage.modified_at_s.update(dict.fromkeys(kept, 0.0))
    point = site.bench().commit(restore_point(disk_point(root, CAPACITY_BYTES)))
    site.points = [(point, bytes(site.image))]
    ids = block_ids(site)
    damage_a_blob(site, ids[5])
    report = site.bench().repository.check(read_data=True)
    assert report.damage == ()
    assert [blob.is_elsewhere for blob in report.damaged_blobs] == [True]
    assert len(report.problems) == 1
    assert "another place holds it" in report.problems[0]


def test_progress_and_samples(cache: Path | None) -> None:
    site = Site(cache)
    site.backup([])
    told: list[CheckProgress] = []
    report = site.bench().repository.check(read_data=True, progress=told.append)
    assert {each.phase for each in told} == {"index", "data", "maps"}
    data = [each for each in told if each.phase == "data"]
    assert data[-1].done == data[-1].total > 0
    assert (
        report.confidence
        == f"all {report.packs} packs were read: damage in any of them would have been found"
    )
    read = 0
    for part in range(4):
        share = site.bench().repository.check(read_data=True, sample_share=0.25, sample_start=part / 4)
        assert "packs were read (" in share.confidence
        read += share.read_bytes
    assert read >= report.read_bytes * 0.9, "one after the other they come to all"


def test_what_a_sample_says() -> None:
    assert confidence_of(5, 5).startswith("all 5 packs")
    text = confidence_of(10, 100)
    assert "10 of 100 packs were read (10.0%)" in text
    assert "in 1 pack with probability 10.0%" in text
    assert "in 10 packs with probability 65.1%" in text
    assert "in 44 packs with probability 99.0%" in text
    assert packs_for(0.1, 0.99) == 44
    assert 1 - 0.9**44 >= 0.99 > 1 - 0.9**43
