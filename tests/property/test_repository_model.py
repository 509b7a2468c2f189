"""Two writers, a collector of garbage, a checker and a copier at random against a model, each dying now and
then, while the data key is changed.

They are real threads over the product's code, under a scheduler that lets one go on at a time: which one
is drawn from a seed at every call of the storage and at every wait. A seed gives the same history again.
The model: which images were committed, and which blobs they need. No pack goes that is the last to hold
one of them; every check is sound; every committed point restores bit for bit.

VMHAUL_MODEL_ROUNDS: rounds in all (a backup, and what goes on beside it). VMHAUL_PROPERTY_SEED: other
histories.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

import pytest

from pipeline.copy import copy_disk, plan_copy
from pipeline.errors import NewerEpochError
from pipeline.model import RestorePoint
from pipeline.mover import MoverOptions
from pipeline.planning import BackupPlan
from pipeline.repository import Repository, index_loader
from pipeline.repository.format import PACK_TRAILER, Encoding
from pipeline.repository.index import BlobEntry
from pipeline.repository.layout import pack_id_of
from pipeline.repository.maps import block_count_of, walk
from pipeline.repository.packs import parse_footer
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
from pipeline.testing.storage import Crash, MemoryStorage
from tests.support.actors import Process, SharedStorage
from tests.support.schedule import Scheduler
from transports.base import Extent

HISTORIES = 20
ROUNDS = int(os.environ.get("VMHAUL_MODEL_ROUNDS", "300"))
SEED = int(os.environ.get("VMHAUL_PROPERTY_SEED", "1"))
MIN_AGE_S = 3600.0
CRASH_SHARE = 0.5
PATCHES_SHARE = 0.7
NEW_KEY_SHARE = 0.15
MOST_CHANGES_OF_A_LIFE = 12
SMALL_BLOCKS, LARGE_BLOCKS = 40, 1030  # the larger one has a map of two levels


@dataclass
class Guest:
    number: int
    rng: random.Random
    image: bytearray
    points: list[tuple[RestorePoint, bytes]] = field(default_factory=list)
    writes: dict[str, list[Extent]] = field(default_factory=dict)
    """Since each point, by its id."""

    def work_a_day(self) -> None:
        blocks = len(self.image) // BLOCK_SIZE_BYTES
        for _ in range(self.rng.randrange(1, 8)):
            # Near the ends: most of a large disk is zeros.
            block = self.rng.choice([self.rng.randrange(30), blocks - 1 - self.rng.randrange(5)])
            start = block * BLOCK_SIZE_BYTES + self.rng.choice([0, 512])
            length = min(self.rng.choice([512, 4096, 3 * 4096]), len(self.image) - start)
            extent = Extent(offset=start, length=length)
            self.image[extent.offset : extent.end] = self.content(length)
            for since in self.writes.values():
                since.append(extent)

    def content(self, length: int) -> bytes:
        match self.rng.randrange(4):
            case 0:
                return bytes(length)
            case 1:  # content that other guests have too
                return random.Random(self.rng.randrange(6)).randbytes(length)
            case _:
                return self.rng.randbytes(length)

    def allocated(self) -> list[Extent]:
        return [
            Extent(offset=at, length=min(BLOCK_SIZE_BYTES, len(self.image) - at))
            for at in range(0, len(self.image), BLOCK_SIZE_BYTES)
            if any(self.image[at : at + BLOCK_SIZE_BYTES])
        ]


class Model:
    """What must be there, from the bytes that were stored and never from what the product says."""

    def __init__(self, keyring_of: Callable[[], Repository]) -> None:
        self._repository = keyring_of
        self.needed: dict[str, frozenset[bytes]] = {}
        """Blobs of each committed point."""
        self.packs: dict[str, dict[bytes, BlobEntry]] = {}
        self.deleted_packs = 0

    def changed(self, change: str, name: str, data: bytes) -> None:
        if not name.startswith("packs/"):
            return
        if change == "put":
            self.packs[name] = self._entries(name, data)
            return
        if self.packs.pop(name, None) is None:
            return
        self.deleted_packs += 1
        for point_id, needed in self.needed.items():
            missing = [blob_id.hex() for blob_id in needed if not self.is_stored(blob_id)]
            assert not missing, f"{name} was deleted and point {point_id} needs {missing[:3]} of it"

    def is_stored(self, blob_id: bytes) -> bool:
        for entries in self.packs.values():
            entry = entries.get(blob_id)
            if entry and (entry.encoding != Encoding.PATCH or self.is_stored(entry.base_id)):
                return True
        return False

    def _entries(self, name: str, data: bytes) -> dict[bytes, BlobEntry]:
        pack_id = pack_id_of(name)
        assert pack_id is not None
        offset, length, _, _ = PACK_TRAILER.unpack(data[-PACK_TRAILER.size :])
        footer = data[offset : offset + length]
        segment = parse_footer(self._repository().keyring, pack_id, len(data), footer)
        return {entry.blob_id: entry for entry in segment.entries}


class Site:
    """Everything of one history."""

    def __init__(
        self, seed: int, rounds: int, scheduler: Scheduler, caches: Path | None = None
    ) -> None:
        """`caches`: where each process has a cache of the index, as on a machine of its own."""
        self.scheduler = scheduler
        self.caches = caches
        self.rng = random.Random(seed)
        self.clock = ManualClock()
        self.memory = MemoryStorage(self.clock)
        self.trace: list[str] = []
        self.founder = Repository.create(
            self.memory,
            PASSWORD,
            clock=self.clock,
            block_size_bytes=BLOCK_SIZE_BYTES,
            kdf_cost=CHEAP_KDF,
        )
        self.material = self.founder.key_material
        """What the backup server would hand out now."""
        self.model = Model(self.plainly_opened)
        self.other_memory = MemoryStorage(self.clock)
        Repository.create(
            self.other_memory,
            PASSWORD,
            clock=self.clock,
            block_size_bytes=2 * BLOCK_SIZE_BYTES,
            kdf_cost=CHEAP_KDF,
        )
        self.copies: dict[str, tuple[str, bytes]] = {}
        """Map root of the copy and image of each point that was copied."""
        self.rounds_left = rounds
        self.crashes = 0
        self.writing = 2
        self.turned = scheduler.threading.Condition()
        """Told when a writer has done a round, or has ended."""
        self.agent_lock = self.scheduler.threading.Lock()
        """Commits, forgetting and collecting are the one agent's, one after the other."""
        self.agent = self.newborn("agent")
        self.guests = [
            Guest(1, random.Random(seed + 1), bytearray(SMALL_BLOCKS * BLOCK_SIZE_BYTES - 512)),
            Guest(2, random.Random(seed + 2), bytearray(LARGE_BLOCKS * BLOCK_SIZE_BYTES)),
        ]
        self.open_works: set[str] = set()
        self.in_use: set[str] = set()
        """Points that somebody restores or builds on."""
        self.busy_until_recorded = 0
        """Writers whose begin, or whose last pack, nothing in the storage tells yet."""
        self.checks = self.restores = self.backups = self.collections = 0
        self.outdated = 0
        """Runs that met what was written with a later data key than theirs."""

    # ---- processes -------------------------------------------------------------------------------

    def process(self, name: str) -> Process:
        mortal = self.rng.random() < CRASH_SHARE
        return Process(name, self.rng.randrange(1, MOST_CHANGES_OF_A_LIFE) if mortal else None)

    def bench(self, process: Process) -> Workbench:
        """The agent opens with the password, as the one who must know of every data key."""
        storage = SharedStorage(self.memory, self.scheduler, process, self.trace, self.model.changed)
        if process.name == "agent":
            repository = Repository.open_with_password(storage, PASSWORD, clock=self.clock)
            self.material = repository.key_material
        else:
            repository = Repository.open_with_key(
                storage, self.material, expected_id=self.founder.id, clock=self.clock
            )
        if self.caches is not None:
            repository.use_cache(self.caches / process.name)
        repository.makes_patches = self.rng.random() < PATCHES_SHARE
        return Workbench(storage, self.clock, repository=repository)

    def newborn(self, name: str) -> Workbench:
        """A process that has opened the repository, whatever died before it."""
        while True:
            try:
                return self.bench(self.process(name))
            except Crash:
                self.crashes += 1

    def by_agent(self, call: Callable[[Repository], object]) -> None:
        """As the backup server does: again, with a new agent, until it is answered."""
        with self.agent_lock:
            while True:
                try:
                    call(self.agent.repository)
                except Crash:
                    self.crashes += 1
                    self.agent = self.newborn("agent")
                else:
                    return

    def another_backup(self) -> bool:
        with self.turned:
            self.rounds_left -= 1
            self.turned.notify_all()
            return self.rounds_left >= 0

    def while_they_write(self, body: Callable[[], None]) -> None:
        """`body`, once or twice for each round of a writer."""
        while self.writing:
            with self.turned:
                self.turned.wait()
            for _ in range(self.rng.choice([1, 1, 2])):
                body()

    # ---- writers ---------------------------------------------------------------------------------

    def write(self, guest: Guest) -> None:
        while self.another_backup():
            guest.work_a_day()
            self.backups += 1
            work_id = f"vm{guest.number}-{self.backups}"
            base = guest.rng.choice(guest.points)[0] if guest.points else None
            if base is not None:
                self.in_use.add(base.id)
            self.open_works.add(work_id)
            map_root = self.back_up(guest, work_id, base)
            image = bytes(guest.image)
            point = restore_point(
                disk_point(map_root, len(image)),
                vm=vm_identity(guest.number),
                created_at=datetime.fromtimestamp(self.clock.now_s, UTC),
                previous=base,
                point_id=str(UUID(int=guest.rng.getrandbits(128))),
            )
            self.by_agent(lambda repository, point=point: self.commit(repository, point))
            guest.points.append((point, image))
            guest.writes[point.id] = []
            self.open_works.discard(work_id)
            self.in_use -= {base.id} if base is not None else set()
        with self.turned:
            self.writing -= 1
            self.turned.notify_all()

    def commit(self, repository: Repository, point: RestorePoint) -> None:
        repository.commit_point(point)
        # From the moment that it was answered, not before, everything of it must stay.
        self.model.needed[point.id] = self.reached(point)

    def reached(self, point: RestorePoint) -> frozenset[bytes]:
        found = set()
        repository = self.plainly_opened()
        for disk in point.disks:
            count = block_count_of(disk.capacity_bytes, BLOCK_SIZE_BYTES)
            load = repository.reader().load_node
            found.update(entry.blob_id for entry in walk(load, bytes.fromhex(disk.map_root), count))
        return frozenset(found)

    def plainly_opened(self) -> Repository:
        return Repository.open_with_key(self.memory, self.material, expected_id=None, clock=self.clock)

    def back_up(self, guest: Guest, work_id: str, base: RestorePoint | None) -> str:
        """Attempt after attempt, each in a new process."""
        changed = None if base is None else guest.writes[base.id]
        allocated = guest.allocated()
        while True:
            bench = self.newborn(f"writer{guest.number}")
            plan = bench.plan(
                len(guest.image),
                previous=base.disks[0].map_root if base else "",
                previous_capacity_bytes=base.disks[0].capacity_bytes if base else 0,
                changed=changed,
                allocated=allocated,
            )
            try:
                return self.attempt(guest, bench, plan, work_id)
            except Crash:
                self.crashes += 1
            except NewerEpochError:
                self.outdated += 1
                assert bench.repository.key_epoch < self.key_epoch

    def attempt(self, guest: Guest, bench: Workbench, plan: BackupPlan, work_id: str) -> str:
        self.busy_until_recorded += 1
        try:
            options = MoverOptions(
                workers=guest.rng.choice([1, 2]),
                checkpoint_every_s=guest.rng.choice([0.0, 1e9]),
                verify_every=0,
            )
            disk = MemoryDisk(guest.image, requests_in_flight=guest.rng.choice([1, 4]))
            return bench.backup(disk, plan=plan, work_id=work_id, options=options).map_root
        finally:
            self.busy_until_recorded -= 1

    # ---- collector and checker -------------------------------------------------------------------

    def collect(self) -> None:
        self.pass_time()
        unwanted = [
            point.id
            for guest in self.guests
            for point, _ in guest.points
            if self.rng.random() < 0.3 and point.id not in self.in_use
        ]
        self.forget(unwanted)
        if self.rng.random() < NEW_KEY_SHARE:
            self.by_agent(self.change_key)
        self.collections += 1
        keep = sorted(self.open_works)
        self.by_agent(lambda repository: repository.prune(keep_work_ids=keep, min_age_s=MIN_AGE_S))

    @property
    def key_epoch(self) -> int:
        return self.agent.repository.key_epoch

    def change_key(self, repository: Repository) -> None:
        repository.rotate_data_key()
        self.material = repository.key_material

    def pass_time(self) -> None:
        """Long enough for everything that is there to be old, while nobody is where only age protects
        him: `min_age_s` is the promise that a writer does not stay there for so long.
        """
        if not self.busy_until_recorded:
            self.clock.now_s += self.rng.choice([10.0, 2 * MIN_AGE_S])

    def forget(self, point_ids: list[str]) -> None:
        for guest in self.guests:
            guest.points = [entry for entry in guest.points if entry[0].id not in point_ids]
            for point_id in point_ids:
                guest.writes.pop(point_id, None)
        for point_id in point_ids:
            del self.model.needed[point_id]
        self.by_agent(lambda repository: repository.forget(point_ids))

    def look(self) -> None:
        self.checks += 1
        bench = self.newborn("checker")
        report = bench.repository.check(read_data=self.rng.random() < 0.5, workers=1)
        if bench.repository.key_epoch < self.key_epoch:
            self.outdated += 1  # what is new it cannot read
            return
        assert report.problems == ()
        try:
            self.restore_one(bench)
        except NewerEpochError:
            self.outdated += 1
            assert bench.repository.key_epoch < self.key_epoch

    def restore_one(self, bench: Workbench) -> None:
        entries = [entry for guest in self.guests for entry in guest.points]
        if not entries:
            return
        point, image = self.rng.choice(entries)
        if point.id in self.in_use:
            return
        self.in_use.add(point.id)
        try:
            disk = bench.repository.point(point.id).disks[0]
            assert bench.restored(disk.map_root, disk.capacity_bytes) == image
            self.restores += 1
        finally:
            self.in_use.discard(point.id)

    # ---- copier ----------------------------------------------------------------------------------

    def copy(self) -> None:
        """One point to another repository, which has other keys and larger blocks."""
        entries = [entry for guest in self.guests for entry in guest.points]
        free = [(p, image) for p, image in entries if p.id not in self.in_use | self.copies.keys()]
        if not free:
            return
        point, image = self.rng.choice(free)
        self.in_use.add(point.id)
        try:
            while point.id not in self.copies:
                try:
                    self.copies[point.id] = (self.copied(point), image)
                except Crash:
                    self.crashes += 1
                except NewerEpochError:
                    self.outdated += 1
        finally:
            self.in_use.discard(point.id)

    def copied(self, point: RestorePoint) -> str:
        source = self.newborn("copier")
        storage = source.storage
        assert isinstance(storage, SharedStorage)
        shared = SharedStorage(
            self.other_memory, self.scheduler, storage.process, self.trace, lambda *_: None
        )
        target = Repository.open_with_password(shared, PASSWORD, clock=self.clock)
        disk = point.disks[0]
        plan = plan_copy(
            source=source.repository,
            target_block_size_bytes=target.block_size_bytes,
            map_root=disk.map_root,
            capacity_bytes=disk.capacity_bytes,
        )
        return copy_disk(
            source=source.repository,
            target=target,
            plan=plan,
            map_root=disk.map_root,
            compression="fast",
            work_id=f"copy-{point.id}",
            cancel=self.scheduler.threading.Event(),  # type: ignore[arg-type]
            progress=lambda _progress: None,
            clock=self.clock,
            options=MoverOptions(workers=1, verify_every=0),
        ).map_root

    # ---- the whole -------------------------------------------------------------------------------

    def run(self) -> None:
        spawn = self.scheduler.spawn
        for guest in self.guests:
            spawn(lambda guest=guest: self.write(guest), f"writer{guest.number}", "writer")
        spawn(lambda: self.while_they_write(self.collect), "collector", "collector")
        spawn(lambda: self.while_they_write(self.look), "checker", "checker")
        spawn(lambda: self.while_they_write(self.copy), "copier", "copier")
        self.scheduler.run()


