"""When a task that waits could go on."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from backup_server.services.limits import Running
from backup_server.services.placement import Limit, decide
from backup_server.services.prospects import prospects
from backup_server.services.surveys import ProxyFacts
from backup_server.services.wishes import Wish
from transports.base import TransportMode

NOW = datetime(2026, 3, 4, 1, 2, 3, tzinfo=UTC)
FULL = Limit(key="r:1", what="repository main", used=2, maximum=2)


def proxy(name: str, **changes: object) -> ProxyFacts:
    values: dict[str, object] = {
        "id": name,
        "name": name,
        "enabled": True,
        "enrolled": True,
        "online": True,
        "stopping": False,
        "slots": 2,
        "used": 0,
        "offered_modes": (TransportMode.NBDSSL,),
        "allowed_modes": (),
        **changes,
    }
    return ProxyFacts(**values)  # type: ignore[arg-type]


def task(title: str, ends_s: float | None, *keys: str, on: str = "a") -> Running:
    ends_at = None if ends_s is None else NOW + timedelta(seconds=ends_s)
    return Running(task_id=title, title=title, proxy_id=on, keys=(f"p:{on}", *keys), ends_at=ends_at)


def said(
    limits: list[Limit], proxies: list[ProxyFacts], running: list[Running], **more: datetime
) -> list[tuple[str, float | None]]:
    wish = Wish(modes=(TransportMode.NBDSSL,))
    decision = decide(wish, proxies, limits)
    found = prospects(decision, limits, proxies, running, now=NOW, **more)
    return [(one.what, None if one.at is None else (one.at - NOW).total_seconds()) for one in found]


def test_times_that_are_known_come_first() -> None:
    opens = NOW + timedelta(hours=3)
    assert said([], [proxy("a")], [], window_opens=opens) == [("the job's window opens", 10800)]
    pause = NOW + timedelta(seconds=40)
    assert said([], [proxy("a")], [], not_before=pause) == [
        ("the pause after the last failure ends", 40)
    ]


def test_a_full_limit_waits_for_the_task_that_ends_first() -> None:
    running = [task("one", 300, "r:1"), task("two", 60, "r:1"), task("three", 5, "r:2")]
    assert said([FULL], [proxy("a")], running) == [
        ("repository main has room: two ends, or another of its 2 tasks", 60)
    ]
    unknown = [task("one", None, "r:1")]
    assert said([FULL], [proxy("a")], unknown)[0][1] is None


def test_a_closed_datastore_is_measured_again() -> None:
    closed = Limit(key="d:x", what="datastore x", used=0, maximum=0, closed="datastore x is slow")
    assert said([closed], [proxy("a")], []) == [("datastore x is measured again, and is faster", 20)]


def test_slots_and_proxies_that_are_away() -> None:
    fleet = [proxy("a", used=2), proxy("b", used=2), proxy("c", online=False)]
    running = [task("one", 300), task("two", 60, on="b")]
    assert said([], fleet, running) == [
        ("a slot of b is free: two ends, or of another proxy", 60),
        ("proxy c is heard again", None),
    ]
    stopping = proxy("a", stopping=True)
    assert said([], [stopping], []) == [("the worker of proxy a is started again", None)]


def test_a_limit_of_other_modes_is_not_waited_for() -> None:
    other = replace(FULL, modes=frozenset({TransportMode.DIRECT_SAN}))
    assert said([other], [proxy("a")], []) == [("the next round of the dispatcher: a has room", 0)]


def test_what_no_proxy_reaches_needs_another_proxy() -> None:
    [(what, at)] = said([], [proxy("a", enabled=False)], [])
    assert "a proxy is added or changed" in what
    assert at is None
