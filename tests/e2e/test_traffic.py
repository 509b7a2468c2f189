"""A traffic rule over two proxies: what both read together stays within it, and a part that ends comes back."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from vmhaul_lab.images import DiskPlan
from vmhaul_lab.plan import SitePlan, VmPlan
from vmhaul_lab.site import LabSite

from tests.support.routers import behind_routers

from . import operator
from .platform import Platform, explain, platform, wait_until
from .setup import connect, create_job

pytestmark = pytest.mark.lab

MIB = 1 << 20
RATE = 8 * MIB
SIZES = {"db01": 16 * MIB, "db02": 24 * MIB}
BURST = RATE // 4 + 2 * MIB
"""What a second may hold beside its rate: a bucket's quarter of a second, and of each mover a block that passes whole."""
MARGIN = MIB
"""What is read before the mover has its order's rate in hand: of each disk a few sectors."""
AGAIN = 6 * MIB
"""Blocks that were read and not stored yet when the mover stopped, and those that are read to try change tracking."""
NEAR = 1024
"""Orders differ by some bytes, so that one can be told from the other."""


@pytest.fixture(scope="module")
def host() -> Iterator[str]:
    """The address of another machine: what moves between two ends of one machine crosses no network."""
    with behind_routers(0) as address:
        yield address


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, labvc_binary: Path, host: str) -> Iterator[LabSite]:
    """Its vCenter tells that its host is there; the host's tickets lead to this machine."""
    vms = tuple(
        VmPlan(name=name, host=host, disks=(DiskPlan(label="d", capacity_bytes=size, layout="raw"),))
        for name, size in SIZES.items()
    )
    plan = SitePlan(vms=vms, hosts=(host,))
    with LabSite(tmp_path_factory.mktemp("traffic") / "site", plan, binary=labvc_binary) as running:
        for name, size in SIZES.items():
            running.guest_write(running.disk(name), 0, os.urandom(size))
        yield running


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory, site: LabSite) -> Iterator[Platform]:
    """With two proxies of one slot each, whose addresses are known, and a rule about the site's host."""
    directory = tmp_path_factory.mktemp("product")
    with platform(directory / "data", slots=1) as running:
        running.run("proxy", "add", "px2", "--local", "--slots", "1")
        connect(running, site, directory / "repo")
        host = site.plan.hosts[0]
        running.run("traffic", "add", "hosts", "--source", "any", "--target", host, "--rate", f"{RATE}")
        wait_until("both proxies looked around", lambda: looked_around(running))
        yield running


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    before_s: float
    """When it was asked for; `after_s`: when it was there."""
    after_s: float
    read_bytes: int
    """By all hosts since the site started."""
    rates: dict[str, int | None]
    """Of the tasks that run, by VM."""


def read_at_hosts(site: LabSite) -> int:
    return sum(host["bytes_read"] for host in site.control.stats()["hosts"].values())


def sample(product: Platform, site: LabSite, session: str) -> tuple[Sample, dict[str, Any]]:
    before_s = time.monotonic()
    found = product.session(session)
    read = read_at_hosts(site)
    rates = {
        vm["name"]: task["progress"]["rate_bytes_per_s"]
        for vm in found["vms"]
        for task in vm["tasks"]
        if task["state"] == "running"
    }
    seen = Sample(before_s=before_s, after_s=time.monotonic(), read_bytes=read, rates=rates)
    return seen, found


def looked_around(product: Platform) -> bool:
    """Both proxies told of their addresses."""
    with suppress(OSError, ValueError):
        found = product.ask("/proxies")["items"]
        return [one["state"] for one in found if one["looked_at"]] == ["online", "online"]
    return False


def test_two_proxies_keep_to_one_rule_and_a_part_comes_back(product: Platform, site: LabSite) -> None:
    create_job(product, "nightly", "--all")
    session = product.start_job("nightly")
    samples: list[Sample] = []
    ended: dict[str, Any] = {}

    def is_over() -> bool:
        nonlocal ended
        seen, ended = sample(product, site, session)
        samples.append(seen)
        return bool(ended["state"] == "finished")

    wait_until("the session ends", is_over, 120, 0.05)
    assert ended["result"] == "success", explain(ended)
    tasks = [task for vm in ended["vms"] for task in vm["tasks"]]
    assert {task["proxy"] for task in tasks} == {"default", "px2"}
    assert {task["mode"] for task in tasks} == {"nbdssl"}

    # Nothing can have moved before the last look at which no task ran.
    first = next(at for at, one in enumerate(samples) if one.rates)
    began, rest = samples[max(0, first - 1)], samples[first:]
    for one in rest:
        at_most = RATE * (one.after_s - began.before_s) + BURST + MARGIN
        assert one.read_bytes - began.read_bytes <= at_most
    assert rest[-1].read_bytes >= sum(SIZES.values()), "all of it was seen at the hosts"

    # What was ordered never adds up to more either, and is shared while both run.
    assert all(None not in one.rates.values() for one in rest)
    assert all(sum(rate or 0 for rate in one.rates.values()) <= RATE + NEAR for one in rest)
    together = [one.rates for one in rest if len(one.rates) == len(SIZES)]
    shares = [sorted(rate or 0 for rate in rates.values()) for rates in together]
    assert any(share[0] >= RATE // 2 - NEAR for share in shares), shares
    alone = [one.rates for one in rest if set(one.rates) == {"db02"}]
    assert any((rates["db02"] or 0) >= RATE - NEAR for rates in alone[-1:]), alone


def only_task(session: dict[str, Any]) -> dict[str, Any]:
    [task] = [task for vm in session["vms"] for task in vm["tasks"]]
    return dict(task)


def test_a_running_task_leaves_the_mode_that_a_new_rule_refuses(
    product: Platform, site: LabSite, host: str
) -> None:
    modes = ("--mode", "nbd", "--mode", "nbdssl")
    create_job(product, "clear", "--vm", "db02", "--proxy", "default", *modes)
    product.run("proxy", "edit", "default", "--mode", "nbd")
    product.run("traffic", "edit", "hosts", "--rate", f"{RATE // 4}")
    before = read_at_hosts(site)
    session = product.start_job("clear", "--full")
    product.wait_for_progress(session)
    product.run("proxy", "edit", "default", "--mode", "nbdssl", "--mode", "nbd")
    assert only_task(product.session(session))["mode"] == "nbd"
    ends = ("--source", "any", "--target", host)
    product.run("traffic", "add", "secret", *ends, "--rate", "unlimited", "--encrypt")

    def goes_on() -> bool:
        task = only_task(product.session(session))
        return bool(task["attempt"] > 1 and task["mode"] == "nbdssl")

    wait_until("it goes on by another mode", goes_on)
    product.run("traffic", "edit", "hosts", "--disable")
    ended = product.wait_for(session)
    assert ended["result"] == "success", explain(ended)
    task = only_task(ended)
    assert (task["attempt"], task["mode"]) == (2, "nbdssl")
    said = product.run("session", "log", session).stdout
    assert "traffic rule secret asks for encryption, and nbd sends the disk in the clear" in said
    # From the last block that was stored: nothing but what was on its way was read twice.
    assert read_at_hosts(site) - before <= SIZES["db02"] + AGAIN
    assert operator.snapshot_names(site) == []
