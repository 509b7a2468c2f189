"""`vmhaul server`: the machines to which vmhaul has access."""

from __future__ import annotations

from typing import Annotated

import typer

from backup_server import formats
from backup_server.cli import output
from backup_server.cli.client import part
from backup_server.cli.door import Door, noun, with_door

app = noun("Managed servers: machines on which vmhaul installs, upgrades and removes proxies.")

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="Name or id of the managed server.")]


@app.command("list")
@with_door
def list_(door: Door) -> None:
    """List the managed servers."""
    items = list(door.api.items("/servers"))
    if door.json:
        output.print_json({"items": items, "next": None})
        return
    output.table(
        ("name", "kind", "address", "user", "credentials", "system", "proxies"),
        [
            (
                item["name"],
                item["kind"],
                f"{item['address']}:{item['port']}",
                item["username"],
                "kept" if item["credentials_kept"] else "asked for",
                item["facts"].get("system"),
                [one["name"] for one in item["proxies"]],
            )
            for item in items
        ],
        empty="No managed server. `vmhaul proxy add user@host` adds one, and a proxy on it.",
    )


@app.command("show")
@with_door
def show(door: Door, name: NameArgument) -> None:
    """Show one managed server, and what is installed on it."""
    server = door.api.get(f"/servers/{part(name)}")
    if door.json:
        output.print_json(server)
        return
    facts = server["facts"]
    output.facts(
        [
            ("name", server["name"]),
            ("id", server["id"]),
            ("kind", server["kind"]),
            ("address", f"{server['address']}:{server['port']}"),
            ("user", server["username"]),
            ("host key", server["host_key"]),
            ("credentials", "kept" if server["credentials_kept"] else "asked for each time"),
            ("system", facts.get("system")),
            ("Python", facts.get("python_version")),
            ("started by", facts.get("init")),
            ("free when looked at", formats.size(facts.get("free_bytes") or 0)),
        ]
    )
    output.table(
        ("proxy", "release", "service", "user", "installed in", "data in"),
        [
            (
                one["name"],
                one.get("release"),
                one.get("places", {}).get("service"),
                one.get("places", {}).get("user"),
                one.get("places", {}).get("install_dir"),
                one.get("places", {}).get("data_dir"),
            )
            for one in server["proxies"]
        ],
        empty="No proxy is installed on it.",
    )


@app.command("remove")
@with_door
def remove(door: Door, name: NameArgument) -> None:
    """Forget a managed server and its credentials; refused while a proxy is installed there."""
    door.api.delete(f"/servers/{part(name)}")
    if not door.json:
        output.say(f"Server '{name}' is managed no longer. Nothing was changed on it.")
