"""The clock on which a worker and its data movers agree about leases."""

from __future__ import annotations

import time


def uptime_s() -> float:
    """Seconds since the machine started, those included in which it slept; the same in every process."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
