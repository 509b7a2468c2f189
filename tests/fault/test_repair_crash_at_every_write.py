"""A repair dies before its n-th write, for every n: the repository is no worse, and the next repair
finishes the work.
"""

from __future__ import annotations

import random

import pytest

from pipeline.repair import PointSource, repair
from pipeline.repository.format import BlobKind
from pipeline.testing.builders import ManualClock
from pipeline.testing.storage import Crash, CrashingStorage
from tests.support.copies import Pair, make_pair, noise

MOST_WRITES = 100


def damaged_pair() -> Pair:
    pair = make_pair(pack_target_bytes=4 * 4096)
    image = noise(4, 30)
    for day in range(2):
        image[day * 20_000 : day * 20_000 + 5000] = random.Random(day).randbytes(5000)
        pair.back_up(image)
        pair.copy()
    for seed in range(2):
        pair.damage_blob(BlobKind.BLOCK, random.Random(seed))
    pair.damage_blob(BlobKind.NODE, random.Random(9))
    del pair.storage.objects[pair.packs()[1]]
    return pair


@pytest.mark.parametrize("with_prune", [False, True])
def test_repair_killed_before_every_write(with_prune: bool) -> None:
    for crash_at in range(1, MOST_WRITES):
        pair = damaged_pair()
        source = PointSource("offsite", pair.target.repository)
        died = False
        try:
            repair(pair.source.on(CrashingStorage(pair.storage, crash_at)).repository, [source])
        except Crash:
            died = True
        if with_prune:
            clock = pair.source.clock
            assert isinstance(clock, ManualClock)
            clock.now_s += 10_000
        fresh = pair.source.on(pair.storage)
        report = repair(fresh.repository, [source])
        assert report.lost == (), crash_at
        if with_prune:
            for _ in range(2):
                pair.source.on(pair.storage).repository.prune(keep_work_ids=(), min_age_s=60)
                clock.now_s += 10_000
        assert fresh.problems() == (), crash_at
        assert pair.is_whole(pair.source.on(pair.storage)), crash_at
        if not died:
            assert crash_at > 5, "hardly anything was written"
            return
    pytest.fail(f"still dying after {MOST_WRITES} writes")
