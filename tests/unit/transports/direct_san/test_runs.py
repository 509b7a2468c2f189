"""Maps against a model that has one entry for every byte."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from transports.direct_san.runs import (
    Kind,
    MapError,
    RunMap,
    compose,
    concat,
    make_map,
    overlay,
    uniform,
    window,
)

Model = list[tuple[Kind, int, int]]
"""Of each byte: kind, device, target."""


def model(runs: RunMap) -> Model:
    out: Model = []
    for start, length, kind, device, target in runs.rows():
        assert start == len(out)
        for at in range(length):
            out.append((kind, device, target + at) if kind is Kind.DATA else (kind, 0, 0))
    assert len(out) == runs.size
    return out


@st.composite
def maps(draw: st.DrawFn, *, size: int | None = None, targets: int = 60, devices: int = 3) -> RunMap:
    """Data lies anywhere below `targets`, of which runs never reach beyond."""
    total = draw(st.integers(0, 40)) if size is None else size
    cuts = draw(st.sets(st.integers(1, total - 1))) if total > 1 else set()
    starts = [0, *sorted(cuts)] if total else []
    ends = [*sorted(cuts), total]
    kinds, places, numbers = [], [], []
    for start, end in zip(starts, ends, strict=False):
        room = targets - (end - start)
        kind = draw(st.sampled_from(Kind if room >= 0 else (Kind.ABSENT, Kind.ZERO)))
        kinds.append(kind)
        places.append(draw(st.integers(0, room)) if kind is Kind.DATA else 0)
        numbers.append(draw(st.integers(0, devices - 1)))
    return make_map(total, starts, kinds, places, numbers)


@given(maps())
def test_neighbours_are_merged(runs: RunMap) -> None:
    rows = runs.rows()
    for left, right in pairwise(rows):
        goes_on = left[2] is right[2] and (
            left[2] is not Kind.DATA or (left[3] == right[3] and left[4] + left[1] == right[4])
        )
        assert not goes_on


@given(maps(targets=30), maps(size=30))
def test_composed_maps_lead_where_both_lead(outer: RunMap, inner: RunMap) -> None:
    below = model(inner)
    expected = [below[byte[2]] if byte[0] is Kind.DATA else byte for byte in model(outer)]
    assert model(compose(outer, inner)) == expected


@given(maps(), maps())
def test_a_child_hides_its_parent_where_it_holds_something(child: RunMap, parent: RunMap) -> None:
    below = model(parent) + [(Kind.ZERO, 0, 0)] * max(0, child.size - parent.size)
    expected = [own if own[0] is not Kind.ABSENT else below[at] for at, own in enumerate(model(child))]
    assert model(overlay(child, parent)) == expected


@given(maps(size=20), maps(size=20), maps(size=20))
def test_it_does_not_matter_which_two_of_a_chain_are_laid_over_each_other_first(
    child: RunMap, parent: RunMap, base: RunMap
) -> None:
    down = overlay(child, overlay(parent, base))
    up = overlay(overlay(child, parent), base)
    assert model(down) == model(up)


@given(st.lists(maps(), max_size=4))
def test_concatenated_maps_follow_each_other(parts: list[RunMap]) -> None:
    assert model(concat(parts)) == [byte for part in parts for byte in model(part)]


@given(maps(size=30), st.integers(0, 30), st.integers(0, 30))
def test_a_window_is_the_middle_of_a_map(runs: RunMap, offset: int, length: int) -> None:
    length = min(length, 30 - offset)
    assert model(window(runs, offset, length)) == model(runs)[offset : offset + length]


@pytest.mark.parametrize(
    ("size", "starts", "kinds", "targets"),
    [
        (10, [1], [Kind.ZERO], [0]),
        (10, [0, 5, 5], [Kind.ZERO] * 3, [0] * 3),
        (10, [0, 10], [Kind.ZERO] * 2, [0] * 2),
        (10, [], [], []),
        (0, [0], [Kind.ZERO], [0]),
        (10, [0], [Kind.DATA], [-1]),
        (10, [0, 5], [Kind.ZERO], [0]),
        (-1, [], [], []),
    ],
)
def test_numbers_that_are_no_map_are_refused(
    size: int, starts: list[int], kinds: list[Kind], targets: list[int]
) -> None:
    with pytest.raises(MapError):
        make_map(size, starts, kinds, targets)


def test_a_run_that_reaches_beyond_what_it_points_into_is_refused() -> None:
    outer = make_map(10, [0], [Kind.DATA], [95])
    with pytest.raises(MapError, match="beyond"):
        compose(outer, make_map(100, [0], [Kind.DATA], [0]))


def test_a_window_beyond_the_end_is_refused() -> None:
    with pytest.raises(MapError, match="not inside"):
        window(uniform(10, Kind.ZERO), 5, 6)


def test_data_without_a_place_is_refused() -> None:
    with pytest.raises(ValueError, match="lies somewhere"):
        uniform(10, Kind.DATA)


def test_a_million_runs_are_laid_over_a_million_in_seconds() -> None:
    """What a delta of a few GiB in grains of 4 KiB comes to: no Python for each of them."""
    count = 1_000_000
    starts = np.arange(count) * 4096
    child = make_map(count * 4096, starts, np.arange(count) % 2 * 2, starts * 3)
    parent = make_map(count * 4096, starts, np.full(count, Kind.DATA), starts * 5)
    merged = overlay(child, parent)
    assert len(merged.starts) == count
    assert merged.targets[1] == 4096 * 3
    assert merged.targets[2] == 8192 * 5
