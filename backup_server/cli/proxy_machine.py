"""What `vmhaul proxy` does on other machines: how it logs in, `add user@host`, `upgrade`, `drain`, `remove`."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from backup_server.cli import operations, output, secrets_in
from backup_server.cli.client import ApiError, part
from backup_server.cli.door import Door, with_door
from backup_server.cli.exits import CliError, Exit

LOGIN: Final = "Login to its machine"
PLACES: Final = "On its machine"
SSH_PORT: Final = 22
WINRM_PORT: Final = 5986
LINUX: Final = "linux"
WINDOWS: Final = "windows"
_POLL_S: Final = 0.5

PasswordOption = Annotated[
    bool,
    typer.Option(
        "--password-stdin",
        help="Read the password from standard input; without it, a key or an agent the terminal asks.",
        rich_help_panel=LOGIN,
    ),
]
KeyOption = Annotated[
    Path | None,
    typer.Option(
        "--key-file", metavar="FILE", help="Log in with this private key.", rich_help_panel=LOGIN
    ),
]
PassphraseOption = Annotated[
    bool,
    typer.Option(
        "--passphrase-stdin",
        help="Read the key's passphrase from standard input, after a password.",
        rich_help_panel=LOGIN,
    ),
]
SudoOption = Annotated[
    bool,
    typer.Option(
        "--sudo-password-stdin",
        help="Read sudo's password from standard input, after the others; without it, the login's is tried, and the "
        "terminal asks.",
        rich_help_panel=LOGIN,
    ),
]
AgentOption = Annotated[
    bool,
    typer.Option(
        "--agent",
        help="Log in through the SSH agent of this terminal; the server must run on this machine.",
        rich_help_panel=LOGIN,
    ),
]
WheelhouseOption = Annotated[
    Path | None,
    typer.Option(
        "--wheelhouse",
        metavar="DIR",
        help="Directory with the wheels of all requirements, on the vmhaul server's machine: for sites without a package "
        "index.",
        rich_help_panel=PLACES,
    ),
]
DrainOption = Annotated[
    int | None,
    typer.Option(
        "--drain-timeout",
        metavar="S",
        min=1,
        help="How long to wait for what runs on it; a day by default.",
        show_default=False,
    ),
]
NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="Name or id of the proxy.")]


def parse_target(text: str) -> tuple[str, str, int | None]:
    """USER@HOST, USER@HOST:PORT or USER@[IPV6]:PORT."""
    user, _, rest = text.rpartition("@")
    host, port = rest, ""
    if rest.startswith("["):
        host, _, after = rest[1:].partition("]")
        port = after.removeprefix(":")
    elif rest.count(":") == 1:
        host, _, port = rest.partition(":")
    if not user or not host or (port and not port.isdecimal()):
        raise CliError(f"'{text}' is not USER@HOST or USER@HOST:PORT", Exit.USAGE)
    return user, host, int(port) if port else None


def login_body(
    door: Door,
    *,
    password_stdin: bool,
    key_file: Path | None,
    passphrase_stdin: bool,
    sudo_stdin: bool,
    agent: bool,
    ask: bool,
) -> dict[str, Any]:
    """What the API takes of a login. `ask`: the terminal asks for a password when nothing else is given."""
    body: dict[str, Any] = {}
    if agent:
        if door.remote or not os.environ.get("SSH_AUTH_SOCK"):
            raise CliError(
                "--agent takes the agent of this terminal (SSH_AUTH_SOCK), and a server on this machine",
                Exit.USAGE,
            )
        body["agent_path"] = os.environ["SSH_AUTH_SOCK"]
    if key_file is not None:
        try:
            body["private_key"] = key_file.expanduser().read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise CliError(f"{key_file} cannot be read: {error}") from error
    if password_stdin or (ask and not body):
        body["password"] = secrets_in.read_secret(
            "Password on the machine", from_stdin=password_stdin, option="--password-stdin"
        )
    if passphrase_stdin:
        body["passphrase"] = secrets_in.read_secret(
            "Passphrase of the key", from_stdin=True, option="--passphrase-stdin"
        )
    if sudo_stdin:
        body["sudo_password"] = secrets_in.read_secret(
            "sudo password", from_stdin=True, option="--sudo-password-stdin"
        )
    return body


def agreed_host_key(
    door: Door, host: str, port: int, *, kind: str, given: str | None, accept: bool
) -> str:
    """The host key, or WinRM's certificate, that a person stands for. Shows what the machine presents and asks."""
    if given:
        return given
    question = {"address": host, "port": port, "kind": kind}
    shown = str(door.api.post("/servers/probe", question, slow=True)["host_key"])
    what = "the host key" if kind == LINUX else "a certificate with SHA-256 thumbprint"
    output.note(f"{host} shows {what}\n  {shown}")
    secrets_in.confirm(
        "Is this the right one?", assume_yes=accept, option="--host-key or --accept-host-key"
    )
    return shown


