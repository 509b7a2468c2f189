"""A repository on storage that fails now and then, in every scripted way, during everything that is done to
it: backup, increment, commit, forget, prune, check, restore. Every restore point that was committed must be
restored as it was.

VMHAUL_PROPERTY_ROUNDS sets how many operations there are, VMHAUL_PROPERTY_SEED repeats a run.
"""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import TypeVar
from uuid import UUID

import pytest

from pipeline.errors import (
    IntegrityError,
    PipelineError,
    StorageFullError,
    TransientPipelineError,
    WrongRepositoryError,
)
from pipeline.model import RestorePoint
from pipeline.mover import MoverOptions
from pipeline.storage.base import Storage
from pipeline.storage.retry import RetryingStorage
from pipeline.testing.builders import (
    BLOCK_SIZE_BYTES,
    ManualClock,
    Workbench,
    disk_point,
    restore_point,
)
from pipeline.testing.storage import Fault, FullStorage, MemoryStorage, ScriptedStorage, at_random
from transports.base import Extent

ROUNDS = int(os.environ.get("VMHAUL_PROPERTY_ROUNDS", "200"))
BLOCKS = 48
START = datetime(2025, 11, 20, tzinfo=UTC)
MAX_ATTEMPTS = 500
MIN_AGE_S = 600.0
T = TypeVar("T")


def seed_of(part: int) -> int:
    seed = int(os.environ.get("VMHAUL_PROPERTY_SEED", random.SystemRandom().randrange(1 << 32)))
    print(f"seed {seed}: run again with VMHAUL_PROPERTY_SEED={seed}")
    return seed + part


class Site:
    """One guest and its repository. Each operation is a process of its own that opens the repository
    through `through`, and is begun again when it fails.
    """

    def __init__(
        self,
        seed: int,
        through: Callable[[Storage, ManualClock, random.Random], Storage],
        *,
        tolerated: tuple[type[PipelineError], ...] = (),
        min_age_s: float = MIN_AGE_S,
        on_failure: Callable[[], None] = lambda: None,
    ) -> None:
        self.rng = random.Random(seed)
        self.clock = ManualClock()
        self.memory = MemoryStorage(self.clock)
        self.calm = Workbench(self.memory, self.clock)
        self.storage = through(self.memory, self.clock, self.rng)
        self.image = bytearray(BLOCKS * BLOCK_SIZE_BYTES)
        self.points: list[tuple[RestorePoint, bytes]] = []
        self.failures = 0
        self.open_works: list[str] = []
        self._tolerated = tolerated
        self._min_age_s = min_age_s
        self._on_failure = on_failure

    def persist(self, call: Callable[[Workbench], T]) -> T:
        """What a server does: the operation again, in a new process, until it succeeds."""
        for _ in range(MAX_ATTEMPTS):
            self.clock.now_s += 1
            try:
                return call(self.calm.on(self.storage))
            except self._tolerated:
                self.failures += 1
                self._on_failure()
        raise AssertionError(f"did not succeed in {MAX_ATTEMPTS} attempts")

    def round(self) -> None:
        match self.rng.randrange(8):
            case 0 if len(self.points) > 1:
                self.forget()
            case 1:
                self.prune()
            case 2:
                self.look()
            case _:
                self.back_up()

    def back_up(self) -> None:
        changed = []
        for _ in range(self.rng.randrange(1, 6)):
            block = self.rng.randrange(BLOCKS)
            content = self.rng.choice(
                [bytes(BLOCK_SIZE_BYTES), self.rng.randbytes(BLOCK_SIZE_BYTES), b"again" * 800]
            )[:BLOCK_SIZE_BYTES]
            at = block * BLOCK_SIZE_BYTES
            self.image[at : at + len(content)] = content
            changed.append(Extent(offset=at, length=BLOCK_SIZE_BYTES))
        number = self.rng.getrandbits(120)
        self.open_works = [f"work-{number:x}"]
        previous = self.points[-1][0] if self.points else None
        image = bytes(self.image)

        def move(bench: Workbench) -> str:
            plan = bench.plan(
                len(image),
                previous=previous.disks[0].map_root if previous else "",
                previous_capacity_bytes=len(image) if previous else 0,
                changed=changed if previous else None,
            )
            options = MoverOptions(
                workers=2, checkpoint_every_s=self.rng.choice([0.0, 1e9]), verify_every=4
            )
            return bench.backup(image, plan=plan, work_id=self.open_works[0], options=options).map_root

        root = self.persist(move)
        point = restore_point(
            disk_point(root, len(image)),
            created_at=START + timedelta(seconds=self.clock.now_s - 1_700_000_000),
            previous=previous,
            point_id=str(UUID(int=number)),
        )
        self.persist(lambda bench: bench.repository.commit_point(point))
        self.points.append((point, image))
        self.open_works = []

    def forget(self) -> None:
        # The newest stays: the changes of the next increment are those since then.
        chosen = self.rng.sample(range(len(self.points) - 1), self.rng.randrange(1, len(self.points)))
        ids = [self.points[position][0].id for position in chosen]
        self.persist(lambda bench: bench.repository.forget(ids))
        self.points = [kept for n, kept in enumerate(self.points) if n not in chosen]

    def prune(self) -> None:
        self.clock.now_s += self.rng.choice([0, 1000, 5000])
        self.persist(self.prune_once)

    def prune_once(self, bench: Workbench) -> None:
        bench.repository.prune(
            keep_work_ids=self.open_works, min_age_s=self._min_age_s, wait=self.pass_time
        )

    def pass_time(self, seconds: float) -> None:
        self.clock.now_s += seconds

    def look(self) -> None:
        """Through the failing storage: what is read is right."""
        if self.points:
            point, image = self.rng.choice(self.points)
            assert self.persist(lambda b: b.restored(point.disks[0].map_root, len(image))) == image

    def verify(self) -> None:
        """On quiet storage, afterwards."""
        bench = self.calm.on(self.memory)
        assert bench.problems() == ()
        assert {point.id for point in bench.repository.points()} == {p.id for p, _ in self.points}
        for point, image in self.points:
            assert bench.restored(point.disks[0].map_root, len(image)) == image


