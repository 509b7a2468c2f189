"""A clock that goes on by what is waited for: no test of it takes time."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Clock(threading.Condition):
    """Time goes on by what is waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 1000.0
        self.at: list[tuple[float, Callable[[], None]]] = []

    def __call__(self) -> float:
        return self.now_s

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        # A little longer, as real clocks do: time that is exactly enough may round to too little.
        self.now_s += timeout + 1e-9
        due = [order for order in self.at if order[0] <= self.now_s]
        for order in due:
            self.at.remove(order)
            order[1]()
        return False
