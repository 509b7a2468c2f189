"""Sharing rates among tasks: max-min fairness. Pure.

A task is held by limits, and each limit holds for all of its tasks together. Every task gets as much as every other
until a limit is used up; what a task cannot take because another limit holds it lower goes to the rest, and so does
what a task does not want. What nobody wants is divided all the same, so that who wants more finds it. So the sum of
no limit's tasks is above it, and nobody could have more without somebody having less who has no more than he.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final

LEAST_BYTES_PER_S: Final = 1


def share(
    held_by: Mapping[str, Collection[str]],
    limits: Mapping[str, float],
    wants: Mapping[str, float] | None = None,
) -> dict[str, int | None]:
    """Task -> bytes a second that it may move; None: no limit holds it. `held_by` names each task's limits, all of
    which stand in `limits`; `wants` what a task makes use of, when that is known.
    """
    left = {name: float(limits[name]) for names in held_by.values() for name in names}
    held = {task: names for task, names in held_by.items() if names}
    found = _fill(held, left, wants or {})
    if wants:
        for task, more in _fill(held, left, {}).items():
            found[task] += more
    return {
        task: max(LEAST_BYTES_PER_S, int(found[task])) if task in found else None for task in held_by
    }


def grow(
    held_by: Mapping[str, Collection[str]], room: Mapping[str, float], wants: Mapping[str, float]
) -> dict[str, int]:
    """Task -> bytes a second that it may move beside what it has, no more than it `wants` and than there is `room`
    in each of its limits.
    """
    left = {name: float(room[name]) for names in held_by.values() for name in names}
    return {task: int(more) for task, more in _fill(held_by, left, wants).items()}


def _fill(
    held_by: Mapping[str, Collection[str]], left: dict[str, float], wants: Mapping[str, float]
) -> dict[str, float]:
    """The level rises for all at once, until a limit is used up or a task has what it wants. Takes from `left`."""
    waiting: dict[str, set[str]] = {name: set() for name in left}
    for task, names in held_by.items():
        for name in names:
            waiting[name].add(task)
    found: dict[str, float] = {}

    def settle(task: str, level: float) -> None:
        found[task] = level
        for name in held_by[task]:
            waiting[name].discard(task)
            left[name] -= level

    modest = sorted((want, task) for task, want in wants.items() if task in held_by)
    at = 0
    while tightest := min(
        ((max(0.0, left[name]) / len(tasks), name) for name, tasks in waiting.items() if tasks),
        default=None,
    ):
        level, name = tightest
        while at < len(modest) and modest[at][1] in found:
            at += 1
        if at < len(modest) and modest[at][0] <= level:
            settle(modest[at][1], modest[at][0])
            continue
        for task in sorted(waiting[name]):
            settle(task, level)
    return found
