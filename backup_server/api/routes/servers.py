"""Managed servers: machines to which vmhaul has access; and operations on them."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from backup_server.api import answers
from backup_server.api.deps import DEFAULT_LIMIT, Ctx, Cursor, Limit, page
from backup_server.api.schemas import ServerLookBody, ServerProbeBody
from backup_server.services import managed_servers, operations

router = APIRouter(tags=["servers"])


@router.get("/servers", responses=answers.ok(answers.Page[answers.ManagedServer]))
def list_servers(ctx: Ctx, limit: Limit = DEFAULT_LIMIT, cursor: Cursor = None) -> Any:
    return page(managed_servers.list_all(ctx), limit, cursor)


@router.post("/servers/probe", responses=answers.ok(answers.ServerKey, 422, 503))
def probe_server(body: ServerProbeBody) -> Any:
    """The host key, or WinRM's certificate, that is shown there, for a person to compare. Nothing is trusted by this."""
    return managed_servers.probe(body.address, body.port, body.kind)


@router.post("/servers/look", responses=answers.ok(answers.ServerFacts, 409, 422, 503))
def look_at_server(ctx: Ctx, body: ServerLookBody) -> Any:
    """Whether a machine can become a proxy, and what it lacks. Changes nothing there."""
    return managed_servers.look_at(ctx, body.values())


@router.get("/servers/{ref}", responses=answers.ok(answers.ManagedServer, 404))
def get_server(ctx: Ctx, ref: str) -> Any:
    return managed_servers.get(ctx, ref)


@router.delete("/servers/{ref}", status_code=204, responses={404: {"model": answers.ErrorAnswer}})
def remove_server(ctx: Ctx, ref: str) -> None:
    """Forget a machine and its credentials; refused while a proxy is installed there."""
    managed_servers.remove(ctx, ref)


@router.get("/operations", responses=answers.ok(answers.Page[answers.Operation]))
def list_operations(ctx: Ctx, limit: Limit = DEFAULT_LIMIT, cursor: Cursor = None) -> Any:
    return page(operations.list_all(ctx), limit, cursor)


@router.get("/operations/{operation}", responses=answers.ok(answers.Operation, 404))
def get_operation(ctx: Ctx, operation: str) -> Any:
    return operations.get(ctx, operation)
