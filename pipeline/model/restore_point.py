"""One state of one VM, as the repository keeps it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from pipeline.model.ids import BlobId, RestorePointId


class PointKind(StrEnum):
    FULL = "full"
    INCREMENT = "increment"


class Consistency(StrEnum):
    """What state the guest was in when the snapshot was taken."""

    CRASH = "crash-consistent"
    FILE_SYSTEM = "file-system-consistent"
    APPLICATION = "application-consistent"
    POWERED_OFF = "powered-off"


@dataclass(frozen=True, slots=True, kw_only=True)
class VmIdentity:
    """Who the VM is. `instance_uuid` is the identity; the moref is what vCenter called it then."""

    instance_uuid: str
    bios_uuid: str
    name: str
    moref: str
    vcenter_uuid: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskPoint:
    """One disk in one restore point."""

    disk_key: int
    label: str
    """For people: "Hard disk 1"."""
    disk_uuid: str
    """backing.uuid; empty when the server gave none."""
    path: str
    """Datastore path of the base disk (not the delta) at that time."""
    capacity_bytes: int
    map_root: BlobId
    """Root of the disk map; 64 zeros for a disk that is all zeros."""
    change_id: str
    """Change id of the snapshot this was read from; empty when the disk was not tracked."""
    thin: bool
    sha256: str = ""
    """Hash of the raw image, hexadecimal, where a full pass over all blocks computed one; else empty."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CopiedFrom:
    """Of a copy: which restore point it is a copy of."""

    repository_id: str
    """Id of the repository that it was copied from."""
    point_id: RestorePointId
    job_name: str
    """The job that made the original."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RestorePoint:
    """A restore point that is committed: all its disks can be restored from the repository alone."""

    id: RestorePointId
    vm: VmIdentity
    created_at: datetime
    """When the VM snapshot was taken (aware, UTC)."""
    kind: PointKind
    consistency: Consistency
    previous: RestorePointId | None
    """The point this one was made from, as an increment of the same chain; None for a full."""
    job_name: str
    disks: tuple[DiskPoint, ...]
    skipped_disks: tuple[str, ...]
    """Why disks of the VM are not in the point, one sentence each."""
    vm_config: bytes
    """VM configuration as JSON (transports.vsphere writes and reads it)."""
    nvram: bytes = b""
    copied_from: CopiedFrom | None = None
    """None for a point that was made by a backup into this repository."""
