"""Disks on LUNs go over the SAN by themselves: found by the proxy, chosen, read with their deltas, restored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vmhaul_lab.images import DiskPlan
from vmhaul_lab.plan import DatastorePlan, LunPlan, VmPlan
from vmhaul_lab.site import LabSite

from .platform import Platform, platform, wait_until
from .setup import add_repository, add_vcenter, create_job, hashes

MIB = 1 << 20
PROXY = "proxy1"
VM = VmPlan(
    name="db01",
    disks=(
        DiskPlan(label="first", capacity_bytes=16 * MIB, layout="raw", thin=False, eager=True),
        DiskPlan(label="second", capacity_bytes=16 * MIB, layout="raw", thin=False, eager=True),
    ),
)
# Both eagerly zeroed: a thin one is restored by a host, and what the host changes on the datastore meanwhile makes
# the lab show the LUN anew, which is no moment for others to write to it.


def modes(session: dict[str, Any]) -> list[tuple[str, str | None, list[Any]]]:
    """(mode, read as, failovers) of each disk, in their order."""
    tasks = [task for vm in session["vms"] for task in vm["tasks"]]
    tasks.sort(key=lambda task: task["disk_key"])
    return [(task["mode"], task["read_mode"], task["failovers"]) for task in tasks]


def reached(product: Platform) -> bool:
    found = product.json("proxy", "show", "default")["discovery"]["datastores"]
    return any(one["mode"] == "direct-san" and one["readable"] and one["writable"] for one in found)


def test_disks_on_luns_go_over_the_san(tmp_path: Path, labvc_binary: Path) -> None:
    with LabSite.quick(
        tmp_path / "site",
        [VM],
        binary=labvc_binary,
        proxies=[PROXY],
        datastores=[DatastorePlan(name="san", luns=(LunPlan(), LunPlan()))],
    ) as site:
        settings = tmp_path / "data/proxies/default/proxy.toml"
        settings.parent.mkdir(parents=True)
        shown = site.proxy(PROXY)
        settings.write_text(f'sys_path = "{shown.sys_path}"\ndev_path = "{shown.dev_path}"\n')
        with platform(tmp_path / "data") as product:
            add_vcenter(product, site)
            add_repository(product, tmp_path / "repo")
            product.run("proxy", "rescan", "default")
            wait_until("the proxy reaches the datastore over SAN", lambda: reached(product))
            create_job(product, "nightly", "--vm", "db01")
            assert modes(product.backup("nightly")) == [("direct-san", "full", [])] * 2
            for disk in site.disks("db01"):
                site.guest_write(disk, 3 * MIB + 512, b"later" * 1000)
            live = hashes(site, "db01")
            assert modes(product.backup("nightly")) == [("direct-san", "increment", [])] * 2

            restored = product.json("restore", "vm", "db01@latest", "--name", "db01-restored")
            session = product.session(restored["id"])
            assert [mode for mode, _, _ in modes(session)] == ["direct-san", "direct-san"]
            found = hashes(site, "db01-restored")
            assert [found["db01-restored", n] for n in (1, 2)] == [live["db01", n] for n in (1, 2)]
            assert site.luns("san").stray_writes() == []
