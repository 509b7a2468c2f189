"""`vmhaul traffic`: how fast data may move between two sets of addresses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import typer

from backup_server.cli import output
from backup_server.cli.client import part
from backup_server.cli.door import Door, noun, with_door
from backup_server.cli.exits import CliError, Exit

app = noun("Traffic rules: how fast data may move between addresses, and whether in the clear.")

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="Name or id of the traffic rule.")]
SourceOption = Annotated[
    list[str] | None,
    typer.Option(
        "--source",
        metavar="ADDRESSES",
        help="A network (192.0.2.0/24), a range (192.0.2.1-192.0.2.9), an address or any; repeat for more.",
    ),
]
TargetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--target",
        metavar="ADDRESSES",
        help="The other end, in the same form. The rule holds in both directions.",
    ),
]
RateOption = Annotated[
    str | None,
    typer.Option(
        "--rate",
        metavar="RATE",
        help="For all tasks together that it covers, as in 200Mbit or 50MB/s; unlimited.",
    ),
]
HoursOption = Annotated[
    list[str] | None,
    typer.Option(
        "--hours",
        metavar="HOURS=RATE",
        help="Another rate in weekly hours, as in 'mon-fri 08:00-18:00=20Mbit'; repeat for more. The first that "
        "is open counts.",
    ),
]
ZoneOption = Annotated[
    str | None,
    typer.Option(
        "--time-zone", metavar="ZONE", help="Time zone of --hours, as in Europe/Berlin; UTC by default."
    ),
]
RestoresOption = Annotated[
    bool | None,
    typer.Option(
        "--restores/--no-restores",
        help="Hold restores to the rate as well; they are not by default.",
        show_default=False,
    ),
]
EncryptOption = Annotated[
    bool | None,
    typer.Option(
        "--encrypt/--no-encrypt",
        help="Refuse what would cross in the clear: nbd, NFS, iSCSI, object storage by http://.",
        show_default=False,
    ),
]


def hours_of(
    texts: Sequence[str], time_zone: str | None, option: str = "--hours"
) -> list[dict[str, Any]]:
    """CliError (usage), naming the option, for what is not HOURS=RATE."""
    found: list[dict[str, Any]] = []
    for text in texts:
        hours, equals, rate = text.rpartition("=")
        if not equals or not hours.strip() or not rate.strip():
            raise CliError(
                f"{option} '{text}' is not HOURS=RATE, as in 'mon-fri 08:00-18:00=20Mbit'", Exit.USAGE
            )
        window = {"text": hours.strip(), **({"time_zone": time_zone} if time_zone else {})}
        found.append({"window": window, "rate": rate.strip()})
    return found


@app.command("add")
@with_door
def add(
    door: Door,
    name: Annotated[str, typer.Argument(metavar="NAME", help="What to call it.")],
    source: SourceOption = None,
    target: TargetOption = None,
    rate: RateOption = None,
    hours: HoursOption = None,
    time_zone: ZoneOption = None,
    restores: RestoresOption = None,
    encrypt: EncryptOption = None,
) -> None:
    """Add a traffic rule. It holds at once, for tasks that run as well."""
    if not source or not target:
        raise CliError("name both ends: --source and --target (any, for all addresses)", Exit.USAGE)
    body: dict[str, Any] = {"name": name, "source": source, "target": target, "rate": rate}
    body |= _changes(hours, time_zone, restores, encrypt)
    rule = door.api.post("/traffic-rules", body)
    _show(door, rule)
    _warn_of_running(door, rule)


def _changes(
    hours: list[str] | None, time_zone: str | None, restores: bool | None, encrypt: bool | None
) -> dict[str, Any]:
    if time_zone and not hours:
        raise CliError("--time-zone needs --hours", Exit.USAGE)
    found: dict[str, Any] = {}
    if hours:
        found["windows"] = hours_of(hours, time_zone)
    if restores is not None:
        found["restores"] = restores
    if encrypt is not None:
        found["encrypt"] = encrypt
    return found


def _warn_of_running(door: Door, rule: dict[str, Any]) -> None:
    if not door.json and rule["encrypt"] and rule["enabled"]:
        output.note(
            "Running tasks whose data cross there in the clear stop in order within seconds, and go on in another way "
            "from what is stored; `vmhaul session log` names them. One that has no other way waits, and "
            "`vmhaul task why` says for what."
        )


@app.command("list")
@with_door
def list_(door: Door) -> None:
    """List the traffic rules with the rates that hold now."""
    items = list(door.api.items("/traffic-rules"))
    if door.json:
        output.print_json({"items": items, "next": None})
        return
    output.table(
        ("name", "enabled", "source", "target", "rate", "now", "restores", "encrypt"),
        [
            (
                item["name"],
                item["enabled"],
                ", ".join(item["source"]),
                ", ".join(item["target"]),
                item["rate"],
                item["rate_now"] if item["enabled"] else "-",
                item["restores"],
                item["encrypt"],
            )
            for item in items
        ],
        empty="No traffic rule: data moves as fast as it can. Add one with `vmhaul traffic add`.",
    )


def _show(door: Door, rule: dict[str, Any]) -> None:
    if door.json:
        output.print_json(rule)
        return
    output.facts(
        [
            ("name", rule["name"]),
            ("id", rule["id"]),
            ("enabled", rule["enabled"]),
            ("source", ", ".join(rule["source"])),
            ("target", ", ".join(rule["target"])),
            ("rate", rule["rate"]),
            *(
                (f"rate {one['hours']} ({one['window']['time_zone']})", one["rate"])
                for one in rule["windows"]
            ),
            ("rate now", rule["rate_now"] if rule["enabled"] else "- (switched off)"),
            ("holds restores", rule["restores"]),
            ("asks for encryption", rule["encrypt"]),
        ]
    )


@app.command("show")
@with_door
def show(door: Door, name: NameArgument) -> None:
    """Show one traffic rule."""
    _show(door, door.api.get(f"/traffic-rules/{part(name)}"))


@app.command("edit")
@with_door
def edit(
    door: Door,
    name: NameArgument,
    new_name: Annotated[str | None, typer.Option("--name", help="New name.")] = None,
    source: SourceOption = None,
    target: TargetOption = None,
    rate: RateOption = None,
    hours: HoursOption = None,
    no_hours: Annotated[bool, typer.Option("--no-hours", help="The same rate at all hours.")] = False,
    time_zone: ZoneOption = None,
    restores: RestoresOption = None,
    encrypt: EncryptOption = None,
    enabled: Annotated[
        bool | None,
        typer.Option("--enable/--disable", help="Whether it holds.", show_default=False),
    ] = None,
) -> None:
    """Change a traffic rule: what is not named stays; addresses and hours named replace the old ones."""
    changes = _changes(hours, time_zone, restores, encrypt)
    if no_hours:
        changes["windows"] = []
    named = {"name": new_name, "source": source, "target": target, "rate": rate, "enabled": enabled}
    changes |= {field: value for field, value in named.items() if value is not None and value != []}
    if not changes:
        raise CliError("nothing to change: name at least one option", Exit.USAGE)
    rule = door.api.patch(f"/traffic-rules/{part(name)}", changes)
    _show(door, rule)
    _warn_of_running(door, rule)


@app.command("remove")
@with_door
def remove(door: Door, name: NameArgument) -> None:
    """Remove a traffic rule; tasks that it held go on as fast as they can."""
    door.api.delete(f"/traffic-rules/{part(name)}")
    if not door.json:
        output.say(f"Traffic rule '{name}' removed.")
