"""Inputs made from good ones, the same for a seed: what a test run can afford of fuzzing."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

INTERESTING = [
    0,
    1,
    0x7F,
    0x80,
    0xFF,
    0x7FFF,
    0xFFFF,
    0x7FFFFFFF,
    0x80000000,
    0xFFFFFFFF,
    (1 << 64) - 1,
]
TOKENS = [
    b"null",
    b"-1",
    b"1e999",
    b'"\\ud800"',
    b"[]",
    b"{}",
    b"9" * 400,
    b"true",
    b"\0",
    b"%25",
    b"[" * 2000,
]


def inputs(seeds: Sequence[bytes], count: int, rng: random.Random) -> Iterator[bytes]:
    """The seeds, then `count` mutations of them, of one to some steps."""
    yield b""
    yield from seeds
    pool = [*seeds, b""]
    for _ in range(count):
        data = bytearray(rng.choice(pool))
        for _ in range(rng.choice([1, 1, 2, 4, 8])):
            data = _mutated(data, pool, rng)
        yield bytes(data)


def _mutated(data: bytearray, pool: Sequence[bytes], rng: random.Random) -> bytearray:
    at = rng.randrange(len(data) + 1)
    match rng.randrange(8):
        case 0 if data:
            data[at % len(data)] ^= 1 << rng.randrange(8)
        case 1:
            width = rng.choice([1, 2, 4, 8])
            value = rng.choice(INTERESTING) & ((1 << 8 * width) - 1)
            data[at : at + width] = value.to_bytes(width, rng.choice(["little", "big"]))
        case 2:
            del data[at : at + rng.choice([1, 2, 8, 32])]
        case 3:
            data[at:at] = rng.randbytes(rng.choice([1, 4, 16]))
        case 4:
            data[at:at] = rng.choice(TOKENS)
        case 5:
            other = rng.choice(pool)
            start = rng.randrange(len(other) + 1)
            data[at : at + rng.randrange(40)] = other[start : start + rng.randrange(1, 80)]
        case 6:
            end = at + rng.randrange(1, 64)
            data[at:at] = data[at:end]
        case _:
            del data[at:]
    return data
