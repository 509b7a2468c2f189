"""A prune whose machine is suspended before its n-th call, for every n that lists or changes something, and that wakes
up when another server has gone on with the repository: it must not spoil what that one did.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress

import pytest

from pipeline.errors import IntegrityError, RestorePointRefusedError, StorageUnavailableError
from pipeline.model import RestorePoint
from pipeline.repository.reach import missing_blobs
from pipeline.repository.reader import BlobReader
from pipeline.storage.base import Buffer, ObjectWriter, StoredObject
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

MIN_AGE_S = 50.0
BLOCKS = 24
OLD = random.Random(5).randbytes(BLOCKS * BLOCK_SIZE_BYTES)


def _mixed(old: bytes) -> bytes:
    """Every fourth block is as before: packs of the old image are worth writing again."""
    new = random.Random(6).randbytes(len(old))
    return b"".join(
        (old if block % 4 == 0 else new)[block * BLOCK_SIZE_BYTES : (block + 1) * BLOCK_SIZE_BYTES]
        for block in range(BLOCKS)
    )


KEPT = _mixed(OLD)


class StandsStill(StorageWrapper):
    """The storage as a process sees it that is stopped before one of its calls. Calls that only read do not count."""

    def __init__(self, inner: MemoryStorage) -> None:
        super().__init__(inner)
        self.calls: list[str] = []
        self._at = 0
        self._meanwhile: Callable[[], None] = lambda: None

    def stop_before(self, at: int, meanwhile: Callable[[], None]) -> None:
        """Counted from here, from 1."""
        self.calls.clear()
        self._at, self._meanwhile = at, meanwhile

    def call(self, what: str) -> None:
        self.calls.append(what)
        if len(self.calls) == self._at:
            self._meanwhile()

    def create(self, name: str) -> ObjectWriter:
        return _Writer(self, name)

    def put(self, name: str, data: Buffer) -> None:
        self.call(f"put {name}")
        self.inner.put(name, data)

    def replace(self, name: str, data: Buffer) -> None:
        self.call(f"replace {name}")
        self.inner.replace(name, data)

    def list(self, prefix: str) -> Iterator[StoredObject]:
        self.call(f"list {prefix}")
        return self.inner.list(prefix)

    def delete(self, name: str) -> None:
        self.call(f"delete {name}")
        self.inner.delete(name)


class _Writer:
    def __init__(self, storage: StandsStill, name: str) -> None:
        self._storage = storage
        self._name = name
        self._inner = storage.inner.create(name)

    def write(self, parts: Sequence[Buffer]) -> None:
        self._inner.write(parts)

    def commit(self) -> None:
        self._storage.call(f"create {self._name}")
        self._inner.commit()

    def abort(self) -> None:
        self._inner.abort()


class Site:
    """A repository in which there is something to move and something to free, and the server that goes on."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.memory = MemoryStorage(self.clock)
        bench = Workbench(self.memory, self.clock, pack_target_bytes=8 * BLOCK_SIZE_BYTES)
        self.bench = bench
        self.images: dict[str, bytes] = {}
        old = self.back_up(OLD, 1)
        self.kept = self.back_up(KEPT, 2)
        bench.repository.forget([old.id])
        del self.images[old.id]
        self.clock.now_s += 2 * MIN_AGE_S
        self._begun = dict(self.memory.objects), dict(self.memory.modified_at_s), self.clock.now_s
        self._had = dict(self.images)
        self.waiting: list[RestorePoint] = []
        """Written, and not committed before the old prune woke up."""

    def begin_again(self) -> None:
        objects, modified_at_s, self.clock.now_s = self._begun
        self.memory.objects, self.memory.modified_at_s = dict(objects), dict(modified_at_s)
        self.images = dict(self._had)
        self.waiting = []
        self.bench = self.bench.on(self.memory)

    def back_up(self, image: bytes, vm: int, *, work_id: str = "") -> RestorePoint:
        """Committed, or with `work_id` what would be committed."""
        disk = disk_point(self.bench.backup(image, work_id=work_id).map_root, len(image))
        point = restore_point(disk, vm=vm_identity(vm))
        if not work_id:
            self.commit(point, image)
        return point

    def commit(self, point: RestorePoint, image: bytes) -> None:
        self.bench.commit(point)
        self.images[point.id] = image

    def commit_waiting(self) -> None:
        """What was not committed before may be refused: such a backup has to be repeated."""
        for point in self.waiting:
            with suppress(RestorePointRefusedError):
                self.commit(point, OLD)
        self.waiting.clear()

    def prune(self, *keep: str) -> None:
        self.bench.repository.prune(keep_work_ids=keep, min_age_s=MIN_AGE_S)
        self.clock.now_s += 20 * MIN_AGE_S

    def wait(self, pause_s: float) -> None:
        self.clock.now_s += pause_s

    def unreadable(self) -> list[str]:
        """Points with blobs that the index does not name."""
        repository = self.bench.on(self.memory).repository
        index = repository.index_loader().refresh()
        load_node = BlobReader(self.memory, repository.keyring, index).load_node
        return [
            point_id
            for point_id in self.images
            for disk in repository.point(point_id).disks
            if set(missing_blobs(disk, BLOCK_SIZE_BYTES, index, load_node, [], set()))
        ]


