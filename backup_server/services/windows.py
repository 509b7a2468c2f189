"""Weekly hours in which something may happen, on the wall clock of a zone. Pure.

    {"time_zone": "Europe/Berlin", "rule": "allowed",
     "hours": [{"days": ["mon", "tue"], "from": "22:00", "to": "06:00"}]}

`rule` says whether the hours are those that are open (`allowed`) or those that are not (`denied`). Hours
whose end is not after their beginning go on into the next day: Friday 22:00-06:00 ends on Saturday.
`24:00` is the end of a day.

When the clock is put forward, hours that are skipped are neither open nor closed: a beginning or an end in
them is the moment of the change. When it is put back, each beginning and each end counts the first time the
clock shows it, so hours open once and close once; while the clock shows the repeated hour again, all stays
as it was at the end of the first.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta
from itertools import pairwise
from typing import Any, Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

ALLOWED: Final = "allowed"
DENIED: Final = "denied"
RULES: Final = (ALLOWED, DENIED)
DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
FORM: Final = 'a text such as "mon-fri 22:00-06:00, sat,sun 00:00-24:00"'
_EVERY: Final = ("daily", "every-day", "everyday")
_DAY_MIN: Final = 24 * 60
_LOOK_DAYS: Final = (2, 16)
"""How far a change is looked for: nearly always it comes within a day; hours of one day that the spring
change swallows come two weeks after those before."""
_ONE_DAY: Final = timedelta(days=1)

Window = Mapping[str, Any]


def check_window(value: Any) -> dict[str, Any]:
    """A window in its full form; ValueError with the reason. {"text", "time_zone"} says the same as `parse`;
    a text beside hours is left out.
    """
    if not isinstance(value, Mapping):
        raise ValueError("must be {time_zone, rule, hours} or null")  # noqa: TRY004 - the doors expect ValueError
    unknown = set(value) - {"time_zone", "rule", "hours", "text"}
    if unknown:
        raise ValueError(f"has no field {min(map(str, unknown))!r}")
    if "hours" not in value and value.get("text"):
        return parse(str(value["text"]), str(value.get("time_zone") or "UTC"))
    rule = value.get("rule") or ALLOWED
    if rule not in RULES:
        raise ValueError(f"rule must be {ALLOWED} or {DENIED}, not {rule!r}")
    hours = value.get("hours")
    if not isinstance(hours, Sequence) or isinstance(hours, str) or not hours:
        raise ValueError("hours must be a list of {days, from, to} with one entry at least")
    found = {
        "time_zone": _zone_name(value.get("time_zone") or "UTC"),
        "rule": rule,
        "hours": [_check_hours(one) for one in hours],
    }
    if not any(state for _, state in _week(found)):
        raise ValueError("leaves no hour of the week open")
    return found


def parse(text: str, time_zone: str) -> dict[str, Any]:
    """The window that a text such as "mon-fri 22:00-06:00, sat,sun 00:00-24:00" means; "not" before it
    makes it the hours that are closed, no days mean every day. ValueError with the reason.
    """
    words = " ".join(text.lower().split())
    rule = ALLOWED
    if words.startswith("not "):
        rule, words = DENIED, words[4:]
    hours: list[dict[str, Any]] = []
    days: list[str] = []
    for part in (one.strip() for one in words.split(",")):
        match = re.fullmatch(r"(?:(\S+) )?(\d{1,2}:\d\d) ?- ?(\d{1,2}:\d\d)", part)
        if match is None:
            days += _days(part)
            continue
        if match[1]:
            days += _days(match[1])
        hours.append({"days": days or list(DAYS), "from": match[2], "to": match[3]})
        days = []
    if days or not hours:
        raise ValueError(f"{text!r} names {'days without' if days else 'no'} hours; give {FORM}")
    return check_window({"time_zone": time_zone, "rule": rule, "hours": hours})


def describe(window: Window) -> str:
    """The text that `parse` makes this window of."""
    parts = [
        f"{_describe_days(one['days'])} {one['from']}-{one['to']}".strip() for one in window["hours"]
    ]
    return ("not " if window.get("rule") == DENIED else "") + ", ".join(parts)


def is_open(window: Window | None, at: datetime) -> bool:
    """Whether it is open at `at` (aware). No window: always."""
    return window is None or _Hours(window).is_open(at)


def next_change(window: Window | None, at: datetime) -> datetime | None:
    """First moment after `at`, in UTC, when what is open closes or what is closed opens; None: never."""
    return None if window is None else _Hours(window).next_change(at)


def next_open(window: Window | None, at: datetime) -> datetime:
    """`at` when it is open then, else when it opens."""
    if is_open(window, at):
        return at
    opens = next_change(window, at)
    # What is never open is refused by check_window; should a zone's rules have made it so, look again later.
    return opens if opens is not None else at + timedelta(days=_LOOK_DAYS[-1])


class _Hours:
    """A window ready to be asked."""

    def __init__(self, window: Window) -> None:
        self._zone = ZoneInfo(window["time_zone"])
        self._denied = window.get("rule") == DENIED
        self._spans = [(DAYS.index(day), *_span(one)) for one in window["hours"] for day in one["days"]]

    def is_open(self, at: datetime) -> bool:
        local = at.astimezone(self._zone)
        wall = local.replace(tzinfo=None, fold=0)
        if local.fold:
            # Shown for the second time: as it was at the end of the first.
            back = _transition(self._zone, at - _repeat_of(local), at)
            before = (back - timedelta(microseconds=1)).astimezone(self._zone)
            wall = before.replace(tzinfo=None, fold=0)
        return self._holds(wall) != self._denied

    def _holds(self, wall: datetime) -> bool:
        minute = wall.hour * 60 + wall.minute
        day = wall.weekday()
        yesterday = (day - 1) % 7
        return any(
            (on == day and begin <= minute < end) or (on == yesterday and minute < end - _DAY_MIN)
            for on, begin, end in self._spans
        )

    def next_change(self, at: datetime) -> datetime | None:
        now = self.is_open(at)
        done = 0
        for until in _LOOK_DAYS:
            for moment in sorted(set(self._moments(at, done, until))):
                if moment > at and self.is_open(moment) != now:
                    return moment
            # The first day of the next look overlaps: what crosses midnight belongs to the day before.
            done = until - 1
        return None

    def _moments(self, at: datetime, first: int, last: int) -> Iterator[datetime]:
        """Where the state may change: each beginning and end, and each change of the clock."""
        today = at.astimezone(self._zone).date()
        for offset in range(first - 1, last + 1):
            day = today + timedelta(days=offset)
            for on, begin, end in self._spans:
                if on == day.weekday():
                    yield self._utc(day, begin)
                    yield self._utc(day, end)
        noon = datetime.combine(today, time(12), tzinfo=UTC)
        days = [noon + timedelta(days=offset) for offset in range(first - 2, last + 2)]
        for earlier, later in pairwise(days):
            if _offset(self._zone, earlier) != _offset(self._zone, later):
                yield _transition(self._zone, earlier, later)

    def _utc(self, day: date, minute: int) -> datetime:
        wall = datetime.combine(day, time()) + timedelta(minutes=minute)
        # fold=0: of a time that is shown twice the first. One that is skipped is near the change, which is
        # among the moments itself.
        return wall.replace(tzinfo=self._zone, fold=0).astimezone(UTC)


def _week(window: Window) -> Iterator[tuple[int, bool]]:
    """Each minute of a week without changes of the clock, and whether it is open."""
    hours = _Hours(window)
    monday = datetime(2024, 1, 1)  # noqa: DTZ001 - wall clock of no zone
    for minute in range(7 * _DAY_MIN):
        wall = monday + timedelta(minutes=minute)
        yield minute, hours._holds(wall) != hours._denied  # noqa: SLF001 - of this module


def _check_hours(value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping) or set(value) - {"days", "from", "to"}:
        raise ValueError("hours must be a list of {days, from, to}")
    days = value.get("days") or list(DAYS)
    if not isinstance(days, Sequence) or isinstance(days, str):
        raise ValueError("days must be a list such as [mon, tue]")  # noqa: TRY004 - as above
    wrong = [day for day in days if day not in DAYS]
    if wrong:
        raise ValueError(f"there is no day {wrong[0]!r}; days are {', '.join(DAYS)}")
    begin = _minute(str(value.get("from", "")))
    end = _minute(str(value.get("to", "")), last=True)
    if begin == end:
        raise ValueError(
            f"hours {value.get('from')}-{value.get('to')} are empty; a whole day is 00:00-24:00"
        )
    return {
        "days": [day for day in DAYS if day in days],
        "from": f"{begin // 60:02}:{begin % 60:02}",
        "to": f"{end // 60:02}:{end % 60:02}",
    }


def _minute(text: str, *, last: bool = False) -> int:
    match = re.fullmatch(r"(\d{1,2}):(\d\d)", text)
    minute = int(match[1]) * 60 + int(match[2]) if match and int(match[2]) < 60 else -1  # noqa: PLR2004
    if not 0 <= minute < _DAY_MIN + last:
        raise ValueError(f"{text!r} is no time of day; give one like 22:00")
    return minute


def _span(one: Mapping[str, Any]) -> tuple[int, int]:
    """(first minute, minute after the last), counted from the midnight before the first."""
    begin, end = _minute(one["from"]), _minute(one["to"], last=True)
    return begin, end if end > begin else end + _DAY_MIN


def _days(text: str) -> list[str]:
    if text in _EVERY:
        return list(DAYS)
    ends = text.split("-")
    if len(ends) > 2 or any(end not in DAYS for end in ends):  # noqa: PLR2004 - a day, or from one to another
        raise ValueError(f"{text!r} are no days and hours; give {FORM}")
    first, last = DAYS.index(ends[0]), DAYS.index(ends[-1])
    return [DAYS[(first + step) % 7] for step in range((last - first) % 7 + 1)]


def _describe_days(days: Sequence[str]) -> str:
    places = [DAYS.index(day) for day in days]
    if len(places) == len(DAYS):
        return "daily"
    runs: list[list[int]] = []
    for place in places:
        if runs and place == runs[-1][-1] + 1:
            runs[-1].append(place)
        else:
            runs.append([place])
    short = [
        f"{DAYS[run[0]]}-{DAYS[run[-1]]}" if len(run) > 2 else ",".join(DAYS[one] for one in run)  # noqa: PLR2004
        for run in runs
    ]
    return ",".join(short)


def _zone_name(name: Any) -> str:
    try:
        ZoneInfo(str(name))
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError(f"time_zone {name!r} is not known; give one like Europe/Berlin") from None
    return str(name)


def _offset(zone: ZoneInfo, at: datetime) -> timedelta:
    offset = at.astimezone(zone).utcoffset()
    assert offset is not None
    return offset


def _repeat_of(local: datetime) -> timedelta:
    """How far the clock was put back, for a time that it shows for the second time."""
    first, second = local.replace(fold=0).utcoffset(), local.utcoffset()
    assert first is not None
    assert second is not None
    return first - second


def _transition(zone: ZoneInfo, earlier: datetime, later: datetime) -> datetime:
    """The moment in (earlier, later], in UTC, from which the zone has the offset that it has at `later`.
    There is one change in between; changes are on whole seconds.
    """
    wanted = _offset(zone, later)
    low, high = int(earlier.timestamp()), int(later.timestamp())
    while high - low > 1:
        middle = (low + high) // 2
        if _offset(zone, datetime.fromtimestamp(middle, UTC)) == wanted:
            high = middle
        else:
            low = middle
    return datetime.fromtimestamp(high, UTC)
