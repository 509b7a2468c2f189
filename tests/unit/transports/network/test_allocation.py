from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from transports.base import Extent
from transports.network.allocation import merged, set_runs


def plain_runs(bits: list[bool]) -> list[tuple[int, int]]:
    runs: list[tuple[int, int]] = []
    for index, bit in enumerate(bits):
        if bit and runs and runs[-1][1] == index:
            runs[-1] = (runs[-1][0], index + 1)
        elif bit:
            runs.append((index, index + 1))
    return runs


def bitmap_of(bits: list[bool], padding: bool) -> bytes:
    size = 4 * -(-len(bits) // 32)
    padded = bits + [padding] * (size * 8 - len(bits))
    return bytes(sum(padded[at + bit] << bit for bit in range(8)) for at in range(0, len(padded), 8))


def test_example_of_the_description() -> None:
    assert list(set_runs(bytes.fromhex("0f800000"), 16)) == [(0, 4), (15, 16)]


@given(st.lists(st.booleans(), min_size=1, max_size=300), st.booleans())
def test_runs_are_those_of_the_bits(bits: list[bool], padding: bool) -> None:
    assert list(set_runs(bitmap_of(bits, padding), len(bits))) == plain_runs(bits)


def test_long_runs() -> None:
    bits = [False] * 5000 + [True] * 9000 + [False] * 77 + [True]
    assert list(set_runs(bitmap_of(bits, True), len(bits))) == [(5000, 14000), (14077, 14078)]


def test_merged_clips_and_joins() -> None:
    extents = [
        Extent(offset=0, length=10),
        Extent(offset=10, length=5),
        Extent(offset=20, length=5),
        Extent(offset=40, length=5),
    ]
    assert list(merged(extents, 4, 43)) == [
        Extent(offset=4, length=11),
        Extent(offset=20, length=5),
        Extent(offset=40, length=3),
    ]
    assert list(merged(extents, 15, 20)) == []
