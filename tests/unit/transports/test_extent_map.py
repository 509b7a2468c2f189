"""Runs of a disk, against a model that lists every byte."""

from __future__ import annotations

from array import array
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transports.extent_map import HOLE, ExtentMap, Run

PIECES = st.lists(
    st.tuples(st.integers(0, 6), st.one_of(st.none(), st.integers(0, 30)), st.integers(0, 1)),
    min_size=1,
    max_size=12,
)


def laid_out(pieces: list[tuple[int, int | None, int]]) -> list[Run]:
    runs, at = [], 0
    for length, place, device in pieces:
        runs.append(Run(offset=at, length=length, device_offset=place, device=device))
        at += length
    return runs


def bytes_of(runs: list[Run]) -> list[tuple[int, int] | None]:
    return [
        None if run.device_offset is None else (run.device, run.device_offset + n)
        for run in runs
        for n in range(run.length)
    ]


@given(PIECES, st.data())
def test_a_map_says_of_every_byte_what_was_given(
    pieces: list[tuple[int, int | None, int]], data: st.DataObject
) -> None:
    given_runs = laid_out(pieces)
    model = bytes_of(given_runs)
    extents = ExtentMap(given_runs)
    assert extents.size_bytes == len(model)
    assert extents.has_holes == (None in model)
    offset = data.draw(st.integers(0, len(model)))
    length = data.draw(st.integers(0, len(model) - offset))
    runs = list(extents.runs(offset, length))
    assert bytes_of(runs) == model[offset : offset + length]
    assert all(run.length > 0 for run in runs)
    allocated = list(extents.allocated(offset, length))
    assert {n for e in allocated for n in range(e.offset, e.end)} == {
        n for n in range(offset, offset + length) if model[n] is not None
    }
    assert all(first.end < second.offset for first, second in pairwise(allocated))


def test_runs_that_go_on_are_one() -> None:
    extents = ExtentMap(
        [
            Run(offset=0, length=10, device_offset=100),
            Run(offset=10, length=10, device_offset=110),
            Run(offset=20, length=5, device_offset=None),
            Run(offset=25, length=5, device_offset=None),
            Run(offset=30, length=5, device_offset=125),
            Run(offset=35, length=5, device_offset=130, device=1),
        ]
    )
    assert len(extents) == 4


@pytest.mark.parametrize(
    "runs",
    [
        [Run(offset=1, length=1, device_offset=0)],
        [Run(offset=0, length=2, device_offset=0), Run(offset=3, length=1, device_offset=0)],
        [Run(offset=0, length=2, device_offset=0), Run(offset=1, length=1, device_offset=0)],
        [Run(offset=0, length=-1, device_offset=0)],
        [Run(offset=0, length=1, device_offset=-2)],
        [Run(offset=0, length=1, device_offset=-1)],
    ],
)
def test_what_is_no_map_is_refused(runs: list[Run]) -> None:
    with pytest.raises(ValueError, match="run "):
        ExtentMap(runs)


def test_a_range_past_the_end_is_refused() -> None:
    extents = ExtentMap.whole(100)
    with pytest.raises(ValueError, match="past the end"):
        list(extents.runs(99, 2))
    with pytest.raises(ValueError, match="no range"):
        list(extents.runs(-1, 2))


def test_a_file_s_holes() -> None:
    extents = ExtentMap.of_data(100, [(10, 20), (20, 30), (90, 100)])
    assert [(e.offset, e.length) for e in extents.allocated(0, 100)] == [(10, 20), (90, 10)]
    assert [run.device_offset for run in extents.runs(15, 80)] == [15, None, 90]


def test_columns_make_the_same_map_as_runs() -> None:
    runs = [
        Run(offset=0, length=512, device_offset=1024, device=1),
        Run(offset=512, length=512, device_offset=None),
        Run(offset=1024, length=1024, device_offset=0),
    ]
    made = ExtentMap.of_columns(
        2048, array("q", [0, 512, 1024]), array("q", [1024, HOLE, 0]), array("q", [1, 0, 0])
    )
    assert list(made.runs(0, 2048)) == list(ExtentMap(runs).runs(0, 2048)) == runs
    assert made.has_holes
    assert list(made.allocated(0, 2048)) == list(ExtentMap(runs).allocated(0, 2048))


@pytest.mark.parametrize(
    ("size_bytes", "starts", "places"),
    [(2048, [512], [0]), (2048, [], []), (0, [0], [0]), (512, [0, 512], [0, 0]), (512, [0], [])],
)
def test_columns_that_are_no_map_are_refused(
    size_bytes: int, starts: list[int], places: list[int]
) -> None:
    with pytest.raises(ValueError, match="do not make up"):
        ExtentMap.of_columns(
            size_bytes, array("q", starts), array("q", places), array("q", [0] * len(starts))
        )
