"""Windows and schedules on the days on which the clocks of this machine's time zones change in a year, against models that
look at every step of the clock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo, available_timezones

from backup_server.services import schedule, windows

YEAR = datetime(2026, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)
STEP = timedelta(minutes=15)
"""Changes of clocks, beginnings and ends of hours all lie on it."""
WINDOWS = ("daily 22:00-06:00", "not sat,sun 01:15-02:45", "daily 02:15-02:45, mon-fri 23:30-00:30")
CRONS = {
    "30 2 * * *": lambda wall: (wall.hour, wall.minute) == (2, 30),
    "*/15 0-3 * * *": lambda wall: wall.hour <= 3,
    "0 0 * * sun": lambda wall: (wall.isoweekday(), wall.hour, wall.minute) == (7, 0, 0),
}
"""With what they mean for a time that lies on a step."""


def days_of_change(zone: ZoneInfo) -> list[datetime]:
    """Noons before the clock has another offset."""
    noons = [YEAR + DAY / 2 + n * DAY for n in range(365)]
    return [
        one
        for one in noons
        if one.astimezone(zone).utcoffset() != (one + DAY).astimezone(zone).utcoffset()
    ]


def zones() -> Iterator[tuple[str, datetime]]:
    """(zone, when to begin) for each change of the year; of zones that have the same clock all year only one."""
    seen = set()
    for name in sorted(available_timezones()):
        zone = ZoneInfo(name)
        changes = days_of_change(zone)
        marks = tuple((one, one.astimezone(zone).utcoffset()) for one in (YEAR, *changes))
        if marks not in seen:
            seen.add(marks)
            for begin in changes or [YEAR + 200 * DAY]:
                yield name, begin - DAY / 2


def walls(zone: str, begin: datetime) -> list[tuple[datetime, datetime]]:
    """(moment, what the clock shows) for two days and a half from `begin`."""
    info = ZoneInfo(zone)
    moments = [begin + n * STEP for n in range(int(2.5 * DAY / STEP))]
    return [(at, at.astimezone(info).replace(tzinfo=None, fold=0)) for at in moments]


def within(window: dict[str, object], wall: datetime) -> bool:
    """Whether the hours of the window hold this time of a clock that never changes."""
    found = False
    for one in window["hours"]:  # type: ignore[attr-defined]
        for back in (0, 1):
            day = wall.replace(hour=0, minute=0) - back * DAY
            begin, end = (
                day + timedelta(hours=int(text[:2]), minutes=int(text[3:]))
                for text in (one["from"], one["to"])
            )
            end += DAY if end <= begin else timedelta(0)
            found |= windows.DAYS[day.weekday()] in one["days"] and begin <= wall < end
    return found != (window["rule"] == windows.DENIED)


def test_windows_follow_a_clock_that_shows_no_minute_twice() -> None:
    checked = 0
    for zone, begin in zones():
        shown = walls(zone, begin)
        for text in WINDOWS:
            window = windows.parse(text, zone)
            latest, states = datetime.min, []  # noqa: DTZ901 - wall clock
            for _, wall in shown:
                latest = max(latest, wall)
                states.append(within(window, latest))
            assert [windows.is_open(window, at) for at, _ in shown] == states, (zone, begin, text)
            at, changes = shown[0][0], []
            while (found := windows.next_change(window, at)) is not None and found <= shown[-1][0]:
                changes.append(found)
                at = found
            model = [shown[n][0] for n in range(1, len(states)) if states[n] != states[n - 1]]
            assert changes == model, (zone, begin, text)
            checked += 1
    assert checked > 100


def due_times(
    means: Callable[[datetime], bool], shown: list[tuple[datetime, datetime]]
) -> list[datetime]:
    """The first moment that shows each time that is meant; of one that is skipped, as long after the last
    that was shown as it is later than that.
    """
    first: dict[datetime, datetime] = {}
    for at, wall in shown:
        first.setdefault(wall, at)
    found, wall, last = [], shown[0][1], shown[0][1]
    end = shown[-1][1]
    while wall <= end:
        last = wall if wall in first else last
        if means(wall):
            found.append(first[last] + (wall - last))
        wall += STEP
    return sorted(set(found))


def test_schedules_run_each_time_of_the_clock_once() -> None:
    checked = 0
    for zone, begin in zones():
        shown = walls(zone, begin)
        for cron, means in CRONS.items():
            plan = schedule.check_schedule({"cron": cron, "time_zone": zone})
            at, found = shown[0][0] - timedelta(seconds=1), []
            while (due := schedule.next_run(plan, at)) is not None and due <= shown[-1][0]:
                found.append(due)
                at = due
            assert found == due_times(means, shown), (zone, begin, cron)
            checked += 1
    assert checked > 100
