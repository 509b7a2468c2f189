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
        self.is_failed = False
        """Becomes true once, and is asked at every turn of every stage: a plain attribute costs no call."""
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
            self.is_failed = True
            waiting = list(self._waiting)
        for condition in waiting:
            with condition:
                condition.notify_all()

    def wake_on_failure(self, condition: threading.Condition) -> None:
        """Whoever waits there is woken when the flow fails."""
        with self._lock:
            self._waiting.append(condition)

    def raise_if_stopped(self) -> None:
        if self.is_failed:
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
    """A bounded queue of a flow. Waiting ends with FlowStopped when the flow fails.

    Each block goes through three of these. Who does not have to wait only takes the bare lock, and wakes
    nobody where nobody waits: conditions are Python code, and cost more than all the rest of a turn.
    """

    def __init__(self, flow: Flow, capacity: int, *, newest_first: bool = False) -> None:
        """`newest_first`: for a pool of buffers, where the one used last is still in the cache."""
        self._flow = flow
        self._capacity = capacity
        self._items: deque[Item] = deque()
        self._pop = self._items.pop if newest_first else self._items.popleft
        self._together = min(TOGETHER, capacity)
        self._lock = threading.Lock()
        self._may_put = threading.Condition(self._lock)
        self._may_get = threading.Condition(self._lock)
        self._putting = 0
        """How many wait to put; under the lock, as the next."""
        self._getting = 0
        flow.wake_on_failure(self._may_put)
        flow.wake_on_failure(self._may_get)

    def put(self, item: Item, *, is_urgent: bool = True) -> None:
        """Not urgent: whoever waits is woken for some items together, or a little later. Waking a thread
        for each of many small items costs more than the items do.
        """
        items = self._items
        with self._lock:
            while len(items) >= self._capacity and not self._flow.is_failed:
                self._putting += 1
                self._may_put.wait()
                self._putting -= 1
            if self._flow.is_failed:
                raise FlowStopped
            items.append(item)
            if self._getting and (is_urgent or len(items) >= self._together):
                self._may_get.notify()

    def get(self) -> Item:
        with self._lock:
            while not self._items and not self._flow.is_failed:
                self._wait_for_items()
            if self._flow.is_failed:
                raise FlowStopped
            if self._putting:
                self._may_put.notify()
            return self._pop()

    def get_unless(self, is_over: Callable[[], bool]) -> Item | None:
        """As get(), but None once `is_over` says so; it is asked a few times a second."""
        with self._lock:
            while not is_over():
                if self._flow.is_failed:
                    raise FlowStopped
                if self._items:
                    if self._putting:
                        self._may_put.notify()
                    return self._pop()
                self._wait_for_items()
        return None

    def left(self) -> list[Item]:
        """What nobody took; for tidying up when the flow is over."""
        with self._lock:
            items = list(self._items)
            self._items.clear()
            return items

    def _wait_for_items(self) -> None:
        """Until somebody puts one, or a little while. Under the lock."""
        self._getting += 1
        self._may_get.wait(POLL_S)
        self._getting -= 1


class Meter:
    """Adds up the busy time of a stage, over all its threads: `with meter:` around work. Work that is under
    way counts up to now: a reader that waits for its source is busy in one long piece of work.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._running = 0
        self._sum_s = 0.0
        """Of the times when work ended, less those when it began: work needs nothing of its own to be timed."""

    @property
    def busy_s(self) -> float:
        with self._lock:
            return self._sum_s + self._running * self._clock()

    def __enter__(self) -> None:
        with self._lock:
            self._running += 1
            self._sum_s -= self._clock()

    def __exit__(self, *_error: object) -> None:
        with self._lock:
            self._running -= 1
            self._sum_s += self._clock()


def share(busy_s: float, threads: int, elapsed_s: float) -> float:
    """Busy time as a share of what was possible, 0 to 1."""
    return min(1.0, max(0.0, busy_s / (threads * elapsed_s))) if elapsed_s > 0 else 0.0
