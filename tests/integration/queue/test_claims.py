"""The claim index against a real broker: fairness, limits, constraints, idempotence."""

from __future__ import annotations

import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from backup_server.scheduler.claims import (
    CLOSED,
    Claim,
    ClaimIndex,
    PendingTask,
    ProxyEntry,
    RunningClaim,
)
from tests.integration.queue.rig import Broker, tell_of_proxy


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
    return ClaimIndex(client, clock, spill_ms=1000, network_rank=5, hotadd_ranks=(4, 4))


def keys(repository: str, host: str, datastore: str = "") -> tuple[str, ...]:
    found = [f"r:{repository}"]
    found += [f"d:{datastore}"] if datastore else []
    found += [f"h:{host}"] if host else []
    return tuple(found)


def pending(name: str, place: str = "p1", **changes: object) -> PendingTask:
    repository, host = changes.pop("repository_id", "r1"), changes.pop("host", "vc/h1")
    datastore = changes.pop("datastore", "")
    values: dict[str, object] = {
        "task_id": name,
        "place": place,
        "keys": keys(str(repository), str(host), str(datastore)),
        "band": 1,
        "job": "job",
        "attempt": 1,
        **changes,
    }
    return PendingTask(**values)  # type: ignore[arg-type]


def claim(index: ClaimIndex, proxy: str, want: int) -> list[Claim]:
    return index.claim([proxy], each=want)


def names(index: ClaimIndex, proxy: str, want: int = 1) -> list[str]:
    return [one.task_id for one in claim(index, proxy, want)]


def set_proxy(
    index: ClaimIndex,
    name: str,
    *,
    on: bool = True,
    slots: int,
    ranks: dict[str, int],
    attachable: int = 0,
) -> None:
    entry = ProxyEntry(proxy_id=name, on=on, slots=slots, attachable=attachable)
    tell_of_proxy(index, entry, ranks)


def is_clean(client: redis.Redis) -> bool:
    use = [int(value) for value in client.hvals("vmhaul:use")]
    left = list(client.scan_iter("vmhaul:[tlp]*:*")) + list(client.scan_iter("vmhaul:vm:*"))
    return not any(use) and not left


def test_tasks_come_in_order_and_no_more_than_slots(index: ClaimIndex, client: redis.Redis) -> None:
    set_proxy(index, "a", on=True, slots=2, ranks={"p1": 5})
    index.enqueue([pending(f"t{n}") for n in range(4)])
    first = claim(index, "a", 9)
    assert [(c.task_id, c.rank, c.attempt, c.place) for c in first] == [
        ("t0", 5, 1, "p1"),
        ("t1", 5, 1, "p1"),
    ]
    assert claim(index, "a", 9) == []
    assert index.usage() == {"p:a": 2, "r:r1": 2, "h:vc/h1": 2}
    assert index.release("t0", 1)
    assert names(index, "a", 9) == ["t2"]
    for name in ("t1", "t2"):
        assert index.release(name, 1)
    assert names(index, "a", 9) == ["t3"]
    assert index.release("t3", 1)
    assert is_clean(client)


def test_everything_may_be_done_twice(index: ClaimIndex, client: redis.Redis) -> None:
    set_proxy(index, "a", on=True, slots=5, ranks={"p1": 5})
    for _ in range(2):
        index.enqueue([pending("t0")])
    assert names(index, "a", 9) == ["t0"]
    index.enqueue([pending("t0")])
    assert claim(index, "a", 9) == []
    assert not index.remove("t0")
    assert not index.release("t0", 2)
    assert index.release("t0", 1)
    assert not index.release("t0", 1)
    index.enqueue([pending("t0", attempt=2)])
    assert not index.release("t0", 1)
    assert claim(index, "a", 1)[0].attempt == 2
    assert not index.release("t0", 1)
    assert index.release("t0", 2)
    running = RunningClaim(task_id="t9", proxy_id="a", attempt=4, rank=5, keys=keys("r1", "vc/h1"))
    for _ in range(2):
        index.adopt([running])
    assert index.usage() == {"p:a": 1, "h:vc/h1": 1, "r:r1": 1}
    assert index.release("t9", 4)
    index.enqueue([pending("t1"), pending("t2")])
    assert index.remove("t1")
    assert not index.remove("t1")
    assert names(index, "a", 9) == ["t2"]
    assert index.release("t2", 1)
    assert is_clean(client)


