from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from pipeline.retention import (
    GfsRule,
    KeepDays,
    KeepLast,
    RetentionCandidate,
    RetentionRule,
    plan_retention,
)
from pipeline.retention.gfs import SUNDAY, month_of, week_of, year_of

NOW = datetime(2026, 11, 23, 6, tzinfo=UTC)  # a Monday


def daily(days: int) -> list[RetentionCandidate]:
    """A point each night for so many days; its id is its date."""
    nights = [NOW - timedelta(days=age) for age in range(days)]
    return [RetentionCandidate(id=f"{at:%Y-%m-%d}", created_at=at) for at in nights]


def kept(points: list[RetentionCandidate], rule: RetentionRule) -> dict[str, tuple[str, ...]]:
    return {decision.id: decision.marks for decision in plan_retention(points, rule, now=NOW).keep}


def test_a_week_is_kept_by_its_newest_point() -> None:
    rule = RetentionRule(base=KeepLast(count=2), gfs=GfsRule(weekly=3))
    assert kept(daily(60), rule) == {
        "2026-11-23": ("weekly 2026-W48",),  # the week that has begun counts as one
        "2026-11-22": ("weekly 2026-W47",),
        "2026-11-15": ("weekly 2026-W46",),
    }


def test_months_and_years_come_on_top_and_one_point_may_stand_for_several() -> None:
    rule = RetentionRule(base=KeepDays(days=2), gfs=GfsRule(weekly=1, monthly=3, yearly=2))
    assert kept(daily(800), rule) == {
        "2026-11-23": ("weekly 2026-W48", "monthly 2026-11", "yearly 2026"),
        "2026-11-22": (),
        "2026-11-21": (),
        "2026-10-31": ("monthly 2026-10",),
        "2026-09-30": ("monthly 2026-09",),
        "2025-12-31": ("yearly 2025",),
    }


def test_periods_without_a_point_are_not_counted() -> None:
    points = [
        RetentionCandidate(id=str(age), created_at=NOW - timedelta(days=age)) for age in (0, 100, 400)
    ]
    rule = RetentionRule(base=KeepLast(count=1), gfs=GfsRule(monthly=3))
    assert list(kept(points, rule)) == ["0", "100", "400"]


def test_a_point_that_cannot_be_restored_stands_for_nothing() -> None:
    points = [
        RetentionCandidate(id="now", created_at=NOW),
        RetentionCandidate(id="bad", created_at=NOW - timedelta(days=30), is_good=False),
        RetentionCandidate(id="good", created_at=NOW - timedelta(days=40)),
    ]
    rule = RetentionRule(base=KeepLast(count=1), gfs=GfsRule(monthly=2))
    plan = plan_retention(points, rule, now=NOW)
    assert [d.id for d in plan.keep] == ["now", "good"]
    assert plan.keep[1].reason == "monthly 2026-10"


def test_what_is_immutable_stays_until_it_is_not() -> None:
    until = datetime(2026, 12, 1, 8, 30, tzinfo=UTC)
    points = [
        RetentionCandidate(id="new", created_at=NOW),
        RetentionCandidate(id="old", created_at=NOW - timedelta(days=9), immutable_until=until),
    ]
    plan = plan_retention(points, KeepLast(count=1), now=NOW)
    assert plan.keep[1].reason == "immutable until 2026-12-01 08:30 UTC"
    assert [d.id for d in plan_retention(points, KeepLast(count=1), now=until).remove] == ["old"]


def test_the_user_of_a_point_is_named() -> None:
    points = daily(3)
    used = {"2026-11-21": "session 12345678"}
    plan = plan_retention(points, KeepLast(count=1), now=NOW, in_use=used)
    assert [(d.id, d.reason) for d in plan.keep][1] == ("2026-11-21", "in use by session 12345678")


def test_the_day_is_the_one_of_the_time_zone() -> None:
    berlin = GfsRule(monthly=1, zone=ZoneInfo("Europe/Berlin"))
    moment = datetime(2026, 10, 31, 23, 30, tzinfo=UTC)
    assert month_of(moment, berlin) == "2026-11"
    assert month_of(moment, GfsRule()) == "2026-10"
    late = datetime(2026, 12, 31, 23, 30, tzinfo=UTC)
    assert (year_of(late, berlin), week_of(late, berlin)) == ("2027", "2026-W53")


def test_a_week_may_begin_on_sunday() -> None:
    rule = GfsRule(weekly=1, week_start=SUNDAY)
    sunday = datetime(2026, 11, 22, 12, tzinfo=UTC)
    assert week_of(sunday, rule) == week_of(NOW, rule) == "week from 2026-11-22"
    assert week_of(sunday, GfsRule()) == "2026-W47"


@pytest.mark.parametrize("values", [{"weekly": -1}, {"monthly": -1}, {"yearly": -1}, {"week_start": 7}])
def test_values_that_make_no_sense_are_refused(values: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="give 0"):
        GfsRule(**values)
