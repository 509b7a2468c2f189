"""Sharing rates among tasks: max-min fairness. Pure.

A task is held by limits, and each limit holds for all of its tasks together. Every task gets as much as every other
until a limit is used up; what a task cannot take because another limit holds it lower goes to the rest. So the sum
of no limit's tasks is above it, and nobody could have more without somebody having less who has no more than he.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final

LEAST_BYTES_PER_S: Final = 1


def share(held_by: Mapping[str, Collection[str]], limits: Mapping[str, float]) -> dict[str, int | None]:
    """Task -> bytes a second that it may move; None: no limit holds it. `held_by` names each task's limits, all of
    which stand in `limits`.
    """
    left = {name: float(limits[name]) for names in held_by.values() for name in names}
    waiting: dict[str, set[str]] = {name: set() for name in left}
    rates: dict[str, int | None] = {}
    for task, names in held_by.items():
        rates[task] = None
        for name in names:
            waiting[name].add(task)
    while tightest := min(
        ((max(0.0, left[name]) / len(tasks), name) for name, tasks in waiting.items() if tasks),
        default=None,
    ):
        each, name = tightest
        for task in sorted(waiting[name]):
            rates[task] = max(LEAST_BYTES_PER_S, int(each))
            for other in held_by[task]:
                waiting[other].discard(task)
                left[other] -= each
    return rates
