"""Which restore points a copy job takes. Pure but for one query.

A point is taken when a selector of the job includes it, none excludes it, and it is younger than the
newest one that the job copied of that VM: what the target's own retention removed must not come back.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.orm import Session as DbSession

from backup_server.db.tables import Job, RestorePointRow

SELECTOR_TYPES: Final = ("vm", "job", "all")
FIRST: Final = ("all", "newest")
"""How much is copied of a VM of which nothing was copied before."""
MAX_POINTS: Final = 1000
"""Of one VM in one session; the next session goes on."""
_NEVER: Final = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class SourcePoint:
    """A point of the source, as the catalogue has it."""

    id: str
    created_at: datetime
    vm_name: str
    instance_uuid: str
    job_name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class VmToCopy:
    name: str
    instance_uuid: str
    point_ids: tuple[str, ...]
    """Oldest first."""


def check_copy_selection(value: Any) -> dict[str, Any]:
    """A selection in its full form; ValueError with the reason. None: every point of the source."""
    given = {"include": [{"type": "all"}]} if value is None else value
    if not isinstance(given, Mapping):
        raise ValueError("must be {include, exclude}")  # noqa: TRY004 - the doors expect ValueError
    if given.get("exclude_disks"):
        raise ValueError("a copy holds all disks of a restore point: exclude_disks must be empty")
    unknown = set(given) - {"include", "exclude", "exclude_disks"}
    if unknown:
        raise ValueError(f"has no field {min(map(str, unknown))!r}")
    include = [_selector(item, "include") for item in given.get("include") or []]
    exclude = [_selector(item, "exclude") for item in given.get("exclude") or []]
    if not include:
        raise ValueError("include must name at least one VM or job, or all")
    return {"include": include, "exclude": exclude, "exclude_disks": []}


def _selector(item: Any, where: str) -> dict[str, str]:
    kind = item.get("type") if isinstance(item, Mapping) else None
    if kind not in SELECTOR_TYPES:
        raise ValueError(f"{where}: type must be one of {', '.join(SELECTOR_TYPES)} in a copy job")
    name = str(item.get("name") or "").strip()
    if kind != "all" and not name:
        raise ValueError(f"{where}: a selector of type {kind} needs a name")
    return {"type": str(kind), "name": "" if kind == "all" else name}


def takes(selection: Mapping[str, Any], point: SourcePoint) -> bool:
    """Whether the job's selectors are for this point."""
    included = any(_matches(one, point) for one in selection["include"])
    return included and not any(_matches(one, point) for one in selection["exclude"])


def _matches(selector: Mapping[str, str], point: SourcePoint) -> bool:
    name = selector["name"]
    match selector["type"]:
        case "all":
            return True
        case "job":
            return point.job_name == name
        case _:
            return point.instance_uuid == name or fnmatchcase(point.vm_name.lower(), name.lower())


def choose(
    selection: Mapping[str, Any],
    points: Iterable[SourcePoint],
    newest_copied: Mapping[str, datetime],
    *,
    first: str,
) -> list[VmToCopy]:
    """VMs by name with what is to be copied of each. `newest_copied`: when the newest copied point of a VM
    (instance uuid) was taken.
    """
    by_vm: dict[str, list[SourcePoint]] = {}
    for point in sorted(points, key=lambda point: (point.created_at, point.id)):
        newest = newest_copied.get(point.instance_uuid)
        if takes(selection, point) and (newest is None or point.created_at > newest):
            by_vm.setdefault(point.instance_uuid, []).append(point)
    chosen = []
    for uuid, found in by_vm.items():
        wanted = found[-1:] if first == "newest" and uuid not in newest_copied else found
        chosen.append(
            VmToCopy(
                name=found[-1].vm_name,
                instance_uuid=uuid,
                point_ids=tuple(point.id for point in wanted[:MAX_POINTS]),
            )
        )
    return sorted(chosen, key=lambda vm: (vm.name.lower(), vm.instance_uuid))


def source_points(s: DbSession, repository_id: str) -> list[SourcePoint]:
    """What the catalogue knows of a repository. A job that was renamed goes by its name of today."""
    names = {row.id: row.name for row in s.execute(sa.select(Job.id, Job.name))}
    rows = s.execute(
        sa.select(
            RestorePointRow.id,
            RestorePointRow.created_at,
            RestorePointRow.vm_name,
            RestorePointRow.instance_uuid,
            RestorePointRow.job_id,
            RestorePointRow.job_name,
        ).where(RestorePointRow.repository_id == repository_id, RestorePointRow.deleting.is_(False))
    )
    return [
        SourcePoint(
            id=row.id,
            created_at=row.created_at,
            vm_name=row.vm_name,
            instance_uuid=row.instance_uuid,
            job_name=names.get(row.job_id, row.job_name),
        )
        for row in rows
    ]


def newest_copied(s: DbSession, job: Job, now: datetime) -> dict[str, datetime]:
    """By instance uuid, when the newest point was taken that the job copied into its repository.

    Points of the future were made with a wrong clock: what was backed up since it is right comes after them.
    """
    taken = sa.case((RestorePointRow.created_at <= now, RestorePointRow.created_at))
    rows = s.execute(
        sa.select(RestorePointRow.instance_uuid, sa.func.max(taken).label("newest"))
        .where(
            RestorePointRow.repository_id == job.repository_id,
            RestorePointRow.source_point_id.is_not(None),
            # The name finds the copies that an imported repository brought with it.
            sa.or_(RestorePointRow.job_id == job.id, RestorePointRow.job_name == job.name),
            RestorePointRow.deleting.is_(False),
        )
        .group_by(RestorePointRow.instance_uuid)
    )
    return {row.instance_uuid: row.newest or _NEVER for row in rows}


def describe(vms: Sequence[VmToCopy]) -> str:
    count = sum(len(vm.point_ids) for vm in vms)
    return f"{count} restore points of {len(vms)} VMs"
