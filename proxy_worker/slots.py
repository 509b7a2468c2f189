"""Which attempts run here, which ran here, and how each is told to stop."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from enum import IntEnum
from typing import Final

from proxy_worker.contracts.ids import Attempt, TaskId
from proxy_worker.contracts.messages import RateLimit, RunningTask, TaskRequest

_REMEMBERED: Final = 100_000
_EARLY: Final = 1000


class StopReason(IntEnum):
    """The strongest one counts."""

    NONE = 0
    SHUTDOWN = 1  # the worker ends: hand the task back
    CANCEL = 2  # the session was cancelled
    REFUSED = 3  # the server answers for the attempt no more: it is over, or being cancelled
    LOST = 4  # the attempt is over: nothing we say about it counts any more


class TaskHandle:
    """One attempt that runs here. `stop_requested` is what its runner waits on; it is also set, without
    a reason, when the attempt is over.
    """

    def __init__(self, request: TaskRequest) -> None:
        self.request = request
        self.stop_requested = threading.Event()
        self._reason = StopReason.NONE
        self._lock = threading.Lock()
        self._leased_until_s = float("-inf")
        self._on_lease: Callable[[float], None] | None = None
        self._rate = request.rate
        self._tell: Callable[[RateLimit | None], None] | None = None

    def set_rate(self, rate: RateLimit | None) -> None:
        """How fast it may move data from now on. What is said again is told again: a mover that did not read its
        lines for a while missed it.
        """
        with self._lock:
            self._rate = rate
            if self._tell is not None:
                self._tell(rate)

    def follow_rate(self, tell: Callable[[RateLimit | None], None] | None) -> None:
        """`tell` hears each change from now on, and at once one that came before it; None: nobody does."""
        with self._lock:
            self._tell = tell
            if tell is not None and self._rate != self.request.rate:
                tell(self._rate)

    @property
    def reason(self) -> StopReason:
        return self._reason

    def leased(self, until_s: float) -> None:
        """The lease lasts until then at least, by the clock of `clocks.uptime_s`."""
        with self._lock:
            if until_s <= self._leased_until_s:
                return
            self._leased_until_s = until_s
            if self._on_lease is not None:
                self._on_lease(until_s)

    def follow_lease(self, on_lease: Callable[[float], None] | None) -> None:
        """Call it with each new end of the lease, and at once with the present one; None: no more."""
        with self._lock:
            self._on_lease = on_lease
            if on_lease is not None and self._leased_until_s > float("-inf"):
                on_lease(self._leased_until_s)

    def stop(self, reason: StopReason) -> None:
        with self._lock:
            self._reason = max(self._reason, reason)
        self.stop_requested.set()

    def over(self) -> None:
        """Nobody needs to wait for a stop any more."""
        self.stop_requested.set()


class SeenBeforeError(Exception):
    """This attempt was begun here already."""


class NoSlotError(Exception):
    """The machine runs as much as it bears."""


class Slots:
    """Safe for threads."""

    def __init__(self, max_tasks: int) -> None:
        self._max_tasks = max_tasks
        self._lock = threading.Lock()
        self._running: dict[tuple[TaskId, Attempt], TaskHandle] = {}
        self._seen: OrderedDict[tuple[TaskId, Attempt], None] = OrderedDict()
        self._early: OrderedDict[tuple[TaskId, Attempt], RateLimit | None] = OrderedDict()
        """Rates of attempts that have not come yet: they travel another way than orders do."""
        self._closed = False

    def begin(self, request: TaskRequest) -> TaskHandle:
        """Take a slot. SeenBeforeError for an attempt that was here, NoSlotError when full or closed."""
        key = (request.task_id, request.attempt)
        with self._lock:
            if key in self._seen:
                raise SeenBeforeError
            self._seen[key] = None
            while len(self._seen) > _REMEMBERED:
                self._seen.popitem(last=False)
            if self._closed or len(self._running) >= self._max_tasks:
                raise NoSlotError
            handle = self._running[key] = TaskHandle(request)
            if key in self._early:
                handle.set_rate(self._early.pop(key))
            return handle

    def end(self, handle: TaskHandle) -> None:
        with self._lock:
            self._running.pop((handle.request.task_id, handle.request.attempt), None)

    def close(self) -> None:
        """No more tasks: the worker ends."""
        with self._lock:
            self._closed = True

    @property
    def closed(self) -> bool:
        return self._closed

    def find(self, task_id: TaskId, attempt: Attempt) -> TaskHandle | None:
        with self._lock:
            return self._running.get((task_id, attempt))

    def set_rate(self, task_id: TaskId, attempt: Attempt, rate: RateLimit | None) -> None:
        """Of an attempt that runs here, or is about to."""
        key = (task_id, attempt)
        with self._lock:
            handle = self._running.get(key)
            if handle is None and key not in self._seen:
                self._early[key] = rate
                while len(self._early) > _EARLY:
                    self._early.popitem(last=False)
        if handle is not None:
            handle.set_rate(rate)

    def handles(self) -> list[TaskHandle]:
        with self._lock:
            return list(self._running.values())

    def running(self) -> list[RunningTask]:
        with self._lock:
            return [RunningTask(task_id=task, attempt=attempt) for task, attempt in self._running]
