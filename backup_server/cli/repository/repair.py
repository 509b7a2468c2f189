"""`vmhaul repository repair`: bring back what is damaged."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from backup_server.cli.client import part
from backup_server.cli.door import Door, with_door
from backup_server.cli.exits import CliError, Exit
from backup_server.cli.repository.common import NameArgument, NoFollowOption, start_session


def register(app: typer.Typer) -> None:
    app.command("repair")(with_door(repair))


def repair(
    door: Door,
    name: NameArgument,
    source: Annotated[
        list[str] | None,
        typer.Option(
            "--from",
            metavar="REPOSITORY",
            help="Look in this repository only; repeat for more. Without it: in all that hold copies of "
            "the restore points, or their originals.",
        ),
    ] = None,
    from_live: Annotated[
        bool,
        typer.Option(
            "--from-live",
            help="Then run the jobs of restore points that are still damaged, reading everything: blocks "
            "that did not change on the disks are brought back.",
        ),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what could be repaired, change nothing.")
    ] = False,
    no_follow: NoFollowOption = False,
) -> None:
    """Read everything, bring back damaged blocks from copies, name what is lost."""
    if dry_run and from_live:
        raise CliError("--dry-run changes nothing, so it goes without --from-live", Exit.USAGE)
    body: dict[str, Any] = {"from_live": from_live, "dry_run": dry_run}
    if source:
        body["sources"] = source
    start_session(door, f"/repositories/{part(name)}/repair", body, no_follow=no_follow)
