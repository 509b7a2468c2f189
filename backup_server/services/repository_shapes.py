"""Repositories as the doors show them."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session as DbSession

from backup_server.db.tables import Repository, RestorePointRow
from backup_server.services.shapes import when


def point_counts(s: DbSession) -> dict[str, int]:
    rows = s.execute(
        sa.select(RestorePointRow.repository_id, sa.func.count())
        .where(RestorePointRow.deleting.is_(False))
        .group_by(RestorePointRow.repository_id)
    )
    return {repository_id: int(count) for repository_id, count in rows}


def repository_shape(row: Repository, points: int) -> dict[str, Any]:
    return {
        "id": row.id,
        "name": row.name,
        "repository_id": row.repository_id,
        "location": row.location,
        "block_size_bytes": row.block_size_bytes,
        "max_tasks": row.max_tasks,
        "total_bytes": row.total_bytes,
        "free_bytes": row.free_bytes,
        "space_at": when(row.space_at),
        "restore_points": points,
        "created_at": when(row.created_at),
    }
