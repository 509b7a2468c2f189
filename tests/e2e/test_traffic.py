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
RATE = 2 * MIB
SIZE = 48 * MIB
"""So much that no disk is read before what is waited for is there."""
VMS = ("db01", "db02")
BURST = RATE // 4 + 2 * MIB
"""What a second may hold beside its rate: a bucket's quarter of a second, and of each mover a block that passes whole."""
ON_THE_WAY = BURST
"""What movers may have asked for and hosts have not read yet, however slow the machine is: nothing is asked for while
a bucket owes.
"""
AGAIN = 6 * MIB
"""Blocks that were read and not stored yet when the mover stopped, and those that are read to try change tracking."""
NEAR = 1024
"""Orders differ by some bytes, so that one can be told from the other."""
ROUNDS = 5
"""How often both are looked at while they share the rule."""


@pytest.fixture(scope="module")
def host() -> Iterator[str]:
    """The address of another machine: what moves between two ends of one machine crosses no network."""
    with behind_routers(0) as address:
        yield address


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, labvc_binary: Path, host: str) -> Iterator[LabSite]:
    """Its vCenter tells that its host is there; the host's tickets lead to this machine."""
    disk = DiskPlan(label="d", capacity_bytes=SIZE, layout="raw")
    vms = tuple(VmPlan(name=name, host=host, disks=(disk,)) for name in VMS)
    plan = SitePlan(vms=vms, hosts=(host,))
    with LabSite(tmp_path_factory.mktemp("traffic") / "site", plan, binary=labvc_binary) as running:
        for name in VMS:
            running.guest_write(running.disk(name), 0, os.urandom(SIZE))
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


def only_task(session: dict[str, Any]) -> dict[str, Any]:
    """Nothing while there is none."""
    return next((dict(task) for vm in session["vms"] for task in vm["tasks"]), {})


class Watch:
    """What two sessions do, each of one task, as it was seen again and again."""

    def __init__(self, product: Platform, site: LabSite, sessions: dict[str, str]) -> None:
        """`sessions`: by VM."""
        self._product = product
        self._site = site
        self._sessions = sessions
        self.samples: list[Sample] = []
        self.read_before = read_at_hosts(site)

    def rates(self) -> dict[str, int | None]:
        """Of the tasks that run now, by VM."""
        before_s = time.monotonic()
        tasks = {vm: only_task(self._product.session(one)) for vm, one in self._sessions.items()}
        rates = {
            vm: task["progress"]["rate_bytes_per_s"]
            for vm, task in tasks.items()
            if task.get("state") == "running"
        }
        read = read_at_hosts(self._site)
        self.samples.append(
            Sample(before_s=before_s, after_s=time.monotonic(), read_bytes=read, rates=rates)
        )
        return rates


def looked_around(product: Platform) -> bool:
    """Both proxies told of their addresses."""
    with suppress(OSError, ValueError):
        found = product.ask("/proxies")["items"]
        return [one["state"] for one in found if one["looked_at"]] == ["online", "online"]
    return False


def test_two_proxies_keep_to_one_rule_and_a_part_comes_back(product: Platform, site: LabSite) -> None:
    sessions: dict[str, str] = {}
    for vm in VMS:
        create_job(product, vm, "--vm", vm)
    watch = Watch(product, site, sessions)
    watch.rates()
    for vm in VMS:
        sessions[vm] = str(product.call("POST", f"/jobs/{vm}/run", {})["id"])
    half, whole = RATE // 2 - NEAR, RATE - NEAR

    def is_shared() -> bool:
        rates = watch.rates()
        return set(rates) == set(VMS) and all((rate or 0) >= half for rate in rates.values())

    wait_until("each has half of the rate", is_shared, 120, 0.05)
    proxies = {only_task(product.session(one))["proxy"] for one in sessions.values()}
    assert proxies == {"default", "px2"}
    for _ in range(ROUNDS):
        watch.rates()
        time.sleep(0.2)
    product.call("POST", f"/sessions/{sessions['db01']}/cancel")
    wait_until(
        "the other has all of it",
        lambda: (watch.rates().get("db02") or 0) >= whole,
        120,
        0.05,
    )
    product.call("PATCH", "/traffic-rules/hosts", {"enabled": False})
    ended = product.wait_for(sessions["db02"])
    assert ended["result"] == "success", explain(ended)

    # From the last look at which nothing had been read.
    first = next(at for at, one in enumerate(watch.samples) if one.read_bytes > watch.read_before)
    began, rest = watch.samples[first - 1], watch.samples[first:]
    for one in rest:
        at_most = RATE * (one.after_s - began.before_s) + BURST + ON_THE_WAY
        assert one.read_bytes - began.read_bytes <= at_most
        # What is ordered never adds up to more either.
        assert None not in one.rates.values()
        assert sum(rate or 0 for rate in one.rates.values()) <= RATE + NEAR


def test_a_running_task_leaves_the_mode_that_a_new_rule_refuses(
    product: Platform, site: LabSite, host: str
) -> None:
    modes = ("--mode", "nbd", "--mode", "nbdssl")
    create_job(product, "clear", "--vm", "db02", "--proxy", "default", *modes)
    product.call("PATCH", "/proxies/default", {"modes": ["nbd"]})
    product.call("PATCH", "/traffic-rules/hosts", {"enabled": True})
    before = read_at_hosts(site)
    session = str(product.call("POST", "/jobs/clear/run", {"full": True})["id"])
    product.wait_for_progress(session)
    product.call("PATCH", "/proxies/default", {"modes": ["nbdssl", "nbd"]})
    assert only_task(product.session(session))["mode"] == "nbd"
    ends = ("--source", "any", "--target", host)
    product.run("traffic", "add", "secret", *ends, "--rate", "unlimited", "--encrypt")

    def goes_on() -> bool:
        task = only_task(product.session(session))
        return bool(task["attempt"] > 1 and task["mode"] == "nbdssl")

    wait_until("it goes on by another mode", goes_on)
    product.call("PATCH", "/traffic-rules/hosts", {"enabled": False})
    ended = product.wait_for(session)
    assert ended["result"] == "success", explain(ended)
    task = only_task(ended)
    assert (task["attempt"], task["mode"]) == (2, "nbdssl")
    said = product.run("session", "log", session).stdout
    assert "traffic rule secret asks for encryption, and nbd sends the disk in the clear" in said
    # From the last block that was stored: nothing but what was on its way was read twice.
    assert read_at_hosts(site) - before <= SIZE + AGAIN
    assert operator.snapshot_names(site) == []
