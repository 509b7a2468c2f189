"""`vmhaul repository list` and `show`."""

from __future__ import annotations

from typing import Any

import typer

from backup_server import formats
from backup_server.cli import output
from backup_server.cli.client import part
from backup_server.cli.door import Door, with_door
from backup_server.cli.repository.common import NameArgument


def register(app: typer.Typer) -> None:
    app.command("list")(with_door(list_))
    app.command("show")(with_door(show))


def list_(door: Door) -> None:
    """List the repositories."""
    items = list(door.api.items("/repositories"))
    if door.json:
        output.print_json({"items": items, "next": None})
        return
    output.table(
        ("name", "location", "block", "max tasks", "size", "free"),
        [
            (
                item["name"],
                item["location"],
                formats.size(item["block_size_bytes"]),
                item["max_tasks"],
                formats.size(item.get("total_bytes")),
                formats.size(item.get("free_bytes")),
            )
            for item in items
        ],
        right=("block", "max tasks", "size", "free"),
        empty="No repository yet: create one with `vmhaul repository add NAME PATH`.",
    )


def print_repository(door: Door, repository: dict[str, Any]) -> None:
    if door.json:
        output.print_json(repository)
        return
    output.facts(
        [
            ("name", repository["name"]),
            ("id", repository["id"]),
            ("location", repository["location"]),
            ("repository id", repository.get("repository_id")),
            ("block size", formats.size(repository["block_size_bytes"])),
            ("max tasks", repository["max_tasks"]),
            ("volume", formats.size(repository.get("total_bytes"))),
            ("free", formats.size(repository.get("free_bytes"))),
            ("space as of", formats.moment(repository.get("space_at"))),
        ]
    )


def show(door: Door, name: NameArgument) -> None:
    """Show one repository."""
    print_repository(door, door.api.get(f"/repositories/{part(name)}"))
