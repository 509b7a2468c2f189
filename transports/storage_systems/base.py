"""What the backup server may ask of a storage system, and the names under which it is asked.

Errors are those of `transports.errors`: TransientTransportError when the same call may succeed later,
PermanentTransportError when it will not, PeerIdentityError when the system shows another key or certificate than
the confirmed one. No message holds a secret.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, Protocol
from uuid import UUID

from transports.vsphere.model import Secret

_OWNER_DIGITS: Final = 10
_INTENT_DIGITS: Final = 32
_EXPOSURE_DIGITS: Final = 8
NAME_MAX_CHARS: Final = 63
"""What the tightest of the systems takes: 7 + 10 + 1 + 32 for a snapshot, 9 more for an exposure, and 4 for the number
of a clone.
"""
_SNAPSHOT: Final = re.compile(rf"vmhaul-[0-9a-f]{{{_OWNER_DIGITS}}}-[0-9a-f]{{{_INTENT_DIGITS}}}")
_EXPOSURE: Final = re.compile(rf"({_SNAPSHOT.pattern})-[0-9a-f]{{{_EXPOSURE_DIGITS}}}")


class VolumeKind(StrEnum):
    NFS = "nfs"
    LUN = "lun"


@dataclass(frozen=True, slots=True, kw_only=True)
class Volume:
    id: str
    """Stays the same over renames where the system can tell, and names the volume in every call."""
    name: str
    kind: VolumeKind
    size_bytes: int
    exports: tuple[str, ...] = ()
    """NFS: paths under which clients mount it: "/tank/vmware"."""
    hosts: tuple[str, ...] = ()
    """NFS: names and addresses by which clients know the server."""
    lun: str = ""
    """LUN: canonical name, "naa.624a9370…"."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageSnapshot:
    name: str
    volume_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Exposed:
    """One volume of a snapshot as a proxy finds it."""

    volume_id: str
    directory: str = ""
    """NFS: directory below the export that holds what the volume held: ".zfs/snapshot/NAME"."""
    lun: str = ""
    """LUN: canonical name of the clone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SystemInfo:
    """For people."""

    model: str
    version: str


class StorageSystem(Protocol):
    """One storage system, logged in. MAY be used by several threads.

    Every call MAY be repeated after any failure: what exists already is taken for made, what is gone for removed.
    A name that is not of the form of `snapshot_name` or `exposure_name` MUST be refused with ValueError before
    anything is asked of the system.
    """

    def describe(self) -> SystemInfo:
        """Also the trial of address and login."""

    def volumes(self) -> tuple[Volume, ...]:
        """Every volume that a datastore may lie on, without those that this interface made."""

    def create_snapshot(self, name: str, volume_ids: Sequence[str]) -> None:
        """Freeze the volumes, at one moment where the system can. When it raises, some may be frozen already."""

    def snapshots(self, prefix: str) -> tuple[StorageSnapshot, ...]:
        """Those whose names begin with `prefix` and are of our form, whoever asked for them."""

    def delete_snapshot(self, name: str) -> None:
        """Remove it from every volume. MUST NOT remove any other. Exposures MUST be hidden before."""

    def expose(self, exposure: str, volume_ids: Sequence[str], host: str) -> tuple[Exposed, ...]:
        """Show those volumes of the exposure's snapshot to a proxy; `host`: what the system calls that proxy."""

    def exposures(self, prefix: str) -> tuple[str, ...]:
        """Names of exposures that take something from the system, as `snapshots`."""

    def hide(self, exposure: str) -> None:
        """Take it away from every host and remove what was made for it."""

    def close(self) -> None:
        """Log out. MAY be called twice; MUST NOT raise for a lost peer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageAccess:
    """How one storage system is reached."""

    address: str
    """Host name or IP address, with ":port" where it is not the driver's own."""
    identity: str
    """What was confirmed by a person: thumbprint of its certificate, or fingerprint of its host key."""
    secrets: Mapping[str, Secret]
    """As the driver's `secrets` name them."""
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One setting of a driver, for the doors' checks and their help."""

    name: str
    help: str
    required: bool = False
    many: bool = False
    """A list of texts."""
    choices: tuple[str, ...] = ()
    default: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageDriver:
    name: str
    title: str
    """For people."""
    options: tuple[Option, ...]
    secrets: tuple[tuple[str, ...], ...]
    """Sets of secrets, one of which must be given: (("password",), ("private_key",))."""
    needs_host: bool
    """Whether a proxy must be known to the system as a host before it can be shown anything."""
    probe: Callable[[str], str]
    """Identity that is shown at an address, for a person to confirm. Sends no secret."""
    connect: Callable[[StorageAccess], StorageSystem]
    """Does not yet ask anything of the system."""


def owner_prefix(server_id: str) -> str:
    """What the names of everything made for one backup server begin with."""
    return f"vmhaul-{UUID(server_id).hex[:_OWNER_DIGITS]}-"


def snapshot_name(server_id: str, intent_id: str) -> str:
    return owner_prefix(server_id) + UUID(intent_id).hex


def exposure_name(snapshot: str, key: str) -> str:
    """`key` tells the exposures of one snapshot apart."""
    digest = hashlib.sha256(key.encode()).hexdigest()[:_EXPOSURE_DIGITS]
    return f"{checked_snapshot(snapshot)}-{digest}"


def is_snapshot(name: str, prefix: str = "") -> bool:
    return name.startswith(prefix) and _SNAPSHOT.fullmatch(name) is not None


def is_exposure(name: str, prefix: str = "") -> bool:
    return name.startswith(prefix) and _EXPOSURE.fullmatch(name) is not None


def checked_snapshot(name: str) -> str:
    if not is_snapshot(name):
        raise ValueError(f"{name!r} is not the name of a storage snapshot of vmhaul")
    return name


def snapshot_of(exposure: str) -> str:
    """The snapshot that an exposure shows. ValueError for a name of another form."""
    match = _EXPOSURE.fullmatch(exposure)
    if match is None:
        raise ValueError(f"{exposure!r} is not the name of an exposure of vmhaul")
    return match[1]


def split_address(address: str, port: int) -> tuple[str, int]:
    """Host and port of "HOST", "HOST:PORT" or "[IPV6]:PORT"; `port` where none is named. ValueError."""
    if address.startswith("["):
        host, _, rest = address[1:].partition("]")
        return host, int(rest.removeprefix(":") or port)
    if address.count(":") == 1:
        host, _, rest = address.partition(":")
        return host, int(rest)
    return address, port
