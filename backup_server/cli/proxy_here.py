"""`vmhaul proxy join` and `upgrade-here`: the machine that this runs on, installed as `proxy add user@host` does it."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from backup_server.cli import output, secrets_in
from backup_server.cli import proxy_machine as machines
from backup_server.cli.door import JsonOption, errors_on_stderr, json_option
from backup_server.cli.exits import CliError, Exit

TOKEN_PREFIX: Final = "vmhaul-join-"  # noqa: S105 - what every join token begins with

InstallDirOption = Annotated[
    str | None,
    typer.Option(
        "--install-dir",
        metavar="DIR",
        help="Where vmhaul is put; /opt/vmhaul by default.",
        rich_help_panel=machines.PLACES,
    ),
]
ProxyDataOption = Annotated[
    str | None,
    typer.Option(
        "--proxy-data",
        metavar="DIR",
        help="The proxy's own directory; /var/lib/vmhaul-proxy by default.",
        rich_help_panel=machines.PLACES,
    ),
]
ServiceOption = Annotated[
    str | None,
    typer.Option(
        "--service",
        metavar="NAME",
        help="Name of its service; vmhaul-proxy by default.",
        rich_help_panel=machines.PLACES,
    ),
]
UserOption = Annotated[
    str | None,
    typer.Option(
        "--service-user",
        metavar="NAME",
        help="User that it runs as; vmhaul by default.",
        rich_help_panel=machines.PLACES,
    ),
]
ExtraOption = Annotated[
    list[str] | None,
    typer.Option(
        "--extra",
        metavar="NAME",
        help="Install an extra of vmhaul too, such as san; repeat for more.",
        rich_help_panel=machines.PLACES,
    ),
]
PythonOption = Annotated[
    str | None,
    typer.Option(
        "--python",
        metavar="PATH",
        help="Python 3.11 or newer; by default the newest on the path.",
        rich_help_panel=machines.PLACES,
    ),
]


def register(app: typer.Typer) -> None:
    app.command("join")(join)
    app.command("upgrade-here")(upgrade_here)


def join(
    ctx: typer.Context,
    token: Annotated[
        str | None,
        typer.Argument(
            metavar="[TOKEN]",
            help="What `vmhaul proxy add` showed; without it the terminal asks. Arguments can be read by all "
            "users of the machine for a moment.",
            show_default=False,
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            metavar="DIR",
            help="Only join, in this directory, with no user and no service: `vmhaul proxy run` starts it.",
        ),
    ] = None,
    server: Annotated[
        str | None,
        typer.Option(
            "--server",
            metavar="URL",
            help="Another address of the server than the token's: loopback, or HTTPS that the machine trusts.",
        ),
    ] = None,
    token_stdin: Annotated[
        bool, typer.Option("--token-stdin", help="Read the join token from standard input.")
    ] = False,
    name: Annotated[
        str | None,
        typer.Option("--name", help="With --data: its name at the server; the token's by default."),
    ] = None,
    install_packages: Annotated[
        bool,
        typer.Option(
            "--install-packages",
            help="Let the package manager install what is missing or useful, without asking.",
            rich_help_panel=machines.PLACES,
        ),
    ] = False,
    extra: ExtraOption = None,
    wheelhouse: machines.WheelhouseOption = None,
    python: PythonOption = None,
    install_dir: InstallDirOption = None,
    proxy_data: ProxyDataOption = None,
    service: ServiceOption = None,
    service_user: UserOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make this machine a proxy of a server, with the token that `vmhaul proxy add` showed.

    As root, with a user, an environment and a service of its own; with --data only the directory is made.
    """
    with errors_on_stderr():
        places = _places(install_dir, proxy_data, service, service_user)
        token = token or secrets_in.read_secret(
            "Join token", from_stdin=token_stdin, option="--token-stdin"
        )
        token = "".join(token.split())
        if server is None and not token.startswith(TOKEN_PREFIX):
            raise CliError(
                f"this is no join token: one begins with {TOKEN_PREFIX}; the short ones of earlier releases need "
                "--server URL",
                Exit.USAGE,
            )
        if data is not None:
            join_only(server, token, data, name)
            if json_option(ctx, as_json):
                output.print_json({"data_dir": str(data)})
            else:
                output.say(f"Joined. Start the proxy with `vmhaul proxy run --data {data}`.")
            return
        if server is not None or name is not None:
            raise CliError("--server and --name go with --data", Exit.USAGE)
        release = _install(
            token,
            places,
            packages=install_packages,
            extras=extra or (),
            wheelhouse=wheelhouse,
            python=python or "",
        )
    if json_option(ctx, as_json):
        output.print_json({"release": release, "places": places.values()})
        return
    output.say(f"This machine is a proxy now: service {places.service}, data in {places.data_dir}.")


def join_only(server: str | None, token: str, data: Path, name: str | None) -> None:
    """Exchange keys; nothing is installed."""
    import subprocess

    words = [sys.executable, "-m", "proxy_worker", "--data", str(data), "--join", server or "token"]
    if name:
        words += ["--name", name]
    done = subprocess.run(words, input=token + "\n", text=True, check=False, stdout=subprocess.PIPE)
    if done.stdout:
        output.note(done.stdout.strip())
    if done.returncode != 0:
        raise CliError("this machine did not join: the lines above say why")


