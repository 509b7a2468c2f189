"""`vmhaul keys`: a server's keys for a second one. Works on files of this machine, never over the API: keys do not
leave by a door that a token opens.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from backup_server import key_transfer
from backup_server.cli import output, secrets_in
from backup_server.cli.client import default_data_dir
from backup_server.cli.door import (
    DataOption,
    JsonOption,
    data_option,
    errors_on_stderr,
    json_option,
    noun,
)
from backup_server.cli.exits import CliError
from backup_server.errors import VmhaulError

app = noun("A server's keys in one sealed file, for a second server on the same database.")

PasswordOption = Annotated[
    bool, typer.Option("--password-stdin", help="Read the file's password from standard input.")
]


@app.command("export")
def export(
    ctx: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Is made; must not be there yet.")],
    password_stdin: PasswordOption = False,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write the keys of the server on this machine into a file that a password seals.

    Whoever has the file and its password can read every stored password and speak for the server.
    """
    with errors_on_stderr():
        _refuse_existing(file)
        password = secrets_in.read_secret(
            "password of the file", from_stdin=password_stdin, option="--password-stdin", confirm=True
        )
        try:
            _write_new(file, key_transfer.export_keys(_directory(ctx, data), password))
        except VmhaulError as error:
            raise CliError(error.message) from error
        except OSError as error:
            raise CliError(f"{error.filename or file}: {error.strerror}") from error
        authority = (_directory(ctx, data) / key_transfer.AUTHORITY_FILES[0]).exists()
    if json_option(ctx, as_json):
        output.print_json({"file": str(file), "authority": authority})
        return
    output.say(f"{file} holds the keys. Import it on the second machine, then delete it.")
    if not authority:
        output.say(
            "There is no certificate authority yet. When this server gets a door for remote proxies, export again."
        )


@app.command("import")
def import_(
    ctx: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="As `vmhaul keys export` wrote it.")],
    password_stdin: PasswordOption = False,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Put the keys into the data directory of a server on this machine, before its first start.

    Keys that are there already are never overwritten: other ones are refused.
    """
    with errors_on_stderr():
        try:
            with file.open("rb") as source:
                content = source.read(key_transfer.MAX_FILE_BYTES)
        except OSError as error:
            raise CliError(f"{file} cannot be read: {error.strerror}") from error
        password = secrets_in.read_secret(
            "password of the file", from_stdin=password_stdin, option="--password-stdin"
        )
        directory = _directory(ctx, data)
        try:
            done = key_transfer.import_keys(directory, content.decode("utf-8", "replace"), password)
        except VmhaulError as error:
            raise CliError(error.message) from error
        except OSError as error:
            raise CliError(f"{error.filename or directory}: {error.strerror}") from error
    if json_option(ctx, as_json):
        output.print_json({"written": list(done.written), "same": list(done.same)})
        return
    if done.written:
        output.say(f"Written into {directory}: {', '.join(done.written)}. Delete {file} now.")
    if done.same:
        output.say(f"There already, and the same: {', '.join(done.same)}.")


def _directory(ctx: typer.Context, data: Path | None) -> Path:
    return (data_option(ctx, data) or default_data_dir()).expanduser().absolute()


def _write_new(file: Path, text: str) -> None:
    """Durable, for its owner alone; whole or not at all. OSError."""
    handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(handle, "w") as out:
            out.write(text)
            out.flush()
            os.fsync(out.fileno())
    except OSError:
        file.unlink(missing_ok=True)
        raise


def _refuse_existing(file: Path) -> None:
    """Before the password is asked for."""
    if file.exists():
        raise CliError(f"{file} exists: name another file, or remove that one")
