"""When changed block tracking may be believed, and its answers page by page. Pure: no pyVmomi here.

Tracking may name too much, never too little. So everything that is not plainly in order means: read
the whole disk, and say why. Reading everything costs time; believing a wrong answer costs the backup.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from transports.base import Extent
from transports.errors import ChangeTrackingUnusableError

ALLOCATED: Final = "*"
"""The change id that asks for what is allocated instead of what changed."""

_NO_TRACKING_KEYS: Final = ("cbt.noTrack", "cbt.noEpoch")
_NO_BASE_KEYS: Final = ("cbt.cannotGetChanges",)


class Refusal(StrEnum):
    """What a refused query means."""

    FULL_READ = "full-read"
    RETRY_THEN_FULL_READ = "retry-then-full-read"  # a lock or something passing


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """One answer: what changed in [start, start + length) and nothing about the rest."""

    start: int
    length: int
    areas: tuple[Extent, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackedDisk:
    """A disk at one moment, as far as tracking is concerned."""

    uuid: str
    capacity_bytes: int
    change_id: str


def epoch(change_id: str) -> str:
    """The part of a change id that stays until tracking is reset: "52 de ..." of "52 de .../12"."""
    return change_id.rsplit("/", 1)[0]


def tracking_obstacle(previous: TrackedDisk, current: TrackedDisk) -> str:
    """Why changes since `previous` cannot be asked for; empty when they can."""
    if not current.change_id:
        return "the disk is not tracked: the snapshot has no change id"
    if not previous.change_id:
        return "the disk was not tracked when the previous restore point was made"
    if previous.uuid and current.uuid and previous.uuid != current.uuid:
        return "the disk was replaced: its UUID differs from the previous restore point's"
    if previous.capacity_bytes != current.capacity_bytes:
        return (
            f"the disk was resized from {previous.capacity_bytes} to {current.capacity_bytes} bytes"
            " since the previous restore point"
        )
    if epoch(previous.change_id) != epoch(current.change_id):
        return "change tracking was reset since the previous restore point"
    return ""


def query_obstacle(change_id: str, current_change_id: str) -> str:
    """Why a query for `change_id` against a snapshot with `current_change_id` makes no sense; empty: none."""
    if not current_change_id:
        return "the disk is not tracked: the snapshot has no change id"
    if change_id != ALLOCATED and epoch(change_id) != epoch(current_change_id):
        return "change tracking was reset since the previous restore point"
    return ""


def file_fault(keys: Iterable[str], file: str) -> tuple[Refusal, str]:
    """What a FileFault with these message keys means, and the reason for the record."""
    for key in keys:
        if key.endswith(_NO_TRACKING_KEYS):
            return Refusal.FULL_READ, f"change tracking is off or has no epoch for this disk ({key})"
        if key.endswith(_NO_BASE_KEYS):
            return Refusal.FULL_READ, f"vSphere cannot tell the changes since that change id ({key})"
    return (
        Refusal.RETRY_THEN_FULL_READ,
        f"vSphere could not read the tracking data of {file or 'the disk'}: it may be locked or damaged",
    )


def invalid_argument(name: str) -> tuple[Refusal, str]:
    """What an InvalidArgument for the parameter `name` means, and the reason for the record."""
    reasons = {
        "changeId": "vSphere does not accept the stored change id",
        "deviceKey": "vSphere does not track this disk",
    }
    reason = reasons.get(name, f"vSphere refused the query (argument {name or 'unknown'})")
    return Refusal.FULL_READ, reason


def collect(capacity_bytes: int, query: Callable[[int], Page]) -> list[Extent]:
    """All areas of the disk, asking `query(offset)` until the end; ascending and merged.

    One answer describes only its own range (about 2000 areas in practice), so stopping early would
    lose changes. ChangeTrackingUnusableError when the pages do not fit together.
    """
    areas: list[Extent] = []
    offset = 0
    while offset < capacity_bytes:  # asking at the end itself is refused
        page = query(offset)
        if page.start != offset or page.length <= 0 or page.start + page.length > capacity_bytes:
            raise ChangeTrackingUnusableError(
                f"vSphere answered for [{page.start}, {page.start + page.length}) when asked at {offset}"
                f" of a disk of {capacity_bytes} bytes"
            )
        for area in page.areas:
            if area.length <= 0 or area.offset < page.start or area.end > page.start + page.length:
                raise ChangeTrackingUnusableError(
                    f"vSphere named a changed area [{area.offset}, {area.end}) outside of the range"
                    f" [{page.start}, {page.start + page.length}) that it described"
                )
        areas.extend(page.areas)
        offset = page.start + page.length
    return _merged(areas)


def _merged(areas: list[Extent]) -> list[Extent]:
    merged: list[Extent] = []
    for area in sorted(areas):
        last = merged[-1] if merged else None
        if last is not None and area.offset < last.end:
            raise ChangeTrackingUnusableError(
                f"vSphere named overlapping changed areas at {area.offset} and {last.offset}"
            )
        if last is not None and area.offset == last.end:
            merged[-1] = Extent(offset=last.offset, length=area.end - last.offset)
        else:
            merged.append(area)
    return merged
