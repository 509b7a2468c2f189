"""The data mover's figures as reports: with a rate over the last seconds."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

from pipeline.progress import MoverProgress
from proxy_worker.contracts.messages import ProgressReport, TaskRequest
from transports.base import TransportMode

RATE_OVER_S: Final = 5.0
EVERY_S: Final = 0.5
HELD: Final = "rate limit"
"""In place of a bottleneck's name: the task is held to a rate."""


class ProgressMeter:
    """Called by the data mover; passes a report on at most every half second."""

    def __init__(
        self,
        request: TaskRequest,
        phase: str,
        send: Callable[[ProgressReport], None],
        mode: Callable[[], TransportMode | None] = lambda: None,
        waited_s: Callable[[], float] = lambda: 0.0,
    ) -> None:
        """`mode`: the transport mode in use when it is asked. `waited_s`: how long the task was held to a rate so
        far.
        """
        self._waited_s = waited_s
        self._waited_before_s = 0.0
        self._mode = mode
        self._request = request
        self._phase = phase
        self._send = send
        self._points: deque[tuple[float, int]] = deque()
        self._sent_at_s = float("-inf")

    def __call__(self, progress: MoverProgress) -> None:
        finished = progress.done_bytes >= progress.total_bytes
        if progress.elapsed_s - self._sent_at_s < EVERY_S and not finished:
            return
        held = self._is_held(progress.elapsed_s - self._sent_at_s)
        self._sent_at_s = progress.elapsed_s
        self._send(
            ProgressReport(
                task_id=self._request.task_id,
                attempt=self._request.attempt,
                phase="finishing" if finished else self._phase,
                total_bytes=progress.total_bytes,
                done_bytes=progress.done_bytes,
                read_bytes=progress.read_bytes,
                stored_bytes=progress.stored_bytes,
                bytes_per_s=self._rate(progress),
                bottleneck=HELD if held else progress.stages.bottleneck.value,
                mode=self._mode(),
            )
        )

    def _is_held(self, span_s: float) -> bool:
        """Whether for most of the time since the last report nothing moved because nothing may."""
        waited_s = self._waited_s()
        waited_now_s, self._waited_before_s = waited_s - self._waited_before_s, waited_s
        return waited_now_s > span_s / 2

    def _rate(self, progress: MoverProgress) -> float:
        points = self._points
        points.append((progress.elapsed_s, progress.done_bytes))
        while len(points) > 2 and points[0][0] < progress.elapsed_s - RATE_OVER_S:  # noqa: PLR2004 - two make a rate
            points.popleft()
        began_s, began_bytes = points[0]
        # The first call has nothing to compare with; what an earlier attempt did must not count.
        span_s = progress.elapsed_s - began_s
        return (progress.done_bytes - began_bytes) / span_s if span_s > 0 else 0.0


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
