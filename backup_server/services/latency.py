"""What follows from a datastore's read latency: when it takes no new task, and how fast its tasks may read. Pure.

Above `stop_ms` a datastore is **closed**: nothing new is handed out there. It opens again at four fifths of that,
so that it does not flap around the threshold. One that stays slow without end would keep its VMs' snapshots open
without end: after ten minutes it takes one task at a time.

Above `throttle_ms` the tasks that read from it share an **allowance**: two thirds of what they move, and of that
two thirds again each time it is measured. Once the latency is below both thresholds the allowance grows by a tenth
each time, and is lifted when it has come to what they moved before.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

OPEN_AGAIN_SHARE: Final = 0.8
CUT: Final = 2 / 3
GROWTH: Final = 1.1
LEAST_PER_TASK_BYTES_PER_S: Final = 1 << 20
"""A task is never slowed below this: its VM's snapshot grows for as long as it runs."""
CLOSED_AT_MOST: Final = timedelta(minutes=10)
"""One that was closed for longer takes one task at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Thresholds:
    stop_ms: float
    throttle_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Control:
    """What holds for one datastore between two measurements."""

    closed_since: datetime | None = None
    """None: it takes tasks."""
    allowance_bytes_per_s: int | None = None
    """For all tasks together that read from it; None: not limited."""
    before_bytes_per_s: int = 0
    """What they moved when the allowance began."""

    @property
    def is_quiet(self) -> bool:
        return self == Control()

    def trickles(self, now: datetime) -> bool:
        """Closed for so long that it takes one task at a time."""
        return self.closed_since is not None and now - self.closed_since >= CLOSED_AT_MOST

    def to_json(self) -> dict[str, Any]:
        kept: dict[str, Any] = {}
        if self.closed_since is not None:
            kept["closed_since"] = self.closed_since.isoformat()
        if self.allowance_bytes_per_s is not None:
            kept["allowance_bytes_per_s"] = self.allowance_bytes_per_s
            kept["before_bytes_per_s"] = self.before_bytes_per_s
        return kept

    @classmethod
    def of(cls, kept: Mapping[str, Any]) -> Control:
        since = kept.get("closed_since")
        return cls(
            closed_since=None if since is None else datetime.fromisoformat(since),
            allowance_bytes_per_s=kept.get("allowance_bytes_per_s"),
            before_bytes_per_s=int(kept.get("before_bytes_per_s", 0)),
        )


def follow(
    before: Control,
    *,
    latency_ms: float | None,
    thresholds: Thresholds,
    moving_bytes_per_s: float,
    readers: int,
    now: datetime,
) -> Control:
    """What holds after a measurement. `latency_ms` None: it could not be measured, so nothing is limited.
    `moving_bytes_per_s` is what the `readers`, tasks that run and read from the datastore, move together now.
    """
    if latency_ms is None:
        return Control()
    allowance, first = _allowance(before, latency_ms, thresholds, moving_bytes_per_s, readers)
    return Control(
        closed_since=_closed_since(before, latency_ms, thresholds, now),
        allowance_bytes_per_s=allowance,
        before_bytes_per_s=first,
    )


def _closed_since(
    before: Control, latency_ms: float, thresholds: Thresholds, now: datetime
) -> datetime | None:
    if latency_ms > thresholds.stop_ms:
        return before.closed_since or now
    if latency_ms > thresholds.stop_ms * OPEN_AGAIN_SHARE:
        return before.closed_since
    return None


def _allowance(
    before: Control, latency_ms: float, thresholds: Thresholds, moving: float, readers: int
) -> tuple[int | None, int]:
    kept = before.allowance_bytes_per_s
    if not readers:
        return None, 0
    if latency_ms > max(thresholds.throttle_ms, thresholds.stop_ms):
        if not moving and kept is None:
            return None, 0  # they move nothing yet: it is not they who make it slow
        # What they do not use anyway is no relief for the storage.
        base = moving if kept is None else min(kept, moving or kept)
        first = int(moving) if kept is None else before.before_bytes_per_s
        return max(int(base * CUT), readers * LEAST_PER_TASK_BYTES_PER_S), first
    if kept is None:
        return None, 0
    if latency_ms > thresholds.stop_ms:
        return kept, before.before_bytes_per_s
    grown = int(kept * GROWTH)
    if grown >= before.before_bytes_per_s:
        return None, 0
    return grown, before.before_bytes_per_s
