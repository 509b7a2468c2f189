from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta

import pytest

from pipeline.retention import (
    GfsRule,
    KeepDays,
    KeepLast,
    RetentionCandidate,
    RetentionPlan,
    RetentionRule,
    plan_retention,
)
from pipeline.retention.policy import KEPT_FUTURE, KEPT_IN_USE, KEPT_ONLY_GOOD

NOW = datetime(2025, 11, 23, 12, tzinfo=UTC)


def candidates(*ages_days: float, bad: frozenset[int] = frozenset()) -> list[RetentionCandidate]:
    """Points p0, p1, ... of these ages."""
    return [
        RetentionCandidate(
            id=f"p{number}", created_at=NOW - timedelta(days=age), is_good=number not in bad
        )
        for number, age in enumerate(ages_days)
    ]


def ids(plan: RetentionPlan) -> tuple[list[str], list[str]]:
    return [d.id for d in plan.keep], [d.id for d in plan.remove]


def test_keep_last() -> None:
    plan = plan_retention(candidates(4, 3, 2, 1), KeepLast(count=2), now=NOW)
    assert ids(plan) == (["p3", "p2"], ["p1", "p0"])
    assert plan.keep[1].reason == "one of the last 2"
    assert plan.remove[0].reason == "older than the last 2"


def test_keep_days() -> None:
    plan = plan_retention(candidates(10, 7.01, 7, 1), KeepDays(days=7), now=NOW)
    assert ids(plan) == (["p3", "p2"], ["p1", "p0"])
    assert plan.remove[0].reason == "older than 7 days"


def test_the_only_point_stays_however_old() -> None:
    plan = plan_retention(candidates(1000), KeepDays(days=1), now=NOW)
    assert ids(plan) == (["p0"], [])
    assert plan.keep[0].reason == KEPT_ONLY_GOOD


def test_the_newest_good_point_stays_when_newer_ones_are_bad() -> None:
    plan = plan_retention(candidates(400, 300, 2, 1, bad=frozenset({2, 3})), KeepDays(days=30), now=NOW)
    assert ids(plan) == (["p3", "p2", "p1"], ["p0"])


def test_bad_points_do_not_count_as_kept() -> None:
    plan = plan_retention(candidates(4, 3, 2, 1, bad=frozenset({2})), KeepLast(count=2), now=NOW)
    assert ids(plan) == (["p3", "p2", "p1"], ["p0"])


def test_points_in_use_stay() -> None:
    plan = plan_retention(candidates(4, 3, 2, 1), KeepLast(count=1), now=NOW, in_use={"p1"})
    assert ids(plan) == (["p3", "p1"], ["p2", "p0"])
    assert plan.keep[1].reason == KEPT_IN_USE


@pytest.mark.parametrize("rule", [KeepLast(count=3), KeepDays(days=5)])
def test_every_point_is_decided_once_and_a_good_one_is_left(rule: KeepLast | KeepDays) -> None:
    rng = random.Random(3)
    for _ in range(200):
        count = rng.randrange(1, 12)
        points = candidates(
            *(rng.uniform(0, 20) for _ in range(count)),
            bad=frozenset(n for n in range(count) if rng.random() < 0.4),
        )
        kept, removed = ids(plan_retention(points, rule, now=NOW))
        assert sorted(kept + removed) == sorted(point.id for point in points)
        good = {point.id for point in points if point.is_good}
        assert not good or good & set(kept)


def test_nothing_to_decide() -> None:
    assert ids(plan_retention([], KeepLast(count=1), now=NOW)) == ([], [])


@pytest.mark.parametrize("make", [lambda: KeepLast(count=0), lambda: KeepDays(days=0)])
def test_a_rule_that_keeps_nothing_is_refused(make: object) -> None:
    with pytest.raises(ValueError, match="keep none"):
        make()  # type: ignore[operator]


@pytest.mark.parametrize("base", [KeepLast(count=2), KeepDays(days=7)])
def test_points_of_a_clock_that_was_ahead_push_nothing_out(base: KeepLast | KeepDays) -> None:
    rule = RetentionRule(base=base, gfs=GfsRule(weekly=1, monthly=1, yearly=1))
    plan = plan_retention(candidates(30, 1.5, 0.5, -3000, -3001, -3002), rule, now=NOW)
    assert ids(plan) == (["p5", "p4", "p3", "p2", "p1"], ["p0"])
    assert [decision.reason for decision in plan.keep[:3]] == [KEPT_FUTURE] * 3
    assert plan.keep[3].reason.startswith(KEPT_ONLY_GOOD)


def test_a_clock_that_is_ahead_by_a_little_makes_no_difference() -> None:
    plan = plan_retention(candidates(2, 1, -0.01), KeepLast(count=2), now=NOW)
    assert ids(plan) == (["p2", "p1"], ["p0"])
