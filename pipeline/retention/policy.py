"""Which restore points a retention policy lets go, and why. Pure; nothing is deleted here.

Every restore point can be restored on its own, so any of a chain may go, in any order.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

KEPT_ONLY_GOOD: Final = "the newest good restore point always stays"
KEPT_IN_USE: Final = "in use by a running session"


@dataclass(frozen=True, slots=True, kw_only=True)
class RetentionCandidate:
    """A restore point of one VM, as much of it as a policy looks at."""

    id: str
    created_at: datetime
    """Aware."""
    is_good: bool = True
    """False: it is known that it cannot be restored. Such a point counts for nothing, but is not
    removed before its time either: a part of it may be all there is.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class KeepLast:
    """Keep the newest `count` good points."""

    count: int

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"keeping {self.count} restore points would keep none; give 1 or more")


@dataclass(frozen=True, slots=True, kw_only=True)
class KeepDays:
    """Keep points for so many days; the newest good one for ever."""

    days: int

    def __post_init__(self) -> None:
        if self.days < 1:
            raise ValueError(
                f"keeping restore points for {self.days} days would keep none; give 1 or more"
            )


RetentionRule = KeepLast | KeepDays


@dataclass(frozen=True, slots=True, kw_only=True)
class RetentionDecision:
    id: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RetentionPlan:
    """Every candidate is in one of the two, newest first."""

    keep: tuple[RetentionDecision, ...]
    remove: tuple[RetentionDecision, ...]


def plan_retention(
    points: Iterable[RetentionCandidate],
    rule: RetentionRule,
    *,
    now: datetime,
    in_use: Collection[str] = (),
) -> RetentionPlan:
    """Decide for the points of one VM. `in_use` are never removed."""
    newest_first = sorted(points, key=lambda point: (point.created_at, point.id), reverse=True)
    keep: list[RetentionDecision] = []
    remove: list[RetentionDecision] = []
    good_before = 0
    for point in newest_first:
        stays, reason = _decide(point, rule, now, good_before)
        if not stays and point.id in in_use:
            stays, reason = True, KEPT_IN_USE
        (keep if stays else remove).append(RetentionDecision(id=point.id, reason=reason))
        good_before += point.is_good
    return RetentionPlan(keep=tuple(keep), remove=tuple(remove))


def _decide(
    point: RetentionCandidate, rule: RetentionRule, now: datetime, good_before: int
) -> tuple[bool, str]:
    """Whether it stays, and why. `good_before`: good points that are newer."""
    if good_before == 0:
        return True, KEPT_ONLY_GOOD if point.is_good else "no newer good restore point"
    if isinstance(rule, KeepLast):
        if good_before < rule.count:
            return True, f"one of the last {rule.count}"
        return False, f"older than the last {rule.count}"
    if point.created_at >= now - timedelta(days=rule.days):
        return True, f"younger than {rule.days} days"
    return False, f"older than {rule.days} days"
