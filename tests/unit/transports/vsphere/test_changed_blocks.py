from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transports.base import Extent
from transports.errors import ChangeTrackingUnusableError
from transports.vsphere.changed_blocks import (
    Page,
    Refusal,
    TrackedDisk,
    collect,
    file_fault,
    invalid_argument,
    query_obstacle,
    tracking_obstacle,
)

BEFORE = TrackedDisk(uuid="6000C29a", capacity_bytes=1 << 30, change_id="52 de/7")


@pytest.mark.parametrize(
    ("now", "reason"),
    [
        (TrackedDisk(uuid="6000C29a", capacity_bytes=1 << 30, change_id="52 de/8"), ""),
        (TrackedDisk(uuid="", capacity_bytes=1 << 30, change_id="52 de/8"), ""),
        (TrackedDisk(uuid="6000C29a", capacity_bytes=1 << 30, change_id=""), "no change id"),
        (TrackedDisk(uuid="6000C29a", capacity_bytes=1 << 30, change_id="53 00/1"), "reset"),
        (TrackedDisk(uuid="6000C29a", capacity_bytes=2 << 30, change_id="52 de/8"), "resized"),
        (TrackedDisk(uuid="6000C29b", capacity_bytes=1 << 30, change_id="52 de/8"), "replaced"),
    ],
)
def test_when_tracking_bridges_two_points(now: TrackedDisk, reason: str) -> None:
    obstacle = tracking_obstacle(BEFORE, now)
    assert reason in obstacle
    assert bool(obstacle) == bool(reason)


def test_an_untracked_previous_point_cannot_be_bridged() -> None:
    before = TrackedDisk(uuid="6000C29a", capacity_bytes=1 << 30, change_id="")
    assert "not tracked when" in tracking_obstacle(before, BEFORE)


@pytest.mark.parametrize(
    ("asked", "current", "reason"),
    [
        ("*", "52 de/8", ""),
        ("52 de/7", "52 de/8", ""),
        ("*", "", "no change id"),
        ("52 de/7", "", "no change id"),
        ("51 00/7", "52 de/8", "reset"),
    ],
)
def test_queries_that_make_no_sense(asked: str, current: str, reason: str) -> None:
    obstacle = query_obstacle(asked, current)
    assert reason in obstacle
    assert bool(obstacle) == bool(reason)


@pytest.mark.parametrize(
    ("keys", "verdict", "reason"),
    [
        (["vim.hostd.vmsvc.cbt.noTrack"], Refusal.FULL_READ, "off"),
        (["other", "vim.hostd.vmsvc.cbt.noEpoch"], Refusal.FULL_READ, "epoch"),
        (["vim.hostd.vmsvc.cbt.cannotGetChanges"], Refusal.FULL_READ, "cannot tell"),
        ([], Refusal.RETRY_THEN_FULL_READ, "[ds] a/a-ctk.vmdk"),
        (["something.new"], Refusal.RETRY_THEN_FULL_READ, "locked or damaged"),
    ],
)
def test_file_faults(keys: list[str], verdict: Refusal, reason: str) -> None:
    seen, text = file_fault(keys, "[ds] a/a-ctk.vmdk")
    assert seen is verdict
    assert reason in text


@pytest.mark.parametrize(
    ("name", "reason"),
    [("changeId", "stored change id"), ("deviceKey", "does not track"), ("startOffset", "startOffset")],
)
def test_invalid_arguments_mean_a_full_read(name: str, reason: str) -> None:
    verdict, text = invalid_argument(name)
    assert verdict is Refusal.FULL_READ
    assert reason in text


def paged(capacity: int, areas: list[Extent], page_bytes: int) -> Callable[[int], Page]:
    def query(offset: int) -> Page:
        assert 0 <= offset < capacity, "asked at or past the end"
        length = min(page_bytes, capacity - offset)
        inside = [
            Extent(
                offset=max(area.offset, offset),
                length=min(area.end, offset + length) - max(area.offset, offset),
            )
            for area in areas
            if area.offset < offset + length and area.end > offset
        ]
        return Page(start=offset, length=length, areas=tuple(inside))

    return query


@given(
    st.integers(1, 200),
    st.lists(st.tuples(st.integers(0, 180), st.integers(1, 20)), max_size=12),
    st.integers(1, 230),
)
def test_all_pages_are_asked_for(capacity: int, wanted: list[tuple[int, int]], page: int) -> None:
    units = {unit for start, length in wanted for unit in range(start, min(start + length, capacity))}
    areas = [Extent(offset=unit, length=1) for unit in sorted(units)]
    answer = collect(capacity, paged(capacity, areas, page))
    assert {unit for area in answer for unit in range(area.offset, area.end)} == units
    assert all(a.end < b.offset for a, b in itertools.pairwise(answer))


@pytest.mark.parametrize(
    "page",
    [
        Page(start=100, length=100, areas=()),  # a gap in front
        Page(start=0, length=0, areas=()),
        Page(start=0, length=-1, areas=()),
        Page(start=0, length=1001, areas=()),  # past the end
        Page(start=0, length=1000, areas=(Extent(offset=900, length=200),)),
        Page(start=0, length=500, areas=(Extent(offset=400, length=200),)),  # beyond its own page
        Page(start=0, length=1000, areas=(Extent(offset=10, length=0),)),
        Page(start=0, length=1000, areas=(Extent(offset=0, length=20), Extent(offset=10, length=20))),
    ],
)
def test_pages_that_do_not_fit_are_not_believed(page: Page) -> None:
    with pytest.raises(ChangeTrackingUnusableError):
        collect(1000, lambda _: page)
