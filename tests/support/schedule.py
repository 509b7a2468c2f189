"""Threads that run one at a time, in an order that a seed decides.

Code under test that takes its threads, locks, conditions and events from a Scheduler's `threading` runs
as real threads, but only one of them at any moment; which goes on is drawn from the seed where one waits,
ends, or comes to a point where others may come between (`pause`). So a race that a seed finds is found
again by the same seed. A time-out only comes when nothing else can run: nothing depends on the machine.
"""

from __future__ import annotations

import random
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from types import ModuleType, TracebackType
from typing import Any, Self

PREEMPT_SHARE = 0.02
"""Of the times that somebody takes a free lock, others come between so often."""
STUCK_AFTER_S = 120.0
"""A thread that does not come back for so long waits for something that is not the scheduler's."""


class StuckError(AssertionError):
    """Every thread waits for another one."""


class _Ended(BaseException):
    """Unwinds a thread when the run is over."""


class Task:
    """One thread of a run."""

    def __init__(self, scheduler: Scheduler, body: Callable[[], None], name: str, owner: Any) -> None:
        self.name = name
        self.owner = owner
        """What the code that runs belongs to: inherited by the threads it starts."""
        self.waits_for: object = None
        self.is_timed = False
        self.timed_out = False
        self.is_done = False
        self.turn = threading.Semaphore(0)
        self._scheduler = scheduler
        self._body = body
        self.thread = threading.Thread(target=self._run, name=name, daemon=True)

    def _run(self) -> None:
        self.turn.acquire()
        try:
            if not self._scheduler.is_over:
                self._body()
        except _Ended:
            pass
        except BaseException as error:  # noqa: BLE001 - raised again by run()
            self._scheduler.fail(error)
        finally:
            self.is_done = True
            self._scheduler.task_ended(self)


