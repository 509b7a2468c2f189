"""A repository over several extents while one of them is away, lost, or evacuated."""

from __future__ import annotations

import random

import pytest

from pipeline.errors import PipelineError
from pipeline.model import RestorePoint
from pipeline.storage.extents import evacuate
from pipeline.storage.scale_out import Extent, ExtentOfflineError, ScaleOutStorage
from pipeline.testing.builders import (
    BLOCK_SIZE_BYTES,
    ManualClock,
    Workbench,
    disk_point,
    restore_point,
)
from pipeline.testing.storage import MemoryStorage, ScriptedStorage
from transports.base import Extent as Bytes

BLOCKS = 64


class Site:
    """Two extents; the first holds a full, the second what came after it was sealed."""

    def __init__(self) -> None:
        self.rng = random.Random(11)
        self.clock = ManualClock()
        self.first, self.second = MemoryStorage(self.clock), MemoryStorage(self.clock)
        self.image = bytearray(self.rng.randbytes(BLOCKS * BLOCK_SIZE_BYTES))
        self.bench = Workbench(self.over("active"), self.clock)
        self.full = self.commit(self.bench)
        self.full_image = bytes(self.image)

    def over(self, first: str) -> ScaleOutStorage:
        """What a process sees that opens the repository now; `first`: state of the first extent."""
        extents = [Extent(name="second", storage=self.second)]
        if first == "active":
            # Alone at first, so that it is plain where the full lies.
            return ScaleOutStorage([Extent(name="first", storage=self.first)])
        if first == "sealed":
            extents.append(Extent(name="first", storage=self.first, is_active=False))
        return ScaleOutStorage(extents, offline=["first"] if first == "maintenance" else [])

    def level(self) -> None:
        self.over("sealed").clean(0.0)

    def commit(self, bench: Workbench, previous: RestorePoint | None = None) -> RestorePoint:
        changed = None
        if previous is not None:
            changed = []
            for block in self.rng.sample(range(BLOCKS), 5):
                at = block * BLOCK_SIZE_BYTES
                # One half of the block stays, so that a patch would be worth it.
                self.image[at : at + 2048] = self.rng.randbytes(2048)
                changed.append(Bytes(offset=at, length=2048))
        plan = bench.plan(
            len(self.image),
            previous=previous.disks[0].map_root if previous else "",
            previous_capacity_bytes=len(self.image) if previous else 0,
            changed=changed,
        )
        root = bench.backup(bytes(self.image), plan=plan).map_root
        self.clock.now_s += 10
        point = restore_point(disk_point(root, len(self.image)), previous=previous)
        return bench.commit(point)


def test_a_full_and_its_copy_go_on_while_an_extent_is_away() -> None:
    site = Site()
    site.level()
    bench = site.bench.on(site.over("maintenance"))
    # All of its blocks are in the index, in packs that are away: they are counted on.
    again = site.commit(bench)
    assert site.second.objects
    with pytest.raises(ExtentOfflineError, match="'first'"):
        bench.restored(again.disks[0].map_root, len(site.image))
    back = site.bench.on(site.over("sealed"))
    assert back.restored(again.disks[0].map_root, len(site.image)) == site.image
    assert back.problems() == ()


def test_an_increment_needs_the_map_that_it_builds_on() -> None:
    site = Site()
    site.level()
    with pytest.raises(PipelineError, match="'first'"):
        site.commit(site.bench.on(site.over("maintenance")), site.full)
    site.image[:] = site.full_image
    bench = site.bench.on(site.over("sealed"))
    increment = site.commit(bench, site.full)
    assert bench.problems() == ()
    assert bench.restored(increment.disks[0].map_root, len(site.image)) == site.image


@pytest.mark.parametrize("read_data", [False, True])
def test_a_check_takes_nothing_for_lost_that_is_away(*, read_data: bool) -> None:
    site = Site()
    site.level()
    bench = site.bench.on(site.over("maintenance"))
    with pytest.raises(ExtentOfflineError, match="'first'"):
        bench.repository.check(read_data=read_data)


def test_a_check_takes_nothing_for_lost_that_is_listed_late() -> None:
    site = Site()
    late = ScriptedStorage(site.over("active"), lists_late_s=60.0, clock=site.clock)
    for name in site.first.objects:
        site.first.modified_at_s[name] = 0.0
        if name.startswith("packs/"):
            site.first.modified_at_s[name] = site.clock()
    bench = site.bench.on(late)
    assert list(late.list("packs/")) == []
    report = bench.repository.check(read_data=True)
    assert report.problems == ()
    assert report.read_bytes > 0


def test_evacuated_points_restore_and_are_pruned() -> None:
    site = Site()
    site.level()
    sealed = site.over("sealed")
    increment = site.commit(site.bench.on(sealed), site.full)
    evacuate(sealed, "first")
    alone = ScaleOutStorage([Extent(name="second", storage=site.second)])
    bench = site.bench.on(alone)
    assert bench.problems() == ()
    assert bench.restored(site.full.disks[0].map_root, len(site.image)) == site.full_image
    bench.repository.forget([site.full.id])
    for _ in range(2):
        site.clock.now_s += 10_000
        bench.repository.prune(keep_work_ids=(), min_age_s=60)
    assert bench.problems() == ()
    assert bench.restored(increment.disks[0].map_root, len(site.image)) == site.image


def test_a_lost_extent_is_named_point_by_point() -> None:
    site = Site()
    site.level()
    alone = ScaleOutStorage([Extent(name="second", storage=site.second)])
    problems = site.bench.on(alone).problems()
    assert any(site.full.id in problem and "guest extent" in problem for problem in problems), problems
