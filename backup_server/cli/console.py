"""`vmhaul console` and `vmhaul version`."""

from __future__ import annotations

import typer

from backup_server.cli import output
from backup_server.cli.door import Door, with_door
from backup_server.cli.exits import CliError, Exit


def register(app: typer.Typer) -> None:
    app.command("console")(with_door(console))
    app.command("version")(with_door(version))


def console(door: Door) -> None:
    """Print a link that opens the console; it works once, for ten minutes."""
    link = door.api.post("/console-links")
    if door.json:
        output.print_json(link)
    else:
        output.say(door.api.url + link["path"])


def version(door: Door) -> None:
    """Print the version of this command and of the server, when one answers."""
    from importlib.metadata import version as installed

    own = installed("vmhaul")
    try:
        about = door.api.get("/about")
    except CliError as error:
        if error.code is not Exit.UNREACHABLE:
            raise
        about = None
    if door.json:
        output.print_json({"version": own, "server": about})
        return
    output.say(f"vmhaul {own}")
    if about:
        output.say(f"server {about['version']} at {door.api.url}")
