"""What a copy of a restore point says, as values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from uuid import UUID, uuid5

from pipeline.model.ids import BlobId, RestorePointId
from pipeline.model.restore_point import CopiedFrom, PointKind, RestorePoint


def copied_point_id(target_repository_id: str, source_point_id: str) -> RestorePointId:
    """The id of the copy of a point: the same each time, so that copying twice makes one copy."""
    return RestorePointId(str(uuid5(UUID(target_repository_id), f"copy of {source_point_id}")))


def copied_point(
    point: RestorePoint,
    *,
    source_repository_id: str,
    target_repository_id: str,
    map_roots: Mapping[int, str],
    job_name: str,
    previous: RestorePointId | None,
) -> RestorePoint:
    """What is committed in the target. `map_roots`: disk key -> map of that disk in the target.

    Change ids are left out: a backup must not build an increment on a copy, whose source may have gone on
    elsewhere. `previous` is the copy that this one was made from, None for a full.
    """
    return replace(
        point,
        id=copied_point_id(target_repository_id, point.id),
        kind=PointKind.FULL if previous is None else PointKind.INCREMENT,
        previous=previous,
        job_name=job_name,
        disks=tuple(
            replace(disk, map_root=BlobId(map_roots[disk.disk_key]), change_id="")
            for disk in point.disks
        ),
        copied_from=CopiedFrom(
            repository_id=source_repository_id, point_id=point.id, job_name=point.job_name
        ),
    )
