"""What checks found lost, kept with the restore points that lost it.

Stands in the row's `disks`, as `damage` of a disk: found_at, bytes, reason and the first extents. The
repository knows nothing of it: a rescan that finds the point anew needs the next check to say it again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.orm import Session as DbSession

from backup_server.db.tables import RestorePointRow
from backup_server.services.shapes import when

MAX_EXTENTS: Final = 20
"""Named one by one for each disk; `bytes` counts all."""


def is_damaged(row: RestorePointRow) -> bool:
    """Whether a part of the point is known to be lost."""
    return any(disk.get("damage") for disk in row.disks)


def record(
    s: DbSession,
    repository_id: str,
    found: Iterable[Mapping[str, Any]],
    *,
    is_complete: bool,
    now: datetime,
) -> list[str]:
    """Mark the points that a check found damaged; answers the ids of those that are marked now.

    `found`: entries {point_id, disk_key, start_bytes, end_bytes, reason}. `is_complete`: all data were
    read, so what was not found again is damaged no more.
    """
    lost: dict[str, dict[int, list[Mapping[str, Any]]]] = {}
    for entry in found:
        lost.setdefault(str(entry["point_id"]), {}).setdefault(int(entry["disk_key"]), []).append(entry)
    query = sa.select(RestorePointRow).where(RestorePointRow.repository_id == repository_id)
    if not is_complete:
        query = query.where(RestorePointRow.id.in_(list(lost)))
    marked = []
    for row in s.scalars(query):
        disks = [_disk(disk, lost.get(row.id, {}), now, is_complete=is_complete) for disk in row.disks]
        if disks != row.disks:
            row.disks = disks
        if is_damaged(row):
            marked.append(row.id)
    return marked


def _disk(
    disk: Mapping[str, Any],
    lost: Mapping[int, list[Mapping[str, Any]]],
    now: datetime,
    *,
    is_complete: bool,
) -> dict[str, Any]:
    own = lost.get(int(disk["disk_key"]), [])
    if not own:
        return {name: value for name, value in disk.items() if name != "damage" or not is_complete}
    extents = _joined([(int(entry["start_bytes"]), int(entry["end_bytes"])) for entry in own])
    return {
        **disk,
        "damage": {
            "found_at": when(now),
            "bytes": sum(end - start for start, end in extents),
            "extents": [[start, end] for start, end in extents[:MAX_EXTENTS]],
            "reason": str(own[0].get("reason") or ""),
        },
    }


def _joined(extents: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    runs: list[tuple[int, int]] = []
    for start, end in sorted(extents):
        if runs and start <= runs[-1][1]:
            runs[-1] = (runs[-1][0], max(end, runs[-1][1]))
        else:
            runs.append((start, end))
    return runs


def clear(s: DbSession, point_ids: Iterable[str]) -> None:
    """The points are whole again, as a repair found."""
    for row in s.scalars(sa.select(RestorePointRow).where(RestorePointRow.id.in_(list(point_ids)))):
        row.disks = [
            {name: value for name, value in disk.items() if name != "damage"} for disk in row.disks
        ]
