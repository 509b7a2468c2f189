"""A proxy in a VM of the site: backups and restores by HotAdd, and nothing left of either, whoever dies."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from vmhaul_lab.loops import loops_under
from vmhaul_lab.proxies import LabProxy, ProxyPlan
from vmhaul_lab.site import LabSite

from . import operator
from .platform import Platform, explain, platform, wait_until
from .setup import assert_restores, connect, create_job, hashes

pytestmark = pytest.mark.lab

MIB = 1 << 20


@pytest.fixture
def site(tmp_path: Path, labvc_binary: Path) -> Iterator[LabSite]:
    proxies = (ProxyPlan(name="proxy1", swapped=True),)
    with LabSite.quick(tmp_path / "site", 2, binary=labvc_binary, proxies=proxies) as made:
        yield made
    assert loops_under(tmp_path) == []


@pytest.fixture
def proxy(site: LabSite) -> LabProxy:
    return site.proxy("proxy1")


@pytest.fixture
def product(tmp_path: Path, proxy: LabProxy, monkeypatch: pytest.MonkeyPatch) -> Iterator[Platform]:
    """Its local proxy takes itself for the one in the VM."""
    monkeypatch.setenv("VMHAUL_TASK_RETRY_WAIT_S", "0.5")
    directory = tmp_path / "data/proxies/default"
    directory.mkdir(parents=True, mode=0o700)
    proxy.write_settings(directory)
    with platform(tmp_path / "data") as running:
        yield running


def modes(session: dict[str, Any]) -> set[str]:
    return {task["mode"] for vm in session["vms"] for task in vm["tasks"]}


def own_disks_only(proxy: LabProxy) -> bool:
    return len(proxy.devices()) == 1


def known(product: Platform) -> bool:
    """The server knows which VM its proxy is."""
    shown = product.json("proxy", "show", "default")
    return bool(shown["discovery"]["vms"])


def test_backup_and_restore_by_hotadd(
    product: Platform, site: LabSite, proxy: LabProxy, tmp_path: Path
) -> None:
    connect(product, site, tmp_path / "repo")
    create_job(product, "nightly", "--vm", "vm01", "--vm", "vm02")
    wait_until("the proxy has looked around", lambda: known(product))
    before = hashes(site, "vm01", "vm02")
    full = product.backup("nightly")
    assert modes(full) == {"hotadd"}, explain(full)
    site.guest_write(site.disk("vm01"), 5 * MIB + 512, os.urandom(3000))
    after = hashes(site, "vm01", "vm02")

    # Everything dies while disks are attached; the next start goes on, and takes away what was left.
    session_id = product.start_job("nightly")
    wait_until("a disk is attached", lambda: not own_disks_only(proxy), pause_s=0.01)
    product.kill_tree()
    product.start()
    increment = product.wait_for(session_id)
    assert increment["result"] in ("success", "warning"), explain(increment)
    wait_until("nothing is attached", lambda: own_disks_only(proxy))
    assert operator.snapshot_names(site) == []

    assert_restores(product, "vm01@2", "vm01", {("vm01", 1): before["vm01", 1]}, tmp_path)
    assert_restores(product, "vm02@1", "vm02", {("vm02", 2): after["vm02", 2]}, tmp_path)

    # The mover dies in a restore; another attempt writes the disk.
    restore = product.json("restore", "vm", "vm01@1", "--name", "vm01-restored", "--no-follow")
    wait_until("a disk is attached", lambda: not own_disks_only(proxy), pause_s=0.01)
    for mover in product.processes("mover_process"):
        with suppress(psutil.NoSuchProcess):
            mover.kill()
    restored = product.wait_for(restore["id"])
    assert restored["result"] == "success", explain(restored)
    assert own_disks_only(proxy)
    assert {n: digest for (_, n), digest in hashes(site, "vm01-restored").items()} == {
        n: digest for (vm, n), digest in after.items() if vm == "vm01"
    }
    assert all(disk.base_file.exists() for disk in site.disks())
    leftovers = [c for c in product.json("doctor", check=False)["checks"] if c["name"] == "leftovers"]
    assert [check["level"] for check in leftovers] == ["ok"]
