"""`vmhaul restore`: a disk into a file, a VM into a vCenter."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from backup_server.cli import output
from backup_server.cli.door import Door, noun, with_door
from backup_server.cli.follow import follow
from backup_server.cli.job_options import Mode
from backup_server.cli.points import find_point
from backup_server.cli.restore_point import PointArgument

app = noun("Restore a disk to a file, or a whole VM.")

NoFollowOption = Annotated[bool, typer.Option("--no-follow", help="Start it and return at once.")]


def _started(door: Door, session: dict[str, Any], what: str, *, no_follow: bool) -> None:
    if door.json and no_follow:
        output.print_json(session)
        return
    if not door.json:
        output.say(f"Session {session['id']} started: {what}.")
    if not no_follow:
        follow(door, session)


@app.command("disk")
@with_door
def disk(
    door: Door,
    point: PointArgument,
    disk: Annotated[
        str, typer.Option("--disk", metavar="DISK", help="Number from 1, label ('Hard disk 2') or key.")
    ],
    to: Annotated[
        str, typer.Option("--to", metavar="FILE", help="Raw image file, on the proxy's machine.")
    ],
    proxy: Annotated[
        str | None, typer.Option("--proxy", help="Which proxy writes it; any by default.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing file.")] = False,
    no_follow: NoFollowOption = False,
) -> None:
    """Restore one disk to a raw image file."""
    found = find_point(door.api, point)
    # A relative path means this shell's directory, which only a server here shares.
    path = to if door.remote else str(Path(to).expanduser().absolute())
    body: dict[str, Any] = {
        "restore_point": found["id"],
        "disk": int(disk) if disk.isdecimal() else disk,
        "path": path,
        "overwrite": overwrite,
    }
    if proxy:
        body["proxy"] = proxy
    session = door.api.post("/restores/disk", body, slow=True)
    _started(door, session, f"disk {disk} of VM '{found['vm']}' to {path}", no_follow=no_follow)


@app.command("vm")
@with_door
def vm(
    door: Door,
    point: PointArgument,
    name: Annotated[str, typer.Option("--name", metavar="NEW", help="Name of the new VM.")],
    vcenter: Annotated[
        str | None, typer.Option("--vcenter", help="Where; as backed up by default.")
    ] = None,
    datacenter: Annotated[
        str | None, typer.Option("--datacenter", help="As backed up by default.")
    ] = None,
    folder: Annotated[str | None, typer.Option("--folder", help="As backed up by default.")] = None,
    pool: Annotated[
        str | None, typer.Option("--pool", help="Resource pool; as backed up by default.")
    ] = None,
    host: Annotated[str | None, typer.Option("--host", help="Host that runs it.")] = None,
    datastore: Annotated[str | None, typer.Option("--datastore", help="For all its disks.")] = None,
    disk: Annotated[
        list[str] | None,
        typer.Option(
            "--disk", metavar="DISK", help="Only these disks: number, label or key; repeat for more."
        ),
    ] = None,
    power_on: Annotated[
        bool, typer.Option("--power-on", help="Switch it on when it is complete.")
    ] = False,
    keep_identity: Annotated[
        bool,
        typer.Option(
            "--keep-identity", help="Keep UUIDs and MAC addresses: the original must be gone."
        ),
    ] = False,
    thin: Annotated[
        bool | None,
        typer.Option(
            "--thin/--thick", help="Kind of its disks; as backed up by default.", show_default=False
        ),
    ] = None,
    mode: Annotated[
        list[Mode] | None,
        typer.Option("--mode", help="Only these transport modes; repeat for more. Any by default."),
    ] = None,
    proxy: Annotated[
        list[str] | None,
        typer.Option("--proxy", metavar="NAME", help="Only these proxies; repeat for more."),
    ] = None,
    no_follow: NoFollowOption = False,
) -> None:
    """Restore a whole VM as a new one."""
    found = find_point(door.api, point)
    body: dict[str, Any] = {
        "restore_point": found["id"],
        "name": name,
        "power_on": power_on,
        "keep_identity": keep_identity,
    }
    places = {
        "vcenter": vcenter,
        "datacenter": datacenter,
        "folder": folder,
        "resource_pool": pool,
        "host": host,
        "datastore": datastore,
        "thin": thin,
        "disks": [int(item) if item.isdecimal() else item for item in disk] if disk else None,
        "modes": [one.value for one in mode] if mode else None,
        "proxies": proxy or None,
    }
    body |= {key: value for key, value in places.items() if value is not None}
    session = door.api.post("/restores/vm", body, slow=True)
    _started(door, session, f"VM '{found['vm']}' as '{name}'", no_follow=no_follow)
