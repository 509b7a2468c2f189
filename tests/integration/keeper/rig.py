"""A keeper in this process, with a clock that the test sets."""

from __future__ import annotations

from pathlib import Path

from pipeline.storage.immutable import is_immutable
from pipeline.storage.local import LocalStorage
from proxy_worker.keeper import DAY_S, Clock, Journal, Keeper

START = 1_700_000_000.0


class Times:
    """The wall clock, and what really passes."""

    def __init__(self) -> None:
        self.wall_s = START
        self.passed_s = 1000.0
        self.boot = "first boot"

    def pass_(self, seconds: float) -> None:
        self.wall_s += seconds
        self.passed_s += seconds

    def clock(self, journal: Journal) -> Clock:
        return Clock(journal, 7 * DAY_S, lambda: self.wall_s, lambda: self.passed_s, self.boot)


class Rig:
    """A keeper in this process, which may die and be started again."""

    def __init__(self, directory: Path, state: Path) -> None:
        self.directory = directory
        self.state = state
        self.times = Times()
        self.storage = LocalStorage(directory)
        self.start()

    def start(self) -> None:
        self.journal = Journal(self.state)
        self.clock = self.times.clock(self.journal)
        self.keeper = Keeper([str(self.directory)], self.journal, self.clock, max_days=3660)
        self.keeper.recover()

    def put(self, name: str) -> str:
        self.storage.put(name, b"content")
        return name

    def keep(self, name: str, until: float) -> float:
        return self.keeper.keep(str(self.directory), name, until)

    def is_immutable(self, name: str) -> bool:
        with (self.directory / name).open("rb") as file:
            return is_immutable(file.fileno())
