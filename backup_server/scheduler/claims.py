"""The claim index: which tasks wait for which proxies, in Redis, where one script can decide at once.

SQL is the truth; the index is thrown away and filled again whenever `vmhaul:epoch` is gone, the broker
was restarted, or another server took over. Every operation is idempotent. Keys in Redis:

| key | what |
|---|---|
| vmhaul:epoch | made when the index was last filled; missing: Redis lost its data |
| vmhaul:t:<task> | hash: place (key of its wish), bucket, score, att (the attempt it will have), enq, vm |
| vmhaul:pend:<place>/<bucket> | sorted set of pending tasks by score |
| vmhaul:heads:<place> | sorted set: bucket -> best score in that list |
| vmhaul:vm:<vm> | set of pending tasks of a VM of which no disk has begun |
| vmhaul:elig:<proxy> | hash: place -> rank of the best mode |
| vmhaul:reach:<place>:<rank> | set of proxies that reach the place with that rank |
| vmhaul:lim, vmhaul:use | hashes: limit key -> most, used |
| vmhaul:li:<task>, vmhaul:lease | the claim: p, att, keys; sorted set of claims by time (ms) |
| vmhaul:vt, vmhaul:vj | virtual time of each band; of the next task of each job |

A **place** is a wish: what the disks of its tasks have in common for the proxies, with the proxies and modes
that a job allows, so one place holds tasks that exactly the same proxies can take.

**Limit keys**: `p:<proxy>` task slots, `r:<repository>`, `d:<vcenter>/<datastore>`, `h:<vcenter>/<host>` the NFC
service of a host (claims in a network mode only; other modes do not use it), `a:<proxy>` disks that may be attached
to it (HotAdd only). A task counts against all of its keys at once or is not claimed. A limit of 0 is none, `CLOSED`
lets nothing new in. A **bucket** is the keys of a task that do not depend on who takes it, so that what is full
blocks no other.

Scores are band * 1e9 + virtual time, and 5e8 more while no other disk of the VM has begun. The scripts touch keys
that they compute: a Redis cluster is no place for them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any, Final, TypeVar

import redis

from backup_server.services.limits import ATTACHED, HOST, PROXY

T = TypeVar("T")
NowMs = Callable[[], int]

CLOSED: Final = -1
"""As a limit: nothing new."""

_FAMILIES: Final = (
    "t:*",
    "pend:*",
    "heads:*",
    "vm:*",
    "px:*",  # of an earlier release
    "elig:*",
    "reach:*",
    "li:*",
    "lim",
    "use",
    "lease",
    "vt",
    "vj",
    "epoch",
)
_BATCH: Final = 1000
_PLACES: Final = 100
"""Written at once: Redis answers nobody else meanwhile."""
_SEPARATOR: Final = "\t"
"""Between limit keys; no name of vSphere has one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingTask:
    task_id: str
    place: str
    keys: tuple[str, ...] = ()
    """Limit keys that do not depend on who takes it; those of hosts last."""
    band: int
    """Priority; lower is sooner."""
    job: str
    """What fairness is between: a session's id."""
    attempt: int
    """The attempt it will have when it is handed out."""
    vm: str = ""
    """What its disks have in common; empty: nothing."""
    begun: bool = False
    """Another disk of the VM was handed out already, so this one comes before VMs of which none was."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    task_id: str
    place: str
    proxy_id: str
    rank: int
    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningClaim:
    """A task that SQL knows as running."""

    task_id: str
    proxy_id: str
    attempt: int
    rank: int
    """Of the mode in use now."""
    keys: tuple[str, ...] = ()
    """As PendingTask.keys."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxyEntry:
    """What the index knows of a proxy."""

    proxy_id: str
    on: bool
    slots: int
    attachable: int = 0
    """Most disks that are attached to it at once; 0: no limit."""


