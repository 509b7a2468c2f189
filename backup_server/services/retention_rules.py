"""A job's retention as it is written, and the rule that follows from it. Pure.

{"keep": n} or {"days": n}, and on top of either
"weekly", "monthly", "yearly": how many of those keep one point each,
"week_start": "monday" to "sunday",
"gone_days": remove all points of a VM that the job takes no more, so long after its newest one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final
from zoneinfo import ZoneInfo

from pipeline.retention import GfsRule, KeepDays, KeepLast, RetentionRule

MAX_KEEP: Final = 10_000
DEFAULT_RETENTION: Final = {"keep": 14}
WEEKDAYS: Final = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
"""In the order of datetime.weekday()."""
_BASES: Final = ("keep", "days")
_GFS: Final = ("weekly", "monthly", "yearly")
_FORM: Final = (
    f"must be {{keep: n}} or {{days: n}} with n from 1 to {MAX_KEEP}, and may add weekly, monthly and "
    "yearly (0 for none), week_start (monday to sunday) and gone_days (null for never)"
)


def check_retention(value: Any) -> dict[str, Any]:
    """The retention in its short form, without what says nothing; ValueError with the reason."""
    if not isinstance(value, Mapping):
        raise ValueError(_FORM)  # noqa: TRY004 - the doors expect ValueError
    unknown = set(value) - {*_BASES, *_GFS, "week_start", "gone_days"}
    if unknown:
        raise ValueError(f"has no field {min(map(str, unknown))!r}; it {_FORM}")
    bases = [name for name in _BASES if value.get(name) is not None]
    if len(bases) != 1:
        raise ValueError(_FORM)
    checked: dict[str, Any] = {bases[0]: _count(bases[0], value[bases[0]], low=1)}
    for name in _GFS:
        count = _count(name, value.get(name) or 0, low=0)
        if count:
            checked[name] = count
    week_start = value.get("week_start") or WEEKDAYS[0]
    if week_start not in WEEKDAYS:
        raise ValueError(f"week_start must be one of {', '.join(WEEKDAYS)}")
    if week_start != WEEKDAYS[0]:
        checked["week_start"] = week_start
    if value.get("gone_days") is not None:
        checked["gone_days"] = _count("gone_days", value["gone_days"], low=1)
    return checked


def _count(name: str, value: Any, *, low: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= MAX_KEEP:
        raise ValueError(f"{name} must be a whole number from {low} to {MAX_KEEP}; it {_FORM}")
    return value


def rule_of(retention: Mapping[str, Any], schedule: Mapping[str, Any] | None) -> RetentionRule:
    """The rule of a checked retention; days begin at midnight of the schedule's time zone, else UTC."""
    base = (
        KeepLast(count=retention["keep"]) if "keep" in retention else KeepDays(days=retention["days"])
    )
    gfs = GfsRule(
        weekly=retention.get("weekly", 0),
        monthly=retention.get("monthly", 0),
        yearly=retention.get("yearly", 0),
        week_start=WEEKDAYS.index(retention.get("week_start", WEEKDAYS[0])),
        zone=ZoneInfo(schedule["time_zone"] if schedule else "UTC"),
    )
    return RetentionRule(base=base, gfs=gfs)
