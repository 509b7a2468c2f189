"""`vmhaul repository add`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from backup_server import formats
from backup_server.cli import output, secrets_in, sizes
from backup_server.cli.door import Door, with_door


def register(app: typer.Typer) -> None:
    app.command("add")(with_door(add))


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
