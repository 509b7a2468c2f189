"""Windows: against a model that walks minute by minute, and the days on which clocks change."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from backup_server.services import windows

BERLIN = ZoneInfo("Europe/Berlin")
ZONES = (
    "UTC",
    "Europe/Berlin",
    "America/New_York",
    "Australia/Lord_Howe",  # half an hour
    "America/St_Johns",
    "Africa/Casablanca",  # clocks change for Ramadan
)
MINUTE = timedelta(minutes=1)


def parse(text: str, zone: str = "Europe/Berlin") -> dict[str, Any]:
    return windows.parse(text, zone)


def berlin(text: str, *, fold: int = 0) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=BERLIN, fold=fold).astimezone(UTC)


def clock_changes(zone: str) -> list[datetime]:
    """Hours of 2026 in which the zone's offset changes."""
    info = ZoneInfo(zone)
    hours = [datetime(2026, 1, 1, tzinfo=UTC) + timedelta(hours=n) for n in range(365 * 24)]
    return [
        one
        for one in hours
        if one.astimezone(info).utcoffset() != (one + timedelta(hours=1)).astimezone(info).utcoffset()
    ]


class Walk:
    """The rule told otherwise: walk through the minutes with a clock that shows no minute twice. It stands
    still at the last minute that it showed while a real clock repeats itself.
    """

    def __init__(self, window: dict[str, Any], begin: datetime, minutes: int) -> None:
        zone = ZoneInfo(window["time_zone"])
        # A day ahead, so that the walk begins outside of a repeated hour.
        at, shown = begin - timedelta(days=1), datetime.min  # noqa: DTZ901 - wall clock
        self.states: list[bool] = []
        while len(self.states) < minutes:
            shown = max(shown, at.astimezone(zone).replace(tzinfo=None, fold=0))
            if at >= begin:
                self.states.append(self._within(window, shown) != (window["rule"] == "denied"))
            at += MINUTE

    @staticmethod
    def _within(window: dict[str, Any], wall: datetime) -> bool:
        midnight = wall.replace(hour=0, minute=0)
        for back in (0, 1):
            day = midnight - timedelta(days=back)
            for one in window["hours"]:
                if windows.DAYS[day.weekday()] not in one["days"]:
                    continue
                begin = day + _time(one["from"])
                end = day + _time(one["to"])
                if end <= begin:
                    end += timedelta(days=1)
                if begin <= wall < end:
                    return True
        return False


def _time(text: str) -> timedelta:
    hour, minute = text.split(":")
    return timedelta(hours=int(hour), minutes=int(minute))


times = st.builds(
    lambda hour, minute: f"{hour:02}:{minute:02}",
    st.integers(0, 23),
    st.sampled_from([0, 15, 30, 45, 59]),
)
spans = st.builds(
    lambda days, begin, end: {"days": sorted(days), "from": begin, "to": end},
    st.sets(st.sampled_from(windows.DAYS), min_size=1),
    times,
    st.one_of(times, st.just("24:00")),
).filter(lambda one: one["from"] != one["to"])


@st.composite
def windows_and_moments(draw: st.DrawFn) -> tuple[dict[str, Any], datetime]:
    zone = draw(st.sampled_from(ZONES))
    value = {
        "time_zone": zone,
        "rule": draw(st.sampled_from(windows.RULES)),
        "hours": draw(st.lists(spans, min_size=1, max_size=4)),
    }
    try:
        windows.check_window(value)
    except ValueError:
        reject()  # hours that are closed and leave none open
    near = draw(st.sampled_from([*clock_changes(zone), datetime(2026, 7, 1, tzinfo=UTC)]))
    begin = near - timedelta(minutes=draw(st.integers(0, 30 * 60)))
    return value, begin


@given(windows_and_moments())
@settings(max_examples=40, deadline=None)
def test_state_and_changes_are_those_of_a_walk_through_the_minutes(
    given_: tuple[dict[str, Any], datetime],
) -> None:
    value, begin = given_
    window = windows.check_window(value)
    states = Walk(window, begin, 48 * 60).states
    assert [windows.is_open(window, begin + n * MINUTE) for n in range(len(states))] == states
    change = windows.next_change(window, begin)
    expected = next((n for n, state in enumerate(states) if state != states[0]), None)
    if expected is None:
        assert change is None or change >= begin + len(states) * MINUTE
    else:
        assert change == begin + expected * MINUTE


@given(windows_and_moments())
@settings(max_examples=100, deadline=None)
def test_the_text_of_a_window_means_the_same_window(given_: tuple[dict[str, Any], datetime]) -> None:
    window = windows.check_window(given_[0])
    assert windows.parse(windows.describe(window), window["time_zone"]) == window


def changes(window: dict[str, Any], begin: datetime, count: int) -> list[str]:
    found = []
    for _ in range(count):
        at = windows.next_change(window, begin)
        assert at is not None
        found.append(f"{at.astimezone(BERLIN):%a %H:%M%z}")
        begin = at
    return found


def test_hours_cross_midnight_and_belong_to_the_day_on_which_they_begin() -> None:
    window = parse("fri 22:00-06:00")
    assert not windows.is_open(window, berlin("2026-11-27T21:59"))
    assert windows.is_open(window, berlin("2026-11-27T22:00"))
    assert windows.is_open(window, berlin("2026-11-28T05:59"))
    assert not windows.is_open(window, berlin("2026-11-28T06:00"))
    assert not windows.is_open(window, berlin("2026-11-27T05:00"))


