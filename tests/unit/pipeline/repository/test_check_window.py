from __future__ import annotations

import random

from pipeline.repository.sampling import window_of
from pipeline.testing.builders import BLOCK_SIZE_BYTES, ManualClock, Workbench
from pipeline.testing.storage import MemoryStorage


def test_windows_that_follow_each_other_hold_every_pack_once() -> None:
    rng = random.Random(7)
    packs = [rng.randbytes(32) for _ in range(3000)]
    for share in (1 / 30, 0.25, 0.4, 1.0):
        count = round(1 / share) if share != 0.4 else 2
        found = [pack for n in range(count) for pack in window_of(packs, n * share % 1.0, share)]
        assert len(found) == len(set(found))
        if share != 0.4:
            assert sorted(found) == sorted(packs)
    assert abs(len(window_of(packs, 0.8, 0.4)) - 1200) < 200  # round the end


def test_checks_in_turns_read_all_data() -> None:
    clock = ManualClock()
    bench = Workbench(MemoryStorage(clock), clock)
    bench.backup(random.Random(1).randbytes(60 * BLOCK_SIZE_BYTES))
    check = bench.repository.check
    whole = check(read_data=True)
    turns = [check(read_data=True, sample_share=0.2, sample_start=n / 5) for n in range(5)]
    assert not any(turn.problems for turn in turns)
    assert whole.packs > 3
    assert sum(turn.read_bytes for turn in turns) == whole.read_bytes > 0
