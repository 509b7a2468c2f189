"""What the server hears about tasks: progress while it is fresh, results until they were heard."""

from __future__ import annotations

import threading
from typing import Any, Final

import redis

from proxy_worker.contracts.envelope import Clock
from proxy_worker.contracts.events import EventName
from proxy_worker.contracts.ids import Attempt, TaskId
from proxy_worker.contracts.messages import ProgressReport, ResultReport, RunningTask
from proxy_worker.link import UpLink
from proxy_worker.outbox import ResultOutbox

_AWAY: Final = (redis.RedisError, OSError)

_LONGEST_PAUSE_S: Final = 10.0
_FORGOTTEN_S: Final = 60.0
"""A task of which nothing was said for so long does not count any more."""


class Reporter:
    """Safe for threads. No method raises for a broker that is away."""

    def __init__(
        self,
        link: UpLink,
        outbox: ResultOutbox,
        clock: Clock,
        *,
        progress_s: float,
        resend_s: float,
        log: Any,
    ) -> None:
        self._link = link
        self._outbox = outbox
        self._clock = clock
        self._progress_s = progress_s
        self._resend_s = resend_s
        self._log = log
        self._lock = threading.Lock()
        self._sent_progress: dict[tuple[TaskId, Attempt], tuple[float, tuple[str, int]]] = {}
        self._sent_results: dict[tuple[TaskId, Attempt], float] = {}

    def progress(self, report: ProgressReport) -> None:
        """Send it unless one of the same task, phase and rate was sent a moment ago."""
        key = (report.task_id, report.attempt)
        now = self._clock()
        with self._lock:
            at, said = self._sent_progress.get(key, (float("-inf"), ("", 0)))
            news = (report.phase, report.rate_bytes_per_s)
            if now - at < self._pause_s(now) and said == news:
                return
            self._sent_progress[key] = (now, news)
        try:
            self._link.send(report)
        except _AWAY:
            return  # the next one says more anyway

    def _pause_s(self, now: float) -> float:
        """Between two reports of a task: the proxy sends about one in `progress_s`, however many tasks it runs. The
        server reads those of the whole fleet.
        """
        tasks = sum(now - at < _FORGOTTEN_S for at, _ in self._sent_progress.values())
        return max(self._progress_s, min(_LONGEST_PAUSE_S, self._progress_s * tasks))

    def result(self, report: ResultReport) -> None:
        """Make a result durable and send it; it is sent again until the server acknowledges it."""
        key = (report.task_id, report.attempt)
        with self._lock:
            self._sent_progress.pop(key, None)
            # Before it is in the outbox, so that a resend at the same moment does not send it twice.
            self._sent_results[key] = self._clock()
        self._outbox.add(report)
        self._send(report)

    def resend(self, *, all_of_them: bool = False) -> None:
        """Send results again that were not acknowledged in time, or all that wait."""
        now = self._clock()
        for report in self._outbox.waiting():
            with self._lock:
                at = self._sent_results.get((report.task_id, report.attempt), float("-inf"))
            if (all_of_them or now - at >= self._resend_s) and not self._send(report):
                return

    def _send(self, report: ResultReport) -> bool:
        key = (report.task_id, report.attempt)
        with self._lock:
            self._sent_results[key] = self._clock()
        try:
            self._link.send(report)
        except _AWAY as error:
            with self._lock:
                self._sent_results.pop(key, None)
            self._log.warning(
                EventName.BROKER_AWAY,
                text="a result waits in the outbox until the broker is back",
                task_id=report.task_id,
                attempt=report.attempt,
                error=str(error),
            )
            return False
        return True

    def acknowledged(self, task_id: TaskId, attempt: Attempt) -> None:
        self._outbox.acknowledge(task_id, attempt)
        with self._lock:
            self._sent_results.pop((task_id, attempt), None)

    def unacknowledged(self) -> list[RunningTask]:
        return self._outbox.attempts()
