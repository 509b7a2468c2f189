"""How a job's plan and a placement decision look to people."""

from __future__ import annotations

from typing import Any

from backup_server import formats
from backup_server.cli import output


def print_plan(plan: dict[str, Any]) -> None:
    """VMs and disks of the next run, then what is left out, then warnings."""
    rows = [
        (
            vm["name"],
            disk["label"],
            formats.size(disk["capacity_bytes"]),
            disk["read"],
            disk["reason"],
            disk.get("disk"),
        )
        for vm in plan["vms"]
        for disk in vm["disks"]
    ]
    output.table(
        ("VM", "disk", "capacity", "read as", "because", "file"),
        rows,
        right=("capacity",),
        empty="The next run takes nothing.",
    )
    for line in left_out(plan):
        output.say(f"left out: {line}")
    for line in warnings(plan):
        output.say(f"warning: {line}")
    if rows:
        vms = formats.plural(len(plan["vms"]), "VM")
        disks = formats.plural(len(rows), "disk")
        output.say(f"{vms} with {disks}, {formats.size(plan['total_bytes'])}.")


def left_out(plan: dict[str, Any]) -> list[str]:
    """One line for each VM and disk that is not taken, with the reason."""
    lines = [f"{item['name']}: {item['reason']}" for item in plan["skipped"]]
    for vm in plan["vms"]:
        lines += [f"{vm['name']} / {disk['label']}: {disk['reason']}" for disk in vm["skipped_disks"]]
    return lines


def warnings(plan: dict[str, Any]) -> list[str]:
    """Of the job and of its VMs."""
    own = [f"{vm['name']}: {text}" for vm in plan["vms"] for text in vm["warnings"]]
    return [*plan["warnings"], *own]


def print_decision(why: dict[str, Any]) -> None:
    """The candidates of a placement and what was said about each."""
    decision = why["decision"] or {}
    output.table(
        ("proxy", "mode", "slots", "verdict", "reason"),
        [
            (
                item.get("name") or item["proxy"],
                item["mode"],
                f"{item['used']} of {item['slots']}",
                "accepted" if item["accepted"] else "refused",
                item["reason"],
            )
            for item in decision.get("candidates") or ()
        ],
        empty="No placement was tried yet.",
    )
    said = dict.fromkeys((decision.get("reason"), why.get("reason"), why.get("waits")))
    for text in said:  # waiting is often for what the decision said
        if text:
            output.say(str(text))
