"""The claim index against a real broker: fairness, limits, constraints, idempotence."""

from __future__ import annotations

import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from backup_server.scheduler.claims import Claim, ClaimIndex, PendingTask, RunningClaim
from tests.integration.queue.rig import Broker


class Clock:
    def __init__(self) -> None:
        self.ms = 1_800_000_000_000

    def __call__(self) -> int:
        return self.ms


@pytest.fixture(scope="module")
def broker() -> Iterator[Broker]:
    directory = Path(tempfile.mkdtemp(prefix="vmhaul-q"))
    made = Broker(directory)
    yield made
    made.kill()
    shutil.rmtree(directory)


@pytest.fixture
def client(broker: Broker) -> Iterator[redis.Redis]:
    with broker.client() as made:
        made.flushall()
        yield made


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def index(client: redis.Redis, clock: Clock) -> ClaimIndex:
    return ClaimIndex(client, clock, spill_ms=1000, network_rank=5)


def pending(name: str, place: str = "p1", **changes: object) -> PendingTask:
    values: dict[str, object] = {
        "task_id": name,
        "place": place,
        "repository_id": "r1",
        "host": "vc/h1",
        "band": 1,
        "job": "job",
        "attempt": 1,
        **changes,
    }
    return PendingTask(**values)  # type: ignore[arg-type]


def names(index: ClaimIndex, proxy: str, want: int = 1) -> list[str]:
    return [claim.task_id for claim in index.claim(proxy, want)]


def is_clean(client: redis.Redis) -> bool:
    use = [int(value) for value in client.hvals("vmhaul:use")]
    taken = [int(client.hget(key, "used") or 0) for key in client.scan_iter("vmhaul:px:*")]
    left = list(client.scan_iter("vmhaul:[tlp]*:*"))
    left = [key for key in left if not key.startswith("vmhaul:px:")]
    return not any(use) and not any(taken) and not left


def test_tasks_come_in_order_and_no_more_than_slots(index: ClaimIndex, client: redis.Redis) -> None:
    index.set_proxy("a", on=True, slots=2, ranks={"p1": 5})
    index.enqueue([pending(f"t{n}") for n in range(4)])
    first = index.claim("a", 9)
    assert [(c.task_id, c.rank, c.attempt, c.place) for c in first] == [
        ("t0", 5, 1, "p1"),
        ("t1", 5, 1, "p1"),
    ]
    assert index.claim("a", 9) == []
    assert index.used_slots(["a", "b"]) == {"a": 2, "b": 0}
    assert index.release("t0", 1)
    assert names(index, "a", 9) == ["t2"]
    for name in ("t1", "t2"):
        assert index.release(name, 1)
    assert names(index, "a", 9) == ["t3"]
    assert index.release("t3", 1)
    assert is_clean(client)


def test_everything_may_be_done_twice(index: ClaimIndex, client: redis.Redis) -> None:
    index.set_proxy("a", on=True, slots=5, ranks={"p1": 5})
    for _ in range(2):
        index.enqueue([pending("t0")])
    assert names(index, "a", 9) == ["t0"]
    index.enqueue([pending("t0")])
    assert index.claim("a", 9) == []
    assert not index.remove("t0")
    assert not index.release("t0", 2)
    assert index.release("t0", 1)
    assert not index.release("t0", 1)
    index.enqueue([pending("t0", attempt=2)])
    assert not index.release("t0", 1)
    assert index.claim("a", 1)[0].attempt == 2
    assert not index.release("t0", 1)
    assert index.release("t0", 2)
    running = RunningClaim(task_id="t9", proxy_id="a", attempt=4, repository_id="r1", host="vc/h1")
    for _ in range(2):
        index.adopt([running])
    assert index.used_slots(["a"]) == {"a": 1}
    assert index.usage(["h:vc/h1", "r:r1"]) == {"h:vc/h1": 1, "r:r1": 1}
    assert index.release("t9", 4)
    index.enqueue([pending("t1"), pending("t2")])
    assert index.remove("t1")
    assert not index.remove("t1")
    assert names(index, "a", 9) == ["t2"]
    assert index.release("t2", 1)
    assert is_clean(client)


def test_a_late_small_job_alternates_with_an_old_big_one(index: ClaimIndex) -> None:
    index.set_proxy("a", on=True, slots=100, ranks={"p1": 5})
    index.enqueue([pending(f"big{n}", job="big") for n in range(50)])
    assert names(index, "a", 5) == [f"big{n}" for n in range(5)]
    index.enqueue([pending(f"small{n}", job="small") for n in range(4)])
    order = names(index, "a", 8)
    assert sum(name.startswith("small") for name in order[:4]) == 2
    assert sum(name.startswith("small") for name in order) == 4


