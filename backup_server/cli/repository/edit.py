"""`vmhaul repository edit` and `remove`."""

from __future__ import annotations

from typing import Annotated

import typer

from backup_server.cli import output
from backup_server.cli.client import part
from backup_server.cli.door import Door, with_door
from backup_server.cli.exits import CliError, Exit
from backup_server.cli.repository.common import NameArgument
from backup_server.cli.repository.show import print_repository


def register(app: typer.Typer) -> None:
    app.command("edit")(with_door(edit))
    app.command("remove")(with_door(remove))


def edit(
    door: Door,
    name: NameArgument,
    new_name: Annotated[str | None, typer.Option("--name", help="New name.")] = None,
    max_tasks: Annotated[
        int | None,
        typer.Option("--max-tasks", min=1, help="Disks that may be written at the same time."),
    ] = None,
) -> None:
    """Change a repository: what is not named stays."""
    changes = {
        key: value for key, value in (("name", new_name), ("max_tasks", max_tasks)) if value is not None
    }
    if not changes:
        raise CliError("nothing to change: name at least one option", Exit.USAGE)
    print_repository(door, door.api.patch(f"/repositories/{part(name)}", changes))


def remove(door: Door, name: NameArgument) -> None:
    """Forget a repository; its data stays where it is."""
    door.api.delete(f"/repositories/{part(name)}")
    if not door.json:
        output.say(f"Repository '{name}' forgotten. Its data was not touched.")
