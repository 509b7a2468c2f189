"""The claim index: which tasks wait for which proxies, in Redis, where one script can decide at once.

SQL is the truth; the index is thrown away and filled again whenever `vmhaul:epoch` is gone, the broker
was restarted, or another server took over. Every operation is idempotent. Keys:

| key | what |
|---|---|
| vmhaul:epoch | made when the index was last filled; missing: Redis lost its data |
| vmhaul:t:<task> | hash: place (key of its wish), bucket, score, att (the attempt it will have), enq |
| vmhaul:pend:<place>/<bucket> | sorted set of pending tasks by score |
| vmhaul:heads:<place> | sorted set: bucket -> best score in that list |
| vmhaul:px:<proxy> | hash: st (on: takes tasks, off), max, used |
| vmhaul:elig:<proxy> | hash: place -> rank of the best mode |
| vmhaul:reach:<place>:<rank> | set of proxies that reach the place with that rank |
| vmhaul:lim, vmhaul:use | hashes: r:<repository>, h:<host> -> most, used |
| vmhaul:li:<task>, vmhaul:lease | the claim: p, att, repo, host; sorted set of claims by time (ms) |
| vmhaul:vt, vmhaul:vj | virtual time of each band; of the next task of each job |

A **place** is a wish: what the disks of its tasks have in common for the proxies, with the proxies and modes
that a job allows, so one place holds tasks that exactly the same proxies can take. A **bucket** is a
repository and the ESXi host of the VM ("<repository> <vcenter>/<host>"): a full repository or host never
blocks another. The host counts for claims in a network mode only; other modes do not use its NFC service.
Scores are band * 1e9 + virtual time. The scripts touch keys that they compute: a Redis cluster is no place
for them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any, Final, TypeVar

import redis

T = TypeVar("T")
NowMs = Callable[[], int]

_FAMILIES: Final = (
    "t:*",
    "pend:*",
    "heads:*",
    "px:*",
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


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingTask:
    task_id: str
    place: str
    repository_id: str
    host: str = ""
    """"<vcenter id>/<host moref>": whose NFC service a network mode uses; empty: none is known."""
    band: int
    """Priority; lower is sooner."""
    job: str
    """What fairness is between: a session's id."""
    attempt: int
    """The attempt it will have when it is handed out."""


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
    repository_id: str
    host: str = ""
    """As PendingTask.host; empty as well for one that runs in no network mode."""


class ClaimIndex:
    """All methods raise redis.RedisError when the broker is away; calling again later is safe."""

    def __init__(self, client: redis.Redis, now_ms: NowMs, *, spill_ms: int, network_rank: int) -> None:
        """`spill_ms`: how long a task waits for a better mode's free slot before a worse mode takes it.
        `network_rank`: from this rank on a mode uses the NFC service of the VM's host.
        """
        self._redis = client
        self._now_ms = now_ms
        self._spill_ms = spill_ms
        self._network_rank = network_rank
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
                for task in chunk:
                    args = (
                        task.task_id,
                        task.place,
                        task.repository_id,
                        task.host,
                        task.band,
                        task.job,
                        task.attempt,
                        self._now_ms(),
                    )
                    self._enqueue(args=args, client=pipe)
                pipe.execute()

    def adopt(self, tasks: Sequence[RunningClaim]) -> None:
        for chunk in _chunks(tasks):
            with self._redis.pipeline(transaction=False) as pipe:
                for task in chunk:
                    args = (
                        task.task_id,
                        task.proxy_id,
                        task.attempt,
                        task.repository_id,
                        task.host,
                        self._now_ms(),
                    )
                    self._adopt(args=args, client=pipe)
                pipe.execute()

    def claim(self, proxy_id: str, want: int) -> list[Claim]:
        flat: list[Any] = self._claim(
            args=(proxy_id, want, self._now_ms(), self._spill_ms, self._network_rank)
        )
        return [
            Claim(
                task_id=_text(flat[i]),
                place=_text(flat[i + 1]),
                proxy_id=proxy_id,
                rank=int(flat[i + 2]),
                attempt=int(flat[i + 3]),
            )
            for i in range(0, len(flat), 4)
        ]

    def release(self, task_id: str, attempt: int) -> bool:
        """End the claim of that attempt; False when there is none."""
        return bool(self._release(args=(task_id, attempt)))

    def remove(self, task_id: str) -> bool:
        """Forget a task that is not claimed; False when it is claimed or unknown."""
        return bool(self._remove(args=(task_id,)))

    def missing(self, task_ids: Iterable[str]) -> set[str]:
        """Those of the tasks that the index does not know at all."""
        gone: set[str] = set()
        for chunk in _chunks(list(task_ids)):
            with self._redis.pipeline(transaction=False) as pipe:
                for task_id in chunk:
                    pipe.exists(f"vmhaul:t:{task_id}")
                found = pipe.execute()
            gone.update(task_id for task_id, there in zip(chunk, found, strict=True) if not there)
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

    def set_proxy(self, proxy_id: str, *, on: bool, slots: int, ranks: Mapping[str, int]) -> None:
        """State, slots and eligibility of one proxy; what it has in use stays."""
        before: Any = self._redis.hgetall(f"vmhaul:elig:{proxy_id}")
        with self._redis.pipeline(transaction=True) as pipe:
            for place, rank in before.items():
                pipe.srem(f"vmhaul:reach:{_text(place)}:{int(rank)}", proxy_id)
            pipe.hset(
                f"vmhaul:px:{proxy_id}",
                mapping={"st": "on" if on else "off", "max": slots},
            )
            pipe.delete(f"vmhaul:elig:{proxy_id}")
            if ranks:
                pipe.hset(f"vmhaul:elig:{proxy_id}", mapping=_mapping(ranks))
            for place, rank in ranks.items():
                pipe.sadd(f"vmhaul:reach:{place}:{rank}", proxy_id)
            pipe.execute()

    def used_slots(self, proxy_ids: Sequence[str]) -> dict[str, int]:
        with self._redis.pipeline(transaction=False) as pipe:
            for proxy_id in proxy_ids:
                pipe.hget(f"vmhaul:px:{proxy_id}", "used")
            counts = pipe.execute()
        return {p: int(used or 0) for p, used in zip(proxy_ids, counts, strict=True)}

    def set_limits(self, limits: Mapping[str, int]) -> None:
        """`limits`: "h:<host>" or "r:<repository>" -> most tasks at once; 0: no limit."""
        if limits:
            self._redis.hset("vmhaul:lim", mapping=_mapping(limits))

    def usage(self, keys: Sequence[str]) -> dict[str, int]:
        """Tasks in use for keys as in set_limits."""
        if not keys:
            return {}
        values: Any = self._redis.hmget("vmhaul:use", list(keys))
        return {key: int(value or 0) for key, value in zip(keys, values, strict=True)}


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _mapping(numbers: Mapping[str, int]) -> Mapping[Any, Any]:
    return dict(numbers)


def _chunks(items: Sequence[T]) -> Iterable[Sequence[T]]:
    return (items[i : i + _BATCH] for i in range(0, len(items), _BATCH))
