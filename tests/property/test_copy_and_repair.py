"""Random chains are copied to repositories of other keys and block sizes, damaged and repaired; the model
is plain bytes. Every point restores from source and copy, whatever came between.
"""

from __future__ import annotations

import os
import random

import pytest

from pipeline.repair import PointSource, repair
from pipeline.repository.format import BlobKind
from pipeline.testing.builders import ManualClock
from tests.support.copies import Pair, make_pair, noise
from transports.base import SECTOR_BYTES

ROUNDS = int(os.environ.get("VMHAUL_PROPERTY_ROUNDS", "300")) // 10
SEED = int(os.environ.get("VMHAUL_PROPERTY_SEED", "0")) or random.SystemRandom().randrange(1 << 32)


def work_a_day(rng: random.Random, image: bytearray) -> bytearray:
    """Some writes, sometimes another size."""
    if rng.randrange(8) == 0:
        size = rng.choice([1, 9, 200, 900]) * SECTOR_BYTES
        image = bytearray(bytes(image[:size]).ljust(size, b"\1"))
    for _ in range(rng.randrange(6)):
        start = rng.randrange(len(image))
        length = min(len(image) - start, rng.choice([1, 300, 5000, 40_000]))
        image[start : start + length] = (
            bytes(length) if rng.randrange(3) == 0 else rng.randbytes(length)
        )
    return image


def damage(rng: random.Random, pair: Pair) -> None:
    for _ in range(rng.randrange(1, 4)):
        match rng.randrange(4):
            case 0 if len(pair.packs()) > 1:
                del pair.storage.objects[rng.choice(pair.packs())]
            case 1:
                name = rng.choice(pair.packs())
                pair.flip(name, rng.randrange(len(pair.storage.objects[name])))
            case 2:
                name = rng.choice(pair.packs())
                data = pair.storage.objects[name]
                pair.storage.objects[name] = data[: rng.randrange(len(data))]
            case _:
                kinds = [kind for kind in BlobKind if pair.places(kind)]
                if kinds and pair.packs():
                    kept = [
                        place
                        for place in pair.places(rng.choice(kinds))
                        if place[0] in pair.storage.objects
                    ]
                    if kept:
                        name, entry = rng.choice(kept)
                        if entry.offset < len(pair.storage.objects[name]):
                            pair.flip(name, entry.offset)
        if not pair.packs():
            return


@pytest.mark.parametrize("number", range(ROUNDS))
def test_copies_and_repairs_are_the_model(number: int) -> None:
    rng = random.Random(SEED + number)
    print("VMHAUL_PROPERTY_SEED:", SEED, "round:", number)
    pair = make_pair(
        theirs=rng.choice([4096, 8192, 65536]), pack_target_bytes=rng.choice([1, 8, 64]) << 13
    )
    clock = pair.source.clock
    assert isinstance(clock, ManualClock)
    image = noise(rng.randrange(1 << 30), rng.choice([1, 20, 60]))
    for _ in range(rng.randrange(1, 6)):
        image = work_a_day(rng, image)
        pair.back_up(image)
        pair.copy(full=rng.randrange(5) == 0)
        if rng.randrange(3) == 0:
            clock.now_s += 100_000
            rng.choice([pair.source, pair.target]).repository.prune(keep_work_ids=(), min_age_s=10)
    copies = [(c, content) for c, (_, content) in zip(pair.copies, pair.points, strict=True)]
    for copy, content in copies:
        assert pair.target.restored(copy.disks[0].map_root, len(content)) == content
    assert pair.target.problems() == ()
    if not pair.packs():
        return  # all zeros
    damage(rng, pair)
    report = repair(pair.source.repository, [PointSource("copy", pair.target.repository)])
    assert (report.lost, report.problems) == ((), ())
    assert pair.source.problems() == ()
    assert pair.is_whole()
    for _ in range(2):
        clock.now_s += 100_000
        pair.source.repository.prune(keep_work_ids=(), min_age_s=10)
    assert pair.source.problems() == ()
    assert pair.is_whole()
    # What was repaired is a source again.
    other = make_pair(theirs=4096)
    onward = Pair(pair.source, other.target, points=pair.points)
    for _ in pair.points:
        onward.copy()
    for copy, (_, content) in zip(onward.copies, pair.points, strict=True):
        assert other.target.restored(copy.disks[0].map_root, len(content)) == content