def target_body(
    door: Door,
    text: str,
    *,
    winrm: bool,
    winrm_port: int | None,
    host_key: str | None,
    accept_host_key: bool,
) -> dict[str, Any]:
    """What the API takes of USER@HOST, its host key or certificate agreed to."""
    user, host, port = parse_target(text)
    kind = WINDOWS if winrm else LINUX
    if winrm_port is not None and port not in (None, winrm_port):
        raise CliError("the port stands twice: behind the host and with --winrm-port", Exit.USAGE)
    port = winrm_port or port or (WINRM_PORT if winrm else SSH_PORT)
    key = agreed_host_key(door, host, port, kind=kind, given=host_key, accept=accept_host_key)
    body = {"address": host, "port": port, "username": user, "host_key": key}
    return body | ({"kind": kind} if winrm else {})


def look(door: Door, body: dict[str, Any]) -> dict[str, Any]:
    """What the machine is; asks for sudo's password when it takes one. `body` gets it."""
    wanted = ("server", "address", "port", "kind", "username", "host_key", "python", "places")
    secret = ("password", "private_key", "passphrase", "sudo_password", "agent_path")
    question = {name: body[name] for name in (*wanted, *secret) if name in body}
    try:
        return dict(door.api.post("/servers/look", question, slow=True))
    except ApiError as error:
        if "sudo_password" not in error.details or "sudo_password" in body:
            raise
        body["sudo_password"] = secrets_in.read_secret(
            "sudo password on the machine", from_stdin=False, option="--sudo-password-stdin"
        )
        return look(door, body)


def add_machine(door: Door, body: dict[str, Any], *, install_packages: bool) -> None:
    """Look, ask what has to be asked, install, follow."""
    found = look(door, body)
    output.note(
        f"{body.get('address') or body.get('server')}: {found['system']}, {found['architecture']}, "
        f"Python {found['python_version'] or 'missing'}, started by {found['init']}"
    )
    if found["problems"]:
        raise CliError("it cannot become a proxy: " + "; ".join(found["problems"]))
    # All that will be installed: agreeing to one means both.
    packages = [*found["missing_packages"], *found["useful_packages"]]
    if found["missing_packages"]:
        secrets_in.confirm(
            f"Let {found['package_manager']} install {', '.join(packages)} there?",
            assume_yes=install_packages,
            option="--install-packages",
        )
        install_packages = True
    operation = door.api.post("/proxies/deploy", {**body, "install_packages": install_packages})
    done = operations.follow(door, operation)
    proxy = door.api.get(f"/proxies/{done['result']['proxy']}")
    if door.json:
        output.print_json(proxy)
        return
    output.say(f"Proxy '{proxy['name']}' works: {', '.join(proxy['modes']) or 'no mode yet'}.")
    if found["useful_packages"] and not install_packages:
        source = "" if found["package_manager"] == "apt-get" else ", from EPEL on Red Hat's family"
        output.note(
            f"Direct NFS would need {', '.join(found['useful_packages'])} on its machine "
            f"(--install-packages puts it there{source})."
        )


def _login_of(
    door: Door,
    *,
    password_stdin: bool,
    key_file: Path | None,
    passphrase_stdin: bool,
    sudo_password_stdin: bool,
    agent: bool,
) -> dict[str, Any]:
    return login_body(
        door,
        password_stdin=password_stdin,
        key_file=key_file,
        passphrase_stdin=passphrase_stdin,
        sudo_stdin=sudo_password_stdin,
        agent=agent,
        ask=False,
    )


