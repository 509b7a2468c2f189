"""How each disk of a VM is to be read: increment, full scan or full, and why. Pure.

The server decides what it can from what it stored; the proxy, which asks for changed areas, may still
find that tracking cannot answer and reads everything. A full scan compares with the previous map and
stores only what differs, so it is safe whenever an increment is in doubt.

A VM that was reverted to a snapshot may go on with the old tracking and a counter that soon is past the
stored one. So a disk is trusted when no snapshot was beneath it last time nor is now, and on a delta only
while the delta is the one of last time: a revert makes a new one. Snapshots that somebody else made or removed look the same; one full scan is the
price. A counter that went back is seen as well.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from transports.vsphere.model import DiskInfo

NO_PREVIOUS = "first backup of this VM in this repository"
FULL_ASKED = "a full backup was asked for"
TRACKING_OFF = "change tracking is switched off in the job"
NOT_TRACKED = "the disk is not tracked: its snapshot has no change id"
NO_STORED_ID = "the previous restore point has no change id of this disk"
TRACKING_RESET = "change tracking was reset since the previous restore point"
WENT_BACK = "the VM was reverted to an older state since the previous restore point"
BASE_DAMAGED = (
    "the previous restore point has lost a part of this disk: everything is read and stored anew"
)
DISK_NEW = "the disk is new in this VM"
DISK_REPLACED = "the disk was replaced by another since the previous restore point"
SNAPSHOTS_CHANGED = (
    "the VM's snapshots changed since the previous restore point: it may have been reverted"
)
TRACKING_WRONG = "change tracking was found wrong and has not begun anew since"
SNAPSHOTS_UNKNOWN = (
    "the previous restore point is known from the repository alone: a revert since cannot be ruled out"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PreviousDisk:
    """A disk of the restore point that an increment would build on."""

    disk_key: int
    disk_uuid: str
    capacity_bytes: int
    map_root: str
    change_id: str
    base_path: str = ""
    """Root of the chain of files then."""
    frozen_path: str = ""
    """File that was read then; empty when only the repository knows the point."""
    is_damaged: bool = False
    """A check found a part of it lost: nothing may build on it."""
    tracking_wrong: str = ""
    """Where tracking was found wrong, then or before; empty when it was not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PreviousPoint:
    id: str
    created_at: datetime
    disks: tuple[PreviousDisk, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskPlan:
    """What goes into the disk's order."""

    previous_map_root: str
    previous_change_id: str
    current_change_id: str
    reason: str
    """Why everything is read; empty when tracking may be asked."""


def previous_from_row(
    point_id: str, created_at: datetime, disks: Sequence[Mapping[str, Any]]
) -> PreviousPoint:
    """From the catalogue's columns."""
    return PreviousPoint(
        id=point_id,
        created_at=created_at,
        disks=tuple(
            PreviousDisk(
                disk_key=int(disk["disk_key"]),
                disk_uuid=str(disk["disk_uuid"]),
                capacity_bytes=int(disk["capacity_bytes"]),
                map_root=str(disk["map_root"]),
                change_id=str(disk["change_id"]),
                base_path=str(disk.get("path") or ""),
                frozen_path=str(disk.get("frozen_path") or ""),
                is_damaged=bool(disk.get("damage")),
                tracking_wrong=str(disk.get("tracking_wrong") or ""),
            )
            for disk in disks
        ),
    )


def full_reason(
    previous: PreviousPoint | None,
    *,
    forced: bool,
    full_every_days: int | None,
    last_full_at: datetime | None,
    now: datetime,
) -> str:
    """Why the whole VM is to be read in full; empty when it may build on `previous`."""
    if previous is None:
        return NO_PREVIOUS
    if forced:
        return FULL_ASKED
    if full_every_days is not None:
        if last_full_at is None:
            return "no full restore point of this VM is left in the repository"
        # A day less an hour: a daily job starts a little earlier or later each day.
        if now - last_full_at >= timedelta(days=full_every_days) - timedelta(hours=1):
            return f"the last full restore point is from {last_full_at:%Y-%m-%d}, the job wants one every {full_every_days} days"
    return ""


def plan_disks(
    disks: Sequence[DiskInfo],
    previous: PreviousPoint | None,
    *,
    full: str,
    change_tracking: bool,
) -> dict[int, DiskPlan]:
    """Disk key -> plan. `full`: answer of full_reason(); `disks` are those of the snapshot."""
    plans: dict[int, DiskPlan] = {}
    uuids = Counter(disk.uuid for disk in disks)
    for disk in disks:
        if previous is None or full:
            plans[disk.key] = _full(disk, full or NO_PREVIOUS)
            continue
        base, why_not = match_disk(disk, previous.disks, unique=uuids[disk.uuid] == 1)
        if base is None:
            plans[disk.key] = _full(disk, why_not)
        elif base.is_damaged:
            plans[disk.key] = _full(disk, BASE_DAMAGED)
        elif base.capacity_bytes != disk.capacity_bytes:
            change = f"from {base.capacity_bytes} to {disk.capacity_bytes} bytes"
            plans[disk.key] = DiskPlan(
                previous_map_root=base.map_root,
                previous_change_id="",
                current_change_id=disk.change_id,
                reason=f"the disk's capacity changed {change}",
            )
        else:
            reason = tracking_reason(disk, base, wanted=change_tracking)
            plans[disk.key] = DiskPlan(
                previous_map_root=base.map_root,
                previous_change_id="" if reason else base.change_id,
                current_change_id=disk.change_id,
                reason=reason,
            )
    return plans


def _full(disk: DiskInfo, reason: str) -> DiskPlan:
    return DiskPlan(
        previous_map_root="",
        previous_change_id="",
        current_change_id=disk.change_id,
        reason=reason,
    )


def match_disk(
    disk: DiskInfo, previous: Sequence[PreviousDisk], *, unique: bool
) -> tuple[PreviousDisk | None, str]:
    """The same disk in the previous point, or None and why there is none.

    The uuid decides. Uuids can be duplicated by cloning files, or be absent: then the key decides.
    """
    same_key = next((base for base in previous if base.disk_key == disk.key), None)
    if disk.uuid and unique:
        same_uuid = [base for base in previous if base.disk_uuid == disk.uuid]
        if len(same_uuid) == 1:
            return same_uuid[0], ""
        if not same_uuid and (same_key is None or same_key.disk_uuid):
            return None, DISK_NEW if same_key is None else DISK_REPLACED
    if same_key is None:
        return None, DISK_NEW
    if disk.uuid and same_key.disk_uuid and disk.uuid != same_key.disk_uuid:
        return None, DISK_REPLACED
    return same_key, ""


def tracking_reason(disk: DiskInfo, base: PreviousDisk, *, wanted: bool) -> str:
    """Why change tracking cannot be used for this disk; empty when it can be asked."""
    if not wanted:
        return TRACKING_OFF
    if not disk.change_id:
        return NOT_TRACKED
    if not base.change_id:
        return NO_STORED_ID
    if _tracking_uuid(disk.change_id) != _tracking_uuid(base.change_id):
        return TRACKING_RESET
    if base.tracking_wrong:
        return TRACKING_WRONG
    if change_went_back(base.change_id, disk.change_id):
        return WENT_BACK
    if not base.frozen_path:
        return SNAPSHOTS_UNKNOWN
    return "" if _same_snapshots(disk, base) else SNAPSHOTS_CHANGED


def still_wrong(disk: DiskInfo, previous: PreviousPoint | None) -> str:
    """Where the disk's tracking was found wrong, when it has not begun anew since; however the disk is read
    now, the next run must not believe it either.
    """
    if previous is None:
        return ""
    base, _ = match_disk(disk, previous.disks, unique=True)
    if base is None or _tracking_uuid(disk.change_id) != _tracking_uuid(base.change_id):
        return ""
    return base.tracking_wrong


def _same_snapshots(disk: DiskInfo, base: PreviousDisk) -> bool:
    """Whether the VM cannot have gone back behind the point: there was no snapshot to go back to then and
    there is none now, or the disk lies on the very file of last time.

    A disk that lay on a delta then and does not now may have been reverted before the delta went.
    """
    if disk.path == disk.base_path and base.frozen_path == base.base_path:
        return True
    return disk.path == base.frozen_path


def _tracking_uuid(change_id: str) -> str:
    """Change ids are "<uuid as hex>/<number>"; another uuid means that tracking began anew."""
    return change_id.rpartition("/")[0].replace(" ", "").lower()


def change_went_back(old: str, new: str) -> bool:
    """True when the counter of `new` is not above that of `old`; False when either is no number.

    Each snapshot counts on, so the same number again is the number after a revert.
    """
    before, after = old.rpartition("/")[2], new.rpartition("/")[2]
    return before.isdigit() and after.isdigit() and int(after) <= int(before)
