"""How plans, decisions and proxies look on the command line."""

from __future__ import annotations

from typing import Any

import pytest

from backup_server.cli import plan, proxy_view


def placed(mode: str | None, **changes: Any) -> dict[str, Any]:
    return {
        "proxy": "px" if mode else None,
        "mode": mode,
        "reason": "" if mode else "px: offline",
        "fallbacks": [],
        "better": [{"mode": "direct-san", "reason": "no LUN"}],
        "remarks": [],
        **changes,
    }


def disk(number: int, placement: dict[str, Any]) -> dict[str, Any]:
    return {
        "label": f"Hard disk {number}",
        "capacity_bytes": 1 << 30,
        "read": "full",
        "reason": "first",
        "disk": "[ds] a.vmdk",
        "placement": placement,
    }


PLAN = {
    "vms": [
        {
            "name": "db01",
            "disks": [disk(n, placed("hotadd")) for n in (1, 2, 3)]
            + [disk(4, placed(None, better=[]))],
            "skipped_disks": [{"label": "Hard disk 5", "reason": "independent"}],
            "warnings": ["tracking is off"],
        }
    ],
    "skipped": [{"name": "tmpl", "reason": "a template"}],
    "warnings": [],
    "total_bytes": 4 << 30,
}


def test_why_not_better_is_told_once_for_all_disks() -> None:
    assert plan.why_not_better(PLAN) == [
        "not by direct-san, 3 disks: no LUN",
        "no proxy could take db01 / Hard disk 4 now: px: offline",
    ]
    two = {**PLAN, "vms": [{**PLAN["vms"][0], "disks": PLAN["vms"][0]["disks"][:2]}]}  # type: ignore[index]
    assert plan.why_not_better(two) == [
        "not by direct-san, db01 / Hard disk 1, db01 / Hard disk 2: no LUN"
    ]


def test_what_is_remarked_of_a_disk_is_told() -> None:
    odd = disk(1, placed("nbdssl", better=[], remarks=["its name holds an '@'"]))
    assert plan.why_not_better({"vms": [{"name": "db01", "disks": [odd]}]}) == [
        "db01 / Hard disk 1: its name holds an '@'"
    ]


def test_a_plan(capsys: pytest.CaptureFixture[str]) -> None:
    plan.print_plan(PLAN)
    shown = capsys.readouterr().out
    for text in (
        "hotadd",
        "px",
        "none",
        "left out: tmpl: a template",
        "warning: db01: tracking is off",
    ):
        assert text in shown
    assert "1 VM with 4 disks, 4.0 GiB." in shown


WHY = {
    "title": "backup db01 / Hard disk 1",
    "state": "pending",
    "attempt": 1,
    "proxy": None,
    "mode": None,
    "disk": {"path": "[ds] db01.vmdk", "datastore": "ds", "datastore_kind": "VMFS"},
    "decision": {"reason": "old", "candidates": [], "modes": []},
    "now": {
        "reason": "px: all 2 task slots are taken",
        "fallbacks": [],
        "modes": [{"mode": "nbd", "reason": "in clear"}],
        "others": {"the proxy is offline": 3},
        "candidates": [
            {
                "proxy": "p",
                "name": "px",
                "mode": "hotadd",
                "accepted": False,
                "reason": "full",
                "used": 2,
                "slots": 2,
            }
        ],
    },
    "left": [{"proxy": "q", "name": "py", "mode": "hotadd", "reason": "no slot"}],
    "reason": "",
    "waits": "px: all 2 task slots are taken",
}


def test_a_task_that_waits_is_shown_as_it_is_now(capsys: pytest.CaptureFixture[str]) -> None:
    plan.print_decision(WHY)
    shown = capsys.readouterr().out
    assert "old" not in shown
    assert "[ds] db01.vmdk on ds (VMFS)" in shown
    assert "failed before: hotadd on py: no slot" in shown
    assert "3 further candidates: the proxy is offline" in shown
    assert shown.count("px: all 2 task slots are taken") == 1


def test_a_task_that_runs_is_shown_as_it_was_decided(capsys: pytest.CaptureFixture[str]) -> None:
    decision = {
        "proxy": "p",
        "mode": "hotadd",
        "reason": "best",
        "fallbacks": ["nbdssl"],
        "candidates": [],
    }
    plan.print_decision(
        {
            **WHY,
            "state": "running",
            "now": None,
            "decision": decision,
            "proxy": "px",
            "mode": "hotadd",
            "waits": "",
        }
    )
    shown = capsys.readouterr().out
    assert "running, px by hotadd, 1 attempt" in shown
    assert "goes on by nbdssl when that fails" in shown
    assert "No placement was tried yet." in shown


PROXY = {
    "name": "px",
    "id": "1",
    "description": "",
    "state": "online",
    "enabled": True,
    "local": False,
    "running": 1,
    "slots": 2,
    "modes": ["hotadd", "nbdssl"],
    "failover_to_network": False,
    "connected_datastores": None,
    "preferred_networks": ["192.0.2.0/24"],
    "hotadd_nfs3_any_host": True,
    "max_nfs_hops": 2,
    "repositories": ["main"],
    "vm_confirmed": None,
    "looked_at": "2026-11-23T02:00:00Z",
    "version": "0.3.0",
    "last_seen_at": None,
    "clock_offset_s": None,
    "discovery": {
        "vm_uuid": "",
        "addresses": [],
        "called_from": "192.0.2.8",
        "vms": [],
        "datastores": [
            {
                "vcenter": "vc",
                "datastore": "ds",
                "mode": "direct-nfs",
                "readable": True,
                "writable": False,
                "hops": None,
                "reason": "read only",
            }
        ],
        "missing": [{"mode": "direct-san", "reason": "no parser"}],
    },
}


def test_a_proxy(capsys: pytest.CaptureFixture[str]) -> None:
    proxy_view.print_proxy(PROXY)
    shown = capsys.readouterr().out
    for text in (
        "as it finds them",
        "from any host",
        "at most 2 routers away",
        "not shown by its machine",
        "none that a vCenter knows",
        "read only",
        "does not offer direct-san: no parser",
        "vmhaul proxy confirm-vm px",
        "192.0.2.8",
        "main",
    ):
        assert text in shown
    proxy_view.print_proxy(
        {**PROXY, "looked_at": None, "connected_datastores": ["a", "b"], "max_nfs_hops": None}
    )
    shown = capsys.readouterr().out
    assert "never" in shown
    assert "SMBIOS" not in shown