def post_with_login(door: Door, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """Asks for a password when none is kept, for sudo's when it takes one."""
    given = dict(body)
    while True:
        try:
            return dict(door.api.post(path, given))
        except ApiError as error:
            if "password" not in error.details or "password" in given:
                raise
            given["password"] = secrets_in.read_secret(
                "Password on the machine", from_stdin=False, option="--password-stdin or --key-file"
            )


def register(app: typer.Typer) -> None:
    app.command("upgrade")(upgrade)
    app.command("drain")(drain)
    app.command("remove")(remove)


@with_door
def upgrade(
    door: Door,
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]...", help="Names or ids of proxies.")
    ] = None,
    every: Annotated[
        bool, typer.Option("--all", help="Every proxy that vmhaul installed, one after the other.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Also where it has this release already.")
    ] = False,
    drain_timeout: DrainOption = None,
    wheelhouse: WheelhouseOption = None,
    password_stdin: PasswordOption = False,
    key_file: KeyOption = None,
    passphrase_stdin: PassphraseOption = False,
    sudo_password_stdin: SudoOption = False,
    agent: AgentOption = False,
) -> None:
    """Bring proxies to the server's release, one by one; what runs on them ends in peace.

    A proxy that does not come back with the new release gets its old one again, and the command ends there.
    """
    if every == bool(names):
        raise CliError("name the proxies to upgrade, or say --all", Exit.USAGE)
    body: dict[str, Any] = {"force": force}
    body |= {"all": True} if every else {"names": list(names or ())}
    body |= _login_of(
        door,
        password_stdin=password_stdin,
        key_file=key_file,
        passphrase_stdin=passphrase_stdin,
        sudo_password_stdin=sudo_password_stdin,
        agent=agent,
    )
    body |= _optional(drain_timeout, wheelhouse)
    done = operations.follow(door, post_with_login(door, "/proxies/upgrade", body))
    if door.json:
        output.print_json(done)
        return
    for name, release in done["result"]["upgraded"].items():
        output.say(f"Proxy '{name}' runs release {release}.")


def _optional(drain_timeout: int | None, wheelhouse: Path | None) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if drain_timeout is not None:
        found["drain_timeout_s"] = drain_timeout
    if wheelhouse is not None:
        found["wheelhouse"] = str(wheelhouse.expanduser().absolute())
    return found


@with_door
def drain(
    door: Door,
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="Names or ids of proxies.")],
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Wait until nothing runs on it any more.")
    ] = True,
    timeout: Annotated[
        float,
        typer.Option("--timeout", metavar="S", min=0, help="How long to wait at most; 0: for ever."),
    ] = 0,
) -> None:
    """Give proxies no more tasks and wait until those that run have ended. `enable` gives them tasks again.

    Exit status 1 when something still runs at the end of --timeout.
    """
    shown = [door.api.patch(f"/proxies/{part(name)}", {"enabled": False}) for name in names]
    until = time.monotonic() + timeout
    while wait and any(proxy["running"] for proxy in shown):
        if timeout and time.monotonic() > until:
            busy = ", ".join(f"{one['name']} ({one['running']})" for one in shown if one["running"])
            raise CliError(f"tasks still run on {busy}; they stay disabled, and go on until they end")
        time.sleep(_POLL_S)
        shown = [door.api.get(f"/proxies/{one['id']}") for one in shown]
    _say_drained(door, shown)


def _say_drained(door: Door, shown: Sequence[dict[str, Any]]) -> None:
    if door.json:
        output.print_json({"items": list(shown), "next": None})
        return
    for proxy in shown:
        output.say(f"Proxy '{proxy['name']}' gets no more tasks; {proxy['running']} run on it.")


@with_door
def remove(
    door: Door,
    name: NameArgument,
    keep_files: Annotated[
        bool,
        typer.Option("--keep-files", help="Leave its files and user on the machine; the service goes."),
    ] = False,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Also when its machine does not answer, and without waiting for tasks: others take them.",
        ),
    ] = False,
    drain_timeout: DrainOption = None,
    password_stdin: PasswordOption = False,
    key_file: KeyOption = None,
    passphrase_stdin: PassphraseOption = False,
    sudo_password_stdin: SudoOption = False,
    agent: AgentOption = False,
) -> None:
    """Remove a proxy; refused while a job names it. Where vmhaul installed it, it is taken off its machine too."""
    proxy = door.api.get(f"/proxies/{part(name)}")
    if not proxy.get("server"):
        door.api.delete(f"/proxies/{part(name)}", force=force)
        if not door.json:
            output.say(f"Proxy '{proxy['name']}' removed.")
        return
    body: dict[str, Any] = {"keep_files": keep_files, "force": force}
    body |= _login_of(
        door,
        password_stdin=password_stdin,
        key_file=key_file,
        passphrase_stdin=passphrase_stdin,
        sudo_password_stdin=sudo_password_stdin,
        agent=agent,
    )
    body |= _optional(drain_timeout, None)
    done = operations.follow(door, post_with_login(door, f"/proxies/{proxy['id']}/uninstall", body))
    if door.json:
        output.print_json(done)
        return
    left = done["result"]["left_on_machine"]
    output.say(f"Proxy '{proxy['name']}' removed; server '{proxy['server']}' stays managed.")
    if left:
        output.note(f"Its machine was left as it is: {left}")
