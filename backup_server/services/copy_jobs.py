"""What a copy job has that a backup job has not, and the other way round."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.orm import Session as DbSession

from backup_server.db.states import JobKind
from backup_server.db.tables import Job, Repository, RestorePointRow, Session
from backup_server.errors import ConflictError
from backup_server.services import copy_selection
from backup_server.services.copy_selection import check_copy_selection
from backup_server.services.shapes import Fields, when

KINDS: Final = tuple(kind.value for kind in JobKind)
_ONLY_BACKUP: Final = (
    "vcenter",
    "quiesce",
    "change_tracking",
    "full_every_days",
    "sample_blocks",
    "modes",
    "storage_snapshots",
    "failover_to_network",
)


def is_copy(given: Fields) -> bool:
    return given.one_of("kind", KINDS, default=JobKind.BACKUP.value) == JobKind.COPY.value


def refuse_copy_fields(given: Fields) -> None:
    """A backup job has none of a copy's fields, unless they say nothing."""
    for name in ("source_repository", "after_backup", "first"):
        if given.take(name):
            given.wrong(name, "only a copy job has it")


def options(given: Fields, shared: dict[str, Any]) -> dict[str, Any]:
    """The options of a copy job; those that backup and copy share are given."""
    given.take("storage_failover")
    for name in _ONLY_BACKUP:
        if given.take(name) not in (None, False, [], "off", 0):
            given.wrong(name, "a copy job has no such field: nothing of vSphere is read")
    return {
        **shared,
        "after_backup": given.flag("after_backup", default=False),
        "first": given.one_of("first", copy_selection.FIRST, default="all"),
        # What every job answers; a copy leaves it as it is.
        "quiesce": "off",
        "change_tracking": False,
        "full_every_days": None,
        "sample_blocks": 0,
        "modes": [],
        "failover_to_network": False,
    }


def selection(given: Fields) -> Any:
    return given.checked("selection", check_copy_selection)


def check_ends(given: Fields, source_id: str, target_id: str) -> None:
    if source_id and source_id == target_id:
        given.wrong("source_repository", "is the repository that the copies go to; name another one")


def shape(s: DbSession, row: Job) -> dict[str, Any]:
    """The fields of a job that tell backup and copy apart."""
    source = s.get(Repository, row.source_repository_id) if row.source_repository_id else None
    return {
        "kind": row.kind,
        "source_repository": source.name if source else None,
        "after_backup": bool(row.options.get("after_backup")),
        "first": row.options.get("first"),
    }


def plan(s: DbSession, job: Job, now: datetime) -> dict[str, Any]:
    """What the next run of a copy job would copy, by the catalogue as it is now."""
    if job.source_repository_id is None:
        raise ConflictError(f"job {job.name!r} has no repository to copy from")
    chosen = copy_selection.choose(
        job.selection,
        copy_selection.source_points(s, job.source_repository_id),
        copy_selection.newest_copied(s, job, now),
        first=job.options["first"],
    )
    points = {
        row.id: row
        for row in s.scalars(
            sa.select(RestorePointRow).where(
                RestorePointRow.repository_id == job.source_repository_id,
                RestorePointRow.deleting.is_(False),
            )
        )
    }
    return {
        "job": job.name,
        "kind": job.kind,
        "vms": [
            {
                "name": vm.name,
                "instance_uuid": vm.instance_uuid,
                "restore_points": [
                    {
                        "id": point_id,
                        "created_at": when(points[point_id].created_at),
                        "job": points[point_id].job_name,
                        "capacity_bytes": sum(d["capacity_bytes"] for d in points[point_id].disks),
                    }
                    for point_id in vm.point_ids
                ],
            }
            for vm in chosen
        ],
        "skipped": [],
        "warnings": [],
    }


# ---- after a backup -------------------------------------------------------------------------------


def jobs_after(s: DbSession, session: Session, *, made_points: bool = True) -> list[Job]:
    """Copy jobs that are to run because this backup or copy session ended.

    A backup that ended while a copy ran is seen when that copy ends. After a copy that found nothing to copy
    (`made_points` False) that is all: two jobs that copy to and fro would start each other for ever.
    """
    repository_id = session.repository_id
    if session.cancel_requested or repository_id is None:
        return []
    wanted = sa.select(Job).where(Job.enabled.is_(True), Job.source_repository_id == repository_id)
    jobs = [job for job in s.scalars(wanted) if made_points and job.options.get("after_backup")]
    own = s.get(Job, session.job_id) if session.job_id else None
    kinds = ("backup", "copy") if made_points else ("backup",)
    if own is not None and _missed_one(s, own, session, kinds):
        jobs.append(own)
    return jobs


def _missed_one(s: DbSession, job: Job, session: Session, kinds: Sequence[str]) -> bool:
    if not job.enabled or not job.options.get("after_backup") or session.started_at is None:
        return False
    ended = s.scalar(
        sa.select(sa.func.count())
        .select_from(Session)
        .where(
            Session.repository_id == job.source_repository_id,
            Session.kind.in_(kinds),
            Session.finished_at >= session.started_at,
            Session.id != session.id,
        )
    )
    return bool(ended)
