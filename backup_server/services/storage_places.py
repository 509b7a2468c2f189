"""Which hosts the storage of a repository is on, as far as its location tells, and whether it is reached in the
clear. Pure but for the mount table.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import parse_qsl, urlsplit

SCALE_OUT: Final = "scale-out:"
_MOUNTS: Final = Path("/proc/self/mounts")
_NFS: Final = frozenset({"nfs", "nfs4"})
_ESCAPES: Final = {"\\040": " ", "\\011": "\t", "\\012": "\n", "\\134": "\\"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    host: str
    """Name or address; empty: the proxy's own machine."""
    clear: bool
    """What goes there can be read on the way. Backups are encrypted by themselves; what is seen is how much and when."""
    how: str
    """For people: "NFS", "https"."""


LOCAL: Final = Place(host="", clear=False, how="a directory")


def places_of(location: str) -> tuple[Place, ...]:
    """Of every extent. A directory that is a mount of NFS here is taken for the same on the proxies."""
    if location.startswith(SCALE_OUT):
        return tuple(place for extent in _extents(location) for place in places_of(extent))
    if location.startswith("/"):
        return (_of_directory(location, _mounts()),)
    return _of_url(location)


def has_directory(location: str) -> bool:
    """Whether it, or an extent of it, is a directory of the proxy's machine."""
    return location.startswith("/") or any(place.startswith("/") for place in _extents(location))


def _extents(location: str) -> list[str]:
    """Locations of its extents; none of a repository that is in one place."""
    if not location.startswith(SCALE_OUT):
        return []
    try:
        return [str(row["location"]) for row in json.loads(location.removeprefix(SCALE_OUT))]
    except (ValueError, KeyError, TypeError):
        return []


def _of_url(location: str) -> tuple[Place, ...]:
    try:
        parts = urlsplit(location)
        options = dict(parse_qsl(parts.query))
        endpoint = urlsplit(options.get("endpoint", ""))
        host = endpoint.hostname
    except ValueError:
        return ()
    if host:
        return (Place(host=host, clear=endpoint.scheme == "http", how=endpoint.scheme),)
    region = options.get("region")
    default = {
        "s3": f"s3.{region}.amazonaws.com" if region else "s3.amazonaws.com",
        "az": f"{options.get('account', '')}.blob.core.windows.net",
        "gs": "storage.googleapis.com",
    }.get(parts.scheme)
    return (Place(host=default, clear=False, how="https"),) if default else ()


def _of_directory(path: str, mounts: Iterable[tuple[str, str, str]]) -> Place:
    """By the mount that lies deepest above it."""
    best, device, kind = "", "", ""
    for found_device, target, found_kind in mounts:
        inside = path == target or path.startswith(target.rstrip("/") + "/")
        if inside and len(target) >= len(best):
            best, device, kind = target, found_device, found_kind
    if kind not in _NFS:
        return LOCAL
    host = device.rpartition(":")[0].strip("[]")
    return Place(host=host, clear=True, how="NFS")


def _mounts() -> list[tuple[str, str, str]]:
    try:
        lines = _MOUNTS.read_text().splitlines()
    except OSError:
        return []
    fields = [line.split() for line in lines]
    return [(one[0], _plain(one[1]), one[2]) for one in fields if len(one) > 2]  # noqa: PLR2004


def _plain(text: str) -> str:
    for escape, sign in _ESCAPES.items():
        text = text.replace(escape, sign)
    return text
