"""How a job's plan and a placement decision look to people."""

from __future__ import annotations

from typing import Any

from backup_server.cli import formats, output


def print_plan(plan: dict[str, Any]) -> None:
    """VMs and disks of the next run, then what is left out, then warnings."""
    rows = [
        (vm["name"], disk["label"], formats.size(disk["capacity_bytes"]), disk.get("path"))
        for vm in plan["vms"]
        for disk in vm["disks"]
        if not disk.get("skipped")
    ]
    output.table(
        ("VM", "disk", "capacity", "file"), rows, right=("capacity",), empty="The next run takes nothing."
    )
    for line in left_out(plan):
        output.say(f"left out: {line}")
    for warning in plan.get("warnings") or ():
        output.say(f"warning: {warning}")
    total = sum(
        disk["capacity_bytes"] for vm in plan["vms"] for disk in vm["disks"] if not disk.get("skipped")
    )
    if rows:
        vms = len({row[0] for row in rows})
        output.say(
            f"{formats.plural(vms, 'VM')} with {formats.plural(len(rows), 'disk')}, {formats.size(total)}."
        )


def left_out(plan: dict[str, Any]) -> list[str]:
    """One line for each VM and disk that is not taken, with the reason."""
    lines = [f"{item['name']}: {item['reason']}" for item in plan.get("skipped") or ()]
    for vm in plan["vms"]:
        lines += [f"{vm['name']} / {d['label']}: {d['skipped']}" for d in vm["disks"] if d.get("skipped")]
    return lines


def print_decision(why: dict[str, Any]) -> None:
    """The candidates of a placement and what was said about each."""
    decision = why.get("decision", why) or {}
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
    if decision.get("reason"):
        output.say(str(decision["reason"]))
