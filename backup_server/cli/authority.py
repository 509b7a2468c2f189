"""`vmhaul proxy new-authority`: on the server's machine, without a server."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

import typer

from backup_server import server_certificates
from backup_server.cli import output, secrets_in
from backup_server.cli.client import default_data_dir
from backup_server.cli.door import DataOption, JsonOption, data_option, errors_on_stderr, json_option
from backup_server.cli.exits import CliError
from backup_server.errors import VmhaulError
from backup_server.up.lock import UpLock
from backup_server.up.options import UpError


def register(app: typer.Typer) -> None:
    app.command("new-authority")(new_authority)


def new_authority(
    ctx: typer.Context,
    data: DataOption = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Make a new certificate authority for the proxies' door, when its key is lost or known to others.

    On the server's machine, while `vmhaul up` is stopped. Proxies know the server by its authority: each one on another
    machine must join again with a token of `vmhaul proxy token NAME`. The old files stay in `tls/` under other names.
    """
    now = datetime.now(UTC)
    with errors_on_stderr():
        directory = (data_option(ctx, data) or default_data_dir()).expanduser().absolute()
        if not (directory / "tls").is_dir():
            raise CliError(
                f"{directory} has no certificate authority; name the server's data directory with --data"
            )
        secrets_in.confirm(
            "Must every proxy on another machine join again?", assume_yes=yes, option="--yes"
        )
        try:
            (directory / "run").mkdir(mode=0o700, exist_ok=True)
            with UpLock(directory / "run"):
                kept = server_certificates.make_new_authority(directory / "tls", now)
                sha256 = server_certificates.ca_sha256(directory / "tls", now)
        except (UpError, VmhaulError, OSError) as error:
            raise CliError(str(error)) from error
    if json_option(ctx, as_json):
        output.print_json({"ca_sha256": sha256, "kept": kept})
        return
    output.say(f"The new certificate authority has the SHA-256 {sha256}.")
    for file in kept:
        output.say(f"Kept: {file}")
    output.say(
        "Start the server, then let each proxy on another machine join again with a token of `vmhaul proxy token NAME`."
    )
