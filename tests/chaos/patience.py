"""Time as rounds wait for things: it stands still while the machine gives their processes nothing."""

from __future__ import annotations

import threading
import time
from typing import Final

_TICK_S: Final = 0.1
_MOST_S: Final = 0.3
"""A tick that took longer counts as this: others had the processors."""


class Patience:
    """A clock for limits. What a round waits for runs beside it, at the same priority: where one gets nothing, the other
    does not either, and is not late.
    """

    def __init__(self) -> None:
        self._spent_s = 0.0
        self._lock = threading.Lock()
        self._started = False

    def now_s(self) -> float:
        """Seconds since the first call in which there was something to run on."""
        with self._lock:
            if not self._started:
                self._started = True
                threading.Thread(target=self._tick, name="patience", daemon=True).start()
            return self._spent_s

    def _tick(self) -> None:
        before = time.monotonic()
        while True:
            time.sleep(_TICK_S)
            now = time.monotonic()
            with self._lock:
                self._spent_s += min(now - before, _MOST_S)
            before = now


PATIENCE: Final = Patience()