def test_lower_bands_first(index: ClaimIndex) -> None:
    index.set_proxy("a", on=True, slots=9, ranks={"p1": 5, "p2": 5})
    index.enqueue([pending("backup0"), pending("backup1")])
    index.enqueue([pending("restore", place="p2", host="vc/h2", band=0)])
    assert names(index, "a", 3) == ["restore", "backup0", "backup1"]


def test_a_full_host_or_repository_blocks_nobody_else(index: ClaimIndex) -> None:
    index.set_proxy("a", on=True, slots=9, ranks={"p1": 5, "p2": 5})
    index.set_limits({"h:vc/h1": 1, "r:r1": 2, "r:r2": 0})
    index.enqueue(
        [
            pending("t0"),
            pending("t1"),
            pending("t2", place="p2", host="vc/h2"),
            pending("t3", place="p2", host="vc/h2"),
            pending("t4", place="p2", host="vc/h2", repository_id="r2"),
        ]
    )
    assert names(index, "a", 9) == ["t0", "t2", "t4"]
    assert index.claim("a", 9) == []
    index.release("t0", 1)
    assert names(index, "a", 9) == ["t1"]


def test_one_limit_over_two_places_of_a_host(index: ClaimIndex) -> None:
    index.set_proxy("a", on=True, slots=9, ranks={"p1": 5, "p2": 5})
    index.set_limits({"h:vc/h1": 2})
    index.enqueue([pending(f"x{n}") for n in range(3)])
    index.enqueue([pending(f"y{n}", place="p2", job="other") for n in range(3)])
    assert len(index.claim("a", 9)) == 2


def test_a_full_host_stands_in_the_way_of_network_modes_only(index: ClaimIndex) -> None:
    index.set_proxy("san", on=True, slots=2, ranks={"p1": 2})
    index.set_proxy("net", on=True, slots=9, ranks={"p1": 5})
    index.set_limits({"h:vc/h1": 1})
    index.enqueue([pending(f"t{n}") for n in range(5)])
    assert names(index, "san", 9) == ["t0", "t1"]
    assert index.usage(["h:vc/h1"]) == {"h:vc/h1": 0}
    assert names(index, "net", 9) == ["t2"]
    assert index.usage(["h:vc/h1"]) == {"h:vc/h1": 1}
    index.enqueue([pending("elsewhere", host="vc/h2"), pending("unknown", host="")])
    assert names(index, "net", 9) == ["elsewhere", "unknown"]
    index.release("t0", 1)
    assert names(index, "san", 9) == ["t3"]
    index.release("t2", 1)
    assert names(index, "net", 9) == ["t4"]


def test_one_budget_of_a_host_over_all_proxies(index: ClaimIndex) -> None:
    for proxy in "abc":
        index.set_proxy(proxy, on=True, slots=9, ranks={"p1": 5, "p2": 6})
    index.set_limits({"h:vc/h1": 4})
    index.enqueue([pending(f"t{n}", place=f"p{1 + n % 2}") for n in range(12)])
    assert sum(len(index.claim(proxy, 3)) for proxy in "abc") == 4


def test_only_proxies_that_reach_the_place(index: ClaimIndex) -> None:
    index.set_proxy("a", on=True, slots=9, ranks={"p1": 5})
    index.set_proxy("b", on=True, slots=9, ranks={"p1": 5, "p2": 6})
    index.enqueue([pending("t0", place="p2")])
    assert index.claim("a", 9) == []
    claim = index.claim("b", 9)[0]
    assert (claim.place, claim.rank) == ("p2", 6)
    index.enqueue([pending("t1")])
    index.set_proxy("a", on=False, slots=9, ranks={"p1": 5})
    assert index.claim("a", 9) == []
    index.set_proxy("a", on=True, slots=9, ranks={})
    assert index.claim("a", 9) == []
    assert index.claim("nobody", 9) == []


