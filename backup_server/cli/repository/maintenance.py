"""`vmhaul repository check`, `verify`, `rescan` and `prune`: work on what a repository holds."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from backup_server.cli import sizes
from backup_server.cli.client import part
from backup_server.cli.door import Door, with_door
from backup_server.cli.repository.common import NameArgument, NoFollowOption, start_session

SampleOption = Annotated[
    str | None,
    typer.Option(
        "--sample", metavar="SHARE", help="Read the data of this share of the packs, as in 5% or 0.05."
    ),
]


def register(app: typer.Typer) -> None:
    app.command("check")(with_door(check))
    app.command("verify")(with_door(verify))
    app.command("rescan")(with_door(rescan))
    app.command("prune")(with_door(prune))


def check(
    door: Door,
    name: NameArgument,
    read_data: Annotated[
        bool, typer.Option("--read-data", help="Read and verify every block, not the structure alone.")
    ] = False,
    sample: SampleOption = None,
    no_follow: NoFollowOption = False,
) -> None:
    """Check that everything in the repository can be restored: its structure, or the data too."""
    body = _asked(read_data=read_data, sample=sample)
    start_session(door, f"/repositories/{part(name)}/check", body, no_follow=no_follow)


def verify(
    door: Door,
    name: NameArgument,
    read_data: Annotated[
        bool, typer.Option("--read-data", help="Read all data, not only the next share.")
    ] = False,
    sample: SampleOption = None,
    no_follow: NoFollowOption = False,
) -> None:
    """Verify the next share of the data, as the repository's schedule would (see `repository edit`).

    Each verification goes on where the last one ended, so that nothing is read twice before all was read.
    """
    body = _asked(read_data=read_data, sample=sample)
    start_session(door, f"/repositories/{part(name)}/verify", body, no_follow=no_follow)


def _asked(*, read_data: bool, sample: str | None) -> dict[str, Any]:
    body: dict[str, Any] = {"read_data": read_data}
    if sample is not None:
        body["sample_share"] = sizes.parse_share(sample, "--sample")
    return body


def rescan(door: Door, name: NameArgument, no_follow: NoFollowOption = False) -> None:
    """Bring the catalogue of restore points to what the repository holds."""
    start_session(door, f"/repositories/{part(name)}/rescan", {}, no_follow=no_follow)


def prune(door: Door, name: NameArgument, no_follow: NoFollowOption = False) -> None:
    """Free the space of restore points that were deleted."""
    start_session(door, f"/repositories/{part(name)}/prune", {}, no_follow=no_follow)