def a_point(site: Site) -> None:
    """A writer finds in the index what the old prune is about to take out of it."""
    site.back_up(OLD, 3)


def prunes_and_a_point(site: Site) -> None:
    site.prune()
    site.prune()
    site.back_up(OLD, 3)


def a_work_and_a_prune(site: Site) -> None:
    """What a writer goes on with keeps packs that the old prune takes for useless, and looks so to nobody else."""
    site.waiting.append(site.back_up(OLD, 3, work_id="going-on"))
    site.clock.now_s += 20 * MIN_AGE_S
    site.prune("going-on")


def all_forgotten_and_pruned(site: Site) -> None:
    site.bench.repository.forget([site.kept.id])
    del site.images[site.kept.id]
    site.prune()
    site.prune()


@pytest.mark.parametrize(
    "others", [a_point, prunes_and_a_point, a_work_and_a_prune, all_forgotten_and_pruned]
)
def test_a_prune_that_wakes_up_late_spoils_nothing(others: Callable[[Site], None]) -> None:
    site = Site()
    at, refused, ended = 0, 0, False
    while not ended:
        at += 1
        site.begin_again()

        def meanwhile() -> None:
            site.clock.now_s += 20 * MIN_AGE_S
            others(site)

        storage = StandsStill(site.memory)
        sleeper = site.bench.on(storage).repository
        storage.stop_before(at, meanwhile)
        try:
            sleeper.prune(keep_work_ids=(), min_age_s=MIN_AGE_S, wait=site.wait)
        except (StorageUnavailableError, IntegrityError):
            refused += 1
        ended = len(storage.calls) < at
        if not ended:
            look_after(site, storage.calls[at - 1])
    assert refused >= 5
    assert at > 30


def look_after(site: Site, stopped_before: str) -> None:
    """`stopped_before`: what had been asked of the storage already. What follows at once nobody can look at before."""
    if not stopped_before.startswith(("delete index/", "put index/")):
        assert site.unreadable() == [], stopped_before
        site.commit_waiting()
        site.back_up(KEPT, 4)
    site.prune(*(["going-on"] if site.waiting else []))
    site.commit_waiting()
    site.back_up(KEPT, 5)
    site.back_up(OLD, 6)
    for _ in range(3):
        site.prune()
    assert site.bench.problems() == (), stopped_before
    for point_id, image in site.images.items():
        root = site.bench.repository.point(point_id).disks[0].map_root
        assert site.bench.restored(root, len(image)) == image, stopped_before


def test_a_prune_that_nobody_disturbs_looks_once_a_second_and_ends() -> None:
    site = Site()
    storage = StandsStill(site.memory)
    report = site.bench.on(storage).repository.prune(keep_work_ids=(), min_age_s=MIN_AGE_S)
    assert report.rewritten_bytes
    assert report.doomed_packs
    assert storage.calls.count("list points/") <= 4
    assert site.unreadable() == []
