"""Random guest writes against random points of chains; the model is plain bytes.

Every restore equals the model, whatever was forgotten, pruned, interrupted or written by two at once.
"""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from pipeline.errors import CancelledError
from pipeline.model import RestorePoint
from pipeline.mover import MoverOptions
from pipeline.planning import BackupPlan
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
from transports.base import SECTOR_BYTES, Extent, ReadRequest
from transports.errors import TransientTransportError

ROUNDS = int(os.environ.get("VMHAUL_PROPERTY_ROUNDS", "300"))
START = datetime(2025, 1, 1, tzinfo=UTC)


@dataclass
class Guest:
    """A VM with one disk that remembers what was written since each point."""

    number: int
    rng: random.Random
    image: bytearray
    points: list[tuple[RestorePoint, bytes]] = field(default_factory=list)
    writes: list[list[Extent]] = field(default_factory=list)
    """Since the point of the same position."""
    works: int = 0

    def work_a_day(self) -> None:
        for _ in range(self.rng.randrange(0, 12)):
            sectors = len(self.image) // SECTOR_BYTES
            start = self.rng.randrange(sectors)
            count = min(sectors - start, self.rng.choice([1, 2, 8, 40, 200]))
            extent = Extent(offset=start * SECTOR_BYTES, length=count * SECTOR_BYTES)
            self.image[extent.offset : extent.end] = self.content(extent.length)
            for since in self.writes:
                since.append(extent)

    def content(self, length: int) -> bytes:
        match self.rng.randrange(4):
            case 0:
                return bytes(length)
            case 1:
                return bytes([self.rng.randrange(4)]) * length
            case 2:  # content that other guests have too
                return random.Random(self.rng.randrange(3)).randbytes(length)
            case _:
                return self.rng.randbytes(length)

    def resize(self) -> None:
        sectors = self.rng.choice([1, 7, 64, 500, 1500, 5000])
        size = sectors * SECTOR_BYTES
        # The whole disk counts as changed: it may come back to the size of an earlier point.
        for since in self.writes:
            since.append(Extent(offset=0, length=max(size, len(self.image))))
        self.image = bytearray(bytes(self.image[:size]).ljust(size, b"\0"))

    def allocated(self) -> list[Extent]:
        """What a good transport mode would say: everything that is not zeros, in odd pieces."""
        step = 3 * SECTOR_BYTES
        return [
            Extent(offset=at, length=min(step, len(self.image) - at))
            for at in range(0, len(self.image), step)
            if any(self.image[at : at + step])
        ]


