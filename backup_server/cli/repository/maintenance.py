"""`vmhaul repository check`, `rescan` and `prune`: work on what a repository holds."""

from __future__ import annotations

from typing import Annotated

import typer

from backup_server.cli.client import part
from backup_server.cli.door import Door, with_door
from backup_server.cli.repository.common import NameArgument, NoFollowOption, start_session


def register(app: typer.Typer) -> None:
    app.command("check")(with_door(check))
    app.command("rescan")(with_door(rescan))
    app.command("prune")(with_door(prune))


def check(
    door: Door,
    name: NameArgument,
    read_data: Annotated[
        bool, typer.Option("--read-data", help="Read and verify every block, not the structure alone.")
    ] = False,
    sample: Annotated[
        float, typer.Option("--sample", min=0.0, max=1.0, help="Share of the packs to read, 0 to 1.")
    ] = 0.0,
    no_follow: NoFollowOption = False,
) -> None:
    """Check that everything in the repository can be restored."""
    body = {"read_data": read_data, "sample_share": sample}
    start_session(door, f"/repositories/{part(name)}/check", body, no_follow=no_follow)


def rescan(door: Door, name: NameArgument, no_follow: NoFollowOption = False) -> None:
    """Bring the catalogue of restore points to what the repository holds."""
    start_session(door, f"/repositories/{part(name)}/rescan", {}, no_follow=no_follow)


def prune(door: Door, name: NameArgument, no_follow: NoFollowOption = False) -> None:
    """Free the space of restore points that were deleted."""
    start_session(door, f"/repositories/{part(name)}/prune", {}, no_follow=no_follow)
