"""Storage systems, from whose snapshots VMs are backed up."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from backup_server.api import answers
from backup_server.api.deps import DEFAULT_LIMIT, Ctx, Cursor, Limit, page
from backup_server.api.schemas import StorageBody, StorageChanges, StorageProbeBody
from backup_server.services import storage_systems

router = APIRouter(tags=["storage systems"])


@router.get("/storage-drivers", responses=answers.ok(answers.StorageDrivers))
def list_drivers(ctx: Ctx) -> Any:
    """The kinds of storage systems that this release speaks to, and what each is told."""
    return {"drivers": storage_systems.list_drivers(ctx)}


@router.get("/storage-systems", responses=answers.ok(answers.Page[answers.StorageSystem]))
def list_systems(ctx: Ctx, limit: Limit = DEFAULT_LIMIT, cursor: Cursor = None) -> Any:
    return page(storage_systems.list_all(ctx), limit, cursor)


@router.post("/storage-systems/probe", responses=answers.ok(answers.StorageProbe, 422, 503))
def probe_system(ctx: Ctx, body: StorageProbeBody) -> Any:
    """The certificate or host key that is shown there, for a person to compare."""
    return storage_systems.probe(ctx, body.driver, body.address)


@router.post("/storage-systems", responses=answers.ok(answers.StorageSystem, 409, 422, 503))
def add_system(ctx: Ctx, body: StorageBody) -> Any:
    return storage_systems.add(ctx, body.values())


@router.get("/storage-systems/{ref}", responses=answers.ok(answers.StorageSystem, 404))
def get_system(ctx: Ctx, ref: str) -> Any:
    return storage_systems.get(ctx, ref)


@router.patch("/storage-systems/{ref}", responses=answers.ok(answers.StorageSystem, 404, 409, 422, 503))
def edit_system(ctx: Ctx, ref: str, body: StorageChanges) -> Any:
    return storage_systems.edit(ctx, ref, body.values())


@router.post("/storage-systems/{ref}/rescan", responses=answers.ok(answers.StorageSystem, 404))
def rescan_system(ctx: Ctx, ref: str) -> Any:
    """Read its volumes and the datastores on them now."""
    return storage_systems.rescan(ctx, ref)


@router.delete(
    "/storage-systems/{ref}", status_code=204, responses={404: {"model": answers.ErrorAnswer}}
)
def remove_system(ctx: Ctx, ref: str) -> None:
    storage_systems.remove(ctx, ref)
