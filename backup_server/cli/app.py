"""The whole command tree. One visible list; nothing is found by scanning."""

from __future__ import annotations

from typing import Annotated

import typer

from backup_server.cli import (
    console,
    datastore,
    doctor,
    exits,
    job,
    keys,
    operations,
    output,
    proxy,
    repository,
    restore,
    restore_point,
    server,
    session,
    storage,
    task,
    traffic,
    up,
    vcenter,
)
from backup_server.cli.door import DataOption, JsonOption, RootOptions, ServerOption, TokenOption


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        output.say(f"vmhaul {version('vmhaul')}")
        raise typer.Exit


VersionOption = Annotated[
    bool,
    typer.Option(
        "--version", help="Print the version and end.", callback=_print_version, is_eager=True
    ),
]

EPILOG = "Exit codes:\n\n" + exits.help_text()


def build() -> typer.Typer:
    """The application with all its nouns."""
    app = typer.Typer(
        name="vmhaul",
        help="Back up and restore VMware vSphere VMs.",
        epilog=EPILOG,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
    )
    app.callback()(root)
    up.register(app)
    doctor.register(app)
    app.add_typer(vcenter.app, name="vcenter")
    app.add_typer(repository.app, name="repository")
    app.add_typer(proxy.app, name="proxy")
    app.add_typer(server.app, name="server")
    app.add_typer(operations.app, name="operation")
    app.add_typer(keys.app, name="keys")
    app.add_typer(storage.app, name="storage")
    app.add_typer(datastore.app, name="datastore")
    app.add_typer(traffic.app, name="traffic")
    app.add_typer(job.app, name="job")
    app.add_typer(session.app, name="session")
    app.add_typer(task.app, name="task")
    app.add_typer(restore_point.app, name="restore-point")
    app.add_typer(restore.app, name="restore")
    console.register(app)
    return app


def root(
    ctx: typer.Context,
    data: DataOption = None,
    server: ServerOption = None,
    token_file: TokenOption = None,
    as_json: JsonOption = False,
    version: VersionOption = False,  # noqa: ARG001 - it prints and ends while it is parsed
) -> None:
    """Back up and restore VMware vSphere VMs."""
    ctx.obj = RootOptions(data=data, server=server, token_file=token_file, json=as_json)
