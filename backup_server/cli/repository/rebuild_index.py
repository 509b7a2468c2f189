"""`vmhaul repository rebuild-index`."""

from __future__ import annotations

import typer

from backup_server.cli import output
from backup_server.cli.client import part
from backup_server.cli.door import Door, with_door
from backup_server.cli.exits import CliError
from backup_server.cli.repository.common import NameArgument


def register(app: typer.Typer) -> None:
    app.command("rebuild-index")(with_door(rebuild_index))


def rebuild_index(door: Door, name: NameArgument) -> None:
    """Make the index anew from the packs, when a check names damaged or missing index objects.

    Nothing of the data is changed. Backups may go on meanwhile; prunes and commits wait. Check the
    repository afterwards.
    """
    done = door.api.post(f"/repositories/{part(name)}/rebuild-index", {}, slow=True)
    if door.json:
        output.print_json(done)
    else:
        scanned = (
            f", {done['scanned_packs']} of them read blob by blob" if done["scanned_packs"] else ""
        )
        output.say(
            f"The index of repository '{name}' names {done['blobs']} blobs in {done['packs']} packs{scanned}. "
            f"Check it now: `vmhaul repository check {name}`."
        )
    if done["unreadable"]:
        raise CliError(
            f"{len(done['unreadable'])} packs cannot be read: {'; '.join(done['unreadable'][:5])}; "
            f"`vmhaul repository repair {name}` looks for their content elsewhere"
        )
