"""Restore points, and what is restored from them."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from backup_server.api import answers
from backup_server.api.deps import DEFAULT_LIMIT, Ctx, Cursor, Limit
from backup_server.api.schemas import RestoreDiskBody, RestoreVmBody
from backup_server.services import restore_points, restores

router = APIRouter(tags=["restore points"])


@router.get("/restore-points", responses=answers.ok(answers.Page[answers.RestorePoint], 404))
def list_restore_points(
    ctx: Ctx,
    vm: str | None = None,
    repository: str | None = None,
    job: str | None = None,
    orphaned: bool = False,
    limit: Limit = DEFAULT_LIMIT,
    cursor: Cursor = None,
) -> Any:
    """Newest first. `orphaned`: only of VMs that no job takes any more."""
    return restore_points.list_all(
        ctx,
        vm=vm,
        repository=repository,
        job=job,
        orphaned=orphaned,
        limit=limit,
        after=cursor,
    )


@router.get("/restore-points/{point_id}", responses=answers.ok(answers.RestorePoint, 404))
def get_restore_point(ctx: Ctx, point_id: str) -> Any:
    return restore_points.get(ctx, point_id)


@router.delete(
    "/restore-points/{point_id}", status_code=204, responses={404: {"model": answers.ErrorAnswer}}
)
def remove_restore_point(ctx: Ctx, point_id: str) -> None:
    """Refused while a running session needs it."""
    restore_points.remove(ctx, point_id)


@router.post("/restores/disk", responses=answers.ok(answers.Session, 404, 409, 422))
def restore_disk(ctx: Ctx, body: RestoreDiskBody) -> Any:
    """One disk to a raw file on a proxy's machine."""
    return restores.restore_disk(ctx, body.given())


@router.post("/restores/vm", responses=answers.ok(answers.Session, 404, 409, 422, 503))
def restore_vm(ctx: Ctx, body: RestoreVmBody) -> Any:
    """A whole VM as a new one."""
    return restores.restore_vm(ctx, body.given())
