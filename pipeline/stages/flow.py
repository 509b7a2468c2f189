"""What joins stages: queues that end when the flow fails, and meters of busy time."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Final, Generic, TypeVar

Clock = Callable[[], float]
Item = TypeVar("Item")

POLL_S: Final = 0.1
"""How long a stage that waits for a buffer may take to notice a cancel, and an item that is not urgent
may lie."""
TOGETHER: Final = 16
"""Items that are not urgent and together wake who waits for them."""


class FlowStopped(Exception):  # noqa: N818 - not an error of its own: another stage failed
    """Raised inside a stage when the flow has failed elsewhere."""


class Flow:
    """The shared fate of a set of stage threads."""

    def __init__(self) -> None:
        self._failed = threading.Event()
        self._lock = threading.Lock()
        self._error: BaseException | None = None
        self._threads: list[threading.Thread] = []
        self._waiting: list[threading.Condition] = []

    def start(self, name: str, body: Callable[[], None]) -> None:
        """Run a stage in a thread of its own. What it raises is the flow's failure."""
        thread = threading.Thread(target=self._run, args=(body,), name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def fail(self, error: BaseException) -> None:
        """Stop every stage; the first error counts."""
        with self._lock:
            if self._error is None:
                self._error = error
            self._failed.set()
            waiting = list(self._waiting)
        for condition in waiting:
            with condition:
                condition.notify_all()

    def wake_on_failure(self, condition: threading.Condition) -> None:
        """Whoever waits there is woken when the flow fails."""
        with self._lock:
            self._waiting.append(condition)

    @property
    def is_failed(self) -> bool:
        return self._failed.is_set()

    def raise_if_stopped(self) -> None:
        if self._failed.is_set():
            raise FlowStopped

    def join(self, tick: Callable[[], None], tick_s: float) -> None:
        """Wait for all stages, calling `tick` on this thread; then raise the failure, if any."""
        try:
            for thread in self._threads:
                while thread.is_alive():
                    thread.join(tick_s)
                    tick()
        except BaseException as error:
            self.fail(error)  # the tick failed, or somebody interrupted this thread
            for thread in self._threads:
                thread.join()
            raise
        if self._error is not None:
            raise self._error

    def _run(self, body: Callable[[], None]) -> None:
        try:
            body()
        except FlowStopped:
            return
        except BaseException as error:  # noqa: BLE001 - handed to the thread that joins
            self.fail(error)


class Channel(Generic[Item]):
    """A bounded queue of a flow. Waiting ends with FlowStopped when the flow fails."""

    def __init__(self, flow: Flow, capacity: int, *, newest_first: bool = False) -> None:
        """`newest_first`: for a pool of buffers, where the one used last is still in the cache."""
        self._flow = flow
        self._capacity = capacity
        self._items: deque[Item] = deque()
        self._pop = self._items.pop if newest_first else self._items.popleft
        lock = threading.Lock()
        self._may_put = threading.Condition(lock)
        self._may_get = threading.Condition(lock)
        flow.wake_on_failure(self._may_put)
        flow.wake_on_failure(self._may_get)

    def put(self, item: Item, *, is_urgent: bool = True) -> None:
        """Not urgent: whoever waits is woken for some items together, or a little later. Waking a thread
        for each of many small items costs more than the items do.
        """
        with self._may_put:
            while len(self._items) >= self._capacity:
                self._flow.raise_if_stopped()
                self._may_put.wait()
            self._flow.raise_if_stopped()
            self._items.append(item)
            if is_urgent or len(self._items) >= min(TOGETHER, self._capacity):
                self._may_get.notify()

    def get(self) -> Item:
        with self._may_get:
            while not self._items:
                self._flow.raise_if_stopped()
                self._may_get.wait(POLL_S)
            self._flow.raise_if_stopped()
            return self._take()

    def get_unless(self, is_over: Callable[[], bool]) -> Item | None:
        """As get(), but None once `is_over` says so; it is asked a few times a second."""
        with self._may_get:
            while not is_over():
                self._flow.raise_if_stopped()
                if self._items:
                    return self._take()
                self._may_get.wait(POLL_S)
        return None

    def left(self) -> list[Item]:
        """What nobody took; for tidying up when the flow is over."""
        with self._may_get:
            items = list(self._items)
            self._items.clear()
            return items

    def _take(self) -> Item:
        self._may_put.notify()
        return self._pop()


class Meter:
    """Adds up the busy time of a stage, over all its threads. Work that is under way counts up to now: a
    reader that waits for its source is busy in one long piece of work.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._busy_s = 0.0
        self._running = 0
        self._began_sum_s = 0.0
        """Of what is under way, the sum of the times when each began."""

    @property
    def busy_s(self) -> float:
        with self._lock:
            return self._busy_s + self._running * self._clock() - self._began_sum_s

    def begin(self) -> float:
        """Work begins; answers what end() wants."""
        with self._lock:
            began_s = self._clock()
            self._running += 1
            self._began_sum_s += began_s
            return began_s

    def end(self, began_s: float) -> None:
        with self._lock:
            self._running -= 1
            self._began_sum_s -= began_s
            self._busy_s += self._clock() - began_s

    def timed(self) -> Timing:
        """`with meter.timed():` around work."""
        return Timing(self)


class Timing:
    __slots__ = ("_began_s", "_meter")

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._began_s = 0.0

    def __enter__(self) -> None:
        self._began_s = self._meter.begin()

    def __exit__(self, *_error: object) -> None:
        self._meter.end(self._began_s)


def share(busy_s: float, threads: int, elapsed_s: float) -> float:
    """Busy time as a share of what was possible, 0 to 1."""
    return min(1.0, max(0.0, busy_s / (threads * elapsed_s))) if elapsed_s > 0 else 0.0