def test_a_late_small_job_alternates_with_an_old_big_one(index: ClaimIndex) -> None:
    set_proxy(index, "a", on=True, slots=100, ranks={"p1": 5})
    index.enqueue([pending(f"big{n}", job="big") for n in range(50)])
    assert names(index, "a", 5) == [f"big{n}" for n in range(5)]
    index.enqueue([pending(f"small{n}", job="small") for n in range(4)])
    order = names(index, "a", 8)
    assert sum(name.startswith("small") for name in order[:4]) == 2
    assert sum(name.startswith("small") for name in order) == 4


def test_lower_bands_first(index: ClaimIndex) -> None:
    set_proxy(index, "a", on=True, slots=9, ranks={"p1": 5, "p2": 5})
    index.enqueue([pending("backup0"), pending("backup1")])
    index.enqueue([pending("restore", place="p2", host="vc/h2", band=0)])
    assert names(index, "a", 3) == ["restore", "backup0", "backup1"]


def test_a_full_host_or_repository_blocks_nobody_else(index: ClaimIndex) -> None:
    set_proxy(index, "a", on=True, slots=9, ranks={"p1": 5, "p2": 5})
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
    assert claim(index, "a", 9) == []
    index.release("t0", 1)
    assert names(index, "a", 9) == ["t1"]


def test_one_limit_over_two_places_of_a_host(index: ClaimIndex) -> None:
    set_proxy(index, "a", on=True, slots=9, ranks={"p1": 5, "p2": 5})
    index.set_limits({"h:vc/h1": 2})
    index.enqueue([pending(f"x{n}") for n in range(3)])
    index.enqueue([pending(f"y{n}", place="p2", job="other") for n in range(3)])
    assert len(claim(index, "a", 9)) == 2


def test_a_full_host_stands_in_the_way_of_network_modes_only(index: ClaimIndex) -> None:
    set_proxy(index, "san", on=True, slots=2, ranks={"p1": 2})
    set_proxy(index, "net", on=True, slots=9, ranks={"p1": 5})
    index.set_limits({"h:vc/h1": 1})
    index.enqueue([pending(f"t{n}") for n in range(5)])
    assert names(index, "san", 9) == ["t0", "t1"]
    assert "h:vc/h1" not in index.usage()
    assert names(index, "net", 9) == ["t2"]
    assert index.usage()["h:vc/h1"] == 1
    index.enqueue([pending("elsewhere", host="vc/h2"), pending("unknown", host="")])
    assert names(index, "net", 9) == ["elsewhere", "unknown"]
    index.release("t0", 1)
    assert names(index, "san", 9) == ["t3"]
    index.release("t2", 1)
    assert names(index, "net", 9) == ["t4"]


def test_one_budget_of_a_host_over_all_proxies(index: ClaimIndex) -> None:
    for proxy in "abc":
        set_proxy(index, proxy, on=True, slots=9, ranks={"p1": 5, "p2": 6})
    index.set_limits({"h:vc/h1": 4})
    index.enqueue([pending(f"t{n}", place=f"p{1 + n % 2}") for n in range(12)])
    assert sum(len(claim(index, proxy, 3)) for proxy in "abc") == 4


def test_only_proxies_that_reach_the_place(index: ClaimIndex) -> None:
    set_proxy(index, "a", on=True, slots=9, ranks={"p1": 5})
    set_proxy(index, "b", on=True, slots=9, ranks={"p1": 5, "p2": 6})
    index.enqueue([pending("t0", place="p2")])
    assert claim(index, "a", 9) == []
    found = claim(index, "b", 9)[0]
    assert (found.place, found.rank) == ("p2", 6)
    index.enqueue([pending("t1")])
    set_proxy(index, "a", on=False, slots=9, ranks={"p1": 5})
    assert claim(index, "a", 9) == []
    set_proxy(index, "a", on=True, slots=9, ranks={})
    assert claim(index, "a", 9) == []
    assert claim(index, "nobody", 9) == []