def history(
    seed: int, rounds: int, monkeypatch: pytest.MonkeyPatch, caches: Path | None = None
) -> Site:
    """Run one; everything that is random in it comes from the seed."""
    with monkeypatch.context() as patch:
        # So little that caches are made, merged and cleared of what is dead all the time.
        patch.setattr(index_loader, "BULK_BYTES", 1500)
        patch.setattr(index_loader, "RUN_RECORDS", 20)
        patch.setattr(index_loader, "RECENT_PLACES", 30)
        patch.setattr(index_loader, "RECENT_OBJECTS", 2)
        patch.setattr(os, "urandom", random.Random(seed).randbytes)
        scheduler = Scheduler(seed)
        with scheduler.installed("pipeline"):
            site = Site(seed, rounds, scheduler, caches)
            site.run()
    return site


def verify(site: Site) -> None:
    """The end: everybody is gone, a new process looks at what they left."""
    survivor = Workbench(site.memory, site.clock, repository=site.plainly_opened())
    assert survivor.problems() == ()
    expected = {point.id: image for guest in site.guests for point, image in guest.points}
    assert {point.id for point in survivor.repository.points()} == set(expected)
    for point_id, image in expected.items():
        disk = survivor.repository.point(point_id).disks[0]
        assert survivor.restored(disk.map_root, disk.capacity_bytes) == image
    other = Workbench(
        site.other_memory,
        site.clock,
        repository=Repository.open_with_password(site.other_memory, PASSWORD, clock=site.clock),
    )
    assert other.problems() == ()
    for map_root, image in site.copies.values():
        assert other.restored(map_root, len(image)) == image
    for _ in range(3):
        site.clock.now_s += 2 * MIN_AGE_S
        survivor.repository.prune(keep_work_ids=(), min_age_s=MIN_AGE_S)
    assert survivor.problems() == ()
    left = {name.partition("/")[0] for name in site.memory.objects}
    assert "doomed" not in left
    assert "work" not in left
    for point_id, image in expected.items():
        disk = survivor.repository.point(point_id).disks[0]
        assert survivor.restored(disk.map_root, disk.capacity_bytes) == image


@pytest.mark.parametrize("part", range(HISTORIES))
def test_whatever_comes_between_every_committed_point_restores(
    part: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seed = SEED * 1000 + part
    caches = tmp_path if part % 2 else None
    print(f"history {seed}, {'with' if caches else 'without'} caches of the index")
    site = history(seed, ROUNDS // HISTORIES, monkeypatch, caches)
    verify(site)
    print(
        f"{site.backups} backups, {site.collections} collections, {site.checks} checks, "
        f"{site.restores} restores, {len(site.copies)} copies, {site.crashes} crashes, {site.key_epoch} keys, {site.outdated} outdated, {site.model.deleted_packs} packs deleted, "
        f"{len(site.trace)} storage calls, {site.scheduler.switches} switches"
    )
    assert site.backups
    assert site.collections
    assert site.checks
    assert caches is None or list(tmp_path.rglob("run-*"))


def test_a_seed_gives_the_same_history_again(monkeypatch: pytest.MonkeyPatch) -> None:
    first = history(77, 20, monkeypatch)
    again = history(77, 20, monkeypatch)
    other = history(78, 20, monkeypatch)
    assert first.trace == again.trace
    assert other.trace != first.trace
