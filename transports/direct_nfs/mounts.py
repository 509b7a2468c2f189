"""NFS exports that an administrator has mounted on this machine."""

from __future__ import annotations

import re
import socket
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from transports.base import DatastoreRef
from transports.machine import Machine

_KINDS: Final = frozenset({"nfs", "nfs4"})
_ESCAPE: Final = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True, kw_only=True)
class NfsMount:
    point: Path
    host: str
    """As it was given when mounting; brackets of an IPv6 address taken off."""
    address: str
    """Of the server, as the kernel uses it; empty: not told."""
    path: str
    """On the server: what lies at `point`."""
    read_only: bool


def nfs_mounts(machine: Machine) -> list[NfsMount]:
    """Those of this process's name space, later ones last; empty where the kernel tells of none."""
    try:
        text = Path(machine.mountinfo_path).read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return []
    return [mount for line in text.splitlines() if (mount := _mount(line)) is not None]


def find_mount(machine: Machine, storage: DatastoreRef) -> tuple[NfsMount, Path] | None:
    """The mount through which a datastore's export is seen, and where it begins there."""
    if not storage.nfs_path:
        return None
    hosts = {host.lower() for host in storage.nfs_hosts}
    addresses: set[str] | None = None
    for mount in reversed(nfs_mounts(machine)):
        below = _below(mount.path, storage.nfs_path)
        if below is None:
            continue
        if mount.host.lower() not in hosts and mount.address not in hosts:
            addresses = _addresses(hosts) if addresses is None else addresses
            if mount.address not in addresses:
                continue
        return mount, mount.point / below
    return None


def _mount(line: str) -> NfsMount | None:
    """One line of proc(5): id parent major:minor root point options [tag…] - kind source super-options."""
    front, separator, back = line.partition(" - ")
    left, right = front.split(" "), back.split(" ")
    if not separator or len(left) < 6 or len(right) < 3 or right[0] not in _KINDS:  # noqa: PLR2004
        return None
    root, point, options = (_plain(field) for field in left[3:6])
    host, colon, export = _plain(right[1]).rpartition(":/")
    if not colon:
        return None
    given = dict(option.partition("=")[::2] for option in right[2].split(","))
    return NfsMount(
        point=Path(point),
        host=host.removeprefix("[").removesuffix("]"),
        address=given.get("addr", ""),
        path=str(PurePosixPath("/" + export) / root.lstrip("/")),
        read_only="ro" in options.split(",") or "ro" in given,
    )


def _plain(field: str) -> str:
    return _ESCAPE.sub(lambda found: chr(int(found[1], 8)), field)


def _below(mounted: str, export: str) -> str | None:
    """Where `export` lies below what is mounted; None when it does not."""
    wanted, seen = PurePosixPath("/" + export.strip("/")), PurePosixPath(mounted)
    return str(wanted.relative_to(seen)) if wanted.is_relative_to(seen) else None


def _addresses(hosts: set[str]) -> set[str]:
    found = set()
    for host in hosts:
        try:
            answers = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        except OSError:
            continue
        found |= {str(answer[4][0]) for answer in answers}
    return found
