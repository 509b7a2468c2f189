"""A thread that does one step again and again, and survives every failure of it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import redis
from kombu.exceptions import OperationalError as BrokerError

from backup_server import instruments
from backup_server.db.fenced import NotLeadingError
from proxy_worker.contracts.events import EventName

AWAY: Final = (redis.ConnectionError, redis.TimeoutError, BrokerError, ConnectionError)
"""What a broker that is not there looks like; expected, so logged once and without a traceback."""
_FIRST_PAUSE_S: Final = 0.2
_LONGEST_PAUSE_S: Final = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopHealth:
    name: str
    alive: bool
    failures: int
    """In a row; 0 when the last step went well."""
    problem: str
    last_success_at: datetime | None


class Loop:
    """Calls `step` until stopped.

    `step` answers True when there is more to do at once; else the loop waits `interval_s` or until
    `wake` is set.
    """

    def __init__(
        self,
        name: str,
        step: Callable[[], bool],
        *,
        interval_s: float,
        clock: Callable[[], datetime],
        log: Any,
        wake: threading.Event | None = None,
    ) -> None:
        self._name = name
        self._step = step
        self._interval_s = interval_s
        self._clock = clock
        self._log = log.bind(loop=name)
        self._stop = threading.Event()
        self._wake = wake or threading.Event()
        self._failures = 0
        self._problem = ""
        self._last_success_at: datetime | None = None
        self._thread = threading.Thread(target=self._run, name=f"vmhaul-{name}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Ask for the end; `join` waits for it."""
        self._stop.set()
        self._wake.set()

    def join(self, timeout_s: float) -> bool:
        """True when the thread has ended."""
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    @property
    def health(self) -> LoopHealth:
        return LoopHealth(
            name=self._name,
            alive=self._thread.is_alive(),
            failures=self._failures,
            problem=self._problem,
            last_success_at=self._last_success_at,
        )

    def _run(self) -> None:
        while not self._stop.is_set():
            # Cleared before the step, so that what is announced during it leads to another one.
            self._wake.clear()
            if self._stop.is_set():
                return
            again = False
            try:
                again = self._step()
            except NotLeadingError as error:
                self._log.info("loop.not-leading", text=str(error))
            except AWAY as error:
                self._failed(error, away=True)
            except Exception as error:  # noqa: BLE001 - a loop of the server must not end
                self._failed(error, away=False)
            else:
                self._succeeded()
            if self._failures:
                pause_s = _FIRST_PAUSE_S * 2 ** min(self._failures - 1, 10)
                self._stop.wait(min(_LONGEST_PAUSE_S, pause_s))
            elif not again:
                self._wake.wait(self._interval_s)

    def _succeeded(self) -> None:
        if self._failures:
            self._log.info("loop.recovered", text=f"{self._name} works again")
        self._failures = 0
        self._problem = ""
        self._last_success_at = self._clock()
        instruments.LOOP_SUCCESS.labels(self._name).set(self._last_success_at.timestamp())

    def _failed(self, error: Exception, *, away: bool) -> None:
        self._failures += 1
        instruments.LOOP_FAILURES.labels(self._name).inc()
        self._problem = f"{type(error).__name__}: {error}"
        if not away:
            self._log.exception("loop.failed", text=f"{self._name} failed; it tries again")
        elif self._failures == 1:
            self._log.warning(
                EventName.BROKER_AWAY,
                text="the broker does not answer; nothing is lost, the loop tries again",
                error=self._problem,
            )
