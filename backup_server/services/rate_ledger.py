"""What each running task was told of its rate, and how fast it may be moving by now. Pure.

An order takes its way: between the moment at which a task is told to be slower and the moment at which it is, it moves
as fast as before. So nobody is given what another has not given up yet: a task becomes faster, or begins, with no more
than what is free when everybody moves as fast as he may have been told. Who was told to be slower counts with the old
rate until its proxy says that the new one holds; one that does not say such things (of an earlier release) after
`ASSUMED_AFTER`. One that cannot be heard counts until its lease has ended.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import count
from typing import Final

from backup_server.services.rates import LEAST_BYTES_PER_S, grow

ASSUMED_AFTER: Final = timedelta(seconds=10)
GRANTED_FOR: Final = timedelta(seconds=15)
"""A task that was given a rate and does not run after so long did not begin."""
NEAR_BYTES_PER_S: Final = 64
"""So little more is no reason for an order."""
UNLIMITED: Final = float("inf")


@dataclass(slots=True, kw_only=True)
class Entry:
    attempt: int
    rate: int | None
    """Said last; None: no limit."""
    at_most: float
    """It moves no faster than that."""
    at: datetime
    """When `rate` was said for the first time."""
    runs: bool
    """False: it was given a rate to begin with, and was not seen to run yet."""
    holds: bool | None = None
    """Whether the proxy told that it holds `rate`; None: it tells nothing."""
    told: int | None = None
    doubtful: set[int | None] = field(default_factory=set)
    """Rates that were said, or held, since the proxy told last that it holds what was said: hearing one of them does
    not tell that a later order was heard.
    """


def _as_limit(rate: int | None) -> float:
    return UNLIMITED if rate is None else float(rate)


class Ledger:
    """One thread at a time."""

    def __init__(self) -> None:
        self._entries: dict[str, Entry] = {}

    def clear(self) -> None:
        self._entries.clear()

    def __contains__(self, task: str) -> bool:
        return task in self._entries

    def __getitem__(self, task: str) -> Entry:
        return self._entries[task]

    def keep(self, running: Collection[str], now: datetime) -> None:
        """Forget what runs no more."""
        gone = [
            task
            for task, entry in self._entries.items()
            if task not in running and (entry.runs or now - entry.at > GRANTED_FOR)
        ]
        for task in gone:
            del self._entries[task]

    def granted(self) -> list[str]:
        """Tasks that were given a rate and were not seen to run yet."""
        return [task for task, entry in self._entries.items() if not entry.runs]

    def begin(self, task: str, attempt: int, rate: int | None, now: datetime) -> None:
        """It is handed out with that rate."""
        self._entries[task] = Entry(
            attempt=attempt, rate=rate, at_most=_as_limit(rate), at=now, runs=False
        )

    def follow(
        self, task: str, attempt: int, *, told: int | None, stored: int | None, now: datetime
    ) -> None:
        """It runs. `told`: the rate that its proxy says it holds, 0 for none; None: it says nothing. `stored`: what
        was to be said last, which may or may not have been.
        """
        entry = self._entries.get(task)
        if entry is None or entry.attempt != attempt:
            heard = _as_limit(stored) if told is None else _as_limit(told or None)
            entry = self._entries[task] = Entry(
                attempt=attempt,
                rate=stored,
                at_most=max(heard, _as_limit(stored)),
                at=now,
                runs=True,
            )
        entry.runs, entry.told = True, told
        entry.holds = None if told is None else (told or None) == entry.rate
        if entry.holds:
            entry.doubtful.clear()
        assumed = entry.holds is None and now - entry.at >= ASSUMED_AFTER
        if entry.holds or assumed:
            entry.at_most = _as_limit(entry.rate)

    def say(self, task: str, rate: int | None, now: datetime) -> None:
        """It is told that rate."""
        entry = self._entries[task]
        if entry.rate != rate:
            entry.doubtful |= {entry.rate, None if entry.told is None else entry.told or None}
            entry.rate, entry.at, entry.holds = rate, now, None if entry.holds is None else False
            entry.at_most = max(entry.at_most, _as_limit(rate))

    def orders(
        self,
        held_by: Mapping[str, Collection[str]],
        limits: Mapping[str, float],
        rates: Mapping[str, int | None],
        among: Iterable[str] | None = None,
    ) -> dict[str, int | None]:
        """What each task is to be told so that it comes to its rate, as far as there is room for that now. `held_by`
        and `rates` are of all tasks; `among`: only these are told.
        """
        room = {name: float(limits[name]) for names in held_by.values() for name in names}
        for task, names in held_by.items():
            for name in names:
                room[name] -= self._at_most(task)
        found: dict[str, int | None] = {}
        rising: dict[str, float] = {}
        for task in held_by if among is None else among:
            rate = rates[task]
            if rate is None or rate <= self._at_most(task):
                found[task] = self._unmistakable(task, rate)
            else:
                rising[task] = rate - self._at_most(task)
        more = grow({task: held_by[task] for task in rising}, room, rising)
        for task in rising:
            order = max(LEAST_BYTES_PER_S, int(self._at_most(task)) + more[task])
            found[task] = self._unmistakable(task, order)
        return found

    def _unmistakable(self, task: str, rate: int | None) -> int | None:
        """About that rate, so that hearing it from the proxy tells that this order was heard."""
        entry = self._entries.get(task)
        if entry is None or rate is None:
            return rate
        if entry.rate is not None and 0 <= rate - entry.rate <= NEAR_BYTES_PER_S:
            return entry.rate
        lower = (one for one in range(rate, LEAST_BYTES_PER_S - 1, -1) if one not in entry.doubtful)
        higher = (one for one in count(rate) if one not in entry.doubtful)
        return next(lower, None) or next(higher)

    def _at_most(self, task: str) -> float:
        entry = self._entries.get(task)
        return 0.0 if entry is None else entry.at_most
