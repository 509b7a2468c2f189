"""Which restore points a retention policy lets go, and why. Pure; nothing is deleted here.

Every restore point can be restored on its own, so any of a chain may go, in any order.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final

from pipeline.retention.gfs import GfsRule, marks

KEPT_ONLY_GOOD: Final = "the newest good restore point always stays"
KEPT_NO_NEWER_GOOD: Final = "no newer good restore point"
KEPT_FUTURE: Final = "dated in the future, by a clock that was or is wrong"
KEPT_IN_USE: Final = "in use by a running session"
MAX_AHEAD: Final = timedelta(days=1)
"""What clocks may differ by; a point that is later than that was made with a wrong clock."""


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
    immutable_until: datetime | None = None
    """Aware. Until then the storage refuses to remove it, whatever a rule says."""


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


@dataclass(frozen=True, slots=True, kw_only=True)
class RetentionRule:
    """What is kept: what `base` says, and on top of it the points that stand for weeks, months, years."""

    base: KeepLast | KeepDays
    gfs: GfsRule = field(default_factory=GfsRule)


@dataclass(frozen=True, slots=True, kw_only=True)
class RetentionDecision:
    id: str
    reason: str
    marks: tuple[str, ...] = ()
    """What the point stands for, as in ("weekly 2026-W48", "monthly 2026-11")."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RetentionPlan:
    """Every candidate is in one of the two, newest first."""

    keep: tuple[RetentionDecision, ...]
    remove: tuple[RetentionDecision, ...]


def plan_retention(
    points: Iterable[RetentionCandidate],
    rule: RetentionRule | KeepLast | KeepDays,
    *,
    now: datetime,
    in_use: Collection[str] = (),
) -> RetentionPlan:
    """Decide for the points of one VM.

    `in_use` are never removed; when it maps an id to a text, that is what the reason says of the user.
    Neither are points that the storage still keeps immutable, nor the newest good one. Points of the future
    stay and count for nothing: else each new one would go at once, being older than they are.
    """
    whole = rule if isinstance(rule, RetentionRule) else RetentionRule(base=rule)
    newest_first = sorted(points, key=lambda point: (point.created_at, point.id), reverse=True)
    stand_for = marks(
        [
            (point.id, point.created_at)
            for point in newest_first
            if point.is_good and not _is_future(point, now)
        ],
        whole.gfs,
    )
    keep: list[RetentionDecision] = []
    remove: list[RetentionDecision] = []
    good_before = 0
    for point in newest_first:
        meant = tuple(stand_for.get(point.id, ()))
        stays, reason = _by_rule(point, whole.base, meant, now, good_before)
        if not stays:
            held = _held(point, now, in_use)
            stays, reason = bool(held), held or reason
        decision = RetentionDecision(id=point.id, reason=reason, marks=meant)
        (keep if stays else remove).append(decision)
        good_before += point.is_good and not _is_future(point, now)
    return RetentionPlan(keep=tuple(keep), remove=tuple(remove))


def _is_future(point: RetentionCandidate, now: datetime) -> bool:
    return point.created_at > now + MAX_AHEAD


def _by_rule(
    point: RetentionCandidate,
    base: KeepLast | KeepDays,
    meant: tuple[str, ...],
    now: datetime,
    good_before: int,
) -> tuple[bool, str]:
    """Whether the rule keeps it, and why. `good_before`: good points that are newer."""
    stays, reason = _by_base(point, base, now, good_before)
    if not meant:
        return stays, reason
    return True, "; ".join([reason, *meant] if stays else meant)


def _by_base(
    point: RetentionCandidate, base: KeepLast | KeepDays, now: datetime, good_before: int
) -> tuple[bool, str]:
    if _is_future(point, now):
        return True, KEPT_FUTURE
    if good_before == 0:
        return True, KEPT_ONLY_GOOD if point.is_good else KEPT_NO_NEWER_GOOD
    if isinstance(base, KeepLast):
        if good_before < base.count:
            return True, f"one of the last {base.count}"
        return False, f"older than the last {base.count}"
    if point.created_at >= now - timedelta(days=base.days):
        return True, f"younger than {base.days} days"
    return False, f"older than {base.days} days"


def _held(point: RetentionCandidate, now: datetime, in_use: Collection[str]) -> str:
    """What keeps a point that the rule lets go; empty when nothing does."""
    if point.id in in_use:
        user = in_use[point.id] if isinstance(in_use, Mapping) else ""
        return f"in use by {user}" if user else KEPT_IN_USE
    if point.immutable_until is not None and point.immutable_until > now:
        return f"immutable until {point.immutable_until.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
    return ""