def test_neighbouring_hours_are_one_opening() -> None:
    window = parse("sat 00:00-24:00, sun 00:00-24:00, mon 00:00-06:00")
    assert changes(window, berlin("2026-11-27T12:00"), 2) == ["Sat 00:00+0100", "Mon 06:00+0100"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # 29 March 2026: 02:00 becomes 03:00.
        ("daily 22:00-06:00", ["Sat 22:00+0100", "Sun 06:00+0200"]),
        ("daily 02:15-02:45", ["Mon 02:15+0200", "Mon 02:45+0200"]),
        ("daily 01:30-02:30", ["Sun 01:30+0100", "Sun 03:00+0200"]),
        ("daily 02:30-04:00", ["Sun 03:00+0200", "Sun 04:00+0200"]),
    ],
)
def test_clocks_put_forward(text: str, expected: list[str]) -> None:
    assert changes(parse(text), berlin("2026-03-28T12:00"), 2) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # 25 October 2026: 03:00 becomes 02:00.
        ("daily 22:00-06:00", ["Sat 22:00+0200", "Sun 06:00+0100"]),
        ("daily 02:15-02:45", ["Sun 02:15+0200", "Sun 02:45+0200"]),
        ("daily 22:00-02:30", ["Sat 22:00+0200", "Sun 02:30+0200"]),
        ("daily 22:00-03:00", ["Sat 22:00+0200", "Sun 03:00+0100"]),
        ("daily 02:30-04:00", ["Sun 02:30+0200", "Sun 04:00+0100"]),
        ("daily 03:00-04:00", ["Sun 03:00+0100", "Sun 04:00+0100"]),
    ],
)
def test_clocks_put_back(text: str, expected: list[str]) -> None:
    assert changes(parse(text), berlin("2026-10-24T12:00"), 2) == expected


def test_a_repeated_hour_stays_as_it_was() -> None:
    window = parse("daily 22:00-02:30")
    assert windows.is_open(window, berlin("2026-10-25T02:10"))
    assert not windows.is_open(window, berlin("2026-10-25T02:10", fold=1))


def test_hours_of_one_night_that_the_spring_change_swallows_come_a_week_later() -> None:
    window = parse("sun 02:15-02:45")
    assert windows.next_change(window, berlin("2026-03-22T02:45")) == berlin("2026-04-05T02:15")


def test_denied_hours_are_closed_and_the_rest_is_open() -> None:
    window = parse("not mon-fri 08:00-18:00")
    assert not windows.is_open(window, berlin("2026-11-23T12:00"))
    assert windows.is_open(window, berlin("2026-11-23T18:00"))
    assert windows.is_open(window, berlin("2026-11-22T12:00"))


def test_no_window_is_always_open_and_never_changes() -> None:
    at = berlin("2026-11-23T12:00")
    assert windows.is_open(None, at)
    assert windows.next_change(None, at) is None
    assert windows.next_change(parse("00:00-24:00"), at) is None
    assert windows.next_open(None, at) == at


def test_the_next_opening_is_now_when_it_is_open() -> None:
    window = parse("mon 12:00-13:00")
    assert windows.next_open(window, berlin("2026-11-23T12:30")) == berlin("2026-11-23T12:30")
    assert windows.next_open(window, berlin("2026-11-23T13:00")) == berlin("2026-11-30T12:00")


def test_days_in_all_their_forms() -> None:
    assert parse("mon-fri 22:00-06:00, sat,sun 00:00-24:00")["hours"] == [
        {"days": ["mon", "tue", "wed", "thu", "fri"], "from": "22:00", "to": "06:00"},
        {"days": ["sat", "sun"], "from": "00:00", "to": "24:00"},
    ]
    assert parse("fri-mon 1:00-2:00")["hours"][0]["days"] == ["mon", "fri", "sat", "sun"]
    assert parse("22:00-23:00") == parse("daily 22:00 - 23:00")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no days and hours|are no days"),
        ("mon", "days without hours"),
        ("mon 25:00-26:00", "no time of day"),
        ("mon 10:00-10:00", "are empty"),
        ("mon 10:00-24:01", "no time of day"),
        ("someday 10:00-11:00", "no days and hours"),
        ("mon-tue-wed 10:00-11:00", "no days and hours"),
        ("not daily 00:00-24:00", "no hour of the week open"),
    ],
)
def test_what_is_no_window_is_refused_with_the_reason(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse(text)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("mon", "must be"),
        ({"hours": [], "time_zone": "UTC"}, "one entry at least"),
        ({"hours": [{"from": "1:00", "to": "2:00"}], "zone": "UTC"}, "no field 'zone'"),
        ({"hours": [{"from": "1:00", "to": "2:00"}], "time_zone": "Mars/North"}, "not known"),
        ({"hours": [{"from": "1:00", "to": "2:00"}], "rule": "perhaps"}, "allowed or denied"),
        ({"hours": [{"days": ["monday"], "from": "1:00", "to": "2:00"}]}, "no day 'monday'"),
        ({"hours": [{"days": "mon", "from": "1:00", "to": "2:00"}]}, "must be a list"),
        ({"hours": ["mon"]}, "list of {days, from, to}"),
    ],
)
def test_forms_that_are_not_understood_are_refused(value: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        windows.check_window(value)
