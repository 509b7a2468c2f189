"""`vmhaul proxy`: backup proxies, on this machine and elsewhere."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from backup_server import formats
from backup_server.cli import authority, output, proxy_here, proxy_rate, secrets_in
from backup_server.cli import proxy_machine as machines
from backup_server.cli.client import part
from backup_server.cli.door import Door, errors_on_stderr, noun, with_door
from backup_server.cli.exits import CliError, Exit
from backup_server.cli.job_options import Mode

app = noun("Backup proxies: they move the data.")

MODES: Final = "Transport modes"
_POLL_S: Final = 0.5

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="Name or id of the proxy.")]
SlotsOption = Annotated[
    int | None, typer.Option("--slots", min=1, help="Disks that it works on at the same time.")
]
ProxyDataOption = Annotated[
    Path,
    typer.Option(
        "--data", metavar="DIR", help="The proxy's own directory: identity and unsent results."
    ),
]


@app.command("add")
@with_door
def add(
    door: Door,
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME|USER@HOST[:PORT]",
            help="What to call it; or the machine on which vmhaul installs it over SSH or WinRM.",
        ),
    ],
    local: Annotated[
        bool,
        typer.Option("--local", help="A further proxy on the server's machine, run by `vmhaul up`."),
    ] = False,
    slots: SlotsOption = None,
    description: Annotated[str, typer.Option("--description", help="For people.")] = "",
    called: Annotated[
        str | None,
        typer.Option("--name", help="With USER@HOST: what to call it; the host's name by default."),
    ] = None,
    on: Annotated[
        str | None,
        typer.Option(
            "--on", metavar="SERVER", help="Install it on this managed server, which is known already."
        ),
    ] = None,
    winrm: Annotated[
        bool,
        typer.Option(
            "--winrm",
            help="Experimental: the machine runs Windows and is reached by WinRM over HTTPS; never run on a real Windows.",
            rich_help_panel=machines.LOGIN,
        ),
    ] = False,
    winrm_port: Annotated[
        int | None,
        typer.Option(
            "--winrm-port",
            metavar="PORT",
            min=1,
            max=65535,
            help="Port of WinRM's listener for HTTPS; 5986 by default.",
            show_default=False,
            rich_help_panel=machines.LOGIN,
        ),
    ] = None,
    host_key: Annotated[
        str | None,
        typer.Option(
            "--host-key",
            metavar="SHA256:...",
            help="Fingerprint of the host key that the machine must show; with --winrm, of its certificate.",
            rich_help_panel=machines.LOGIN,
        ),
    ] = None,
    accept_host_key: Annotated[
        bool,
        typer.Option(
            "--accept-host-key",
            help="Trust the host key that it shows now, without asking.",
            rich_help_panel=machines.LOGIN,
        ),
    ] = False,
    password_stdin: machines.PasswordOption = False,
    key_file: machines.KeyOption = None,
    passphrase_stdin: machines.PassphraseOption = False,
    sudo_password_stdin: machines.SudoOption = False,
    agent: machines.AgentOption = False,
    keep_credentials: Annotated[
        bool | None,
        typer.Option(
            "--keep-credentials/--forget-credentials",
            help="Keep them, sealed, for upgrades; a key is kept by default, a password is not.",
            show_default=False,
            rich_help_panel=machines.LOGIN,
        ),
    ] = None,
    install_packages: Annotated[
        bool,
        typer.Option(
            "--install-packages",
            help="Let the machine's package manager install what is missing or useful, without asking.",
            rich_help_panel=machines.PLACES,
        ),
    ] = False,
    extra: proxy_here.ExtraOption = None,
    wheelhouse: machines.WheelhouseOption = None,
    python: proxy_here.PythonOption = None,
    install_dir: proxy_here.InstallDirOption = None,
    proxy_data: proxy_here.ProxyDataOption = None,
    service: proxy_here.ServiceOption = None,
    service_user: proxy_here.UserOption = None,
) -> None:
    """Add a proxy: on a machine that is named USER@HOST all by itself; else a join token is shown, once.

    A bare Debian, Ubuntu or Red Hat like machine with SSH becomes a working proxy: user, environment, service, keys.
    What was done there is undone when a step fails.
    """
    if "@" not in name and on is None:
        given = {
            "--winrm": winrm,
            "--winrm-port": winrm_port,
            "--host-key": host_key,
            "--accept-host-key": accept_host_key,
            "--password-stdin": password_stdin,
            "--key-file": key_file,
            "--passphrase-stdin": passphrase_stdin,
            "--sudo-password-stdin": sudo_password_stdin,
            "--agent": agent,
            "--keep-credentials": keep_credentials,
            "--install-packages": install_packages,
            "--name": called,
            "--extra": extra,
            "--wheelhouse": wheelhouse,
            "--python": python,
            "--install-dir": install_dir,
            "--proxy-data": proxy_data,
            "--service": service,
            "--service-user": service_user,
        }
        _refuse_of_machines(name, [option for option, value in given.items() if value])
        _add_by_token(door, name, local=local, slots=slots, description=description)
        return
    if local:
        raise CliError("--local is for a proxy on the server's own machine, without USER@", Exit.USAGE)
    if winrm_port is not None and not winrm:
        raise CliError("--winrm-port goes with --winrm", Exit.USAGE)
    if winrm and (key_file or agent or sudo_password_stdin):
        raise CliError("--winrm takes a user and a password: no key, agent or sudo", Exit.USAGE)
    body: dict[str, Any] = {"server": on, "name": name} if on else {}
    if not on:
        body = machines.target_body(
            door,
            name,
            winrm=winrm,
            winrm_port=winrm_port,
            host_key=host_key,
            accept_host_key=accept_host_key,
        )
    body |= machines.login_body(
        door,
        password_stdin=password_stdin,
        key_file=key_file,
        passphrase_stdin=passphrase_stdin,
        sudo_stdin=sudo_password_stdin,
        agent=agent,
        ask=not on,
    )
    places = {
        "install_dir": install_dir,
        "data_dir": proxy_data,
        "service": service,
        "user": service_user,
    }
    wishes = {
        "name": body.get("name") or called,
        "slots": slots,
        "description": description or None,
        "keep_credentials": keep_credentials,
        "extras": list(extra) if extra else None,
        "wheelhouse": str(wheelhouse.expanduser().absolute()) if wheelhouse else None,
        "python": python,
        "places": {key: value for key, value in places.items() if value} or None,
    }
    body |= {key: value for key, value in wishes.items() if value is not None}
    machines.add_machine(door, body, install_packages=install_packages)


def _refuse_of_machines(name: str, given: Sequence[str]) -> None:
    """A forgotten USER@ must not end in a token that nobody waits for."""
    if given:
        raise CliError(
            f"{', '.join(given)} is for a machine on which vmhaul installs the proxy: write USER@{name}, or --on SERVER",
            Exit.USAGE,
        )


def _add_by_token(door: Door, name: str, *, local: bool, slots: int | None, description: str) -> None:
    body: dict[str, Any] = {"name": name, "local": local, "description": description}
    if slots:
        body["slots"] = slots
    proxy = door.api.post("/proxies", body)
    if door.json:
        output.print_json(proxy)
        return
    if not proxy.get("join_token"):
        output.say(f"Proxy '{name}' added; `vmhaul up` starts it within a few seconds.")
        return
    output.say(f"Proxy '{name}' added. On its machine, where vmhaul is installed, run as root:")
    output.say("  vmhaul proxy join")
    output.say(
        "(with --data DIR it joins without a user and a service of its own; then: vmhaul proxy run --data DIR)"
    )
    output.say("and give it this token, which works once and is not shown again:")
    output.say(f"  {proxy['join_token']}")
    if not door.api.get("/about")["proxies_door"]:
        output.note(
            "Note: this server has no door for proxies on other machines. "
            "Start it with `vmhaul up --proxies-listen ADDRESS`, then ask for another token with "
            f"`vmhaul proxy token {name}`."
        )


@app.command("list")
@with_door
def list_(door: Door) -> None:
    """List the proxies with their state and load."""
    items = list(door.api.items("/proxies"))
    if door.json:
        output.print_json({"items": items, "next": None})
        return
    output.table(
        (
            "name",
            "state",
            "enabled",
            "local",
            "running",
            "slots",
            "modes",
            "rate now",
            "version",
            "last seen",
        ),
        [
            (
                item["name"],
                item["state"],
                item["enabled"],
                item["local"],
                item["running"],
                item["slots"],
                item["modes"] or "any",
                item.get("rate_now", "unlimited"),
                item["version"],
                formats.moment(item.get("last_seen_at")),
            )
            for item in items
        ],
        right=("running", "slots"),
        empty="No proxies.",
    )
    for item in items:
        if item.get("state_note"):
            output.say(f"{item['name']} gets no new tasks: {item['state_note']}")


def _show(door: Door, proxy: dict[str, Any]) -> None:
    if door.json:
        output.print_json(proxy)
        return
    from backup_server.cli.proxy_view import print_proxy

    print_proxy(proxy)


@app.command("show")
@with_door
def show(door: Door, name: NameArgument) -> None:
    """Show one proxy: its settings, and what it found when it looked around last."""
    _show(door, door.api.get(f"/proxies/{part(name)}"))


@app.command("edit")
@with_door
def edit(
    door: Door,
    name: NameArgument,
    new_name: Annotated[
        str | None, typer.Option("--name", help="New name; a local proxy keeps its own.")
    ] = None,
    slots: SlotsOption = None,
    description: Annotated[str | None, typer.Option("--description", help="For people.")] = None,
    mode: Annotated[
        list[Mode] | None,
        typer.Option(
            "--mode",
            metavar="MODE",
            help="Allowed transport mode (storage-snapshot, direct-san, direct-nfs, hotadd, nbdssl, nbd); "
            "repeat for more.",
            rich_help_panel=MODES,
        ),
    ] = None,
    any_mode: Annotated[
        bool, typer.Option("--any-mode", help="Allow every mode that it can.", rich_help_panel=MODES)
    ] = False,
    failover: Annotated[
        bool | None,
        typer.Option(
            "--failover/--no-failover",
            help="Let its network modes take over where its others fail.",
            show_default=False,
            rich_help_panel=MODES,
        ),
    ] = None,
    datastore: Annotated[
        list[str] | None,
        typer.Option(
            "--datastore",
            metavar="NAME",
            help="Datastore that it is connected to, instead of those that it finds; repeat for more.",
            rich_help_panel=MODES,
        ),
    ] = None,
    found_datastores: Annotated[
        bool,
        typer.Option(
            "--found-datastores",
            help="Take the datastores that it finds, not those set by hand.",
            rich_help_panel=MODES,
        ),
    ] = False,
    preferred_network: Annotated[
        list[str] | None,
        typer.Option(
            "--preferred-network",
            metavar="NETWORK",
            help="Network in which it meets hosts, as in 192.0.2.0/24; repeat for more, best first.",
            rich_help_panel=MODES,
        ),
    ] = None,
    any_network: Annotated[
        bool,
        typer.Option("--any-network", help="Prefer no network.", rich_help_panel=MODES),
    ] = False,
    nfs3_any_host: Annotated[
        bool | None,
        typer.Option(
            "--hotadd-nfs3-any-host/--hotadd-nfs3-same-host",
            help="HotAdd of disks on NFS 3 also where the VM runs on another host than the proxy's VM.",
            show_default=False,
            rich_help_panel=MODES,
        ),
    ] = None,
    max_nfs_hops: Annotated[
        int | None,
        typer.Option(
            "--max-nfs-hops",
            metavar="N",
            min=-1,
            max=255,
            help="Direct NFS only to servers at most so many routers away; -1: any.",
            show_default=False,
            rich_help_panel=MODES,
        ),
    ] = None,
    repository: Annotated[
        list[str] | None,
        typer.Option(
            "--repository",
            metavar="NAME",
            help="Repository that it is near to: its tasks go to such proxies before others; repeat for more.",
        ),
    ] = None,
    any_repository: Annotated[
        bool, typer.Option("--any-repository", help="Near to no repository more than to others.")
    ] = False,
    rate_limit: proxy_rate.LimitOption = None,
    rate_window: proxy_rate.WindowOption = None,
    rate_time_zone: proxy_rate.ZoneOption = None,
    no_rate_windows: proxy_rate.NoWindowsOption = False,
    rate_restores: proxy_rate.RestoresOption = None,
) -> None:
    """Change a proxy: what is not named stays. After a change of its modes it looks around again."""
    changes: dict[str, Any] = {}
    if new_name is not None:
        changes["name"] = new_name
    if slots is not None:
        changes["slots"] = slots
    if description is not None:
        changes["description"] = description
    if mode or any_mode:
        changes["modes"] = [one.value for one in mode or ()]
    if failover is not None:
        changes["failover_to_network"] = failover
    if datastore or found_datastores:
        changes["connected_datastores"] = None if found_datastores else list(datastore or ())
    if preferred_network or any_network:
        changes["preferred_networks"] = [] if any_network else list(preferred_network or ())
    if nfs3_any_host is not None:
        changes["hotadd_nfs3_any_host"] = nfs3_any_host
    if max_nfs_hops is not None:
        changes["max_nfs_hops"] = None if max_nfs_hops < 0 else max_nfs_hops
    if repository or any_repository:
        changes["repositories"] = [] if any_repository else list(repository or ())
    changes |= proxy_rate.changes(
        limit=rate_limit,
        windows=rate_window,
        time_zone=rate_time_zone,
        no_windows=no_rate_windows,
        restores=rate_restores,
    )
    if not changes:
        raise CliError("nothing to change: name at least one option", Exit.USAGE)
    _show(door, door.api.patch(f"/proxies/{part(name)}", changes))


@app.command("rescan")
@with_door
def rescan(
    door: Door,
    name: NameArgument,
    wait: Annotated[
        float,
        typer.Option(
            "--wait", metavar="S", min=0, help="Wait so many seconds for what it finds; 0: do not wait."
        ),
    ] = 60.0,
) -> None:
    """Make a proxy look around now: which datastores it reaches in which mode, and which VM it is.

    Exit status 1 when nothing came back in time; it looks around all the same once it is online.
    """
    before = door.api.get(f"/proxies/{part(name)}")
    proxy = door.api.post(f"/proxies/{part(name)}/rescan")
    pause = threading.Event()
    until = time.monotonic() + wait
    while proxy["looked_at"] == before["looked_at"] and time.monotonic() < until:
        pause.wait(_POLL_S)
        proxy = door.api.get(f"/proxies/{part(name)}")
    if wait and proxy["looked_at"] == before["looked_at"]:
        raise CliError(
            f"proxy '{name}' did not answer within {wait:.0f} s (it is {proxy['state']}); "
            "it looks around when it comes back, `vmhaul proxy show` tells what it found"
        )
    _show(door, proxy)


@app.command("confirm-vm")
@with_door
def confirm_vm(
    door: Door,
    name: NameArgument,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Confirm that a proxy is the VM that it says it is: disks are attached to that VM for HotAdd.

    Not needed for proxies on the server's machine, nor where VMware Tools of the VM tell the address from which the
    proxy calls. A proxy that shows another SMBIOS UUID later has to be confirmed again.
    """
    from backup_server.cli.proxy_view import print_discovery_vm

    path = f"/proxies/{part(name)}"
    found = door.api.get(path)["discovery"]
    if not yes and not door.json:
        print_discovery_vm(found)
    secrets_in.confirm(f"Is proxy '{name}' this VM?", assume_yes=yes, option="--yes")
    proxy = door.api.post(f"{path}/confirm-vm", {"vm_uuid": found["vm_uuid"]})
    if door.json:
        output.print_json(proxy)
    else:
        output.say(f"Confirmed: proxy '{name}' is {formats.proxy_vms(found)}.")