def run(site: Site, rounds: int, before_verify: Callable[[], None] = lambda: None) -> None:
    for number in range(rounds):
        site.round()
        if number % 20 == 19 or number == rounds - 1:
            before_verify()
            site.verify()


@pytest.mark.parametrize("part", range(2))
def test_behind_retries_nothing_fails_at_all(part: int) -> None:
    scripted: list[ScriptedStorage] = []

    def through(inner: Storage, clock: ManualClock, rng: random.Random) -> Storage:
        def wait(pause_s: float) -> None:
            clock.now_s += pause_s

        faults = (Fault.LOST, Fault.ANSWER_LOST, Fault.SHORT, Fault.REPEATS)
        script = at_random(rng, 0.1, *faults, sparing="read ")
        scripted.append(ScriptedStorage(inner, script))
        return RetryingStorage(scripted[0], wait=wait, clock=clock)

    run(Site(seed_of(part), through), ROUNDS // 2)
    assert all(scripted[0].fired[fault] for fault in Fault if fault is not Fault.DENIED)


@pytest.mark.parametrize("part", range(2))
def test_what_fails_is_begun_again(part: int) -> None:
    """Without retries: every operation may break off anywhere, before or after an effect, and its process
    goes on to clean up, unlike one that dies.
    """

    def through(inner: Storage, _clock: ManualClock, rng: random.Random) -> Storage:
        faults = (Fault.LOST, Fault.ANSWER_LOST, Fault.SHORT)
        return ScriptedStorage(inner, at_random(rng, 0.01, *faults))

    site = Site(
        seed_of(part), through, tolerated=(TransientPipelineError, IntegrityError, WrongRepositoryError)
    )
    run(site, ROUNDS // 2)
    assert site.failures > 0


def test_storage_that_runs_full_again_and_again() -> None:
    full: list[FullStorage] = []

    def through(inner: Storage, _clock: ManualClock, rng: random.Random) -> Storage:
        full.append(FullStorage(inner, room_bytes=rng.randrange(1, 50_000)))
        return full[0]

    def more_room() -> None:
        full[0].room_bytes += site.rng.randrange(1, 50_000)

    site = Site(seed_of(0), through, tolerated=(StorageFullError,), on_failure=more_room)
    run(site, ROUNDS // 2)
    assert site.failures > 0


@pytest.mark.parametrize("part", range(2))
def test_listings_that_are_late(part: int) -> None:
    """By less than the age given to prune. What a listing does not show yet may be refused, or wait for the
    next prune (which brings back what one that did not see a restore point took for useless); nothing is lost.
    """

    def through(inner: Storage, clock: ManualClock, rng: random.Random) -> Storage:
        return ScriptedStorage(inner, lists_late_s=rng.choice([5.0, 60.0, 500.0]), clock=clock)

    def prune_through() -> None:
        with contextlib.suppress(PipelineError):
            site.prune_once(site.calm.on(site.storage))

    def later() -> None:
        site.clock.now_s += site.rng.randrange(1, 60)
        if site.rng.random() < 0.1:
            prune_through()

    def settled() -> None:
        site.clock.now_s += 500
        prune_through()
        site.clock.now_s += 500

    site = Site(seed_of(part), through, tolerated=(PipelineError,), on_failure=later)
    run(site, ROUNDS // 2, settled)