class ClaimIndex:
    """All methods raise redis.RedisError when the broker is away; calling again later is safe."""

    def __init__(
        self,
        client: redis.Redis,
        now_ms: NowMs,
        *,
        spill_ms: int,
        network_rank: int,
        hotadd_ranks: tuple[int, int] = (0, 0),
    ) -> None:
        """`now_ms`: a clock that nobody sets. `spill_ms`: how long a task waits for a better mode's free slot before a worse mode takes it.
        `network_rank`: from this rank on a mode uses the NFC service of the VM's host. `hotadd_ranks`: first and
        last of the mode in which disks are attached to the proxy; 0: none.
        """
        self._redis = client
        self._now_ms = now_ms
        self._spill_ms = spill_ms
        self._network_rank = network_rank
        self._hotadd_ranks = hotadd_ranks
        self._ranks: dict[str, dict[str, int]] = {}  # what this index wrote of proxies
        self._enqueue = self._script("enqueue")
        self._claim = self._script("claim")
        self._release = self._script("release")
        self._remove = self._script("remove")
        self._adopt = self._script("adopt")

    def _script(self, name: str) -> Any:
        text = resources.files("backup_server.scheduler").joinpath("lua", f"{name}.lua").read_text()
        return self._redis.register_script(text)

    # -- the whole of it

    def generation(self) -> str | None:
        """Changes when the broker lost or may have lost something; None when nothing is there.

        A broker that was killed comes back without its last second although the epoch is there, so its
        run id is part of the answer.
        """
        epoch: Any = self._redis.get("vmhaul:epoch")
        if epoch is None:
            return None
        info: Any = self._redis.info("server")
        return f"{_text(epoch)} {info['run_id']}"

    def clear(self) -> None:
        self._ranks.clear()
        for family in _FAMILIES:
            if not family.endswith("*"):
                self._redis.delete(f"vmhaul:{family}")
                continue
            batch: list[Any] = []
            for key in self._redis.scan_iter(f"vmhaul:{family}", count=_BATCH):
                batch.append(key)
                if len(batch) >= _BATCH:
                    self._redis.delete(*batch)
                    batch.clear()
            if batch:
                self._redis.delete(*batch)

    def seal(self, epoch: str) -> None:
        """Say that the index is complete."""
        self._redis.set("vmhaul:epoch", epoch)

    # -- tasks

    def enqueue(self, tasks: Sequence[PendingTask]) -> None:
        for chunk in _chunks(tasks):
            with self._redis.pipeline(transaction=False) as pipe:
                now_ms = self._now_ms()
                for task in chunk:
                    args = (
                        task.task_id,
                        task.place,
                        _SEPARATOR.join(task.keys),
                        task.band,
                        task.job,
                        task.attempt,
                        now_ms,
                        task.vm,
                        int(task.begun),
                    )
                    self._enqueue(args=args, client=pipe)
                pipe.execute()

    def adopt(self, tasks: Sequence[RunningClaim]) -> list[RunningClaim]:
        """Count what runs, and count it anew where it runs in another mode than it was claimed for. Answers those
        that were not known.
        """
        unknown: list[RunningClaim] = []
        for chunk in _chunks(tasks):
            with self._redis.pipeline(transaction=False) as pipe:
                now_ms = self._now_ms()
                for task in chunk:
                    keys = _SEPARATOR.join(self.counted(task))
                    args = (task.task_id, task.proxy_id, task.attempt, keys, now_ms)
                    self._adopt(args=args, client=pipe)
                unknown += [task for task, new in zip(chunk, pipe.execute(), strict=True) if new]
        return unknown

    def counted(self, task: RunningClaim) -> tuple[str, ...]:
        """All limit keys that a running task counts against, in the claim script's order."""
        keys = [PROXY + task.proxy_id]
        keys += [key for key in task.keys if task.rank >= self._network_rank or not _is_host(key)]
        if self._hotadd_ranks[0] <= task.rank <= self._hotadd_ranks[1]:
            keys.append(ATTACHED + task.proxy_id)
        return tuple(keys)

    def claim(self, proxy_ids: Sequence[str], *, each: int = 1, most: int = 1000) -> list[Claim]:
        """Tasks for free slots, least busy proxy first, one for each in turn: no more than `each` for a proxy, and
        `most` in all. A claim is provisional until SQL has it; else it must be released.
        """
        if not proxy_ids:
            return []
        flat: list[Any] = self._claim(
            args=(
                self._now_ms(),
                self._spill_ms,
                self._network_rank,
                *self._hotadd_ranks,
                each,
                most,
                *proxy_ids,
            )
        )
        return [
            Claim(
                task_id=_text(flat[i]),
                place=_text(flat[i + 1]),
                proxy_id=_text(flat[i + 2]),
                rank=int(flat[i + 3]),
                attempt=int(flat[i + 4]),
            )
            for i in range(0, len(flat), 5)
        ]

    def release(self, task_id: str, attempt: int) -> bool:
        """End the claim of that attempt; False when there is none."""
        return bool(self._release(args=(task_id, attempt)))

    def release_all(self, claims: Iterable[tuple[str, int]]) -> None:
        """As `release`, in few round trips: pairs of task and attempt."""
        for chunk in _chunks(list(claims)):
            with self._redis.pipeline(transaction=False) as pipe:
                for claim in chunk:
                    self._release(args=claim, client=pipe)
                pipe.execute()

    def remove(self, task_id: str) -> bool:
        """Forget a task that is not claimed; False when it is claimed or unknown."""
        return bool(self._remove(args=(task_id,)))

    def remove_all(self, task_ids: Iterable[str]) -> None:
        """As `remove`, in few round trips."""
        for chunk in _chunks(list(task_ids)):
            with self._redis.pipeline(transaction=False) as pipe:
                for task_id in chunk:
                    self._remove(args=(task_id,), client=pipe)
                pipe.execute()

    def missing(self, task_ids: Iterable[str]) -> set[str]:
        """Those of the tasks that the index does not know at all."""
        gone: set[str] = set()
        for chunk in _chunks(list(task_ids)):
            keys = [f"vmhaul:t:{task_id}" for task_id in chunk]
            found: Any = self._redis.exists(*keys)
            if int(found) == len(keys):
                continue
            with self._redis.pipeline(transaction=False) as pipe:
                for key in keys:
                    pipe.exists(key)
                known = pipe.execute()
            gone.update(task_id for task_id, there in zip(chunk, known, strict=True) if not there)
        return gone

    def claims_older_than(self, age_ms: int) -> list[tuple[str, int]]:
        """Task and attempt of every claim made at least `age_ms` ago."""
        ids: Any = self._redis.zrangebyscore("vmhaul:lease", "-inf", self._now_ms() - age_ms)
        answer: list[tuple[str, int]] = []
        for chunk in _chunks([_text(task_id) for task_id in ids]):
            with self._redis.pipeline(transaction=False) as pipe:
                for task_id in chunk:
                    pipe.hget(f"vmhaul:li:{task_id}", "att")
                attempts = pipe.execute()
            answer += [
                (task_id, int(attempt))
                for task_id, attempt in zip(chunk, attempts, strict=True)
                if attempt is not None
            ]
        return answer

    # -- proxies and limits

    def set_proxies(self, proxies: Sequence[ProxyEntry]) -> None:
        """State and slots; what they reach and have in use stays."""
        with self._redis.pipeline(transaction=True) as pipe:
            for entry in proxies:
                _write_limits(pipe, entry)
            pipe.execute()

    def remove_proxies(self, proxy_ids: Iterable[str]) -> None:
        """They take nothing more; what they have in use stays counted."""
        known = self._take_known(proxy_ids)
        with self._redis.pipeline(transaction=True) as pipe:
            for proxy_id, ranks in known.items():
                pipe.hdel("vmhaul:lim", PROXY + proxy_id, ATTACHED + proxy_id)
                for place, rank in ranks.items():
                    pipe.srem(f"vmhaul:reach:{place}:{rank}", proxy_id)
                pipe.delete(f"vmhaul:elig:{proxy_id}")
            pipe.execute()

    def set_places(self, places: Mapping[str, Mapping[str, int]], proxy_ids: Iterable[str]) -> None:
        """Place -> proxy -> rank of its best mode there: all of a place; other places stay. `proxy_ids`: the fleet."""
        wanted = dict.fromkeys(proxy_ids)
        for chunk in _chunks(list(places), _PLACES):
            known = self._take_known(wanted)
            with self._redis.pipeline(transaction=True) as pipe:
                for proxy_id, before in known.items():
                    _write_part(pipe, proxy_id, {place: places[place] for place in chunk}, before)
                for place in chunk:
                    _join(pipe, place, places[place], known)
                pipe.execute()
            for proxy_id, before in known.items():
                for place in chunk:
                    rank = places[place].get(proxy_id)
                    if rank is None:
                        before.pop(place, None)
                    else:
                        before[place] = rank
            self._ranks.update(known)

    def _take_known(self, proxy_ids: Iterable[str]) -> dict[str, dict[str, int]]:
        """What Redis knows of their ranks. Forgotten here, until it is known that a change was written."""
        known: dict[str, dict[str, int]] = {}
        for proxy_id in proxy_ids:
            if proxy_id not in self._ranks:
                before: Any = self._redis.hgetall(f"vmhaul:elig:{proxy_id}")
                self._ranks[proxy_id] = {_text(place): int(rank) for place, rank in before.items()}
            known[proxy_id] = self._ranks.pop(proxy_id)
        return known

    def set_limits(self, limits: Mapping[str, int]) -> None:
        """Limit key -> most tasks at once; 0: no limit; CLOSED: nothing new. Others stay."""
        if limits:
            self._redis.hset("vmhaul:lim", mapping=_mapping(limits))

    def usage(self) -> dict[str, int]:
        """Tasks in use by limit key; keys without any are left out."""
        found: Any = self._redis.hgetall("vmhaul:use")
        return {_text(key): int(value) for key, value in found.items()}


