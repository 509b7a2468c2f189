"""`vmhaul repository extent`: the places of a scale-out repository."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from backup_server import formats
from backup_server.cli import output, secrets_in
from backup_server.cli.client import part
from backup_server.cli.door import Door, noun, with_door
from backup_server.cli.repository import storage_options
from backup_server.cli.repository.common import NameArgument, NoFollowOption, start_session

ExtentArgument = Annotated[str, typer.Argument(metavar="EXTENT", help="Name of the extent.")]


def register(app: typer.Typer) -> None:
    extents = noun("Extents: several directories or buckets that are one repository.")
    extents.command("list")(with_door(list_))
    extents.command("add")(with_door(add))
    extents.command("seal")(with_door(seal))
    extents.command("maintenance")(with_door(maintenance))
    extents.command("activate")(with_door(activate))
    extents.command("evacuate")(with_door(evacuate))
    extents.command("remove")(with_door(remove))
    app.add_typer(extents, name="extent")


def _path(name: str, more: str = "") -> str:
    return f"/repositories/{part(name)}/extents{more}"


def _show(door: Door, answer: dict[str, Any]) -> None:
    if door.json:
        output.print_json(answer)
        return
    output.table(
        ("name", "state", "location", "packs", "packs' size", "size", "free"),
        [
            (
                extent["name"],
                extent["state"],
                extent["location"],
                "" if extent["packs"] is None else extent["packs"],
                formats.size(extent["pack_bytes"]),
                formats.size(extent["total_bytes"]),
                formats.size(extent["free_bytes"]),
            )
            for extent in answer["extents"]
        ],
        right=("packs", "packs' size", "size", "free"),
        empty="No extent.",
    )
    for extent in answer["extents"]:
        if extent["problem"]:
            output.say(f"Note: {extent['name']}: {extent['problem']}")


def list_(door: Door, name: NameArgument) -> None:
    """List the extents of a repository, with the space and the packs of each."""
    _show(door, door.api.get(_path(name), slow=True))


def add(
    door: Door,
    name: NameArgument,
    extent: ExtentArgument,
    path: Annotated[
        str, typer.Argument(metavar="PATH", help="Directory or bucket, as server and proxies see it.")
    ],
    first: Annotated[
        str,
        typer.Option(
            "--first", metavar="EXTENT", help="What to call the place that the repository has so far."
        ),
    ] = "first",
) -> None:
    """Add a place to a repository. New packs go where the most space is.

    The first one that is added makes it a scale-out repository. Buckets are opened with the repository's own
    storage secrets.
    """
    as_it_is = door.remote or storage_options.is_bucket(path)
    location = path if as_it_is else str(Path(path).expanduser().absolute())
    body = {"name": extent, "location": location, "first_name": first}
    _show(door, door.api.post(_path(name), body, slow=True))


def _set(door: Door, name: str, extent: str, state: str) -> None:
    _show(door, door.api.patch(_path(name, f"/{part(extent)}"), {"state": state}, slow=True))


def seal(door: Door, name: NameArgument, extent: ExtentArgument) -> None:
    """Let an extent take no new data. It is read and pruned as before."""
    _set(door, name, extent, "sealed")


def maintenance(door: Door, name: NameArgument, extent: ExtentArgument) -> None:
    """Leave an extent alone. Restores of what lies there fail, and say so, until it is activated."""
    _set(door, name, extent, "maintenance")


def activate(door: Door, name: NameArgument, extent: ExtentArgument) -> None:
    """Use an extent again for everything. What it missed meanwhile is brought over first."""
    _set(door, name, extent, "active")


def evacuate(
    door: Door, name: NameArgument, extent: ExtentArgument, no_follow: NoFollowOption = False
) -> None:
    """Move the packs of an extent to the active ones. It is sealed first; may be repeated at any time."""
    start_session(door, _path(name, f"/{part(extent)}/evacuate"), {}, no_follow=no_follow)


def remove(
    door: Door,
    name: NameArgument,
    extent: ExtentArgument,
    lost: Annotated[
        bool,
        typer.Option("--lost", help="It will never come back. A check then says which points it hits."),
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Take an evacuated extent out of a repository; its directory or bucket stays."""
    if lost:
        question = f"Give extent '{extent}' of repository '{name}' up, with all packs in it?"
        secrets_in.confirm(question, assume_yes=yes, option="--yes")
    query = {"lost": True} if lost else {}
    _show(door, door.api.delete(_path(name, f"/{part(extent)}"), **query))
