"""`vmhaul task`: one VM disk in one session."""

from __future__ import annotations

from typing import Annotated

import typer

from backup_server.cli import output
from backup_server.cli.client import part
from backup_server.cli.door import Door, noun, with_door

app = noun("Tasks: one VM disk in one session.")


@app.callback()
def tasks() -> None:
    """Tasks: one VM disk in one session."""


@app.command("why")
@with_door
def why(
    door: Door,
    task: Annotated[
        str,
        typer.Argument(metavar="TASK", help="Id of the task, or its beginning, from `session show`."),
    ],
) -> None:
    """Tell why a task runs where it runs, or waits and until when: every candidate with the reason."""
    found = door.api.get(f"/tasks/{part(task)}/why")
    if door.json:
        output.print_json(found)
        return
    from backup_server.cli.plan import print_decision

    print_decision(found)
