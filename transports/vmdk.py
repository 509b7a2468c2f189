"""The descriptor of a virtual disk, as it lies beside the disk's data on a datastore: text that names the files
which hold the data. Facts: VMware's "Virtual Disk Format 5.0" and what ESXi writes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Final

from transports.base import SECTOR_BYTES
from transports.errors import TransportUnavailableError

MAX_DESCRIPTOR_BYTES: Final = 64 << 10
"""ESXi's have less than 1 KiB; a file that is larger holds data."""
FLAT_KINDS: Final = frozenset({"VMFS", "FLAT"})
"""Extents whose file is the disk's bytes as they are."""
DELTA_KINDS: Final = frozenset({"SESPARSE", "VMFSSPARSE", "SPARSE"})
"""Extents that hold what differs from a parent, in a format of their own."""
_NO_PARENT: Final = "ffffffff"
_EXTENT_BEGINS: Final = ("RW ", "RDONLY ", "NOACCESS ")
_EXTENT: Final = re.compile(
    r'(RW|RDONLY|NOACCESS)\s+(\d+)\s+([A-Z0-9]+)(?:\s+"([^"]*)"(?:\s+(\d+))?)?\s*'
)
_VALUE: Final = re.compile(r'([A-Za-z0-9_.]+)\s*=\s*(?:"([^"]*)"|(\S*))\s*')


@dataclass(frozen=True, slots=True, kw_only=True)
class VmdkExtent:
    length_bytes: int
    kind: str
    """"VMFS", "FLAT", "SESPARSE", "VMFSSPARSE", "VMFSRDM", "ZERO", …"""
    file: str
    """As written: beside the descriptor unless it is a path. Empty for ZERO."""
    offset_bytes: int = 0
    """Where the extent begins in its file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VmdkDescriptor:
    create_type: str
    """"vmfs", "vmfsSparse", "seSparse", "vmfsRawDeviceMap", …"""
    extents: tuple[VmdkExtent, ...]
    parent: str = ""
    """Descriptor of the disk below a delta, as written; empty: there is none."""
    cid: str = ""
    """Changes with the content: a child names its parent's."""
    parent_cid: str = ""
    """Empty: there is no parent."""
    filters: str = ""
    """I/O filters that stand between the VM and these files, as written: "vmwarevmcrypt"."""
    is_encrypted: bool = False

    @property
    def capacity_bytes(self) -> int:
        return sum(extent.length_bytes for extent in self.extents)


def parse_descriptor(content: bytes, path: str) -> VmdkDescriptor:
    """`path` is for messages. TransportUnavailableError for what is no descriptor."""
    if len(content) > MAX_DESCRIPTOR_BYTES or b"\0" in content.rstrip(b"\0"):
        raise TransportUnavailableError(
            f"{path} is not a disk descriptor but data; the disk can be read through its host"
        )
    text = content.rstrip(b"\0").decode("utf-8", errors="surrogateescape")
    values: dict[str, str] = {}
    extents: list[VmdkExtent] = []
    for line in text.splitlines():
        bare = line.strip()
        if found := _EXTENT.fullmatch(bare):
            extents.append(
                VmdkExtent(
                    length_bytes=int(found[2]) * SECTOR_BYTES,
                    kind=found[3],
                    file=found[4] or "",
                    offset_bytes=int(found[5] or 0) * SECTOR_BYTES,
                )
            )
        elif bare.startswith(_EXTENT_BEGINS):
            # Passed over it would be a part of the disk that nobody reads.
            raise TransportUnavailableError(
                f"{path} has an extent that is not understood ({bare[:80]!r}); the disk can be read through its host"
            )
        elif not bare.startswith("#") and (value := _VALUE.fullmatch(bare)):
            values[value[1].lower()] = value[2] if value[2] is not None else value[3]
    if not extents or "createtype" not in values:
        raise TransportUnavailableError(
            f"{path} is not a disk descriptor: it names no extent or no type; the disk can be read through its host"
        )
    parent_cid = values.get("parentcid", _NO_PARENT).lower()
    has_parent = parent_cid != _NO_PARENT
    filters = values.get("ddb.iofilters", "") or values.get("ddb.sidecars", "")
    return VmdkDescriptor(
        create_type=values["createtype"],
        extents=tuple(extents),
        parent=values.get("parentfilenamehint", "") if has_parent else "",
        cid=values.get("cid", "").lower(),
        parent_cid=parent_cid if has_parent else "",
        filters=filters,
        is_encrypted="crypt" in filters.lower() or any("encrypt" in name for name in values),
    )


def flat_file(descriptor: VmdkDescriptor, path: str, capacity_bytes: int) -> str:
    """Name of the one file beside the descriptor that is the disk, byte for byte.

    TransportUnavailableError with the reason when the disk is made otherwise. `path` is for messages.
    """
    kinds = {extent.kind for extent in descriptor.extents}
    if descriptor.parent or kinds & DELTA_KINDS:
        raise TransportUnavailableError(
            f"{path} holds the changes since a snapshot ({', '.join(sorted(kinds))}), which only its host can "
            "put together; remove the VM's earlier snapshots or use another mode"
        )
    if len(descriptor.extents) != 1 or not kinds <= FLAT_KINDS:
        raise TransportUnavailableError(
            f"{path} is made of {len(descriptor.extents)} extents of kind {', '.join(sorted(kinds))}, not of one "
            "flat file; use another mode"
        )
    [extent] = descriptor.extents
    if extent.offset_bytes or not is_plain_name(extent.file):
        raise TransportUnavailableError(
            f"{path} names {extent.file!r} as its data, which is not a file beside it; use another mode"
        )
    if extent.length_bytes != capacity_bytes:
        raise TransportUnavailableError(
            f"{path} has {extent.length_bytes} bytes and vCenter says {capacity_bytes}: it was resized or replaced "
            "meanwhile"
        )
    return extent.file


def is_plain_name(name: str) -> bool:
    return bool(name) and "/" not in name and name not in (".", "..")


def below_datastore(path: str) -> str:
    """Of "[datastore] dir/disk.vmdk": "dir/disk.vmdk". TransportUnavailableError for what is no such path."""
    name, closed, below = path.partition("]")
    below = below.strip().lstrip("/")
    parts = PurePosixPath(below).parts
    if not name.startswith("[") or not closed or not parts or ".." in parts:
        raise TransportUnavailableError(f"{path!r} is not a file of a datastore: use another mode")
    return below
