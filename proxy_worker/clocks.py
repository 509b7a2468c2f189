"""The clock on which a worker and its data movers agree about leases."""

from __future__ import annotations

from transports.system import uptime_s

__all__ = ["uptime_s"]