def test_a_worse_mode_waits_for_a_better_one_only_so_long(index: ClaimIndex, clock: Clock) -> None:
    set_proxy(index, "san", on=True, slots=1, ranks={"p1": 2})
    set_proxy(index, "nbd", on=True, slots=9, ranks={"p1": 5})
    index.enqueue([pending(f"t{n}") for n in range(3)])
    assert claim(index, "nbd", 9) == []
    clock.ms += 999
    assert claim(index, "nbd", 1) == []
    clock.ms += 1
    assert names(index, "nbd", 1) == ["t0"]
    index.enqueue([pending("fresh", job="other")])
    assert names(index, "san", 9) == ["fresh"]
    # the better one is full: no reason to wait
    assert names(index, "nbd", 9) == ["t1", "t2"]


def test_places_that_wait_for_a_better_mode_are_looked_at_once_for_all_proxies(
    index: ClaimIndex, client: redis.Redis
) -> None:
    """A night's beginning: whoever has a worse mode leaves a place alone, for the same reason as all others."""
    places, proxies = 12, 10
    set_proxy(index, "san", slots=1, ranks={f"p{n:02}": 2 for n in range(places)})
    for number in range(proxies):
        set_proxy(index, f"nbd{number}", slots=9, ranks={f"p{n:02}": 5 for n in range(places)})
    index.enqueue([pending(f"t{n}", place=f"p{n:02}") for n in range(places)])

    def asked() -> int:
        stats: Any = client.info("commandstats")
        told = (stats.get(f"cmdstat_{name}", {}) for name in ("zrange", "smembers", "hget"))
        return sum(int(one.get("calls", 0)) for one in told)

    before = asked()
    assert index.claim([f"nbd{number}" for number in range(proxies)], each=9) == []
    # For each proxy its slots; for each place its heads, who reaches it, and how long the first has waited.
    assert asked() - before <= 2 * (proxies + 1) + 10 * places
    assert [one.task_id for one in index.claim(["nbd0", "san"], each=9)] == ["t0"]
    # The better one is full now.
    assert len(index.claim([f"nbd{number}" for number in range(proxies)], each=9)) == places - 1


def test_a_stale_head_heals_itself(index: ClaimIndex, client: redis.Redis) -> None:
    set_proxy(index, "a", on=True, slots=9, ranks={"p1": 5})
    index.enqueue([pending("t0")])
    client.zrem("vmhaul:pend:p1/r:r1\th:vc/h1", "t0")
    assert claim(index, "a", 9) == []
    assert client.zcard("vmhaul:heads:p1") == 0
    index.enqueue([pending("t1")])
    assert names(index, "a", 9) == ["t1"]


def test_what_audits_ask(index: ClaimIndex, clock: Clock) -> None:
    set_proxy(index, "a", on=True, slots=9, ranks={"p1": 5})
    index.enqueue([pending("t0"), pending("t1", attempt=3, job="other")])
    assert index.missing(["t0", "t1", "t2"]) == {"t2"}
    claim(index, "a", 9)
    assert index.claims_older_than(1000) == []
    clock.ms += 1000
    assert sorted(index.claims_older_than(1000)) == [("t0", 1), ("t1", 3)]


def test_generations(index: ClaimIndex, client: redis.Redis) -> None:
    assert index.generation() is None
    index.seal("one")
    first = index.generation()
    assert first == index.generation()
    set_proxy(index, "a", on=True, slots=9, ranks={"p1": 5})
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
        set_proxy(index, proxy, on=True, slots=3, ranks={**ranks, "p0": 5})
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
            for one in claim(index, proxy, rng.randint(1, 3)):
                assert one.task_id not in seen
                seen.add(one.task_id)
                running[one.task_id] = one
        counts: Counter[str] = Counter()
        for name, one in running.items():
            counts[f"p:{one.proxy_id}"] += 1
            counts.update(key for key in facts[name].keys if one.rank == 5 or not key.startswith("h:"))
        assert all(counts[key] <= most for key, most in limits.items())
        assert index.usage() == dict(counts)
        assert all(counts[f"p:{proxy}"] <= 3 for proxy in "abc")
    while running:
        for name in running:
            assert index.release(name, 1)
        running = {one.task_id: one for p in "abc" for one in claim(index, p, 9)}
        seen.update(running)
    reached = {place for p in "abc" for place in client.hkeys(f"vmhaul:elig:{p}")}
    assert seen == {name for name, task in facts.items() if task.place in reached}


