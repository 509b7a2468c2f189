"""`vmhaul repository recover`."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import typer

from backup_server.cli import output, secrets_in
from backup_server.cli.client import part
from backup_server.cli.door import Door, with_door
from backup_server.cli.exits import CliError, Exit
from backup_server.cli.repository.common import NameArgument


def register(app: typer.Typer) -> None:
    app.command("recover")(with_door(recover))


def recover(
    door: Door,
    name: NameArgument,
    as_of: Annotated[
        str,
        typer.Option(
            "--as-of",
            metavar="TIME",
            help="The bucket as it was then, such as 2026-11-23T02:00:00+01:00; without a zone: this machine's.",
        ),
    ],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Bring a bucket with object lock back to an earlier time, after somebody deleted or replaced objects in it.

    Objects that came later are set aside: choose a time right before the attack. Check the repository
    afterwards.
    """
    try:
        moment = datetime.fromisoformat(as_of).astimezone()
    except ValueError as error:
        raise CliError(f"--as-of {as_of!r} is no time: {error}", Exit.USAGE) from error
    secrets_in.confirm(
        f"Bring repository '{name}' back to {moment:%Y-%m-%d %H:%M:%S %z}?",
        assume_yes=yes,
        option="--yes",
    )
    done = door.api.post(
        f"/repositories/{part(name)}/recover", {"as_of": moment.isoformat()}, slow=True
    )
    if door.json:
        output.print_json(done)
    else:
        output.say(
            f"Repository '{name}' is as it was: {done['uncovered']} objects brought back, {done['set_aside']} set "
            f"aside, {done['rebuilt_packs']} packs indexed again, {done['restore_points']} restore points. "
            f"Check it now: `vmhaul repository check {name} --read-data`."
        )
    if done["lost"]:
        raise CliError(
            f"{len(done['lost'])} objects could not be brought back: {', '.join(done['lost'][:5])}"
        )
