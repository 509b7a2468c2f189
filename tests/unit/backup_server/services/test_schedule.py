from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backup_server.services.schedule import check_schedule, due_runs, next_run

BERLIN = ZoneInfo("Europe/Berlin")


def schedule(cron: str, zone: str = "Europe/Berlin", missed: str = "run-once") -> dict[str, str]:
    return check_schedule({"cron": cron, "time_zone": zone, "missed": missed})


def runs(cron: str, after: datetime, count: int, zone: str = "Europe/Berlin") -> list[str]:
    found = []
    for _ in range(count):
        due = next_run(schedule(cron, zone), after)
        assert due is not None
        after = due
        found.append(due.astimezone(ZoneInfo(zone)).strftime("%m-%d %H:%M%z"))
    return found


def test_follows_the_wall_clock() -> None:
    assert runs("0 22 * * *", datetime(2026, 3, 27, tzinfo=UTC), 4) == [
        "03-27 22:00+0100", "03-28 22:00+0100", "03-29 22:00+0200", "03-30 22:00+0200",
    ]  # fmt: skip


def test_skipped_time_in_spring_is_shifted_by_the_gap() -> None:
    assert runs("30 2 * * *", datetime(2026, 3, 28, 12, tzinfo=UTC), 2) == [
        "03-29 03:30+0200", "03-30 02:30+0200",
    ]  # fmt: skip


def test_repeated_time_in_autumn_runs_once() -> None:
    assert runs("30 2 * * *", datetime(2026, 10, 24, 12, tzinfo=UTC), 2) == [
        "10-25 02:30+0200", "10-26 02:30+0100",
    ]  # fmt: skip
    assert runs("*/30 * * * *", datetime(2026, 10, 24, 23, 45, tzinfo=UTC), 4) == [
        "10-25 02:00+0200", "10-25 02:30+0200", "10-25 03:00+0100", "10-25 03:30+0100",
    ]  # fmt: skip


def test_between_the_repeated_hours() -> None:
    second_half_past_two = datetime(2026, 10, 25, 1, 30, tzinfo=UTC)
    assert runs("30 2 * * *", second_half_past_two, 1) == ["10-26 02:30+0100"]


def test_southern_spring() -> None:
    assert runs("30 2 * * *", datetime(2026, 10, 3, 12, tzinfo=UTC), 1, "Australia/Sydney") == [
        "10-04 03:30+1100"
    ]


def test_day_that_never_comes() -> None:
    assert (
        next_run(
            {"cron": "0 0 30 2 *", "time_zone": "Europe/Berlin", "missed": "run-once"},
            datetime(2026, 1, 1, tzinfo=UTC),
        )
        is None
    )


def test_each_time_that_the_spring_change_skips_runs_as_long_after_it() -> None:
    after = datetime(2026, 3, 28, 12, tzinfo=UTC)
    assert runs("*/15 2 * * *", after, 5) == [
        "03-29 03:00+0200",
        "03-29 03:15+0200",
        "03-29 03:30+0200",
        "03-29 03:45+0200",
        "03-30 02:00+0200",
    ]
    # Half an hour is skipped: 02:20 comes after 02:40.
    lord_howe = datetime(2026, 10, 3, 12, tzinfo=UTC)
    assert runs("20,40 2 * * *", lord_howe, 3, "Australia/Lord_Howe") == [
        "10-04 02:40+1100",
        "10-04 02:50+1100",
        "10-05 02:20+1100",
    ]


def test_no_schedule() -> None:
    assert next_run(None, datetime(2026, 1, 1, tzinfo=UTC)) is None


@settings(max_examples=150, deadline=None)
@given(
    minute=st.integers(0, 59),
    hour=st.integers(0, 23),
    start=st.integers(1_735_689_600, 1_830_297_600),
    zone=st.sampled_from(
        ["Europe/Berlin", "America/New_York", "Asia/Kolkata", "Australia/Lord_Howe", "UTC"]
    ),
)
def test_a_daily_job_runs_once_a_day(minute: int, hour: int, start: datetime, zone: str) -> None:
    plan = schedule(f"{minute} {hour} * * *", zone)
    info = ZoneInfo(zone)
    after = datetime.fromtimestamp(start, UTC)
    days = []
    for _ in range(6):
        due = next_run(plan, after)
        assert due is not None
        assert due > after
        after = due
        days.append(due.astimezone(info).date())
    assert days == [days[0] + timedelta(days=n) for n in range(6)]


SINCE = datetime(2026, 3, 2, 0, 30, tzinfo=UTC)


def hourly(missed: str) -> dict[str, str]:
    return schedule("0 * * * *", "UTC", missed)


def test_due_on_time() -> None:
    due = due_runs(hourly("skip"), SINCE, datetime(2026, 3, 2, 1, 0, 5, tzinfo=UTC))
    assert (due.fire, due.missed) == (datetime(2026, 3, 2, 1, tzinfo=UTC), ())


def test_nothing_due() -> None:
    due = due_runs(hourly("skip"), SINCE, datetime(2026, 3, 2, 0, 59, tzinfo=UTC))
    assert (due.fire, due.missed) == (None, ())


def test_missed_runs_run_once() -> None:
    due = due_runs(hourly("run-once"), SINCE, datetime(2026, 3, 2, 3, 30, tzinfo=UTC))
    assert due.fire == datetime(2026, 3, 2, 3, tzinfo=UTC)
    assert [moment.hour for moment in due.missed] == [1, 2]


def test_missed_runs_are_skipped() -> None:
    due = due_runs(hourly("skip"), SINCE, datetime(2026, 3, 2, 3, 30, tzinfo=UTC))
    assert due.fire is None
    assert [moment.hour for moment in due.missed] == [1, 2, 3]


def test_missed_before_one_on_time() -> None:
    due = due_runs(hourly("skip"), SINCE, datetime(2026, 3, 2, 3, 0, 30, tzinfo=UTC))
    assert due.fire == datetime(2026, 3, 2, 3, tzinfo=UTC)
    assert [moment.hour for moment in due.missed] == [1, 2]


@pytest.mark.parametrize(
    "value", [None, [], "0 1 * * *", {"cron": ""}, {"cron": "0 25 * * *"}, {"colour": 1}]
)
def test_bad_schedules(value: object) -> None:
    with pytest.raises(ValueError, match=r".+"):
        check_schedule(value)


def test_a_day_that_never_comes_is_refused() -> None:
    with pytest.raises(ValueError, match="no year has"):
        schedule("0 0 31 2 *")
    assert schedule("0 0 29 2 *")["cron"] == "0 0 29 2 *"