def _write_limits(pipe: Any, entry: ProxyEntry) -> None:
    limits = {
        PROXY + entry.proxy_id: entry.slots if entry.on and entry.slots > 0 else CLOSED,
        ATTACHED + entry.proxy_id: entry.attachable,
    }
    pipe.hset("vmhaul:lim", mapping=limits)


def _write_part(
    pipe: Any, proxy_id: str, places: Mapping[str, Mapping[str, int]], known: Mapping[str, int]
) -> None:
    """What a proxy may take of some places."""
    gone = [place for place, ranks in places.items() if place in known and proxy_id not in ranks]
    new = {
        place: ranks[proxy_id]
        for place, ranks in places.items()
        if proxy_id in ranks and known.get(place) != ranks[proxy_id]
    }
    if gone:
        pipe.hdel(f"vmhaul:elig:{proxy_id}", *gone)
    if new:
        pipe.hset(f"vmhaul:elig:{proxy_id}", mapping=new)


def _join(
    pipe: Any, place: str, ranks: Mapping[str, int], known: Mapping[str, Mapping[str, int]]
) -> None:
    """Which proxies reach a place with which rank."""
    left: dict[int, list[str]] = {}
    come: dict[int, list[str]] = {}
    for proxy_id, before in known.items():
        was, now = before.get(place), ranks.get(proxy_id)
        if was != now:
            if was is not None:
                left.setdefault(was, []).append(proxy_id)
            if now is not None:
                come.setdefault(now, []).append(proxy_id)
    for rank, proxy_ids in left.items():
        pipe.srem(f"vmhaul:reach:{place}:{rank}", *proxy_ids)
    for rank, proxy_ids in come.items():
        pipe.sadd(f"vmhaul:reach:{place}:{rank}", *proxy_ids)


def _is_host(key: str) -> bool:
    return key.startswith(HOST)


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _mapping(numbers: Mapping[str, int]) -> Mapping[Any, Any]:
    return dict(numbers)


def _chunks(items: Sequence[T], size: int = _BATCH) -> Iterable[Sequence[T]]:
    return (items[i : i + size] for i in range(0, len(items), size))
