"""`vmhaul proxy`: backup proxies, on this machine and elsewhere."""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from backup_server import formats
from backup_server.cli import output, secrets_in
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
    name: Annotated[str, typer.Argument(metavar="NAME", help="What to call it.")],
    local: Annotated[
        bool,
        typer.Option("--local", help="A further proxy on the server's machine, run by `vmhaul up`."),
    ] = False,
    slots: SlotsOption = None,
    description: Annotated[str, typer.Option("--description", help="For people.")] = "",
) -> None:
    """Add a proxy. For one on another machine a join token is shown, once."""
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
    output.say(f"Proxy '{name}' added. On its machine run:")
    output.say("  vmhaul proxy join --data DIR")
    output.say("  vmhaul proxy run --data DIR")
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
        ("name", "state", "enabled", "local", "running", "slots", "modes", "version", "last seen"),
        [
            (
                item["name"],
                item["state"],
                item["enabled"],
                item["local"],
                item["running"],
                item["slots"],
                item["modes"] or "any",
                item["version"],
                formats.moment(item.get("last_seen_at")),
            )
            for item in items
        ],
        right=("running", "slots"),
        empty="No proxies.",
    )


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
) -> None:
    """Change a proxy: what is not named stays. After a change of its modes it looks around again."""
    changes: dict[str, Any] = {}
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


@app.command("remove")
@with_door
def remove(door: Door, name: NameArgument) -> None:
    """Remove a proxy; refused while a job names it or tasks run on it."""
    door.api.delete(f"/proxies/{part(name)}")
    if not door.json:
        output.say(f"Proxy '{name}' removed.")


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


@app.command("join")
def join(
    data: ProxyDataOption,
    token: Annotated[
        str | None,
        typer.Argument(
            metavar="[TOKEN]",
            help="What `vmhaul proxy add` showed; without it the terminal asks. Arguments can be read by all "
            "users of the machine for a moment.",
            show_default=False,
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
        typer.Option("--name", help="Its name at the server; the token's by default."),
    ] = None,
) -> None:
    """Make this machine a proxy of a server, with the token that `vmhaul proxy add` showed."""
    with errors_on_stderr():
        token = token or secrets_in.read_secret(
            "Join token", from_stdin=token_stdin, option="--token-stdin"
        )
        _join(server, token, data, name)


def _join(server: str | None, token: str, data: Path, name: str | None) -> None:
    import subprocess

    if server is None and not token.strip().startswith("vmhaul-join-"):
        raise CliError(
            "this is no join token: one begins with vmhaul-join-; the short ones of earlier releases need "
            "--server URL",
            Exit.USAGE,
        )
    named = ["--name", name] if name else []
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "proxy_worker",
            "--data",
            str(data),
            "--join",
            server or "token",
            *named,
        ],
        input="".join(token.split()) + "\n",
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise CliError("this machine did not join: the lines above say why")
    output.say(f"Joined. Start the proxy with `vmhaul proxy run --data {data}`.")


@app.command("run")
def run(data: ProxyDataOption) -> None:
    """Run this machine's proxy in the foreground."""
    with errors_on_stderr():
        if not data.is_dir():
            raise CliError(f"{data} is not a directory: join a server first with `vmhaul proxy join`")
    # The worker takes the place of this process, so signals reach it and its exit code is ours.
    os.execv(sys.executable, [sys.executable, "-m", "proxy_worker", "--data", str(data)])  # noqa: S606 - no shell is wanted
