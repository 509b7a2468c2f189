"""Backups of a disk that are stopped again and again, each going on from the one before, while the disk changes.

The model is the disk itself: what the last one stores restores to the disk of its moment, byte by byte, and no
block that was read and did not change since is read again.
"""

from __future__ import annotations

import hashlib
import random
import threading
from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.continuing import Continuation, go_on_from
from pipeline.errors import CancelledError
from pipeline.planning import BackupPlan
from pipeline.testing.builders import ManualClock, Workbench
from pipeline.testing.disks import MemoryDisk
from pipeline.testing.storage import MemoryStorage
from transports.base import Extent

BLOCK = 4096
BLOCKS = 1300  # more than a leaf of the map holds
CAPACITY = BLOCKS * BLOCK + 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    stop_at: int
    """Block at which the window closes."""
    changes: tuple[tuple[int, int], ...]
    """(first block, number) that the guest writes to before the next round."""
    to_zeros: bool


rounds = st.builds(
    Round,
    stop_at=st.integers(0, BLOCKS + 1),
    changes=st.lists(st.tuples(st.integers(0, BLOCKS - 1), st.integers(1, 60)), max_size=4).map(tuple),
    to_zeros=st.booleans(),
)


class Guest:
    """A disk that knows what changed since any of its moments, as change tracking does."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)
        self.image = bytearray(CAPACITY)
        self.write(((0, 500), (900, 300)), to_zeros=False)
        self.log: list[list[Extent]] = []

    def write(self, changes: tuple[tuple[int, int], ...], *, to_zeros: bool) -> list[Extent]:
        extents = []
        for first, count in changes:
            begin, end = first * BLOCK, min(CAPACITY, (first + count) * BLOCK)
            self.image[begin:end] = bytes(end - begin) if to_zeros else self._rng.randbytes(end - begin)
            extents.append(Extent(offset=begin, length=end - begin))
        return extents

    def change(self, one: Round) -> None:
        self.log.append(self.write(one.changes, to_zeros=one.to_zeros))

    def since(self, moment: int) -> list[Extent]:
        return sorted(extent for changes in self.log[moment:] for extent in changes)

    def allocated(self) -> list[Extent]:
        return [
            Extent(offset=at, length=min(BLOCK, CAPACITY - at))
            for at in range(0, CAPACITY, BLOCK)
            if any(self.image[at : at + BLOCK])
        ]


def bench() -> Workbench:
    clock = ManualClock()
    return Workbench(MemoryStorage(clock), clock, block_size_bytes=BLOCK)


def read_blocks(disk: MemoryDisk) -> list[int]:
    return [extent.offset // BLOCK for extent in disk.reads]


def one_round(
    work: Workbench,
    guest: Guest,
    work_id: str,
    plan: BackupPlan,
    continued: Continuation | None,
    stop_at: int,
) -> tuple[str, list[int]]:
    """Map root (empty: it was stopped), and which blocks were read."""
    cancel = threading.Event()

    def before_read(offset: int) -> None:
        if offset >= stop_at * BLOCK:
            cancel.set()

    disk = MemoryDisk(bytearray(guest.image), before_read=before_read, requests_in_flight=1)
    try:
        done = work.backup(disk, plan=plan, work_id=work_id, cancel=cancel, continued=continued)
    except CancelledError:
        return "", read_blocks(disk)
    return str(done.map_root), read_blocks(disk)


@pytest.mark.parametrize("kind", ["full", "full-allocated", "increment"])
@given(seed=st.integers(0, 1000), windows=st.lists(rounds, min_size=1, max_size=4))
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_was_stopped_goes_on_and_restores_equal(
    kind: str, seed: int, windows: list[Round]
) -> None:
    guest, work = Guest(seed), bench()
    previous, base_moment = "", 0
    if kind == "increment":
        previous = str(work.backup(bytearray(guest.image), work_id="base").map_root)
        guest.change(Round(stop_at=0, changes=((10, 300), (1000, 150)), to_zeros=False))
    earlier = ""
    earlier_moment = 0
    root = ""
    for number, one in enumerate([*windows, None]):
        moment = len(guest.log)
        plan = work.plan(
            CAPACITY,
            previous=previous,
            changed=guest.since(base_moment) if previous else None,
            allocated=guest.allocated() if kind == "full-allocated" else None,
        )
        continued = None
        if earlier:
            continued = go_on_from(
                repository=work.repository,
                plan=plan,
                work_id=earlier,
                changed=guest.since(earlier_moment),
            )
        work_id = f"task-{number}"
        stop_at = one.stop_at if one is not None else BLOCKS + 1
        root, blocks = one_round(
            work, guest, work_id, continued.plan if continued else plan, continued, stop_at
        )
        assert len(blocks) == len(set(blocks))
        if continued is not None:
            kept = {b for first, end in continued.kept for b in range(first, end)}
            assert not kept & set(blocks)
            changed = {
                b
                for extent in guest.since(earlier_moment)
                for b in range(extent.offset // BLOCK, -(-extent.end // BLOCK))
            }
            assert kept.isdisjoint(changed)
        if root and one is None:
            break
        if one is not None:
            guest.change(one)
            earlier, earlier_moment = work_id, moment
    assert root
    restored = work.restored(root, CAPACITY)
    assert hashlib.sha256(restored).digest() == hashlib.sha256(guest.image).digest()
