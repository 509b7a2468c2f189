"""The simulation of the fleet in small: every limit held at every moment of the record, each task once."""

from __future__ import annotations

from dataclasses import replace

from bench.bench_fleet import run
from bench.fleet_check import Busy, Fleet, Run, broken_limits, busy_share, latencies
from bench.fleet_site import Size
from tests.integration.queue.rig import ON_SQLITE


@ON_SQLITE
def test_a_small_night(migrated_url: str) -> None:
    size = Size(vms=60, disks=160, proxies=8, slots=4, compress=1000)
    report = run(size, database_url=migrated_url, timeout_s=240)
    assert report["problems"] == []
    assert sum(report["modes"].values()) == size.disks
    assert len(report["modes"]) >= 3
    assert all(loop["failures"] == 0 for loop in report["loops"])


def played(task: str, came: float, ended: float, *keys: str, proxy: str = "a") -> Run:
    return Run(
        task=task,
        proxy=proxy,
        keys=(f"p:{proxy}", *keys),
        group=("w", keys),
        made=0,
        claimed=came - 0.1,
        came=came,
        began=came,
        ended=ended,
    )


def test_the_check_finds_a_limit_that_was_exceeded_for_a_moment() -> None:
    runs = [played("1", 0, 10, "d:x"), played("2", 9.99, 20, "d:x"), played("3", 20, 30, "d:x")]
    assert broken_limits(runs, {"d:x": 1, "p:a": 2}) == ["d:x: 2 of 1"]
    assert broken_limits(runs, {"d:x": 2, "p:a": 1}) == ["p:a: 2 of 1"]
    assert broken_limits(runs, {"d:x": 2, "p:a": 2}) == []


def fleet(limits: dict[str, int]) -> Fleet:
    return Fleet(
        limits=limits,
        slots={"a": 1, "b": 1},
        keys_for=lambda _wish, proxy, keys: (f"p:{proxy}", *keys),
    )


def test_the_check_tells_idle_slots_with_work_from_those_without() -> None:
    runs = [played(str(n), 10 * n, 10 * n + 10, "d:x") for n in range(10)]
    starved = busy_share(runs, fleet({"d:x": 1}), warm_up_s=0)
    assert starved.share == 1
    assert starved.idle_without == starved.busy
    lazy = busy_share(runs, fleet({"d:x": 0}), warm_up_s=0)
    assert 0.5 < lazy.share < 0.6
    assert Busy().share == 1


def test_the_check_measures_from_the_end_of_a_task_to_the_next_on_a_full_proxy() -> None:
    runs = [played("1", 0, 10), played("2", 10.5, 20), played("3", 0, 30, proxy="b")]
    found = latencies(runs, fleet({}))
    assert found["free to next"] == [0.5]


def test_the_check_of_a_night_that_goes_on_counts_what_waits_and_runs() -> None:
    runs = [replace(played("1", 0, 10), is_recorded=False), played("2", 0, 5, proxy="b")]
    assert busy_share(runs, fleet({}), warm_up_s=0).share == 1
    lazy = busy_share(runs, fleet({}), warm_up_s=0, left={("w", ()): 100})
    assert 0.7 < lazy.share < 0.8
    assert len(latencies(runs, fleet({}))["claim to body"]) == 1
