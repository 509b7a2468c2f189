"""The catalogue of restore points in SQL: what the repository holds, as rows that can be searched.

The repository is the truth. A row is written after the repository's commit and removed after its
forget, and all of them can be rebuilt from the repository at any time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session as DbSession

from backup_server.db.tables import Job, Repository, RestorePointRow
from backup_server.services.context import Context
from backup_server.services.repository_agent import days_of
from pipeline.model import RestorePoint
from proxy_worker.contracts.codec import to_json


def add_point(
    db: DbSession,
    point: RestorePoint,
    repository_id: str,
    *,
    job_id: str | None,
    session_id: str | None,
    figures: Mapping[int, Mapping[str, Any]] | None = None,
    immutable_until: datetime | None = None,
) -> bool:
    """Write the row of a committed point; False when it is there already.

    `figures`: disk key -> read_bytes, stored_bytes, frozen_path, read_mode, sampled_blocks and
    tracking_wrong, where known. A copy is as doubtful as what it is a copy of.
    """
    if db.get(RestorePointRow, point.id) is not None:
        return False
    known = figures or {}
    source = db.get(RestorePointRow, point.copied_from.point_id) if point.copied_from else None
    disks = [
        {**to_json(disk), "read_bytes": None, "stored_bytes": None, **known.get(disk.disk_key, {})}
        for disk in point.disks
    ]
    db.add(
        RestorePointRow(
            id=point.id,
            repository_id=repository_id,
            job_id=job_id,
            job_name=point.job_name,
            session_id=session_id,
            vcenter_uuid=point.vm.vcenter_uuid,
            instance_uuid=point.vm.instance_uuid,
            vm_name=point.vm.name,
            created_at=point.created_at,
            kind=point.kind.value,
            consistency=point.consistency.value,
            previous_id=point.previous,
            disks=disks,
            size_bytes=sum(int(disk["stored_bytes"] or 0) for disk in disks),
            source_point_id=point.copied_from.point_id if point.copied_from else None,
            immutable_until=immutable_until,
            doubt=source.doubt if source is not None else "",
            deleting=False,
        )
    )
    return True


def rebuild(ctx: Context, repository_id: str) -> dict[str, int]:
    """Make the catalogue of one repository equal to the repository: {points, added, removed}."""
    # Rows are read before the repository: a row that is written in between belongs to a point that
    # our listing may not have, and must not be taken for one that is gone.
    with ctx.db.read() as s:
        before = set(
            s.scalars(
                sa.select(RestorePointRow.id).where(RestorePointRow.repository_id == repository_id)
            )
        )
    points = ctx.agents.get(repository_id).points()
    gone = before - {point.id for point in points}
    added = 0
    with ctx.db() as s:
        job_ids = {
            row.name: row.id
            for row in s.execute(sa.select(Job.id, Job.name).where(Job.repository_id == repository_id))
        }
        for point in points:
            job_id = job_ids.get(point.job_name)
            added += add_point(s, point, repository_id, job_id=job_id, session_id=None)
        for point_id in gone:
            s.execute(sa.delete(RestorePointRow).where(RestorePointRow.id == point_id))
    known = immutable_until(ctx, repository_id, [point.id for point in points])
    with ctx.db() as s:
        for point_id, until in known.items():
            s.execute(
                sa.update(RestorePointRow)
                .where(RestorePointRow.id == point_id)
                .values(immutable_until=until)
            )
    return {"points": len(points), "added": added, "removed": len(gone)}


def immutable_until(
    ctx: Context, repository_id: str, point_ids: Sequence[str]
) -> dict[str, datetime | None]:
    """Until when the storage keeps each point; nothing for a repository that is not immutable."""
    with ctx.db.read() as s:
        row = s.get(Repository, repository_id)
        if row is None or not days_of(row):
            return {}
    until_s = ctx.agents.get(repository_id).immutable_until(point_ids)
    return {
        point_id: datetime.fromtimestamp(kept_s, UTC) if kept_s else None
        for point_id, kept_s in until_s.items()
    }


def disk_in(row: RestorePointRow, disk: int | str) -> dict[str, Any] | None:
    """A disk of the point by key, label or number from 1; None when it has no such disk."""
    text = str(disk).strip()
    for entry in row.disks:
        if text == str(entry["disk_key"]) or text.lower() == str(entry["label"]).lower():
            return dict(entry)
    if text.isdigit() and 1 <= int(text) <= len(row.disks):
        return dict(row.disks[int(text) - 1])
    return None