def test_a_full_or_closed_datastore_blocks_nobody_else(index: ClaimIndex) -> None:
    set_proxy(index, "a", slots=9, ranks={"p1": 2, "p2": 2})
    index.set_limits({"d:vc/slow": CLOSED, "d:vc/small one": 1})
    index.enqueue(
        [
            pending("slow", datastore="vc/slow"),
            pending("s0", datastore="vc/small one"),
            pending("s1", datastore="vc/small one"),
            pending("s2", place="p2", datastore="vc/small one"),
            pending("free", datastore="vc/free"),
        ]
    )
    assert names(index, "a", 9) == ["s0", "free"]
    index.set_limits({"d:vc/slow": 0})
    assert names(index, "a", 9) == ["slow"]
    index.release("s0", 1)
    assert names(index, "a", 9) == ["s1"]


def test_a_copy_counts_against_both_repositories(index: ClaimIndex) -> None:
    set_proxy(index, "a", slots=9, ranks={"p1": 5})
    index.set_limits({"r:r1": 3, "r:source": 1})
    copy = {"keys": ("r:r1", "r:source")}
    index.enqueue([pending("c0", **copy), pending("c1", **copy), pending("t0"), pending("t1")])
    assert names(index, "a", 9) == ["c0", "t0", "t1"]
    index.release("t0", 1)
    assert names(index, "a", 9) == []
    index.release("c0", 1)
    assert names(index, "a", 9) == ["c1"]


def test_disks_that_may_be_attached_to_a_proxy(index: ClaimIndex) -> None:
    set_proxy(index, "vm", slots=9, ranks={"p1": 4, "p2": 5}, attachable=2)
    set_proxy(index, "net", slots=1, ranks={"p1": 5})
    index.enqueue([pending(f"t{n}") for n in range(4)] + [pending("other", place="p2", job="late")])
    assert names(index, "net", 9) == []
    assert names(index, "vm", 9) == ["t0", "t1", "other"]
    # no place to attach another: nobody better is waited for
    assert names(index, "net", 9) == ["t2"]
    index.release("t0", 1)
    assert names(index, "vm", 9) == ["t3"]


def test_the_other_disks_of_a_vm_that_has_begun_come_first(index: ClaimIndex) -> None:
    set_proxy(index, "a", slots=20, ranks={"p1": 5, "p2": 5})
    index.enqueue(
        [
            pending("v1d0", vm="v1", job="x"),
            pending("v2d0", vm="v2", job="x"),
            pending("v1d1", vm="v1", job="x"),
            pending("v1d2", vm="v1", job="x", place="p2"),
            pending("restore", vm="v9", job="y", band=0),
        ]
    )
    assert names(index, "a", 1) == ["restore"]
    assert names(index, "a", 1) == ["v1d0"]
    assert names(index, "a", 9) == ["v1d1", "v1d2", "v2d0"]
    # a disk that is tried again belongs to a VM that has begun
    index.enqueue([pending("v3d0", vm="v3", job="z"), pending("v4d0", vm="v4", job="z")])
    index.enqueue([pending("again", vm="v5", job="z", attempt=2, begun=True)])
    assert names(index, "a", 2) == ["again", "v3d0"]


def test_vms_with_many_disks_do_not_take_other_jobs_share(index: ClaimIndex) -> None:
    set_proxy(index, "a", slots=100, ranks={"p1": 5})
    index.enqueue([pending(f"big{n}", vm=f"v{n // 10}", job="big") for n in range(30)])
    index.enqueue([pending(f"small{n}", vm=f"s{n}", job="small") for n in range(10)])
    order = [names(index, "a", 1)[0] for _ in range(22)]
    # the first VM goes through once it has begun, and then the other job has its turns
    assert order.index("big9") <= 11
    assert sum(name.startswith("small") for name in order) >= 9


