"""`vmhaul restore-point`: the states of VMs that can be restored."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from backup_server import formats
from backup_server.cli import output, secrets_in
from backup_server.cli.client import part
from backup_server.cli.door import Door, noun, with_door
from backup_server.cli.points import find_point

app = noun("Restore points: states of VMs that can be restored.")

PointArgument = Annotated[
    str,
    typer.Argument(metavar="POINT", help="Id, the beginning of one, VM@latest, VM@2 or VM@2026-11-23."),
]


@app.command("list")
@with_door
def list_(
    door: Door,
    vm: Annotated[str | None, typer.Option("--vm", help="Only those of this VM.")] = None,
    job: Annotated[str | None, typer.Option("--job", help="Only those of this job.")] = None,
    repository: Annotated[
        str | None, typer.Option("--repository", help="Only those in this one.")
    ] = None,
    orphaned: Annotated[
        bool, typer.Option("--orphaned", help="Only those of VMs that no job takes any more.")
    ] = False,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="How many, newest first.")] = None,
) -> None:
    """List restore points, newest first."""
    items = list(
        door.api.items(
            "/restore-points",
            vm=vm,
            job=job,
            repository=repository,
            orphaned=True if orphaned else None,
            limit=limit,
        )
    )
    if door.json:
        output.print_json({"items": items, "next": None})
        return
    output.table(
        ("id", "VM", "created", "kind", "consistency", "disks", "size", "job", "repository", "state"),
        [
            (
                item["id"][:8],
                item["vm"],
                formats.moment(item["created_at"]),
                item["kind"],
                item["consistency"],
                len(item["disks"]),
                formats.size(item.get("size_bytes")),
                item.get("job"),
                item["repository"],
                state(item),
            )
            for item in items
        ],
        right=("disks", "size"),
        empty="No restore points.",
    )


def state(point: dict[str, Any]) -> str:
    """What is lost of a restore point, whether it is in doubt, and until when nobody can remove it."""
    parts = [f"damaged: {line}" for line in damage_lines(point)]
    if point.get("doubt"):
        parts.append("in doubt")
    if point.get("immutable_until"):
        parts.append(f"immutable until {formats.moment(point['immutable_until'])}")
    return "; ".join(parts)


def damage_lines(point: dict[str, Any]) -> list[str]:
    """One line for each disk of which a part is lost."""
    lines = []
    for disk in point["disks"]:
        found = disk.get("damage")
        if found:
            shown = ", ".join(f"{start}-{end}" for start, end in found["extents"][:3])
            more = ", ..." if len(found["extents"]) > 3 else ""  # noqa: PLR2004 - as shown
            lines.append(f"{disk['label']}, {formats.size(found['bytes'])} at {shown}{more}")
    return lines


@app.command("show")
@with_door
def show(door: Door, point: PointArgument) -> None:
    """Show one restore point with its disks."""
    found = find_point(door.api, point)
    if door.json:
        output.print_json(found)
        return
    until = found.get("immutable_until")
    output.facts(
        [
            ("restore point", found["id"]),
            ("VM", found["vm"]),
            ("instance", found["instance_uuid"]),
            ("created", formats.moment(found["created_at"])),
            ("kind", found["kind"]),
            ("consistency", found["consistency"]),
            ("made from", found.get("previous")),
            ("job", found.get("job")),
            ("repository", found["repository"]),
            ("immutable", f"until {formats.moment(until)}" if until else "no"),
            ("state", _verdict(found)),
        ]
    )
    output.table(
        ("number", "key", "label", "capacity", "read", "stored"),
        [
            (
                number,
                disk["key"],
                disk["label"],
                formats.size(disk["capacity_bytes"]),
                formats.size(disk.get("read_bytes")),
                formats.size(disk.get("stored_bytes")),
            )
            for number, disk in enumerate(found["disks"], start=1)
        ],
        right=("number", "key", "capacity", "read", "stored"),
    )
    for line in damage_lines(found):
        output.say(f"damaged: {line}; these bytes cannot be restored")
    if found.get("doubt"):
        output.say(f"in doubt: {found['doubt']}; take a later point where you can")


def _verdict(point: dict[str, Any]) -> str:
    if point.get("damaged"):
        return "damaged"
    return "in doubt" if point.get("doubt") else "good, as far as is known"


@app.command("delete")
@with_door
def delete(
    door: Door,
    point: PointArgument,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Delete a restore point; `vmhaul repository prune` frees its space."""
    found = find_point(door.api, point)
    what = f"restore point {found['id'][:8]} of VM '{found['vm']}' of {formats.moment(found['created_at'])}"
    secrets_in.confirm(f"Delete {what}?", assume_yes=yes, option="--yes")
    door.api.delete(f"/restore-points/{part(found['id'])}")
    if not door.json:
        output.say(f"Deleted {what}. Its space is freed by the next prune.")
