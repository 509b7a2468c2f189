"""`vmhaul vcenter`: the vCenters and hosts that VMs are read from."""

from __future__ import annotations

from typing import Annotated, Any, Final

import typer

from backup_server import formats
from backup_server.cli import output, secrets_in
from backup_server.cli.client import part
from backup_server.cli.door import Door, noun, with_door
from backup_server.cli.exits import CliError, Exit

app = noun("vCenters and standalone hosts.")

HTTPS_PORT = 443

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="Name or id of the vCenter.")]
UserOption = Annotated[str, typer.Option("--user", help="Account, for example vmhaul@vsphere.local.")]
PasswordOption = Annotated[
    bool, typer.Option("--password-stdin", help="Read the password from standard input.")
]
ThumbprintOption = Annotated[
    str | None,
    typer.Option(
        "--thumbprint", metavar="SHA256", help="SHA-256 thumbprint that its certificate must have."
    ),
]
AcceptOption = Annotated[
    bool,
    typer.Option(
        "--accept-thumbprint", help="Trust the certificate that it shows now, without asking."
    ),
]


_NOT_IN_HOSTS: Final = frozenset("/@?# ")
"""A URL that was pasted would otherwise be looked up as the name of a machine."""


def split_address(text: str) -> tuple[str, int]:
    """Host and port of "HOST", "HOST:PORT" or "[IPV6]:PORT"."""
    host, port = text, ""
    if text.startswith("["):
        host, _, port = text[1:].partition("]")
        port = port.removeprefix(":")
    elif text.count(":") == 1:
        host, _, port = text.partition(":")
    if not host or set(host) & _NOT_IN_HOSTS or (port and not port.isdecimal()):
        raise CliError(
            f"'{text}' is not HOST or HOST:PORT, as in vcenter.example.com or 10.0.0.5:8443", Exit.USAGE
        )
    return host, int(port) if port else HTTPS_PORT


def _agreed_thumbprint(door: Door, host: str, port: int, *, given: str | None, accept: bool) -> str:
    """The thumbprint that a person stands for. Shows what the server presents and asks."""
    if given:
        return given
    probe = door.api.post("/vcenters/probe", {"host": host, "port": port}, slow=True)
    shown = str(probe["thumbprint_sha256"])
    about = probe.get("about") or {}
    what = " ".join(str(about[key]) for key in ("name", "version", "build") if about.get(key))
    output.note(
        f"{host}:{port} is {what or 'a server'}; its certificate has the SHA-256 thumbprint\n  {shown}"
    )
    secrets_in.confirm("Is this the right one?", assume_yes=accept, option="--accept-thumbprint")
    return shown


def _about(vcenter: dict[str, Any]) -> str:
    about = vcenter.get("about") or {}
    return " ".join(str(about[key]) for key in ("name", "version") if about.get(key))


@app.command("add")
@with_door
def add(
    door: Door,
    name: Annotated[str, typer.Argument(metavar="NAME", help="What to call it.")],
    address: Annotated[str, typer.Argument(metavar="HOST[:PORT]")],
    user: UserOption,
    password_stdin: PasswordOption = False,
    thumbprint: ThumbprintOption = None,
    accept_thumbprint: AcceptOption = False,
) -> None:
    """Register a vCenter: its certificate is pinned and the login is tried."""
    host, port = split_address(address)
    pin = _agreed_thumbprint(door, host, port, given=thumbprint, accept=accept_thumbprint)
    password = secrets_in.read_secret(
        f"Password of {user}", from_stdin=password_stdin, option="--password-stdin"
    )
    vcenter = door.api.post(
        "/vcenters",
        {
            "name": name,
            "host": host,
            "port": port,
            "username": user,
            "password": password,
            "thumbprint_sha256": pin,
        },
        slow=True,
    )
    if door.json:
        output.print_json(vcenter)
    else:
        output.say(f"vCenter '{name}' added: {_about(vcenter)} at {host}:{port}.")