def test_a_worse_mode_waits_for_a_better_one_only_so_long(index: ClaimIndex, clock: Clock) -> None:
    index.set_proxy("san", on=True, slots=1, ranks={"p1": 2})
    index.set_proxy("nbd", on=True, slots=9, ranks={"p1": 5})
    index.enqueue([pending(f"t{n}") for n in range(3)])
    assert index.claim("nbd", 9) == []
    clock.ms += 999
    assert index.claim("nbd", 1) == []
    clock.ms += 1
    assert names(index, "nbd", 1) == ["t0"]
    index.enqueue([pending("fresh", job="other")])
    assert names(index, "san", 9) == ["fresh"]
    # the better one is full: no reason to wait
    assert names(index, "nbd", 9) == ["t1", "t2"]


def test_a_stale_head_heals_itself(index: ClaimIndex, client: redis.Redis) -> None:
    index.set_proxy("a", on=True, slots=9, ranks={"p1": 5})
    index.enqueue([pending("t0")])
    client.zrem("vmhaul:pend:p1/r1 vc/h1", "t0")
    assert index.claim("a", 9) == []
    assert client.zcard("vmhaul:heads:p1") == 0
    index.enqueue([pending("t1")])
    assert names(index, "a", 9) == ["t1"]


def test_what_audits_ask(index: ClaimIndex, clock: Clock) -> None:
    index.set_proxy("a", on=True, slots=9, ranks={"p1": 5})
    index.enqueue([pending("t0"), pending("t1", attempt=3, job="other")])
    assert index.missing(["t0", "t1", "t2"]) == {"t2"}
    index.claim("a", 9)
    assert index.claims_older_than(1000) == []
    clock.ms += 1000
    assert sorted(index.claims_older_than(1000)) == [("t0", 1), ("t1", 3)]


def test_generations(index: ClaimIndex, client: redis.Redis) -> None:
    assert index.generation() is None
    index.seal("one")
    first = index.generation()
    assert first == index.generation()
    index.set_proxy("a", on=True, slots=9, ranks={"p1": 5})
    index.enqueue([pending(f"t{n}") for n in range(3)])
    client.xadd("vmhaul:up:a", {"m": "stays"})
    index.clear()
    assert index.generation() is None
    assert list(client.scan_iter("vmhaul:*")) == ["vmhaul:up:a"]
    index.seal("two")
    assert index.generation() != first


def test_random_life_never_breaks_a_limit(index: ClaimIndex, client: redis.Redis) -> None:
    seed = random.randrange(1 << 32)
    print("seed", seed)
    rng = random.Random(seed)
    places = [f"p{n}" for n in range(5)]
    limits = {"h:h0": 2, "h:h1": 3, "r:r0": 4, "r:r1": 1}
    index.set_limits(limits)
    for proxy in "abc":
        ranks = {place: rng.choice([2, 5]) for place in places if rng.random() < 0.8}
        index.set_proxy(proxy, on=True, slots=3, ranks={**ranks, "p0": 5})
    waiting = [
        pending(
            f"t{n}",
            place=rng.choice(places),
            host=rng.choice(["", "h0", "h1", "h2"]),
            repository_id=rng.choice(["r0", "r1"]),
            band=rng.choice([0, 1]),
            job=rng.choice("xyz"),
        )
        for n in range(60)
    ]
    facts = {task.task_id: task for task in waiting}
    running: dict[str, Claim] = {}
    seen: set[str] = set()
    index.enqueue(waiting)
    for _ in range(400):
        if running and rng.random() < 0.4:
            done = rng.choice(list(running))
            assert index.release(done, 1)
            del running[done]
        else:
            proxy = rng.choice("abc")
            for claim in index.claim(proxy, rng.randint(1, 3)):
                assert claim.task_id not in seen
                seen.add(claim.task_id)
                running[claim.task_id] = claim
        counts = dict.fromkeys([*limits, "h:h2", "h:"], 0)
        for name, claim in running.items():
            counts[f"h:{facts[name].host}" if claim.rank == 5 and facts[name].host else "h:"] += 1
            counts[f"r:{facts[name].repository_id}"] += 1
        assert all(counts[key] <= most for key, most in limits.items())
        counts["h:"] = 0  # of tasks that use no host's NFC service nothing is counted
        assert index.usage(list(counts)) == counts
        assert all([claim.proxy_id for claim in running.values()].count(proxy) <= 3 for proxy in "abc")
    while running:
        for name in running:
            assert index.release(name, 1)
        running = {claim.task_id: claim for p in "abc" for claim in index.claim(p, 9)}
        seen.update(running)
    reached = {place for p in "abc" for place in client.hkeys(f"vmhaul:elig:{p}")}
    assert seen == {name for name, task in facts.items() if task.place in reached}
