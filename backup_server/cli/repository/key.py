"""`vmhaul repository key` and `vmhaul repository upgrade`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from backup_server import formats
from backup_server.cli import output, secrets_in
from backup_server.cli.client import part
from backup_server.cli.door import Door, noun, with_door
from backup_server.cli.exits import CliError, Exit
from backup_server.cli.repository.common import NameArgument

LabelOption = Annotated[
    str, typer.Option("--label", metavar="TEXT", help="Whose it is, or where it is kept.")
]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


def register(app: typer.Typer) -> None:
    keys = noun("Keys of a repository: each password, key file and recovery key opens it alone.")
    keys.command("list")(with_door(list_))
    keys.command("add")(with_door(add))
    keys.command("recovery")(with_door(recovery))
    keys.command("change")(with_door(change))
    keys.command("revoke")(with_door(revoke))
    keys.command("rotate")(with_door(rotate))
    keys.command("use")(with_door(use))
    app.add_typer(keys, name="key")
    app.command("upgrade")(with_door(upgrade))


def _path(name: str, more: str = "") -> str:
    return f"/repositories/{part(name)}/keys{more}"


def list_(door: Door, name: NameArgument) -> None:
    """List the keys of a repository. The one that this server opens it with is marked."""
    answer = door.api.get(_path(name))
    if door.json:
        output.print_json(answer)
        return
    output.table(
        ("id", "kind", "label", "created", "server's own"),
        [
            (
                key["id"],
                key["kind"],
                key["label"],
                formats.moment(key["created_at"]),
                "yes" if key["own"] else "",
            )
            for key in answer["keys"]
        ],
        empty="No key could be read.",
    )
    for key in answer["keys"]:
        if key["problem"]:
            output.say(f"Note: {key['problem']}")


def add(
    door: Door,
    name: NameArgument,
    key_file: Annotated[
        Path | None,
        typer.Option("--key-file", metavar="FILE", help="Make a key file there, and no password."),
    ] = None,
    label: LabelOption = "",
    password_stdin: Annotated[
        bool, typer.Option("--password-stdin", help="Read the new password from standard input.")
    ] = False,
) -> None:
    """Add a password, or with --key-file make a key file."""
    if key_file is None:
        password = secrets_in.read_secret(
            "New password", from_stdin=password_stdin, option="--password-stdin", confirm=True
        )
        body = {"kind": "password", "password": password, "label": label}
        key = door.api.post(_path(name), body, slow=True)
    else:
        # The file is made first: a key that nobody can write down must not be added.
        with _new_private_file(key_file) as file:
            key = _made(door, name, "key-file", label, key_file)
            file.write(key.pop("secret"))
            file.flush()
            os.fsync(file.fileno())
    key.pop("secret", None)
    if door.json:
        output.print_json(key)
        return
    where = f" It is in {key_file}: keep it safe." if key_file else ""
    output.say(f"Key {key['id']} ({key['kind']}) opens repository '{name}' now.{where}")


def _new_private_file(path: Path) -> Any:
    try:
        return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w")
    except FileExistsError:
        raise CliError(f"{path} exists already: choose another name", Exit.USAGE) from None
    except OSError as error:
        raise CliError(f"{path} cannot be written: {error.strerror}") from error


def _made(door: Door, name: str, kind: str, label: str, path: Path) -> dict[str, Any]:
    try:
        key: dict[str, Any] = door.api.post(_path(name), {"kind": kind, "label": label}, slow=True)
    except BaseException:
        path.unlink()
        raise
    return key


def recovery(door: Door, name: NameArgument, label: LabelOption = "") -> None:
    """Make a recovery key and print it, this once: for paper, in another place.

    It opens the repository wherever its password is asked for, however it is typed.
    """
    key = door.api.post(_path(name), {"kind": "recovery", "label": label}, slow=True)
    if door.json:
        output.print_json(key)
        return
    output.say(f"Recovery key {key['id']} of repository '{name}'. It is not shown again:")
    output.say(str(key["secret"]))  # in one line, so that it can be pasted and stored as one


def change(
    door: Door,
    name: NameArgument,
    other: Annotated[
        bool, typer.Option("--other", help="Change another password than the server's own: ask for it.")
    ] = False,
    password_stdin: Annotated[
        bool,
        typer.Option(
            "--password-stdin",
            help="Read the new password from standard input; with --other the old one from the line before.",
        ),
    ] = False,
) -> None:
    """Change the password that this server opens the repository with, or with --other another one."""
    body = {}
    if other:
        body["old_password"] = secrets_in.read_secret(
            "Old password", from_stdin=password_stdin, option="--password-stdin"
        )
    body["new_password"] = secrets_in.read_secret(
        "New password", from_stdin=password_stdin, option="--password-stdin", confirm=True
    )
    key = door.api.post(_path(name, "/change"), body, slow=True)
    if door.json:
        output.print_json(key)
    else:
        output.say(
            f"The password was changed; the key is {key['id']} now. The old password opens nothing."
        )


def revoke(
    door: Door,
    name: NameArgument,
    key: Annotated[str, typer.Argument(metavar="KEY", help="Id of the key, or its beginning.")],
    yes: YesOption = False,
) -> None:
    """Delete a key: it opens the repository no longer.

    Who had it may have kept what it opens. `key rotate` afterwards keeps new data from them.
    """
    secrets_in.confirm(f"Revoke key {key} of repository '{name}'?", assume_yes=yes, option="--yes")
    door.api.delete(_path(name, f"/{part(key)}"))
    if not door.json:
        output.say(
            f"Key {key} is revoked. To keep new data from who had it: `vmhaul repository key rotate {name}`"
        )


def rotate(
    door: Door,
    name: NameArgument,
    without: Annotated[
        list[str] | None,
        typer.Option(
            "--without",
            metavar="KEY",
            help="A key that is not given the new one, where immutable storage keeps it from being deleted.",
        ),
    ] = None,
) -> None:
    """Encrypt new data with a new key, which all present keys open. Old data stays as it is."""
    answer = door.api.post(_path(name, "/rotate"), {"without": without or []}, slow=True)
    if door.json:
        output.print_json(answer)
    else:
        output.say(
            f"New data of repository '{name}' is encrypted with the key of epoch {answer['key_epoch']} from "
            "the next task on."
        )


def use(
    door: Door,
    name: NameArgument,
    key_file: Annotated[
        Path | None, typer.Option("--key-file", metavar="FILE", help="A key file, and no password.")
    ] = None,
    password_stdin: Annotated[
        bool,
        typer.Option("--password-stdin", help="Read the password or recovery key from standard input."),
    ] = False,
) -> None:
    """Tell the server what to open the repository with, where what it stores was changed or revoked elsewhere."""
    password = read_key(key_file, password_stdin=password_stdin)
    key = door.api.post(_path(name, "/use"), {"password": password}, slow=True)
    if door.json:
        output.print_json(key)
    else:
        output.say(f"The server opens repository '{name}' with key {key['id']} ({key['kind']}) now.")


def read_key(key_file: Path | None, *, password_stdin: bool) -> str:
    """The text of a key file, or the password or recovery key that is asked for."""
    if key_file is None:
        return secrets_in.read_secret(
            "Repository password or recovery key", from_stdin=password_stdin, option="--password-stdin"
        )
    try:
        return key_file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CliError(f"{key_file} cannot be read as a key file: {error}") from error


def upgrade(door: Door, name: NameArgument, yes: YesOption = False) -> None:
    """Give a repository what this release can do. Older releases cannot open it from then on."""
    secrets_in.confirm(
        f"Upgrade repository '{name}'? Older vmhauls refuse it from then on.",
        assume_yes=yes,
        option="--yes",
    )
    answer = door.api.post(f"/repositories/{part(name)}/upgrade", {}, slow=True)
    if door.json:
        output.print_json(answer)
    elif answer["added"]:
        output.say(f"Repository '{name}' has {', '.join(answer['added'])} now.")
    else:
        output.say(f"Repository '{name}' has everything already.")
