"""Restore points: found, shown, deleted."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session as DbSession

from backup_server.db.batches import batches
from backup_server.db.states import VmState
from backup_server.db.tables import Job, Repository, RestorePointRow, Session, SessionVm
from backup_server.errors import ConflictError, NotFoundError
from backup_server.services import damage, protection
from backup_server.services.context import Context
from backup_server.services.paging import page
from backup_server.services.references import by_prefix
from backup_server.services.shapes import by_ref, page_limit, when


def list_all(
    ctx: Context,
    *,
    vm: str | None = None,
    repository: str | None = None,
    job: str | None = None,
    orphaned: bool = False,
    limit: int = 100,
    after: str | None = None,
) -> dict[str, Any]:
    """{"items": newest first, "next": cursor or None}. `vm` is a name or an instance uuid; `orphaned`:
    only of VMs that no job takes any more.
    """
    with ctx.db.read() as s:
        query = _good()
        if vm is not None:
            query = query.where(_of_vm(vm))
        if repository is not None:
            query = query.where(RestorePointRow.repository_id == by_ref(s, Repository, repository).id)
        if job is not None:
            known = s.scalar(sa.select(Job.id).where(sa.or_(Job.id == job, Job.name == job)))
            query = query.where(
                sa.or_(RestorePointRow.job_id == (known or job), RestorePointRow.job_name == job)
            )
        if orphaned:
            query = query.where(RestorePointRow.instance_uuid.in_(protection.orphaned_vms(s)))
        rows, cursor = page(s, query, RestorePointRow, limit=page_limit(limit), after=after)
        names = _repository_names(s)
        return {"items": [_shape(row, names) for row in rows], "next": cursor}


def get(ctx: Context, ref: str) -> dict[str, Any]:
    with ctx.db.read() as s:
        return _shape(find(s, ref), _repository_names(s))


def resolve(ctx: Context, ref: str) -> str:
    """Id of the point that `ref` means, see find()."""
    with ctx.db.read() as s:
        return find(s, ref).id


def find(s: DbSession, ref: str) -> RestorePointRow:
    """By id, by a prefix of it that names one, or as VM@which.

    `which`: latest, a number counted back from the newest (1), or the beginning of a time in UTC
    (2026-03-01, 2026-03-01T22:15) that takes the newest point that begins so.
    """
    if "@" in ref:
        return _by_vm(s, ref)
    where = "`vmhaul restore-point list` shows them, VM@latest works too"
    good = RestorePointRow.deleting.is_(False)
    return by_prefix(s, RestorePointRow, ref, "restore point", where, good)


def _by_vm(s: DbSession, ref: str) -> RestorePointRow:
    vm, _, which = ref.rpartition("@")
    query = (
        _good().where(_of_vm(vm)).order_by(RestorePointRow.created_at.desc(), RestorePointRow.id.desc())
    )
    row: RestorePointRow | None
    if which in ("", "latest"):
        row = s.scalars(query.limit(1)).first()
    elif which.isdigit() and len(which) < 4:  # noqa: PLR2004 - four digits are a year
        number = int(which)
        row = s.scalars(query.offset(number - 1).limit(1)).first() if number else None
    else:
        wanted = which.replace(" ", "T")
        row = next((one for one in s.scalars(query) if _begins(one.created_at, wanted)), None)
    if row is None:
        raise NotFoundError(
            f"VM {vm!r} has no restore point {which or 'latest'}; `vmhaul restore-point list --vm {vm}` shows them"
        )
    return row


def _begins(moment: datetime, text: str) -> bool:
    return moment.astimezone(UTC).isoformat().startswith(text.rstrip("Z"))


def remove(ctx: Context, ref: str) -> None:
    """Forget a point in its repository and in the catalogue. Its data go with the next prune."""
    with ctx.db() as s:
        row = find(s, ref)
        user = in_use(s, row.repository_id, of_vm=row.instance_uuid).get(row.id)
        if user is not None:
            raise ConflictError(
                f"restore point {row.id} of {row.vm_name} is needed by session {user}; wait for it or cancel it",
                details={"session": user},
            )
        if row.immutable_until is not None and row.immutable_until > ctx.clock():
            raise ConflictError(
                f"restore point {row.id} of {row.vm_name} is immutable until "
                f"{row.immutable_until:%Y-%m-%d %H:%M} UTC; delete it after that",
                details={"immutable_until": when(row.immutable_until)},
            )
        # Committed before the repository is told: whoever finds the mark finishes the work.
        s.execute(sa.update(RestorePointRow).where(RestorePointRow.id == row.id).values(deleting=True))
    forget_marked(ctx, row.repository_id)


def forget_marked(ctx: Context, repository_id: str) -> int:
    """Forget in the repository, then in the catalogue, what is marked for it. May be repeated.

    What the storage turns out to keep loses its mark: it can be restored, and may go when its time is over.
    """
    with ctx.db.read() as s:
        ids = list(
            s.scalars(
                sa.select(RestorePointRow.id).where(
                    RestorePointRow.repository_id == repository_id,
                    RestorePointRow.deleting.is_(True),
                )
            )
        )
    if not ids:
        return 0
    try:
        ctx.agents.get(repository_id).forget(ids)
    except ConflictError:
        kept = _unmark_kept(ctx, repository_id, ids)
        if not kept:
            raise
        ids = [one for one in ids if one not in kept]
        ctx.agents.get(repository_id).forget(ids)
    with ctx.db() as s:
        for some in batches(ids):
            s.execute(sa.delete(RestorePointRow).where(RestorePointRow.id.in_(some)))
    return len(ids)


def _unmark_kept(ctx: Context, repository_id: str, ids: list[str]) -> set[str]:
    """Of these, which the storage keeps: an import or a change of settings may not have said so."""
    now = ctx.clock().timestamp()
    until_s = ctx.agents.get(repository_id).immutable_until(ids)
    kept = {point_id: until for point_id, until in until_s.items() if until > now}
    with ctx.db() as s:
        for point_id, until in kept.items():
            s.execute(
                sa.update(RestorePointRow)
                .where(RestorePointRow.id == point_id)
                .values(deleting=False, immutable_until=datetime.fromtimestamp(until, UTC))
            )
    return set(kept)


def in_use(s: DbSession, repository_id: str, *, of_vm: str | None = None) -> dict[str, str]:
    """Point id -> session id, for points that an open restore, increment or copy reads from.

    `of_vm`: only points of this VM (instance uuid). A night has thousands of open VMs, each with its details.
    """
    # Named one by one: the index of states finds them, however many VMs years of sessions left.
    is_open: sa.ColumnElement[bool] = SessionVm.state.in_(
        [one.value for one in VmState if one is not VmState.DONE]
    )
    if of_vm is not None:
        is_open &= SessionVm.instance_uuid == of_vm
    writing: set[str] = set()
    copying: set[str] = set()
    for session in s.execute(
        sa.select(Session.id, Session.repository_id, Session.options).where(
            Session.id.in_(sa.select(SessionVm.session_id).where(is_open))
        )
    ):
        if session.repository_id == repository_id:
            writing.add(session.id)
        if session.options.get("source_repository_id") == repository_id:
            copying.add(session.id)
    rows = s.execute(
        sa.select(SessionVm.session_id, SessionVm.restore_point_id, SessionVm.details).where(
            is_open, SessionVm.session_id.in_(writing | copying)
        )
    )
    used: dict[str, str] = {}
    for session_id, point_id, details in rows:
        needed: list[str | None] = []
        if session_id in writing:
            needed += [point_id, details.get("previous_id")]
        if session_id in copying:
            # The points that a copy has yet to read, and the one whose map it compares with.
            needed += [*details["points"][details["at"] :], details.get("base_id")]
        used |= {point: session_id for point in needed if point}
    return used


def _good() -> sa.Select[RestorePointRow]:
    return sa.select(RestorePointRow).where(RestorePointRow.deleting.is_(False))


def _of_vm(vm: str) -> Any:
    return sa.or_(RestorePointRow.vm_name == vm, RestorePointRow.instance_uuid == vm)


def uuids_of(vm: str) -> sa.Select[str]:
    """The VMs that have points under this name or instance uuid, as a subquery."""
    return sa.select(RestorePointRow.instance_uuid).where(_of_vm(vm))


def _repository_names(s: DbSession) -> dict[str, str]:
    return {row.id: row.name for row in s.execute(sa.select(Repository.id, Repository.name))}


def _shape(row: RestorePointRow, repositories: dict[str, str]) -> dict[str, Any]:
    return {
        "id": row.id,
        "vm": row.vm_name,
        "instance_uuid": row.instance_uuid,
        "job": row.job_name,
        "repository": repositories.get(row.repository_id),
        "session": row.session_id,
        "created_at": when(row.created_at),
        "kind": row.kind,
        "consistency": row.consistency,
        "disks": [
            {
                "key": disk["disk_key"],
                "label": disk["label"],
                "disk": disk["path"],
                "capacity_bytes": disk["capacity_bytes"],
                "read_bytes": disk.get("read_bytes"),
                "stored_bytes": disk.get("stored_bytes"),
                "sha256": disk.get("sha256") or None,
                "damage": disk.get("damage"),
            }
            for disk in row.disks
        ],
        "previous": row.previous_id,
        "copy_of": row.source_point_id,
        "size_bytes": row.size_bytes,
        "immutable_until": when(row.immutable_until),
        "damaged": damage.is_damaged(row),
        "doubt": row.doubt,
    }
