"""Grandfather, father, son: one restore point a week, a month, a year for a longer time. Pure.

A period is one of the calendar, on the wall clock of the rule's time zone. Of each period that holds a
good point the newest one stands for it; the newest so many periods of a kind keep theirs. Only periods
that hold a point are counted, so weeks in which nothing was backed up push no older week out.

The newest one, not the first: while a period lasts, its newest point is the newest of all and stays
anyway; once it is over, what stands for it never changes. So removing day by day ends with the same
points as looking at all of them at once, which a test holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta, tzinfo
from typing import Final

MONDAY: Final = 0
SUNDAY: Final = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class GfsRule:
    """How many weeks, months and years keep one point each; 0: none of that kind."""

    weekly: int = 0
    monthly: int = 0
    yearly: int = 0
    week_start: int = MONDAY
    """As datetime.weekday(): 0 is Monday, 6 Sunday."""
    zone: tzinfo = field(default=UTC)
    """Whose midnight begins a day."""

    def __post_init__(self) -> None:
        for name in ("weekly", "monthly", "yearly"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; give 0 or more")
        if not MONDAY <= self.week_start <= SUNDAY:
            raise ValueError(f"week_start is {self.week_start}; give 0 (Monday) to 6 (Sunday)")


def week_of(moment: datetime, rule: GfsRule) -> str:
    """As "2026-W48" where weeks begin on Monday (ISO 8601), else "week from 2026-11-22"."""
    day = moment.astimezone(rule.zone).date()
    first = day - timedelta(days=(day.weekday() - rule.week_start) % 7)
    return _iso_week(first) if rule.week_start == MONDAY else f"week from {first.isoformat()}"


def _iso_week(day: date) -> str:
    year, week, _ = day.isocalendar()
    return f"{year:04d}-W{week:02d}"


def month_of(moment: datetime, rule: GfsRule) -> str:
    """As "2026-11"."""
    return f"{moment.astimezone(rule.zone):%Y-%m}"


def year_of(moment: datetime, rule: GfsRule) -> str:
    return f"{moment.astimezone(rule.zone):%Y}"


def marks(good_newest_first: Iterable[tuple[str, datetime]], rule: GfsRule) -> dict[str, list[str]]:
    """Point id -> what it stands for, as in "weekly 2026-W48"; only of points that the rule keeps."""
    points = list(good_newest_first)
    found: dict[str, list[str]] = {}
    kinds: tuple[tuple[str, int, Callable[[datetime, GfsRule], str]], ...] = (
        ("weekly", rule.weekly, week_of),
        ("monthly", rule.monthly, month_of),
        ("yearly", rule.yearly, year_of),
    )
    for kind, count, period_of in kinds:
        seen: set[str] = set()
        for point_id, created_at in points:
            if len(seen) >= count:
                break
            period = period_of(created_at, rule)
            if period not in seen:
                seen.add(period)
                found.setdefault(point_id, []).append(f"{kind} {period}")
    return found
