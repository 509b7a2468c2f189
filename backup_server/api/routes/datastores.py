"""Datastores: what is allowed on each, and how slow it was last."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query

from backup_server.api import answers
from backup_server.api.deps import DEFAULT_LIMIT, Ctx, Cursor, Limit, page
from backup_server.api.schemas import DatastoreChanges
from backup_server.services import datastores

router = APIRouter(tags=["datastores"])

VcenterQuery = Annotated[str | None, Query(description="Only of this vCenter, by name or id.")]


@router.get("/datastores", responses=answers.ok(answers.Page[answers.Datastore], 404))
def list_datastores(
    ctx: Ctx, vcenter: VcenterQuery = None, limit: Limit = DEFAULT_LIMIT, cursor: Cursor = None
) -> Any:
    return page(datastores.list_all(ctx, vcenter), limit, cursor)


@router.get("/datastores/{vcenter}/{name}", responses=answers.ok(answers.Datastore, 404))
def get_datastore(ctx: Ctx, vcenter: str, name: str) -> Any:
    return datastores.get(ctx, vcenter, name)


@router.patch("/datastores/{vcenter}/{name}", responses=answers.ok(answers.Datastore, 404, 422))
def edit_datastore(ctx: Ctx, vcenter: str, name: str, body: DatastoreChanges) -> Any:
    return datastores.edit(ctx, vcenter, name, body.given())
