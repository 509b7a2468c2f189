"""The data mover's figures as reports: with a rate over the last seconds."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from pipeline.progress import MoverProgress
from proxy_worker.contracts.messages import ProgressReport, TaskRequest
from proxy_worker.throttle import Throttle
from transports.base import TransportMode

RATE_OVER_S: Final = 5.0
EVERY_S: Final = 0.5
HELD: Final = "rate limit"
"""In place of a bottleneck's name: the task is held to a rate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Point:
    at_s: float
    done_bytes: int
    passed_bytes: int
    waited_s: float


class ProgressMeter:
    """Called by the data mover; passes a report on at most every half second."""

    def __init__(
        self,
        request: TaskRequest,
        phase: str,
        send: Callable[[ProgressReport], None],
        mode: Callable[[], TransportMode | None] = lambda: None,
        throttle: Throttle | None = None,
    ) -> None:
        """`mode`: the transport mode in use when it is asked. `throttle`: what holds the task to a rate."""
        self._throttle = throttle or Throttle()
        self._waited_before_s = 0.0
        self._mode = mode
        self._request = request
        self._phase = phase
        self._send = send
        self._points: deque[_Point] = deque()
        self._sent_at_s = float("-inf")

    def __call__(self, progress: MoverProgress) -> None:
        finished = progress.done_bytes >= progress.total_bytes
        if progress.elapsed_s - self._sent_at_s < EVERY_S and not finished:
            return
        held = self._is_held(progress.elapsed_s - self._sent_at_s)
        self._sent_at_s = progress.elapsed_s
        began, now, span_s = self._span(progress)
        passed = now.passed_bytes - began.passed_bytes
        is_limited = self._throttle.limit is not None and span_s > 0
        self._send(
            ProgressReport(
                task_id=self._request.task_id,
                attempt=self._request.attempt,
                phase="finishing" if finished else self._phase,
                total_bytes=progress.total_bytes,
                done_bytes=progress.done_bytes,
                read_bytes=progress.read_bytes,
                stored_bytes=progress.stored_bytes,
                bytes_per_s=(now.done_bytes - began.done_bytes) / span_s if span_s > 0 else 0.0,
                bottleneck=HELD if held else progress.stages.bottleneck.value,
                mode=self._mode(),
                passed_bytes_per_s=passed / span_s if is_limited else -1.0,
                held_share=(now.waited_s - began.waited_s) / span_s if is_limited else 0.0,
            )
        )

    def _is_held(self, span_s: float) -> bool:
        """Whether for most of the time since the last report nothing moved because nothing may."""
        waited_s = self._throttle.waited_s
        waited_now_s, self._waited_before_s = waited_s - self._waited_before_s, waited_s
        return waited_now_s > span_s / 2

    def _span(self, progress: MoverProgress) -> tuple[_Point, _Point, float]:
        """The last few seconds: where they began, where they end, and how many there are. The first call has nothing
        to compare with; what an earlier attempt did must not count.
        """
        now = _Point(
            at_s=progress.elapsed_s,
            done_bytes=progress.done_bytes,
            passed_bytes=self._throttle.passed_bytes,
            waited_s=self._throttle.waited_s,
        )
        points = self._points
        points.append(now)
        while len(points) > 2 and points[0].at_s < progress.elapsed_s - RATE_OVER_S:  # noqa: PLR2004 - two make a rate
            points.popleft()
        return points[0], now, now.at_s - points[0].at_s


def phase_report(request: TaskRequest, phase: str) -> ProgressReport:
    """A report that only says what is being done."""
    return ProgressReport(
        task_id=request.task_id,
        attempt=request.attempt,
        phase=phase,
        total_bytes=0,
        done_bytes=0,
        read_bytes=0,
        stored_bytes=0,
        bytes_per_s=0.0,
        bottleneck="",
    )
