"""How a job's plan and a placement decision look to people."""

from __future__ import annotations

from typing import Any

from backup_server import formats
from backup_server.cli import output


def print_plan(plan: dict[str, Any]) -> None:
    """VMs and disks of the next run, why not in better modes, what is left out, warnings."""
    disks = [(vm, disk) for vm in plan["vms"] for disk in vm["disks"]]
    output.table(
        ("VM", "disk", "capacity", "read as", "because", "mode", "proxy", "file"),
        [
            (
                vm["name"],
                disk["label"],
                formats.size(disk["capacity_bytes"]),
                disk["read"],
                disk["reason"],
                disk["placement"]["mode"] or "none",
                disk["placement"]["proxy"],
                disk.get("disk"),
            )
            for vm, disk in disks
        ],
        right=("capacity",),
        empty="The next run takes nothing.",
    )
    for line in why_not_better(plan):
        output.say(line)
    for line in formats.plan_left_out(plan):
        output.say(f"left out: {line}")
    for line in formats.plan_warnings(plan):
        output.say(f"warning: {line}")
    if disks:
        vms = formats.plural(len(plan["vms"]), "VM")
        output.say(
            f"{vms} with {formats.plural(len(disks), 'disk')}, {formats.size(plan['total_bytes'])}."
        )


def why_not_better(plan: dict[str, Any]) -> list[str]:
    """One line for each mode that was not taken and its reason, with the disks for which it holds; then remarks,
    and one for each disk that no proxy could take now.
    """
    held: dict[tuple[str, str], list[str]] = {}
    remarked: dict[str, list[str]] = {}
    nowhere: list[str] = []
    for vm in plan["vms"]:
        for disk in vm["disks"]:
            name, placed = f"{vm['name']} / {disk['label']}", disk["placement"]
            for one in placed["better"]:
                held.setdefault((one["mode"], one["reason"]), []).append(name)
            for text in placed["remarks"]:
                remarked.setdefault(text, []).append(name)
            if placed["mode"] is None:
                nowhere.append(f"no proxy could take {name} now: {placed['reason']}")
    return [
        *(f"not by {mode}, {_named(names)}: {reason}" for (mode, reason), names in held.items()),
        *(f"{_named(names)}: {text}" for text, names in remarked.items()),
        *nowhere,
    ]


def _named(disks: list[str]) -> str:
    """Up to two by name, more by number."""
    return ", ".join(disks) if len(disks) <= 2 else f"{len(disks)} disks"  # noqa: PLR2004


def print_decision(why: dict[str, Any]) -> None:
    """Where a task runs or why it waits, the candidates of its placement, and what failed before."""
    place = f", {why['proxy']} by {why['mode']}" if why.get("proxy") and why.get("mode") else ""
    output.say(f"{why['title']}: {why['state']}{place}, {formats.plural(why['attempt'], 'attempt')}")
    disk = why.get("disk") or {}
    if disk.get("path"):
        output.say(
            f"{disk['path']} on {disk['datastore']} ({disk['datastore_kind'] or 'unknown kind'})"
        )
    waits = why["state"] == "pending" and why.get("now")
    decision = (why["now"] if waits else why["decision"]) or {}
    output.table(
        ("mode", "proxy", "slots", "verdict", "reason"),
        [
            (row["mode"], row["proxy"], row["slots"], row["verdict"], row["reason"])
            for row in formats.candidate_rows(decision)
        ],
        empty="No placement was tried yet.",
    )
    for reason, count in (decision.get("others") or {}).items():
        output.say(f"and {formats.plural(count, 'further candidate')}: {reason}")
    for one in why.get("left") or ():
        proxy = one.get("name") or one["proxy"]
        output.say(f"failed before: {one['mode']} on {proxy}: {one['reason']}")
    if decision.get("fallbacks"):
        output.say(f"goes on by {', '.join(decision['fallbacks'])} when that fails")
    said = dict.fromkeys((decision.get("reason"), why.get("reason"), why.get("waits")))
    for text in said:  # waiting is often for what the decision said
        if text:
            output.say(str(text))
    for one in why.get("prospects") or ():
        at = f" (about {formats.moment(one['at'])})" if one.get("at") else ""
        output.say(f"could change when {one['what']}{at}")
