from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from backup_server.services.latency import (
    CLOSED_AT_MOST,
    LEAST_PER_TASK_BYTES_PER_S,
    Control,
    Thresholds,
    follow,
)

MB = 1_000_000
NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
LIMITS = Thresholds(stop_ms=20, throttle_ms=30)


def measured(
    before: Control,
    latency_ms: float | None,
    *,
    moving: float = 0,
    readers: int = 4,
    later_s: float = 0,
) -> Control:
    return follow(
        before,
        latency_ms=latency_ms,
        thresholds=LIMITS,
        moving_bytes_per_s=moving,
        readers=readers,
        now=NOW + timedelta(seconds=later_s),
    )


def test_a_datastore_closes_above_the_threshold_and_opens_well_below_it() -> None:
    assert measured(Control(), 20).closed_since is None
    closed = measured(Control(), 20.1)
    assert closed.closed_since == NOW
    still = measured(closed, 19, later_s=20)
    assert still.closed_since == NOW, "just below the threshold it stays closed"
    assert measured(still, 16, later_s=40).closed_since is None


def test_one_that_was_not_closed_stays_open_just_below_the_threshold() -> None:
    assert measured(Control(), 19).closed_since is None


def test_what_cannot_be_measured_is_not_limited() -> None:
    slow = measured(Control(), 90, moving=100 * MB)
    assert not slow.is_quiet
    assert measured(slow, None).is_quiet


def test_after_ten_minutes_it_takes_one_task_at_a_time() -> None:
    closed = measured(Control(), 50)
    assert not closed.trickles(NOW + CLOSED_AT_MOST - timedelta(seconds=1))
    assert closed.trickles(NOW + CLOSED_AT_MOST)


def test_tasks_are_slowed_by_a_third_each_time_and_let_go_a_tenth_at_a_time() -> None:
    first = measured(Control(), 31, moving=90 * MB)
    assert first.allowance_bytes_per_s == 60 * MB
    assert first.before_bytes_per_s == 90 * MB
    second = measured(first, 40, moving=60 * MB)
    assert second.allowance_bytes_per_s == 40 * MB
    held = measured(second, 25, moving=40 * MB)
    assert held.allowance_bytes_per_s == 40 * MB, "between the thresholds nothing changes"
    grown = measured(held, 10, moving=40 * MB)
    assert grown.allowance_bytes_per_s == 44 * MB
    steps = 0
    while grown.allowance_bytes_per_s is not None:
        grown = measured(grown, 10, moving=grown.allowance_bytes_per_s)
        steps += 1
    assert grown.is_quiet
    assert steps == 8  # 44 * 1.1 ** 8 > 90


def test_what_the_tasks_do_not_use_is_no_relief() -> None:
    first = measured(Control(), 31, moving=90 * MB)
    assert measured(first, 31, moving=30 * MB).allowance_bytes_per_s == 20 * MB


def test_tasks_that_move_nothing_are_not_slowed() -> None:
    assert measured(Control(), 31, moving=0).allowance_bytes_per_s is None


def test_the_allowance_ends_with_the_last_task_that_reads() -> None:
    first = measured(Control(), 31, moving=90 * MB)
    assert measured(first, 31, readers=0).allowance_bytes_per_s is None


@given(
    st.lists(
        st.tuples(st.one_of(st.none(), st.floats(0, 200)), st.floats(0, 1e9), st.integers(0, 20)),
        max_size=30,
    )
)
def test_no_task_is_ever_slowed_below_its_least(steps: list[tuple[float | None, float, int]]) -> None:
    control = Control()
    for latency_ms, moving, readers in steps:
        before = control
        control = measured(control, latency_ms, moving=moving, readers=readers)
        assert Control.of(control.to_json()) == control
        cut = control.allowance_bytes_per_s
        if cut is not None and cut != before.allowance_bytes_per_s and latency_ms and latency_ms > 30:
            assert cut >= readers * LEAST_PER_TASK_BYTES_PER_S
