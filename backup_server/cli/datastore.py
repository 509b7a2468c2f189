"""`vmhaul datastore`: what is allowed on a datastore, and how slow it was last."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from backup_server import formats
from backup_server.cli import output
from backup_server.cli.client import part
from backup_server.cli.door import Door, noun, with_door
from backup_server.cli.exits import CliError, Exit

app = noun("Datastores: how many tasks and snapshots they bear, and how slow they are.")

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="Name of the datastore.")]
VcenterOption = Annotated[
    str | None,
    typer.Option("--vcenter", metavar="NAME", help="Its vCenter, where several have one of that name."),
]
DEFAULT = "default"
_FIELDS = {
    "max_tasks": "tasks at once",
    "max_snapshots": "open VM snapshots",
    "latency_control": "latency control",
    "latency_stop_ms": "no new task above, ms",
    "latency_throttle_ms": "slowed above, ms",
}


def _find(door: Door, name: str, vcenter: str | None) -> dict[str, Any]:
    """The one datastore of that name; CliError where there is none, or several."""
    items = door.api.items("/datastores", vcenter=vcenter)
    found = [one for one in items if one["name"] == name]
    if not found:
        raise CliError(f"no vCenter has a datastore '{name}'; `vmhaul datastore list` has them")
    if len(found) > 1:
        names = ", ".join(one["vcenter"] for one in found)
        raise CliError(
            f"several vCenters have a datastore '{name}' ({names}): add --vcenter", Exit.USAGE
        )
    return found[0]


def _path(found: dict[str, Any]) -> str:
    return f"/datastores/{part(found['vcenter'])}/{part(found['name'])}"


@app.command("list")
@with_door
def list_(
    door: Door,
    vcenter: Annotated[
        str | None, typer.Option("--vcenter", metavar="NAME", help="Only those of this vCenter.")
    ] = None,
) -> None:
    """List the datastores with what is allowed there, their read latency and their tasks."""
    items = list(door.api.items("/datastores", vcenter=vcenter))
    if door.json:
        output.print_json({"items": items, "next": None})
        return
    output.table(
        (
            "vcenter",
            "name",
            "kind",
            "free",
            "tasks",
            "waiting",
            "most",
            "snapshots",
            "latency",
            "state",
        ),
        [
            (
                item["vcenter"],
                item["name"],
                item["kind"],
                formats.size(item["free_bytes"]),
                item["running_tasks"],
                item["pending_tasks"],
                item["allowed"]["max_tasks"] or "any",
                item["allowed"]["max_snapshots"],
                _latency(item),
                _state(item),
            )
            for item in items
        ],
        right=("free", "tasks", "waiting", "most", "snapshots", "latency"),
        empty="No datastore is known: add a vCenter with `vmhaul vcenter add`.",
    )


def _latency(item: dict[str, Any]) -> str:
    return "-" if item["read_latency_ms"] is None else f"{item['read_latency_ms']:.0f} ms"


def _state(item: dict[str, Any]) -> str:
    words = ["slow: takes nothing new"] if item["closed_since"] else []
    if item["allowance_bytes_per_s"] is not None:
        words.append(f"held to {formats.rate(item['allowance_bytes_per_s'])}")
    return ", ".join(words) or "open"


def _value(field: str, value: float) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "any" if field == "max_tasks" and not value else f"{value:g}"


def _whose(item: dict[str, Any], field: str) -> str:
    """Where a value comes from that is not set for the datastore."""
    stop = item["settings"]["latency_stop_ms"]
    if field == "latency_throttle_ms" and stop is not None and item["allowed"][field] == stop:
        return "never below the other threshold"
    return "the server's setting"


def _show(door: Door, item: dict[str, Any]) -> None:
    if door.json:
        output.print_json(item)
        return
    rows = [
        ("name", item["name"]),
        ("vcenter", item["vcenter"]),
        ("kind", item["kind"]),
        ("capacity", formats.size(item["capacity_bytes"])),
        ("free", formats.size(item["free_bytes"])),
    ]
    for field, title in _FIELDS.items():
        own = item["settings"][field]
        value = item["allowed"][field]
        shown = _value(field, value)
        rows.append((title, shown if own is not None else f"{shown} ({_whose(item, field)})"))
    rows += [
        ("read latency", _latency(item)),
        ("measured", formats.moment(item["measured_at"])),
        ("not measured because", item["problem"]),
        ("state", _state(item)),
        ("closed since", formats.moment(item["closed_since"])),
        ("running tasks", item["running_tasks"]),
        ("waiting tasks", item["pending_tasks"]),
    ]
    output.facts(rows)


@app.command("show")
@with_door
def show(door: Door, name: NameArgument, vcenter: VcenterOption = None) -> None:
    """Show one datastore."""
    _show(door, _find(door, name, vcenter))


@app.command("edit")
@with_door
def edit(
    door: Door,
    name: NameArgument,
    vcenter: VcenterOption = None,
    max_tasks: Annotated[
        str | None,
        typer.Option(
            "--max-tasks",
            metavar="N",
            help="Tasks at once that read or write it; 0 for no limit, default for the server's setting.",
        ),
    ] = None,
    max_snapshots: Annotated[
        str | None,
        typer.Option("--max-snapshots", metavar="N", help="VM snapshots of vmhaul open on it at once."),
    ] = None,
    latency_stop: Annotated[
        str | None,
        typer.Option(
            "--latency-stop", metavar="MS", help="Read latency above which it is given no new task."
        ),
    ] = None,
    latency_throttle: Annotated[
        str | None,
        typer.Option(
            "--latency-throttle", metavar="MS", help="Read latency above which its tasks are slowed."
        ),
    ] = None,
    latency_control: Annotated[
        bool | None,
        typer.Option(
            "--latency-control/--no-latency-control",
            help="Whether its latency limits anything.",
            show_default=False,
        ),
    ] = None,
    all_default: Annotated[
        bool, typer.Option("--all-default", help="Go by the server's settings again in everything.")
    ] = False,
) -> None:
    """Set what is allowed on a datastore: what is not named stays; `default` takes the server's setting."""
    changes: dict[str, Any] = dict.fromkeys(_FIELDS) if all_default else {}
    numbers = {
        "max_tasks": _number("--max-tasks", max_tasks),
        "max_snapshots": _number("--max-snapshots", max_snapshots),
        "latency_stop_ms": _number("--latency-stop", latency_stop),
        "latency_throttle_ms": _number("--latency-throttle", latency_throttle),
    }
    changes |= {field: value[0] for field, value in numbers.items() if value}
    if latency_control is not None:
        changes["latency_control"] = latency_control
    if not changes:
        raise CliError("nothing to change: name at least one option", Exit.USAGE)
    _show(door, door.api.patch(_path(_find(door, name, vcenter)), changes))


def _number(option: str, text: str | None) -> tuple[int | None] | None:
    """None: not given; (None,): the server's setting."""
    if text is None:
        return None
    if text.strip().lower() == DEFAULT:
        return (None,)
    if not text.strip().isdecimal():
        raise CliError(f"{option} '{text}' is neither a whole number nor {DEFAULT}", Exit.USAGE)
    return (int(text),)
