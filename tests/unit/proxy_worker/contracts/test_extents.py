from __future__ import annotations

import itertools
import random

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from proxy_worker.contracts.base64url import encode_base64url
from proxy_worker.contracts.extents import MAX_PACKED_CHARS, pack_extents, unpack_extents
from transports.base import Extent

GRAIN = 64 * 1024
TIB = 1 << 40


def extents_of(size_bytes: int) -> st.SearchStrategy[list[Extent]]:
    return st.lists(
        st.integers(0, size_bytes - 1).flatmap(
            lambda offset: st.integers(1, size_bytes - offset).map(
                lambda length: Extent(offset=offset, length=length)
            )
        ),
        max_size=30,
    )


@given(st.integers(1, 200 * GRAIN).flatmap(lambda size: st.tuples(st.just(size), extents_of(size))))
def test_what_comes_back_covers_what_went_in_and_little_more(given: tuple[int, list[Extent]]) -> None:
    size, extents = given
    back = unpack_extents(pack_extents(extents), size_bytes=size)
    for one in extents:
        assert any(wide.offset <= one.offset and one.end <= wide.end for wide in back)
    for earlier, later in itertools.pairwise(back):
        assert earlier.end < later.offset
    for wide in back:
        assert wide.end <= size
        for at in range(wide.offset // GRAIN, -(-wide.end // GRAIN)):
            assert any(one.offset < (at + 1) * GRAIN and one.end > at * GRAIN for one in extents), (
                "a grain that nothing touched"
            )


def test_nothing_changed_is_said_and_is_not_silence() -> None:
    assert pack_extents([])
    assert unpack_extents(pack_extents([]), size_bytes=GRAIN) == []


def test_many_scattered_changes_are_widened_until_they_fit() -> None:
    rng = random.Random(7)
    changed = [
        Extent(offset=at * GRAIN, length=GRAIN) for at in rng.sample(range(TIB // GRAIN), 400_000)
    ]
    packed = pack_extents(changed)
    assert len(packed) <= MAX_PACKED_CHARS
    back = unpack_extents(packed, size_bytes=TIB)
    starts = [wide.offset for wide in back]
    import bisect

    for one in changed:
        wide = back[bisect.bisect_right(starts, one.offset) - 1]
        assert wide.offset <= one.offset
        assert one.end <= wide.end


def test_the_whole_of_the_largest_disk_fits_into_few_characters() -> None:
    size = 62 * TIB
    packed = pack_extents([Extent(offset=0, length=size)], max_chars=40)
    assert unpack_extents(packed, size_bytes=size) == [Extent(offset=0, length=size)]


@pytest.mark.parametrize("extent", [Extent(offset=-1, length=5), Extent(offset=0, length=0)])
def test_what_is_no_run_of_bytes_is_refused(extent: Extent) -> None:
    with pytest.raises(ValueError, match="no run"):
        pack_extents([extent])


@pytest.mark.parametrize(
    "plain",
    [
        b"",
        bytes([2, 16, 0]),  # another version
        bytes([1, 3, 0]),  # another grain
        bytes([1, 16, 1]),  # one is promised
        bytes([1, 16, 1, 0, 0]),  # of no length
        bytes([1, 16, 2, 0, 1, 0, 1]),  # two that touch
        bytes([1, 16, 1, 100, 1]),  # past the end
        bytes([1, 16, 0, 7]),  # more than was promised
        bytes([1, 16, 1, 0, 0x80]),  # half a number
        bytes([1, 16, 1, 0, *[0xFF] * 12, 1]),  # too large
    ],
)
def test_other_forms_are_refused(plain: bytes) -> None:
    with pytest.raises(ValueError, match="list of extents"):
        unpack_extents(encode_base64url(zstandard.compress(plain)), size_bytes=10 * GRAIN)


@pytest.mark.parametrize("text", ["", "AAAA", "not base64!"])
def test_what_is_not_packed_is_refused(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - of several makers
        unpack_extents(text, size_bytes=GRAIN)


def test_a_frame_that_unpacks_to_too_much_is_refused() -> None:
    bomb = zstandard.compress(bytes(32 << 20))
    with pytest.raises(ValueError, match="list of extents"):
        unpack_extents(encode_base64url(bomb), size_bytes=GRAIN)
