"""`vmhaul repository`: where restore points are kept."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from backup_server import formats
from backup_server.cli import output, secrets_in, sizes
from backup_server.cli.client import part
from backup_server.cli.door import Door, noun, with_door
from backup_server.cli.exits import CliError, Exit
from backup_server.cli.follow import follow

app = noun("Repositories: where restore points are kept.")

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="Name or id of the repository.")]
NoFollowOption = Annotated[bool, typer.Option("--no-follow", help="Start it and return at once.")]


@app.command("add")
@with_door
def add(
    door: Door,
    name: Annotated[str, typer.Argument(metavar="NAME", help="What to call it.")],
    path: Annotated[
        str, typer.Argument(metavar="PATH", help="Directory, as server and proxies see it.")
    ],
    password_stdin: Annotated[
        bool,
        typer.Option("--password-stdin", help="Read the repository's password from standard input."),
    ] = False,
    block_size: Annotated[
        str | None,
        typer.Option("--block-size", metavar="SIZE", help="Grid of deduplication; 1MiB by default."),
    ] = None,
    max_tasks: Annotated[
        int | None,
        typer.Option("--max-tasks", min=1, help="Disks that may be written at the same time."),
    ] = None,
    import_: Annotated[
        bool, typer.Option("--import", help="Take over an existing repository with its restore points.")
    ] = False,
) -> None:
    """Create a repository, or take over an existing one with --import.

    Without its password nothing can be restored: keep it in a second place.
    """
    password = secrets_in.read_secret(
        "Repository password",
        from_stdin=password_stdin,
        option="--password-stdin",
        confirm=not import_,
    )
    # The server may run elsewhere, but a relative path can only mean this shell's directory.
    location = path if door.remote else str(Path(path).expanduser().absolute())
    body: dict[str, Any] = {"name": name, "location": location, "password": password, "import": import_}
    if block_size:
        body["block_size_bytes"] = sizes.parse_size(block_size)
    if max_tasks:
        body["max_tasks"] = max_tasks
    repository = door.api.post("/repositories", body, slow=True)
    if door.json:
        output.print_json(repository)
        return
    done = "taken over" if import_ else "created"
    output.say(
        f"Repository '{name}' {done} at {repository['location']}, blocks of "
        f"{formats.size(repository['block_size_bytes'])}. Keep its password: nothing can be restored without it."
    )


@app.command("list")
@with_door
def list_(door: Door) -> None:
    """List the repositories."""
    items = list(door.api.items("/repositories"))
    if door.json:
        output.print_json({"items": items, "next": None})
        return
    output.table(
        ("name", "location", "block", "max tasks", "size", "free"),
        [
            (
                item["name"],
                item["location"],
                formats.size(item["block_size_bytes"]),
                item["max_tasks"],
                formats.size(item.get("total_bytes")),
                formats.size(item.get("free_bytes")),
            )
            for item in items
        ],
        right=("block", "max tasks", "size", "free"),
        empty="No repository yet: create one with `vmhaul repository add NAME PATH`.",
    )


def _show(door: Door, repository: dict[str, Any]) -> None:
    if door.json:
        output.print_json(repository)
        return
    output.facts(
        [
            ("name", repository["name"]),
            ("id", repository["id"]),
            ("location", repository["location"]),
            ("repository id", repository.get("repository_id")),
            ("block size", formats.size(repository["block_size_bytes"])),
            ("max tasks", repository["max_tasks"]),
            ("volume", formats.size(repository.get("total_bytes"))),
            ("free", formats.size(repository.get("free_bytes"))),
            ("space as of", formats.moment(repository.get("space_at"))),
        ]
    )


@app.command("show")
@with_door
def show(door: Door, name: NameArgument) -> None:
    """Show one repository."""
    _show(door, door.api.get(f"/repositories/{part(name)}"))


@app.command("edit")
@with_door
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
    _show(door, door.api.patch(f"/repositories/{part(name)}", changes))


@app.command("remove")
@with_door
def remove(door: Door, name: NameArgument) -> None:
    """Forget a repository; its data stays where it is."""
    door.api.delete(f"/repositories/{part(name)}")
    if not door.json:
        output.say(f"Repository '{name}' forgotten. Its data was not touched.")


def _session(door: Door, path: str, body: dict[str, Any], *, no_follow: bool) -> None:
    session = door.api.post(path, body, slow=True)
    if not no_follow:
        follow(door, session)
    elif door.json:
        output.print_json(session)
    else:
        output.say(f"Session {session['id']} started.")


@app.command("check")
@with_door
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
    _session(door, f"/repositories/{part(name)}/check", body, no_follow=no_follow)


@app.command("rescan")
@with_door
def rescan(door: Door, name: NameArgument, no_follow: NoFollowOption = False) -> None:
    """Bring the catalogue of restore points to what the repository holds."""
    _session(door, f"/repositories/{part(name)}/rescan", {}, no_follow=no_follow)


@app.command("prune")
@with_door
def prune(door: Door, name: NameArgument, no_follow: NoFollowOption = False) -> None:
    """Free the space of restore points that were deleted."""
    _session(door, f"/repositories/{part(name)}/prune", {}, no_follow=no_follow)