class Scheduler:
    """Starts with spawn(), then run() until every thread has ended."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.tasks: list[Task] = []
        self.current: Task | None = None
        self.switches = 0
        self.is_over = False
        self._error: BaseException | None = None
        self._all_ended = threading.Event()
        self.threading = Threading(self)

    # ---- for the test ----------------------------------------------------------------------------

    def spawn(self, body: Callable[[], None], name: str, owner: Any = None) -> Task:
        current = self.current
        task = Task(self, body, name, owner if owner is not None else current and current.owner)
        self.tasks.append(task)
        task.thread.start()
        return task

    def run(self) -> None:
        """Raises the first error that a spawned body let through, StuckError when all wait."""
        self._hand_over()
        switches = -1
        while not self._all_ended.wait(STUCK_AFTER_S):
            if switches == self.switches:
                self.is_over = True
                raise StuckError(f"{self.current and self.current.name} waits outside of the scheduler")
            switches = self.switches
        for task in self.tasks:
            task.thread.join()
        if self._error is not None:
            raise self._error

    @contextmanager
    def installed(self, prefix: str) -> Iterator[None]:
        """Modules of a package take their threads from here meanwhile."""
        replaced: list[tuple[ModuleType, str, Any]] = []
        stand_ins: dict[int, Any] = {
            id(threading): self.threading,
            id(ThreadPoolExecutor): InlineExecutor,
        }
        for name, module in sorted(sys.modules.items()):
            if name != prefix and not name.startswith(prefix + "."):
                continue
            for attribute, value in list(vars(module).items()):
                if id(value) in stand_ins:
                    replaced.append((module, attribute, value))
                    setattr(module, attribute, stand_ins[id(value)])
        try:
            yield
        finally:
            for module, attribute, value in replaced:
                setattr(module, attribute, value)

    # ---- for what runs ---------------------------------------------------------------------------

    def is_here(self) -> bool:
        """The caller is the thread whose turn it is."""
        return self.current is not None and self.current.thread is threading.current_thread()

    def pause(self) -> None:
        """Others may come between here."""
        if self.is_here():
            self._switch()

    def wait_for(self, what: object, *, timed: bool = False) -> bool:
        """Until wake(what); False when the time was over first."""
        task = self.current
        assert task is not None
        task.waits_for, task.is_timed, task.timed_out = what, timed, False
        self._switch()
        return not task.timed_out

    def wake(self, what: object, count: int | None = None) -> None:
        waiting = [task for task in self.tasks if task.waits_for is what]
        if count is not None and len(waiting) > count:
            waiting = self.rng.sample(waiting, count)
        for task in waiting:
            task.waits_for = None

    def fail(self, error: BaseException) -> None:
        if self._error is None:
            self._error = error
        self.is_over = True

    def task_ended(self, task: Task) -> None:
        self.wake(task)
        self.tasks.remove(task)
        self._hand_over()

    def _switch(self) -> None:
        task = self.current
        assert task is not None
        self._hand_over()
        task.turn.acquire()
        if self.is_over:
            raise _Ended

    def _hand_over(self) -> None:
        self.switches += 1
        following = self._choose()
        self.current = following
        if following is None:
            self._all_ended.set()
        else:
            following.turn.release()

    def _choose(self) -> Task | None:
        if not self.tasks:
            return None
        if self.is_over:
            return self.tasks[0]
        ready = [task for task in self.tasks if task.waits_for is None]
        if not ready:
            timed = [task for task in self.tasks if task.is_timed]
            if not timed:
                names = ", ".join(f"{task.name} for {task.waits_for}" for task in self.tasks)
                self.fail(StuckError(f"everybody waits: {names}"))
                return self.tasks[0]
            chosen = self.rng.choice(timed)
            chosen.waits_for, chosen.timed_out = None, True
            return chosen
        return ready[0] if len(ready) == 1 else self.rng.choice(ready)


class InlineExecutor(Executor):
    """Takes the place of a pool of threads: a call is carried out by who submits it."""

    def __init__(self, *_args: Any, **_kwargs: Any) -> None:
        return

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except BaseException as error:  # noqa: BLE001 - raised again by result()
            future.set_exception(error)
        return future


class Threading:
    """Takes the place of the module `threading` in the code under test."""

    local = threading.local
    get_ident = staticmethod(threading.get_ident)
    current_thread = staticmethod(threading.current_thread)

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler

    def Lock(self) -> Lock:  # noqa: N802 - the name in `threading`
        return Lock(self._scheduler, reentrant=False)

    def RLock(self) -> Lock:  # noqa: N802
        return Lock(self._scheduler, reentrant=True)

    def Condition(self, lock: Lock | None = None) -> Condition:  # noqa: N802
        return Condition(self._scheduler, lock or self.RLock())

    def Semaphore(self, value: int = 1) -> Semaphore:  # noqa: N802
        return Semaphore(self.Condition(), value)

    def Event(self) -> Event:  # noqa: N802
        return Event(self._scheduler)

    def Thread(self, **kwargs: Any) -> Thread:  # noqa: N802
        return Thread(self._scheduler, **kwargs)


class Lock:
    def __init__(self, scheduler: Scheduler, *, reentrant: bool) -> None:
        self._scheduler = scheduler
        self._reentrant = reentrant
        self._owner: object = None
        self._depth = 0

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        scheduler = self._scheduler
        me: object = scheduler.current if scheduler.is_here() else threading.current_thread()
        if self._reentrant and self._owner is me:
            self._depth += 1
            return True
        if self._owner is None and scheduler.is_here() and scheduler.rng.random() < PREEMPT_SHARE:
            scheduler.pause()
        while self._owner is not None:
            if not blocking:
                return False
            assert scheduler.is_here(), "a lock of the scheduler is held when nobody runs"
            if not scheduler.wait_for(self, timed=timeout >= 0):
                return False
        self._owner, self._depth = me, 1
        return True

    def release(self) -> None:
        self._depth -= 1
        if self._depth == 0:
            self._owner = None
            self._scheduler.wake(self)

    def locked(self) -> bool:
        return self._owner is not None

    def release_all(self) -> int:
        depth, self._depth = self._depth, 1
        self.release()
        return depth

    def acquire_again(self, depth: int) -> None:
        self.acquire()
        self._depth = depth

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


class Condition:
    def __init__(self, scheduler: Scheduler, lock: Lock) -> None:
        self._scheduler = scheduler
        self._lock = lock
        self.acquire = lock.acquire
        self.release = lock.release

    def wait(self, timeout: float | None = None) -> bool:
        depth = self._lock.release_all()
        try:
            return self._scheduler.wait_for(self, timed=timeout is not None)
        finally:
            if not self._scheduler.is_over:
                self._lock.acquire_again(depth)

    def wait_for(self, predicate: Callable[[], bool], timeout: float | None = None) -> bool:
        while not predicate():
            if not self.wait(timeout):
                return predicate()
        return True

    def notify(self, n: int = 1) -> None:
        self._scheduler.wake(self, n)

    def notify_all(self) -> None:
        self._scheduler.wake(self)

    def __enter__(self) -> Self:
        self._lock.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.release()


class Semaphore:
    def __init__(self, may_go_on: Condition, value: int) -> None:
        self._may_go_on = may_go_on
        self._value = value

    def __enter__(self) -> Self:
        with self._may_go_on:
            self._may_go_on.wait_for(lambda: self._value > 0)
            self._value -= 1
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._may_go_on:
            self._value += 1
            self._may_go_on.notify()


class Event:
    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._is_set = False

    def is_set(self) -> bool:
        return self._is_set

    def set(self) -> None:
        self._is_set = True
        self._scheduler.wake(self)

    def clear(self) -> None:
        self._is_set = False

    def wait(self, timeout: float | None = None) -> bool:
        while not self._is_set:
            if not self._scheduler.wait_for(self, timed=timeout is not None):
                break
        return self._is_set


class Thread:
    def __init__(
        self,
        scheduler: Scheduler,
        *,
        target: Callable[..., object],
        args: Iterable[Any] = (),
        kwargs: dict[str, Any] | None = None,
        name: str = "thread",
        daemon: bool = False,
    ) -> None:
        self._scheduler = scheduler
        self._body = lambda: target(*args, **(kwargs or {}))
        self.name = name
        self.daemon = daemon
        self._task: Task | None = None

    def start(self) -> None:
        owner = self._scheduler.current
        prefix = f"{owner.owner}/" if owner is not None else ""
        self._task = self._scheduler.spawn(lambda: (self._body(), None)[1], prefix + self.name)

    def is_alive(self) -> bool:
        return self._task is not None and not self._task.is_done

    def join(self, timeout: float | None = None) -> None:
        while self.is_alive():
            if not self._scheduler.wait_for(self._task, timed=timeout is not None):
                return
