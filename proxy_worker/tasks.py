"""The one Celery task of a proxy: decode, run, report. All of it is in `service`."""

from __future__ import annotations

from typing import Any, Final

from celery import Celery

from proxy_worker.contracts.envelope import Clock
from proxy_worker.contracts.messages import ProgressReport
from proxy_worker.contracts.names import DISK_TASK
from proxy_worker.service import ProxyService

EVENT_STEP_PERCENT: Final = 5
EVENT_EVERY_S: Final = 30.0
EVENT_PAUSE_S: Final = 5.0
"""At least, however fast a disk is read."""


class ProgressEvents:
    """Flower's view of one task: an event for every few percent or every half minute, no more, because
    an event costs several times what a report to the server does.
    """

    def __init__(self, task: Any, clock: Clock) -> None:
        self._task = task
        self._clock = clock
        self._sent_at_s = float("-inf")
        self._sent_percent = -EVENT_STEP_PERCENT

    def __call__(self, report: ProgressReport) -> None:
        total = report.total_bytes
        percent = min(100, 100 * report.done_bytes // total) if total else 0
        now = self._clock()
        since_s = now - self._sent_at_s
        if since_s < EVENT_PAUSE_S:
            return
        if percent - self._sent_percent < EVENT_STEP_PERCENT and since_s < EVENT_EVERY_S:
            return
        self._sent_at_s = now
        self._sent_percent = percent
        rate = report.bytes_per_s / 1e6
        # "result" is the field that Flower shows of an event it does not know
        self._task.send_event(
            "task-progress", result=f"{percent}% {rate:.0f} MB/s {report.phase}", pct=percent
        )


def register(app: Celery, service: ProxyService, clock: Clock) -> None:
    @app.task(name=DISK_TASK, bind=True, ignore_result=True, acks_late=False)  # type: ignore[untyped-decorator]
    def disk(self: Any, envelope: str) -> None:
        service.execute(envelope, ProgressEvents(self, clock))