@app.command("enable")
@with_door
def enable(door: Door, name: NameArgument) -> None:
    """Give it tasks again."""
    _show(door, door.api.patch(f"/proxies/{part(name)}", {"enabled": True}))


@app.command("disable")
@with_door
def disable(door: Door, name: NameArgument) -> None:
    """Give it no more tasks; what runs on it ends in peace."""
    _show(door, door.api.patch(f"/proxies/{part(name)}", {"enabled": False}))


machines.register(app)
proxy_here.register(app)
authority.register(app)


@app.command("revoke")
@with_door
def revoke(
    door: Door,
    name: NameArgument,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Trust a proxy no longer, at once: its keys and its broker user end, and what runs on it is given to others."""
    secrets_in.confirm(f"Revoke proxy '{name}'?", assume_yes=yes, option="--yes")
    answer = door.api.post(f"/proxies/{part(name)}/revoke")
    if door.json:
        output.print_json(answer)
        return
    output.say(f"Proxy '{name}' is trusted no longer.")
    for repository in answer["repositories_to_rotate"]:
        output.note(
            f"It knew the keys of repository '{repository}': change them with "
            f"`vmhaul repository key rotate {repository}`."
        )


@app.command("token")
@with_door
def token(door: Door, name: NameArgument) -> None:
    """Give a proxy a new join token, to enrol it again; its old keys are trusted no longer."""
    proxy = door.api.post(f"/proxies/{part(name)}/join-token")
    if door.json:
        output.print_json(proxy)
    elif proxy.get("join_token"):
        output.say(str(proxy["join_token"]))
    else:
        output.say(f"Proxy '{name}' is local: `vmhaul up` enrols it again by itself.")


@app.command("run")
def run(data: ProxyDataOption) -> None:
    """Run this machine's proxy in the foreground."""
    with errors_on_stderr():
        if not data.is_dir():
            raise CliError(f"{data} is not a directory: join a server first with `vmhaul proxy join`")
    # The worker takes the place of this process, so signals reach it and its exit code is ours.
    os.execv(sys.executable, [sys.executable, "-m", "proxy_worker", "--data", str(data)])  # noqa: S606 - no shell is wanted
