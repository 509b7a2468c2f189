"""How much of its rate a task makes use of: what it does not use goes to others. Pure.

A task whose disk, network or repository is slower than its part of a rule leaves bandwidth idle. Its proxy tells what
passed under the rate and how long something waited for it. A task that hardly waits and uses less than nine tenths for
ten seconds is **modest**: it wants a quarter more than it uses, and never less than an eighth of its fair part, so
that it is quick again when it could use more. As soon as it uses what it has, it wants as much as it can get. What it
wants stays as it is while what it uses changes by less than a fifth: else every report would change everybody's rate.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

MODEST_AFTER: Final = timedelta(seconds=10)
USED_SHARE: Final = 0.9
"""Who uses so much of its rate wants more."""
HELD_SHARE: Final = 0.1
"""Who waits for so much of the time wants more."""
MARGIN: Final = 1.25
FAIR_SHARE: Final = 1 / 8
STEADY: Final = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """What a proxy told of a task last."""

    rate_bytes_per_s: int
    """That it held; 0: none."""
    passed_bytes_per_s: float
    """Below 0: it is not known."""
    held_share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    modest_since: datetime | None = None
    wants_bytes_per_s: float | None = None
    """None: as much as it can get."""


GREEDY: Final = Demand()


def follow(before: Demand, use: Use | None, *, fair_bytes_per_s: float, now: datetime) -> Demand:
    """`fair_bytes_per_s`: what the task would have if everybody wanted as much as he can get."""
    if use is None or use.rate_bytes_per_s <= 0 or use.passed_bytes_per_s < 0:
        return GREEDY
    if use.held_share >= HELD_SHARE or use.passed_bytes_per_s >= USED_SHARE * use.rate_bytes_per_s:
        return GREEDY
    since = before.modest_since or now
    if now - since < MODEST_AFTER:
        return Demand(modest_since=since)
    wants = max(MARGIN * use.passed_bytes_per_s, FAIR_SHARE * fair_bytes_per_s)
    kept = before.wants_bytes_per_s
    if kept is not None and abs(wants - kept) <= STEADY * kept:
        wants = kept
    return Demand(modest_since=since, wants_bytes_per_s=wants)
