"""Retention against what it promises, on histories that nobody chose."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from hypothesis import given
from hypothesis import strategies as st

from pipeline.retention import (
    GfsRule,
    KeepDays,
    KeepLast,
    RetentionCandidate,
    RetentionPlan,
    RetentionRule,
    plan_retention,
)

NOW = datetime(2026, 11, 23, 6, tzinfo=UTC)
YEARS = timedelta(days=1200)

bases = st.one_of(
    st.builds(KeepLast, count=st.integers(1, 12)), st.builds(KeepDays, days=st.integers(1, 60))
)
rules = st.builds(
    RetentionRule,
    base=bases,
    gfs=st.builds(
        GfsRule,
        weekly=st.integers(0, 6),
        monthly=st.integers(0, 6),
        yearly=st.integers(0, 3),
        week_start=st.integers(0, 6),
        zone=st.sampled_from([UTC, ZoneInfo("Europe/Berlin"), ZoneInfo("America/New_York")]),
    ),
)
ages = st.lists(st.timedeltas(min_value=timedelta(0), max_value=YEARS), max_size=40, unique=True)


@st.composite
def histories(draw: st.DrawFn) -> list[RetentionCandidate]:
    points = []
    for number, age in enumerate(draw(ages)):
        until = draw(st.none() | st.integers(-100, 100))
        points.append(
            RetentionCandidate(
                id=f"p{number}",
                created_at=NOW - age,
                is_good=draw(st.booleans()),
                immutable_until=None if until is None else NOW + timedelta(days=until),
            )
        )
    return points


def removed(plan: RetentionPlan) -> set[str]:
    return {decision.id for decision in plan.remove}


@given(points=histories(), rule=rules, data=st.data())
def test_what_a_plan_promises(
    points: list[RetentionCandidate], rule: RetentionRule, data: st.DataObject
) -> None:
    ids = [point.id for point in points]
    in_use = set(data.draw(st.lists(st.sampled_from(ids), unique=True))) if ids else set()
    plan = plan_retention(points, rule, now=NOW, in_use=in_use)
    kept = {decision.id for decision in plan.keep}
    assert len(plan.keep) + len(plan.remove) == len(points)
    assert kept | removed(plan) == set(ids)
    assert not in_use & removed(plan)
    held = {p.id for p in points if p.immutable_until is not None and p.immutable_until > NOW}
    assert not held & removed(plan)
    good = sorted((p for p in points if p.is_good), key=lambda p: (p.created_at, p.id))
    assert not good or good[-1].id in kept
    assert all(decision.reason for decision in (*plan.keep, *plan.remove))
    # Carried out, it leaves nothing more to do.
    left = [point for point in points if point.id in kept]
    assert not removed(plan_retention(left, rule, now=NOW, in_use=in_use))


@given(points=histories(), rule=rules, more=st.integers(0, 5))
def test_a_wider_rule_removes_nothing_that_a_narrower_one_keeps(
    points: list[RetentionCandidate], rule: RetentionRule, more: int
) -> None:
    gfs = rule.gfs
    wider = RetentionRule(
        base=KeepLast(count=rule.base.count + more)
        if isinstance(rule.base, KeepLast)
        else KeepDays(days=rule.base.days + more),
        gfs=GfsRule(
            weekly=gfs.weekly + more,
            monthly=gfs.monthly + more,
            yearly=gfs.yearly + more,
            week_start=gfs.week_start,
            zone=gfs.zone,
        ),
    )
    assert removed(plan_retention(points, wider, now=NOW)) <= removed(
        plan_retention(points, rule, now=NOW)
    )


@given(every_hours=st.integers(7, 100), count=st.integers(1, 60), rule=rules)
def test_removing_day_by_day_ends_where_looking_at_everything_ends(
    every_hours: int, count: int, rule: RetentionRule
) -> None:
    """Whatever the rule removed on the way, it would not have kept at the end."""
    everything: list[RetentionCandidate] = []
    left: list[RetentionCandidate] = []
    at = NOW
    for number in range(count):
        at = NOW + timedelta(hours=every_hours * number)
        point = RetentionCandidate(id=f"p{number:03}", created_at=at)
        everything.append(point)
        left.append(point)
        gone = removed(plan_retention(left, rule, now=at))
        left = [one for one in left if one.id not in gone]
    whole = plan_retention(everything, rule, now=at)
    assert {point.id for point in left} == {decision.id for decision in whole.keep}
