"""When a job is due: cron expressions on the wall clock of a time zone. Pure.

The expression is evaluated on times without a zone and each result is put into the zone afterwards.
A time that the spring change skips runs at the moment of the change (shifted forward by the gap); one
that the autumn change repeats runs once, the first time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from croniter import CroniterBadCronError, CroniterBadDateError, croniter

RUN_ONCE: Final = "run-once"
SKIP: Final = "skip"
MISSED_POLICIES: Final = (RUN_ONCE, SKIP)
_CRON_FIELDS: Final = 5
_MAX_DUE: Final = 1000
_DAY: Final = timedelta(days=1)
_ANY_TIME: Final = datetime(2024, 1, 1)  # noqa: DTZ001 - wall clock; whether any day fits is not a matter of zones


@dataclass(frozen=True, slots=True, kw_only=True)
class Due:
    """What became due: the time that is to be run now, and those that are only recorded as missed."""

    fire: datetime | None
    missed: tuple[datetime, ...]


def check_schedule(value: Any) -> dict[str, Any]:
    """A schedule in its full form; ValueError with the reason."""
    if not isinstance(value, Mapping):
        raise ValueError("must be {cron, time_zone, missed} or null")  # noqa: TRY004 - the doors expect ValueError
    unknown = set(value) - {"cron", "time_zone", "missed"}
    if unknown:
        raise ValueError(f"has no field {min(map(str, unknown))!r}")
    cron = " ".join(str(value.get("cron", "")).split())
    zone = value.get("time_zone") or "UTC"
    missed = value.get("missed") or RUN_ONCE
    if len(cron.split(" ")) != _CRON_FIELDS or not croniter.is_valid(cron):
        raise ValueError(f"cron {cron!r} is no expression of minute, hour, day, month, weekday")
    try:
        croniter(cron, _ANY_TIME).get_next(datetime)
    except CroniterBadDateError:
        raise ValueError(f"cron {cron!r} names a day that no year has") from None
    try:
        ZoneInfo(str(zone))
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError(f"time_zone {zone!r} is not known; give one like Europe/Berlin") from None
    if missed not in MISSED_POLICIES:
        raise ValueError(f"missed must be {RUN_ONCE} or {SKIP}")
    return {"cron": cron, "time_zone": str(zone), "missed": missed}


def next_run(schedule: Mapping[str, Any] | None, after: datetime) -> datetime | None:
    """First due time after `after` (aware), in UTC; None without a schedule or when none comes."""
    if schedule is None:
        return None
    zone = ZoneInfo(schedule["time_zone"])
    # Begin early enough that a time which was shifted or repeated is not lost, then drop what is past.
    start = after.astimezone(zone).replace(tzinfo=None) - _change_near(after, zone)
    times = croniter(schedule["cron"], start)
    found: datetime | None = None
    last: datetime | None = None
    for _ in range(_MAX_DUE):
        try:
            wall = times.get_next(datetime)
        except (CroniterBadDateError, CroniterBadCronError):
            break
        due = _to_utc(wall, zone)
        if due <= after:
            continue
        if found is None or last is None:
            # A skipped time comes later than times of the clock behind it: those are looked at as well.
            found, last = due, wall + _change_near(due, zone)
        found = min(found, due)
        if wall >= last:
            break
    return found


def due_runs(
    schedule: Mapping[str, Any], since: datetime, now: datetime, *, grace_s: float = 60.0
) -> Due:
    """What to do about the due times in (since, now].

    A time not older than `grace_s` is on time and fires. Older ones were missed, because the server
    was down: with "run-once" the newest of them fires now (unless one is on time), with "skip" none.
    """
    times: list[datetime] = []
    at = since
    while len(times) < _MAX_DUE:
        found = next_run(schedule, at)
        if found is None or found > now:
            break
        times.append(found)
        at = found
    if not times:
        return Due(fire=None, missed=())
    newest = times[-1]
    on_time = (now - newest).total_seconds() <= grace_s
    if on_time or schedule.get("missed", RUN_ONCE) == RUN_ONCE:
        return Due(fire=newest, missed=tuple(times[:-1]))
    return Due(fire=None, missed=tuple(times))


def _change_near(at: datetime, zone: ZoneInfo) -> timedelta:
    """By how much the clock is put forward or back within a day of `at`; nearly always by nothing."""
    offsets = [(at + days * _DAY).astimezone(zone).utcoffset() for days in (-1, 0, 1)]
    known = [offset for offset in offsets if offset is not None]
    return max(known) - min(known)


def _to_utc(wall: datetime, zone: ZoneInfo) -> datetime:
    # fold=0: of a repeated time the first; for a skipped time the offset before the change, which
    # puts it behind the gap by as much as it was inside of it.
    return wall.replace(tzinfo=zone, fold=0).astimezone(UTC)