@app.command("list")
@with_door
def list_(door: Door) -> None:
    """List the vCenters."""
    items = list(door.api.items("/vcenters"))
    if door.json:
        output.print_json({"items": items, "next": None})
        return
    output.table(
        ("name", "address", "user", "version", "inventory of"),
        [
            (
                item["name"],
                f"{item['host']}:{item['port']}",
                item["username"],
                _about(item),
                formats.moment(item.get("inventory_at")),
            )
            for item in items
        ],
        empty="No vCenter yet: add one with `vmhaul vcenter add NAME HOST --user USER`.",
    )


def _show(door: Door, vcenter: dict[str, Any]) -> None:
    if door.json:
        output.print_json(vcenter)
        return
    output.facts(
        [
            ("name", vcenter["name"]),
            ("id", vcenter["id"]),
            ("address", f"{vcenter['host']}:{vcenter['port']}"),
            ("user", vcenter["username"]),
            ("what", _about(vcenter)),
            ("instance", vcenter.get("instance_uuid")),
            ("thumbprint", vcenter.get("thumbprint_sha256")),
            ("inventory of", formats.moment(vcenter.get("inventory_at"))),
        ]
    )


@app.command("show")
@with_door
def show(door: Door, name: NameArgument) -> None:
    """Show one vCenter."""
    _show(door, door.api.get(f"/vcenters/{part(name)}"))


@app.command("edit")
@with_door
def edit(
    door: Door,
    name: NameArgument,
    new_name: Annotated[str | None, typer.Option("--name", help="New name.")] = None,
    address: Annotated[str | None, typer.Option("--address", metavar="HOST[:PORT]")] = None,
    user: Annotated[str | None, typer.Option("--user", help="New account.")] = None,
    password_stdin: PasswordOption = False,
    thumbprint: ThumbprintOption = None,
    accept_thumbprint: AcceptOption = False,
) -> None:
    """Change a vCenter: what is not named stays."""
    path = f"/vcenters/{part(name)}"
    changes: dict[str, Any] = {}
    if new_name:
        changes["name"] = new_name
    if address:
        changes["host"], changes["port"] = split_address(address)
    if user:
        changes["username"] = user
    if password_stdin:
        changes["password"] = secrets_in.read_secret(
            "Password", from_stdin=True, option="--password-stdin"
        )
    if thumbprint or accept_thumbprint:
        known = changes if address else door.api.get(path)
        changes["thumbprint_sha256"] = _agreed_thumbprint(
            door, known["host"], known["port"], given=thumbprint, accept=accept_thumbprint
        )
    if not changes:
        raise CliError("nothing to change: name at least one option", Exit.USAGE)
    _show(door, door.api.patch(path, changes, slow=True))


@app.command("remove")
@with_door
def remove(door: Door, name: NameArgument) -> None:
    """Forget a vCenter; refused while a job uses it."""
    door.api.delete(f"/vcenters/{part(name)}")
    if not door.json:
        output.say(f"vCenter '{name}' removed.")


@app.command("inventory")
@with_door
def inventory(
    door: Door,
    name: NameArgument,
    refresh: Annotated[bool, typer.Option("--refresh", help="Read it from the vCenter now.")] = False,
) -> None:
    """List the VMs of a vCenter with their disks."""
    found = door.api.get(f"/vcenters/{part(name)}/inventory", refresh=refresh, slow=True)
    if door.json:
        output.print_json(found)
        return
    rows = [
        (
            vm["name"],
            "/".join(vm.get("path") or ()),
            vm.get("cluster"),
            {"poweredOn": "on", "poweredOff": "off"}.get(vm["power_state"], vm["power_state"]),
            len(vm["disks"]),
            formats.size(sum(disk["capacity_bytes"] for disk in vm["disks"])),
            vm.get("change_tracking_enabled"),
            "; ".join(sorted({d["backup_obstacle"] for d in vm["disks"] if d.get("backup_obstacle")})),
        )
        for vm in found["vms"]
    ]
    output.table(
        ("VM", "folder", "cluster", "power", "disks", "size", "CBT", "obstacles"),
        rows,
        right=("disks", "size"),
        empty=f"vCenter '{name}' has no VMs that this account may see.",
    )
