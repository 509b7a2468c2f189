"""What the commands about repositories share."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from backup_server.cli import output
from backup_server.cli.door import Door
from backup_server.cli.follow import follow

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="Name or id of the repository.")]
NoFollowOption = Annotated[bool, typer.Option("--no-follow", help="Start it and return at once.")]


def start_session(door: Door, path: str, body: dict[str, Any], *, no_follow: bool) -> None:
    session = door.api.post(path, body, slow=True)
    if not no_follow:
        follow(door, session)
    elif door.json:
        output.print_json(session)
    else:
        output.say(f"Session {session['id']} started.")