def _install(
    token: str,
    places: Any,
    *,
    packages: bool,
    extras: Any,
    wheelhouse: Path | None,
    python: str,
) -> str:
    import structlog

    from backup_server.deploy.install import InstallOrder, Undo, install
    from backup_server.deploy.look import look
    from backup_server.deploy.machine import ThisMachine
    from backup_server.deploy.releases import Release
    from backup_server.deploy.wheel import carried_wheel
    from backup_server.errors import VmhaulError
    from transports.vsphere.model import Secret

    undo = Undo()
    try:
        machine = ThisMachine()
        facts = look(machine, places, time.time, python=python)
        if facts.problems:
            raise CliError("this machine cannot become a proxy: " + "; ".join(facts.problems))
        if facts.missing:
            secrets_in.confirm(
                f"Let {facts.packages} install {', '.join((*facts.missing, *facts.useful))}?",
                assume_yes=packages,
                option="--install-packages",
            )
            packages = True
        order = InstallOrder(
            places=places,
            release=Release(
                wheel=carried_wheel(),
                python=python or facts.python_then,
                extras=tuple(extras),
                wheelhouse=wheelhouse.expanduser().absolute() if wheelhouse else None,
            ),
            packages=facts.missing,
            optional_packages=facts.useful if packages else (),
            token=Secret(token),
        )
        order.release.check()
        return install(machine, order, facts, _tell, undo)
    except (VmhaulError, KeyboardInterrupt) as error:
        left = undo.all(structlog.get_logger())
        done = f"; not undone: {'; '.join(left)}" if left else "; what was done was undone"
        why, code = (
            (error.message, Exit.ERROR)
            if isinstance(error, VmhaulError)
            else ("interrupted", Exit.INTERRUPTED)
        )
        raise CliError(why + (done if left or undo.used else ""), code) from error


def upgrade_here(
    ctx: typer.Context,
    wheelhouse: machines.WheelhouseOption = None,
    extra: ExtraOption = None,
    python: PythonOption = None,
    install_dir: InstallDirOption = None,
    proxy_data: ProxyDataOption = None,
    service: ServiceOption = None,
    service_user: UserOption = None,
    as_json: JsonOption = False,
) -> None:
    """Give the proxy of this machine the release of this very vmhaul: for one that joined by itself.

    Its service starts anew: drain it at the server first (`vmhaul proxy drain`), or tasks that run are handed to others.
    """
    with errors_on_stderr():
        places = _places(install_dir, proxy_data, service, service_user)
        release = _upgrade(
            places,
            wheelhouse=wheelhouse.expanduser().absolute() if wheelhouse else None,
            extras=tuple(extra or ()),
            python=python or "",
        )
    if json_option(ctx, as_json):
        output.print_json({"release": release, "places": places.values()})
        return
    output.say(f"Service {places.service} runs release {release}.")


def _upgrade(places: Any, *, wheelhouse: Path | None, extras: tuple[str, ...], python: str) -> str:
    from backup_server.deploy import releases
    from backup_server.deploy import service as services
    from backup_server.deploy.look import look
    from backup_server.deploy.machine import ThisMachine
    from backup_server.deploy.wheel import carried_wheel
    from backup_server.errors import VmhaulError

    try:
        machine = ThisMachine()
        old = releases.current(machine, places)
        if not old:
            raise CliError(
                f"{places.install_dir} holds no proxy: `vmhaul proxy join` makes this machine one"
            )
        facts = look(machine, places, time.time, python=python)
        if not python and not facts.python:
            raise CliError(
                "this machine has no Python 3.11 or newer on the path that can make virtual environments: name one with "
                "--python"
            )
        release = releases.Release(
            wheel=carried_wheel(),
            python=python or facts.python,
            extras=extras,
            wheelhouse=wheelhouse,
        )
        release.check()
        _tell("environment", f"vmhaul {release.wheel.version} beside {old}")
        new = releases.build(machine, places, release)
        _tell("switch", f"from {old} to {new}")
        releases.switch(machine, places, new)
        try:
            services.write(machine, places, facts.init)
            services.restart(machine, places, facts.init)
        except VmhaulError:
            releases.switch(machine, places, old)
            services.restart(machine, places, facts.init)
            raise
        releases.forget_others(machine, places, [new, old])
    except VmhaulError as error:
        raise CliError(error.message) from error
    return new


def _tell(step: str, text: str) -> None:
    output.note(f"  {step}: {text}")


def _places(
    install_dir: str | None, data_dir: str | None, service: str | None, user: str | None
) -> Any:
    from backup_server.deploy.places import Places

    given = {"install_dir": install_dir, "data_dir": data_dir, "service": service, "user": user}
    try:
        return Places.of(given)
    except ValueError as error:
        raise CliError(str(error), Exit.USAGE) from error
