"""What this process measures of itself, for `/api/v1/metrics`: it begins at zero with every start.

What has to survive a restart is counted in SQL (`services.counters`), what is there now is read from it
(`services.figures`).
"""

from __future__ import annotations

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

PROCESS: Final = CollectorRegistry()

TASK_WAIT: Final = Histogram(
    "vmhaul_task_wait_seconds",
    "Time from when a task could have been handed out to when it was.",
    buckets=(0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800, 7200, 28800),
    registry=PROCESS,
)
DISPATCH: Final = Histogram(
    "vmhaul_dispatch_seconds",
    "Time from the commit of a task's placement to its message at the broker.",
    buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
    registry=PROCESS,
)
LOOP_FAILURES: Final = Counter(
    "vmhaul_loop_failures",
    "Failed steps of a loop of the scheduler.",
    ["loop"],
    registry=PROCESS,
)
LOOP_SUCCESS: Final = Gauge(
    "vmhaul_loop_last_success_timestamp_seconds",
    "When a loop of the scheduler last did its work (Unix time).",
    ["loop"],
    registry=PROCESS,
)
LEADS: Final = Gauge(
    "vmhaul_scheduler_leads",
    "1 while this server is the one that leads.",
    registry=PROCESS,
)
PROXY_MESSAGES_REFUSED: Final = Counter(
    "vmhaul_proxy_messages_refused",
    "Messages in proxies' streams that were not believed.",
    registry=PROCESS,
)
