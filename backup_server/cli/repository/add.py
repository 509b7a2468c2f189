"""`vmhaul repository add`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from backup_server import formats
from backup_server.cli import output, secrets_in, sizes
from backup_server.cli.door import Door, with_door
from backup_server.cli.exits import CliError, Exit
from backup_server.cli.repository import storage_options
from backup_server.cli.repository.key import read_key


def register(app: typer.Typer) -> None:
    app.command("add")(with_door(add))


def add(
    door: Door,
    name: Annotated[str, typer.Argument(metavar="NAME", help="What to call it.")],
    path: Annotated[
        str,
        typer.Argument(
            metavar="PLACE",
            help="Directory, as server and proxies see it, or a bucket: s3://, az:// or gs://.",
        ),
    ],
    password_stdin: Annotated[
        bool,
        typer.Option("--password-stdin", help="Read the repository's password from standard input."),
    ] = False,
    block_size: Annotated[
        str | None,
        typer.Option(
            "--block-size",
            metavar="SIZE",
            help="Grid of deduplication: 256KiB, 512KiB, 1MiB (the default) or 4MiB. Smaller finds more that is "
            "equal, larger needs less index.",
        ),
    ] = None,
    max_tasks: Annotated[
        int | None,
        typer.Option("--max-tasks", min=1, help="Disks that may be written at the same time."),
    ] = None,
    import_: Annotated[
        bool, typer.Option("--import", help="Take over an existing repository with its restore points.")
    ] = False,
    access_key_id: storage_options.AccessKeyOption = None,
    secret_access_key_file: storage_options.SecretKeyFileOption = None,
    account_key_file: storage_options.AccountKeyFileOption = None,
    sas_token_file: storage_options.SasTokenFileOption = None,
    service_account_file: storage_options.ServiceAccountFileOption = None,
    immutable_days: storage_options.ImmutableDaysOption = None,
    key_file: Annotated[
        Path | None,
        typer.Option(
            "--key-file", metavar="FILE", help="With --import: a key file instead of a password."
        ),
    ] = None,
) -> None:
    """Create a repository, or take over an existing one with --import.

    Without its password nothing can be restored: keep it in a second place. With --import a recovery key is
    good in place of the password.
    """
    secrets = storage_options.storage_secrets(
        access_key_id=access_key_id,
        secret_access_key_file=secret_access_key_file,
        account_key_file=account_key_file,
        sas_token_file=sas_token_file,
        service_account_file=service_account_file,
    )
    if key_file is not None and not import_:
        raise CliError(
            "--key-file goes with --import; a new repository gets one with `vmhaul repository key add`",
            Exit.USAGE,
        )
    if import_:
        password = read_key(key_file, password_stdin=password_stdin)
    else:
        password = secrets_in.read_secret(
            "Repository password", from_stdin=password_stdin, option="--password-stdin", confirm=True
        )
    # The server may run elsewhere, but a relative path can only mean this shell's directory.
    as_it_is = door.remote or storage_options.is_bucket(path)
    location = path if as_it_is else str(Path(path).expanduser().absolute())
    body: dict[str, Any] = {"name": name, "location": location, "password": password, "import": import_}
    if block_size:
        body["block_size_bytes"] = sizes.parse_size(block_size)
    if max_tasks:
        body["max_tasks"] = max_tasks
    if secrets:
        body["storage_secrets"] = secrets
    if immutable_days:
        body["immutable_days"] = immutable_days
    repository = door.api.post("/repositories", body, slow=True)
    if door.json:
        output.print_json(repository)
        return
    done = "taken over" if import_ else "created"
    output.say(
        f"Repository '{name}' {done} at {repository['location']}, blocks of "
        f"{formats.size(repository['block_size_bytes'])}. Keep its password: nothing can be restored without it. "
        f"A second way in, on paper: `vmhaul repository key recovery {name}`."
    )
