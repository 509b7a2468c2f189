"""The claim scripts against a simple model: whatever happens, in whatever order, limits hold, nothing is lost, and the
counts are those of what is claimed.
"""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import hypothesis.strategies as st
import redis
from hypothesis import HealthCheck, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from backup_server.scheduler.claims import (
    CLOSED,
    Claim,
    ClaimIndex,
    PendingTask,
    ProxyEntry,
    RunningClaim,
)
from tests.integration.queue.rig import Broker, tell_of_proxy

PROXIES = ("a", "b", "c")
PLACES = ("p1", "p2", "p3")
HOTADD, NETWORK = 4, 5
RANKS = st.sampled_from([2, HOTADD, NETWORK])
LIMITS = ("r:r0", "r:r1", "d:vc/store one", "d:vc/two", "h:vc/h0", "h:vc/h1")


@contextmanager
def broker() -> Iterator[redis.Redis]:
    directory = Path(tempfile.mkdtemp(prefix="vmhaul-q"))
    made = Broker(directory)
    try:
        with made.client() as client:
            yield client
    finally:
        made.kill()
        shutil.rmtree(directory)


@dataclass(slots=True)
class Known:
    """A task as the database knows it."""

    entry: PendingTask
    claim: Claim | None = None
    over: bool = False


class ClaimModel(RuleBasedStateMachine):
    """SQL is played by `tasks`; the index may be lost at any moment and is filled again from there."""

    client: redis.Redis

    def __init__(self) -> None:
        super().__init__()
        self.client.flushall()
        self.ms = 1_800_000_000_000
        self.index = self._new_index()
        self.tasks: dict[str, Known] = {}
        self.queued: set[str] = set()
        self.limits: dict[str, int] = {}
        self.proxies: dict[str, ProxyEntry] = {}
        self.ranks: dict[str, dict[str, int]] = {}  # proxy -> place -> rank

    def _new_index(self) -> ClaimIndex:
        return ClaimIndex(
            self.client,
            lambda: self.ms,
            spill_ms=1000,
            network_rank=NETWORK,
            hotadd_ranks=(HOTADD, HOTADD),
        )

    @initialize(
        limits=st.fixed_dictionaries({key: st.integers(0, 3) for key in LIMITS}),
        ranks=st.lists(
            st.dictionaries(st.sampled_from(PLACES), RANKS, min_size=1), min_size=3, max_size=3
        ),
        slots=st.lists(st.integers(0, 4), min_size=3, max_size=3),
    )
    def begin(self, limits: dict[str, int], ranks: list[dict[str, int]], slots: list[int]) -> None:
        self.limits = limits
        self.index.set_limits(limits)
        for name, own, count in zip(PROXIES, ranks, slots, strict=True):
            self._set_proxy(ProxyEntry(proxy_id=name, on=True, slots=count, attachable=2), own)

    def _set_proxy(self, entry: ProxyEntry, ranks: dict[str, int]) -> None:
        self.proxies[entry.proxy_id], self.ranks[entry.proxy_id] = entry, ranks
        tell_of_proxy(self.index, entry, ranks)

    # -- what happens

    @rule(
        place=st.sampled_from(PLACES),
        repository=st.sampled_from(["r:r0", "r:r1"]),
        store=st.sampled_from(["", "d:vc/store one", "d:vc/two"]),
        host=st.sampled_from(["", "h:vc/h0", "h:vc/h1"]),
        band=st.integers(0, 2),
        job=st.sampled_from("xyz"),
        vm=st.sampled_from(["v0", "v1", "v2", "v3"]),
        count=st.integers(1, 4),
    )
    def arrive(
        self,
        place: str,
        repository: str,
        store: str,
        host: str,
        band: int,
        job: str,
        vm: str,
        count: int,
    ) -> None:
        for _ in range(count):
            name = f"t{len(self.tasks)}"
            entry = PendingTask(
                task_id=name,
                place=place,
                keys=tuple(key for key in (repository, store, host) if key),
                band=band,
                job=job,
                attempt=1,
                vm=vm,
                begun=self._begun(vm),
            )
            self.tasks[name] = Known(entry)
            self._queue(entry)

    def _begun(self, vm: str) -> bool:
        return any(
            known.entry.vm == vm and (known.claim or known.over or known.entry.attempt > 1)
            for known in self.tasks.values()
        )

    def _queue(self, entry: PendingTask) -> None:
        self.index.enqueue([entry])
        self.queued.add(entry.task_id)

    @rule(
        proxies=st.permutations(PROXIES).flatmap(
            lambda all_: st.integers(1, 3).map(lambda n: all_[:n])
        ),
        each=st.integers(1, 3),
        most=st.integers(1, 6),
    )
    def claim(self, proxies: list[str], each: int, most: int) -> None:
        claims = self.index.claim(proxies, each=each, most=most)
        assert len(claims) <= most
        assert all(count <= each for count in Counter(one.proxy_id for one in claims).values())
        for one in claims:
            known = self.tasks[one.task_id]
            assert one.proxy_id in proxies
            assert known.claim is None
            assert not known.over
            assert one.attempt == known.entry.attempt
            entry = self.proxies[one.proxy_id]
            assert entry.on
            assert self.ranks[entry.proxy_id][known.entry.place] == one.rank
            known.claim = one
            self.queued.discard(one.task_id)

    @precondition(lambda self: any(known.claim for known in self.tasks.values()))
    @rule(data=st.data(), again=st.booleans())
    def end(self, data: st.DataObject, *, again: bool) -> None:
        name = data.draw(st.sampled_from([n for n, known in self.tasks.items() if known.claim]))
        known = self.tasks[name]
        assert not self.index.release(name, known.entry.attempt + 1)
        assert self.index.release(name, known.entry.attempt)
        assert not self.index.release(name, known.entry.attempt)
        known.claim = None
        if not again:
            known.over = True
            return
        known.entry = PendingTask(
            task_id=name,
            place=known.entry.place,
            keys=known.entry.keys,
            band=known.entry.band,
            job=known.entry.job,
            attempt=known.entry.attempt + 1,
            vm=known.entry.vm,
            begun=True,
        )
        self._queue(known.entry)

    @precondition(lambda self: self.queued)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.queued)))
        assert self.index.remove(name)
        assert not self.index.remove(name)
        self.queued.discard(name)
        self.tasks[name].over = True

    @precondition(lambda self: any(known.claim for known in self.tasks.values()))
    @rule(data=st.data())
    def fail_over_to_network(self, data: st.DataObject) -> None:
        """Inside an attempt: counted, never refused."""
        name = data.draw(st.sampled_from([n for n, known in self.tasks.items() if known.claim]))
        known = self.tasks[name]
        assert known.claim is not None
        known.claim = Claim(
            task_id=name,
            place=known.claim.place,
            proxy_id=known.claim.proxy_id,
            rank=NETWORK,
            attempt=known.claim.attempt,
        )
        assert self.index.adopt([self._running(known)]) == []

    @rule(name=st.sampled_from(PROXIES), on=st.booleans(), slots=st.integers(0, 4), data=st.data())
    def change_proxy(self, name: str, *, on: bool, slots: int, data: st.DataObject) -> None:
        ranks = data.draw(st.dictionaries(st.sampled_from(PLACES), RANKS))
        self._set_proxy(ProxyEntry(proxy_id=name, on=on, slots=slots, attachable=2), ranks)

    @rule(key=st.sampled_from(LIMITS), most=st.sampled_from([CLOSED, 0, 1, 2, 5]))
    def change_limit(self, key: str, most: int) -> None:
        self.limits[key] = most
        self.index.set_limits({key: most})

    @rule(ms=st.sampled_from([1, 500, 1000, 60_000]))
    def wait(self, ms: int) -> None:
        self.ms += ms

    @rule(half_filled=st.booleans())
    def lose_the_index(self, *, half_filled: bool) -> None:
        """The broker lost its data, or the server died while it filled the index: the next one clears and fills."""
        if half_filled:
            self.client.delete("vmhaul:use", "vmhaul:vt")
        else:
            self.client.flushall()
        self.index = self._new_index()
        self.index.clear()
        running = [self._running(known) for known in self.tasks.values() if known.claim]
        assert self.index.adopt(running) == running
        assert self.index.adopt(running) == []
        self.index.set_limits(self.limits)
        for name, entry in self.proxies.items():
            tell_of_proxy(self.index, entry, self.ranks[name])
        for name in sorted(self.queued):
            entry = self.tasks[name].entry
            self.index.enqueue([entry, entry])

    def _running(self, known: Known) -> RunningClaim:
        assert known.claim is not None
        return RunningClaim(
            task_id=known.entry.task_id,
            proxy_id=known.claim.proxy_id,
            attempt=known.claim.attempt,
            rank=known.claim.rank,
            keys=known.entry.keys,
        )

    # -- what must be true

    def _counts(self) -> Counter[str]:
        counts: Counter[str] = Counter()
        for known in self.tasks.values():
            if known.claim:
                counts.update(self.index.counted(self._running(known)))
        return counts

    @invariant()
    def counts_are_those_of_what_is_claimed(self) -> None:
        assert self.index.usage() == dict(self._counts())

    @invariant()
    def everything_is_known(self) -> None:
        alive = [name for name, known in self.tasks.items() if not known.over]
        assert self.index.missing(alive) == set()

    @rule()
    def nothing_that_may_run_is_left_waiting(self) -> None:
        """After every slot was offered what is still queued has no proxy, no room or a better mode to wait for."""
        self.ms += 60_000  # nothing waits for a better mode any more
        before = self._counts()
        self.claim(list(PROXIES), 9, 1000)
        after = self._counts()
        for key, count in after.items():
            # what was claimed now went to where there was room
            most = self._most(key)
            assert count <= max(most, before[key])
        for name in self.queued:
            entry = self.tasks[name].entry
            for proxy in self.proxies.values():
                rank = self.ranks[proxy.proxy_id].get(entry.place)
                if rank is None or not proxy.on:
                    continue
                keys = self.index.counted(
                    RunningClaim(
                        task_id=name, proxy_id=proxy.proxy_id, attempt=1, rank=rank, keys=entry.keys
                    )
                )
                assert any(after[key] >= self._most(key) for key in keys), (name, proxy.proxy_id)

    def _most(self, key: str) -> float:
        kind, _, rest = key.partition(":")
        if kind == "p":
            return self.proxies[rest].slots if self.proxies[rest].on else 0
        most = self.proxies[rest].attachable if kind == "a" else self.limits.get(key, 0)
        return float("inf") if most == 0 else max(0, most)


def test_the_scripts_do_what_the_model_says() -> None:
    with broker() as client:
        ClaimModel.client = client
        run_state_machine_as_test(  # type: ignore[no-untyped-call]
            ClaimModel,
            settings=settings(
                max_examples=40,
                stateful_step_count=30,
                deadline=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
