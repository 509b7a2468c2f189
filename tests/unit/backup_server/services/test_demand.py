"""How much of its rate a task is taken to want."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from backup_server.services.demand import GREEDY, Demand, Use, follow

NOW = datetime(2026, 11, 23, 2, 30, tzinfo=UTC)
FAIR = 1000.0


def use(passed: float, *, rate: int = 1000, held: float = 0.0) -> Use:
    return Use(rate_bytes_per_s=rate, passed_bytes_per_s=passed, held_share=held)


def after(before: Demand, told: Use | None, seconds: float = 0.0) -> Demand:
    return follow(before, told, fair_bytes_per_s=FAIR, now=NOW + timedelta(seconds=seconds))


def test_of_a_task_of_which_nothing_is_known_nothing_is_taken() -> None:
    assert after(GREEDY, None, 60) == GREEDY
    assert after(GREEDY, use(-1.0), 60) == GREEDY
    assert after(GREEDY, use(5.0, rate=0), 60) == GREEDY


def test_who_waits_or_uses_what_he_has_wants_more() -> None:
    modest = Demand(modest_since=NOW, wants_bytes_per_s=300.0)
    assert after(modest, use(200, held=0.1), 60) == GREEDY
    assert after(modest, use(280, rate=300), 60) == GREEDY


def test_it_takes_a_while_until_a_task_is_taken_for_slow() -> None:
    first = after(GREEDY, use(200))
    assert first == Demand(modest_since=NOW)
    assert after(first, use(200), 9.9) == first
    assert after(first, use(200), 10).wants_bytes_per_s == 250.0
    assert after(first, use(0), 10).wants_bytes_per_s == FAIR / 8


def test_small_changes_change_nothing() -> None:
    modest = Demand(modest_since=NOW, wants_bytes_per_s=250.0)
    for passed in (165, 200, 235):
        assert after(modest, use(passed), 60) == modest
    assert after(modest, use(300), 60).wants_bytes_per_s == 375.0
    assert after(modest, use(150), 60).wants_bytes_per_s == 187.5


def test_it_settles() -> None:
    """A source of 200 a second, whatever rate the task is told: no going to and fro."""
    demand, rate, wanted = GREEDY, 1000.0, []
    for second in range(0, 120, 2):
        demand = after(demand, use(min(200.0, rate), rate=int(rate)), second)
        rate = demand.wants_bytes_per_s or FAIR
        wanted.append(demand.wants_bytes_per_s)
    assert wanted == [None] * 5 + [250.0] * 55
