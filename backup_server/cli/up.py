"""`vmhaul up`: the whole platform on one machine, in the foreground."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from backup_server.cli.client import default_data_dir
from backup_server.cli.door import DataOption, data_option, errors_on_stderr
from backup_server.cli.exits import CliError, Exit


def register(app: typer.Typer) -> None:
    app.command("up")(up)


def up(
    ctx: typer.Context,
    data: DataOption = None,
    listen: Annotated[
        str | None,
        typer.Option(
            "--listen",
            metavar="ADDRESS:PORT",
            help="Where API and console listen; 127.0.0.1:8470 by default.",
        ),
    ] = None,
    flower_port: Annotated[
        int | None,
        typer.Option(
            "--flower-port",
            min=1,
            max=65535,
            metavar="PORT",
            help="Where Flower listens, on loopback; 5555 by default.",
        ),
    ] = None,
    no_flower: Annotated[bool, typer.Option("--no-flower", help="Run without Flower.")] = False,
    database: Annotated[
        str | None,
        typer.Option(
            "--database",
            metavar="URL",
            help="Job database elsewhere: postgresql+psycopg://... or @FILE that holds the URL.",
        ),
    ] = None,
    broker: Annotated[
        str | None,
        typer.Option(
            "--broker",
            metavar="URL",
            help="Broker elsewhere: rediss://... or @FILE that holds the URL.",
        ),
    ] = None,
    proxies_listen: Annotated[
        str | None,
        typer.Option(
            "--proxies-listen",
            metavar="ADDRESS[:PORT]",
            envvar="VMHAUL_PROXIES_LISTEN",
            help="Open a door, HTTPS, for proxies on other machines; port 8471 by default.",
            show_default=False,
            show_envvar=False,
        ),
    ] = None,
    proxies_broker_port: Annotated[
        int | None,
        typer.Option(
            "--proxies-broker-port",
            min=0,
            max=65535,
            metavar="PORT",
            help="Where the embedded broker listens for them, TLS, on the same address; 8472 by default.",
            show_default=False,
        ),
    ] = None,
    proxies_names: Annotated[
        str | None,
        typer.Option(
            "--proxies-names",
            metavar="NAMES",
            envvar="VMHAUL_PROXIES_NAMES",
            help="Names and addresses by which they reach this server, separated by commas; by default the "
            "address that is listened on, or the machine's own.",
            show_default=False,
            show_envvar=False,
        ),
    ] = None,
    slots: Annotated[
        int | None,
        typer.Option(
            "--slots", min=1, metavar="N", help="Task slots of the default proxy, when it is made."
        ),
    ] = None,
) -> None:
    """Start broker, server, local proxies and Flower; Ctrl-C stops them all.

    A URL with a password is better given as @FILE: arguments can be read by all users of the machine.
    """
    with errors_on_stderr():
        given = {
            "data_dir": str((data_option(ctx, data) or default_data_dir()).expanduser().absolute()),
            "listen": listen,
            "flower_port": flower_port,
            "flower": False if no_flower else None,
            "database": _url(database, "--database"),
            "broker": _url(broker, "--broker"),
            "slots": slots,
            "proxies_listen": proxies_listen,
            "proxies_broker_port": proxies_broker_port,
            "proxies_names": proxies_names,
        }
    _become_supervisor({key: value for key, value in given.items() if value is not None})


def _url(text: str | None, option: str) -> str | None:
    if text is None or not text.startswith("@"):
        return text
    try:
        return Path(text[1:]).read_text().strip()
    except OSError as error:
        raise CliError(f"{option}: {text[1:]} cannot be read: {error.strerror}", Exit.USAGE) from error


def _become_supervisor(given: dict[str, object]) -> None:
    """Replace this process by the supervisor, which needs none of the CLI's memory.

    What was given travels in an anonymous file, so that no password stands among the arguments.
    """
    handle = os.memfd_create("vmhaul-up", 0)
    os.write(handle, json.dumps(given).encode())
    os.lseek(handle, 0, os.SEEK_SET)
    os.set_inheritable(handle, True)
    os.execv(sys.executable, [sys.executable, "-m", "backup_server.up", "--options-fd", str(handle)])  # noqa: S606 - no shell is wanted