class Site:
    """Two guests, one repository, and what a server would do with them."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.clock = ManualClock()
        self.storage = MemoryStorage(self.clock)
        self.bench = Workbench(self.storage, self.clock)
        self.guests = [
            Guest(number, random.Random(seed * 10 + number), bytearray(900 * SECTOR_BYTES))
            for number in (1, 2)
        ]

    def round(self) -> None:
        self.clock.now_s += self.rng.randrange(1, 100)
        guest = self.rng.choice(self.guests)
        match self.rng.randrange(12):
            case 0:
                guest.resize()
            case 1:
                self.forget(guest)
            case 2:
                self.bench.repository.prune(keep_work_ids=(), min_age_s=self.rng.choice([0, 50]))
            case 3:
                self.both_at_once()
            case 4:
                self.restore_all()
            case _:
                guest.work_a_day()
                self.finish(guest, *self.back_up(self.bench, guest))

    def back_up(self, bench: Workbench, guest: Guest) -> tuple[str, RestorePoint | None]:
        """A backup against a random point of the chain; the map root, and the point built on."""
        disk = MemoryDisk(
            guest.image,
            requests_in_flight=guest.rng.choice([1, 3, 8]),
            max_request_bytes=guest.rng.choice([SECTOR_BYTES, BLOCK_SIZE_BYTES, 1 << 20]),
        )
        allocated = guest.allocated() if guest.rng.random() < 0.5 else None
        base = guest.rng.randrange(len(guest.points)) if guest.points else None
        previous = None if base is None else guest.points[base][0]
        changed = None if base is None or guest.rng.random() < 0.1 else guest.writes[base]
        plan = bench.plan(
            len(guest.image),
            previous=previous.disks[0].map_root if previous else "",
            previous_capacity_bytes=previous.disks[0].capacity_bytes if previous else 0,
            changed=changed,
            allocated=allocated,
        )
        guest.works += 1
        work_id = f"vm{guest.number}-{guest.works}"
        options = MoverOptions(
            workers=2, checkpoint_every_s=guest.rng.choice([0.0, 1e9]), verify_every=4
        )
        for _ in range(guest.rng.randrange(3)):
            self.interrupted(bench, guest, plan, work_id, options)
        backup = bench.backup(
            disk,
            plan=plan,
            work_id=work_id,
            compression=guest.rng.choice(["none", "fast", "balanced", "high"]),
            options=options,
        )
        return backup.map_root, previous

    def interrupted(
        self,
        bench: Workbench,
        guest: Guest,
        plan: BackupPlan,
        work_id: str,
        options: MoverOptions,
    ) -> None:
        """An attempt that is cancelled, or whose connection is lost, somewhere in the middle."""
        cancel = threading.Event()
        lives = guest.rng.randrange(1, 60)
        is_lost = guest.rng.random() < 0.5

        class Failing(MemoryDisk):
            def read_into(self, offset: int, buffer: memoryview) -> None:
                if len(self.reads) >= lives:
                    if is_lost:
                        raise TransientTransportError("connection lost")
                    cancel.set()
                super().read_into(offset, buffer)

            def read_many(self, requests: Iterable[ReadRequest]) -> Iterator[ReadRequest]:
                for request in requests:
                    self.read_into(request.offset, request.buffer)
                    yield request

        try:
            bench.backup(
                Failing(guest.image), plan=plan, work_id=work_id, options=options, cancel=cancel
            )
        except (CancelledError, TransientTransportError):
            return

    def finish(self, guest: Guest, map_root: str, previous: RestorePoint | None) -> None:
        point = restore_point(
            disk_point(map_root, len(guest.image)),
            vm=vm_identity(guest.number),
            created_at=START + timedelta(seconds=self.clock.now_s - 1_700_000_000),
            previous=previous,
            point_id=str(UUID(int=self.rng.getrandbits(128))),
        )
        assert self.bench.repository.commit_point(point)
        assert not self.bench.repository.commit_point(point), "committing again changes nothing"
        guest.points.append((point, bytes(guest.image)))
        guest.writes.append([])
        assert self.bench.restored(map_root, len(guest.image)) == guest.image

    def both_at_once(self) -> None:
        """Two proxies that see the same repository, at the same time."""
        results: dict[int, tuple[str, RestorePoint | None]] = {}

        def one(guest: Guest, bench: Workbench) -> None:
            results[guest.number] = self.back_up(bench, guest)

        threads = []
        for guest in self.guests:
            guest.work_a_day()
            bench = self.bench.on(self.storage)
            threads.append(threading.Thread(target=one, args=(guest, bench)))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for guest in self.guests:
            self.finish(guest, *results[guest.number])

    def forget(self, guest: Guest) -> None:
        if len(guest.points) < 2:
            return
        chosen = sorted(
            self.rng.sample(range(len(guest.points)), self.rng.randrange(1, len(guest.points))),
            reverse=True,
        )
        ids = [guest.points[position][0].id for position in chosen]
        assert self.bench.repository.forget(ids) == len(ids)
        for position in chosen:
            del guest.points[position], guest.writes[position]

    def restore_all(self) -> None:
        bench = self.bench.on(self.storage)
        assert bench.problems() == ()
        expected = {point.id for guest in self.guests for point, _ in guest.points}
        assert {point.id for point in bench.repository.points()} == expected
        for guest in self.guests:
            for point, image in guest.points:
                disk = bench.repository.point(point.id).disks[0]
                fill = self.rng.choice([0, 0xAA])
                assert bench.restored(disk.map_root, disk.capacity_bytes, fill=fill) == image


@pytest.mark.parametrize("part", range(4))
def test_every_restore_equals_the_guest_of_that_time(part: int) -> None:
    seed = int(os.environ.get("VMHAUL_PROPERTY_SEED", random.SystemRandom().randrange(1 << 32)))
    print(f"seed {seed}: run again with VMHAUL_PROPERTY_SEED={seed}")
    site = Site(seed + part)
    for _ in range(ROUNDS // 4):
        site.round()
    site.restore_all()
    assert sum(len(guest.points) for guest in site.guests) > 0
