"""What the record of a simulation says: limits at every moment, each task once, busy slots, latencies. Pure."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

_SAMPLES: Final = 400


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One task as workers and SQL recorded it. Unix time."""

    task: str
    proxy: str
    keys: tuple[str, ...]
    """Limit keys that it counted against, the proxy's slots among them."""
    group: tuple[str, tuple[str, ...]]
    """Wish and keys that do not depend on who takes it: what is alike waits alike."""
    made: float
    claimed: float
    came: float
    """The body of the Celery task began."""
    began: float
    """The mover began."""
    ended: float
    is_recorded: bool = True
    """False: it still ran when the night was looked at; when it was claimed stands for when it came."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    limits: Mapping[str, int]
    """Limit key -> most; 0: none."""
    slots: Mapping[str, int]
    """By proxy."""
    keys_for: Callable[[str, str, tuple[str, ...]], tuple[str, ...] | None]
    """Keys that a task of a group would count against on a proxy: wish, proxy and the group's keys; None: the proxy
    does not take it.
    """


def broken_limits(runs: Iterable[Run], limits: Mapping[str, int]) -> list[str]:
    """Every limit that was exceeded at some moment between claims and ends, with the highest count. A task counts from
    when it came to its proxy until it ended there: within what the index counts, so what is exceeded here was there.
    """
    moments: list[tuple[float, int, Run]] = []
    for run in runs:
        moments += [(run.came, 1, run), (run.ended, -1, run)]
    # at one moment what ends makes room first
    moments.sort(key=lambda m: (m[0], m[1]))
    counts: Counter[str] = Counter()
    worst: dict[str, int] = {}
    for _, step, run in moments:
        for key in run.keys:
            counts[key] += step
            most = limits.get(key, 0)
            if most and counts[key] > max(most, worst.get(key, 0)):
                worst[key] = counts[key]
    return [f"{key}: {count} of {limits[key]}" for key, count in sorted(worst.items())]


@dataclass(slots=True)
class Busy:
    busy: float = 0.0
    idle_with_work: float = 0.0
    idle_without: float = 0.0

    @property
    def share(self) -> float:
        """Of the slots that could be busy, those that were."""
        could = self.busy + self.idle_with_work
        return self.busy / could if could else 1.0


def busy_share(
    runs: Sequence[Run],
    fleet: Fleet,
    *,
    warm_up_s: float,
    left: Mapping[tuple[str, tuple[str, ...]], int] | None = None,
) -> Busy:
    """`left`: tasks that nobody had begun at the end, by group. Sampled: at each moment, which idle slots some waiting task could have taken within all limits. What a proxy has
    begun counts as busy, what was claimed for it and has not come yet as idle.
    """
    first, last = min(run.made for run in runs) + warm_up_s, max(run.ended for run in runs)
    answer = Busy()
    ordered = sorted(runs, key=lambda run: run.came)
    by_end = sorted(runs, key=lambda run: run.ended)
    waiting: Counter[tuple[str, tuple[str, ...]]] = Counter(run.group for run in runs)
    waiting.update(left or {})
    counts: Counter[str] = Counter()
    on: Counter[str] = Counter()
    came = ended = 0
    for number in range(_SAMPLES):
        at = first + (last - first) * number / _SAMPLES
        while came < len(ordered) and ordered[came].came <= at:
            run = ordered[came]
            counts.update(run.keys)
            on[run.proxy] += 1
            waiting[run.group] -= 1
            came += 1
        while ended < len(by_end) and by_end[ended].ended <= at:
            run = by_end[ended]
            counts.subtract(run.keys)
            on[run.proxy] -= 1
            ended += 1
        idle = sum(most - on[proxy] for proxy, most in fleet.slots.items())
        could = _could_begin(fleet, Counter(waiting), Counter(counts), on)
        answer.busy += sum(on.values())
        answer.idle_with_work += could
        answer.idle_without += max(0, idle - could)
    return answer


def _could_begin(
    fleet: Fleet,
    waiting: Counter[tuple[str, tuple[str, ...]]],
    counts: Counter[str],
    on: Mapping[str, int],
) -> int:
    """How many of the idle slots a waiting task could take now, one after the other."""
    begun = 0
    groups = [group for group, left in waiting.items() if left > 0]
    for proxy, most in fleet.slots.items():
        for _ in range(most - on[proxy]):
            for group in groups:
                if waiting[group] <= 0:
                    continue
                keys = fleet.keys_for(group[0], proxy, group[1])
                if keys is None or any(
                    fleet.limits.get(key, 0) and counts[key] >= fleet.limits[key] for key in keys
                ):
                    continue
                counts.update(keys)
                waiting[group] -= 1
                begun += 1
                break
            else:
                break
    return begun


def latencies(runs: Sequence[Run], fleet: Fleet) -> dict[str, list[float]]:
    """Seconds. "free to next": from the end of a task to the next that comes to that slot's proxy, of slots for which
    eligible work waited all the while (taken from the proxies that were full until then). "claim to body": from the
    decision to the task's body. "body to mover": what the proxy needs for secrets.
    """
    by_proxy: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        by_proxy[run.proxy].append(run)
    free: list[float] = []
    last_came = max(run.came for run in runs)
    for proxy, mine in by_proxy.items():
        moments = sorted(
            [(run.came, 1, run.is_recorded) for run in mine]
            + [(run.ended, 0, run.is_recorded) for run in mine],
        )
        used, since = 0, 0.0
        for at, is_start, recorded in moments:
            if is_start:
                if used == fleet.slots[proxy] - 1 and since and recorded:
                    free.append(at - since)
                since = 0.0
                used += 1
            else:
                # a full proxy lost one task: its slot is free from now on
                since = at if used == fleet.slots[proxy] and at < last_came else 0.0
                used -= 1
    return {
        "free to next": free,
        "claim to body": [run.came - run.claimed for run in runs if run.is_recorded],
        "body to mover": [run.began - run.came for run in runs if run.is_recorded],
    }


def percentile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


def summary(values: Sequence[float]) -> dict[str, Any]:
    return {
        "count": len(values),
        "p50_s": round(percentile(values, 0.5), 3),
        "p99_s": round(percentile(values, 0.99), 3),
        "max_s": round(max(values, default=0.0), 3),
    }