def test_one_call_spreads_over_proxies_and_respects_what_they_share(index: ClaimIndex) -> None:
    for number, proxy in enumerate("abc"):
        set_proxy(index, proxy, slots=2 + number, ranks={"p1": 5, "p2": 5})
    set_proxy(index, "off", on=False, slots=9, ranks={"p1": 5})
    index.set_limits({"h:vc/h1": 5, "r:r1": 7})
    index.enqueue([pending(f"t{n}") for n in range(9)])
    index.enqueue([pending(f"o{n}", place="p2", host="vc/h2", job="other") for n in range(9)])
    claims = index.claim(["a", "b", "c", "off", "unknown"], each=9, most=4)
    assert [one.proxy_id for one in claims] == ["a", "b", "c", "c"]
    claims += index.claim(["a", "b", "c", "off", "unknown"], each=9)
    assert Counter(one.proxy_id for one in claims) == {"a": 2, "b": 2, "c": 3}
    assert len({one.task_id for one in claims}) == 7
    assert sum(one.task_id.startswith("t") for one in claims) <= 5
    assert index.usage()["r:r1"] == 7


def test_what_runs_in_another_mode_now_is_counted_there(index: ClaimIndex, client: redis.Redis) -> None:
    set_proxy(index, "a", slots=9, ranks={"p1": 4}, attachable=3)
    index.set_limits({"h:vc/h1": 1})
    index.enqueue([pending("t0", datastore="vc/ds"), pending("t1", datastore="vc/ds")])
    assert names(index, "a", 9) == ["t0", "t1"]
    assert index.usage() == {"p:a": 2, "r:r1": 2, "d:vc/ds": 2, "a:a": 2}
    running = [
        RunningClaim(
            task_id=name, proxy_id="a", attempt=1, rank=rank, keys=keys("r1", "vc/h1", "vc/ds")
        )
        for name, rank in (("t0", 5), ("t1", 4))
    ]
    for _ in range(2):
        assert index.adopt(running) == []
        assert index.usage() == {"p:a": 2, "r:r1": 2, "d:vc/ds": 2, "a:a": 1, "h:vc/h1": 1}
    for name in ("t0", "t1"):
        assert index.release(name, 1)
    assert is_clean(client)


def _reaching(client: redis.Redis) -> dict[str, object]:
    """What the index knows of who reaches what, whole."""
    found: dict[str, object] = {}
    for key in client.scan_iter("vmhaul:elig:*"):
        found[key] = client.hgetall(key)
    for key in client.scan_iter("vmhaul:reach:*"):
        found[key] = client.smembers(key)
    return found


def _as_written(truth: dict[str, dict[str, int]]) -> dict[str, object]:
    """`truth`: place -> proxy -> rank."""
    of_proxies: dict[str, dict[str, str]] = {}
    of_places: dict[str, set[str]] = {}
    for place, ranks in truth.items():
        for proxy, rank in ranks.items():
            of_proxies.setdefault(f"vmhaul:elig:{proxy}", {})[place] = str(rank)
            of_places.setdefault(f"vmhaul:reach:{place}:{rank}", set()).add(proxy)
    return {**of_proxies, **of_places}


def test_the_index_knows_just_who_reaches_what(
    index: ClaimIndex, client: redis.Redis, clock: Clock
) -> None:
    """At random, places that come, change and go, with an index that forgot what it wrote in between."""
    rng = random.Random(7)
    proxies = ["x", "y", "z"]
    places = [f"p{number}" for number in range(6)]
    truth: dict[str, dict[str, int]] = {}
    for step in range(60):
        changed = {
            place: {proxy: rng.randint(1, 3) for proxy in proxies if rng.random() < 0.5}
            for place in rng.sample(places, 2)
        }
        truth.update(changed)
        index.set_places(changed, proxies)
        if step % 10 == 9:
            index.remove_proxies(["z"])
            for ranks in truth.values():
                ranks.pop("z", None)
        assert _reaching(client) == _as_written(truth)
        if step % 20 == 19:
            index = ClaimIndex(client, clock, spill_ms=1000, network_rank=5)


def test_a_proxys_state_is_written_without_what_it_reaches(
    index: ClaimIndex, client: redis.Redis
) -> None:
    set_proxy(index, "x", slots=2, ranks={"p1": 1})
    index.enqueue([pending("a"), pending("b")])
    index.set_proxies([ProxyEntry(proxy_id="x", on=False, slots=2)])
    assert names(index, "x") == []
    index.set_proxies([ProxyEntry(proxy_id="x", on=True, slots=2)])
    assert names(index, "x") == ["a"]
    index.set_places({"p1": {}}, ["x"])
    assert names(index, "x") == []
    assert not _reaching(client)
