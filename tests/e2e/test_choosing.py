"""An operator asks before and after a run which proxy and mode a disk takes, and why."""

from __future__ import annotations

from pathlib import Path

import pytest
from vmhaul_lab.proxies import ProxyPlan
from vmhaul_lab.site import LabSite

from .platform import explain, platform, wait_until
from .setup import connect, create_job

pytestmark = pytest.mark.lab


def test_plan_run_and_why(tmp_path: Path, labvc_binary: Path) -> None:
    proxies = (ProxyPlan(name="proxy1", swapped=True),)
    with (
        LabSite.quick(tmp_path / "site", 1, binary=labvc_binary, proxies=proxies) as site,
        platform(tmp_path / "data") as product,
    ):
        own = tmp_path / "data" / "proxies" / "px1"
        own.mkdir(parents=True)
        site.proxy("proxy1").write_settings(own)
        connect(product, site, tmp_path / "repository")
        product.run("proxy", "add", "px1", "--local", "--slots", "4")
        wait_until(
            "px1 is there and looked around",
            lambda: [
                one
                for one in product.ask("/proxies")["items"]
                if one["name"] == "px1" and one["state"] == "online" and one["looked_at"]
            ],
        )
        found = product.json("proxy", "rescan", "px1")
        assert [vm["name"] for vm in found["discovery"]["vms"]] == ["proxy1"]
        create_job(product, "nightly", "--vm", "vm01", "--no-failover")
        plan = product.json("job", "plan", "nightly")
        placed = [disk["placement"] for vm in plan["vms"] for disk in vm["disks"]]
        assert {(one["proxy"], one["mode"]) for one in placed} == {("px1", "hotadd")}
        assert all(one["fallbacks"] == [] for one in placed)
        assert "hotadd" in product.run("job", "plan", "nightly").stdout

        session = product.backup("nightly")
        tasks = [task for vm in session["vms"] for task in vm["tasks"]]
        assert {task["mode"] for task in tasks} == {"hotadd"}, explain(session)
        why = product.json("task", "why", tasks[0]["id"][:8])
        said = {(one["name"], one["mode"]): one["reason"] for one in why["decision"]["candidates"]}
        assert said["px1", "hotadd"] == ""
        assert "the job lets no network mode take over" in said["default", "nbdssl"]
        assert "not NFS" in str(why["decision"]["modes"])
        shown = product.run("task", "why", tasks[0]["id"]).stdout
        assert "chosen" in shown
        assert "refused" in shown

        # Switched off for the only proxy that could: then the host's network service is what is left.
        product.run("proxy", "edit", "px1", "--mode", "nbdssl")
        session = product.backup("nightly", "--full")
        modes = {task["mode"] for vm in session["vms"] for task in vm["tasks"]}
        assert modes == {"nbdssl"}, explain(session)
