"""vCenters and standalone hosts."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from backup_server.api import answers
from backup_server.api.deps import DEFAULT_LIMIT, Ctx, Cursor, Limit, page
from backup_server.api.schemas import ProbeBody, VcenterBody, VcenterChanges
from backup_server.services import vcenters
from transports.vsphere.model import Secret

router = APIRouter(prefix="/vcenters", tags=["vCenters"])


@router.get("", responses=answers.ok(answers.Page[answers.Vcenter]))
def list_vcenters(ctx: Ctx, limit: Limit = DEFAULT_LIMIT, cursor: Cursor = None) -> Any:
    return page(vcenters.list_all(ctx), limit, cursor)


@router.post("/probe", responses=answers.ok(answers.Probe, 422, 503))
def probe_vcenter(ctx: Ctx, body: ProbeBody) -> Any:
    """The certificate that answers there, for a person to compare."""
    return vcenters.probe(ctx, body.host, body.port)


@router.post("", responses=answers.ok(answers.Vcenter, 409, 422, 503))
def add_vcenter(ctx: Ctx, body: VcenterBody) -> Any:
    return vcenters.add(
        ctx,
        name=body.name,
        host=body.host,
        port=body.port,
        username=body.username,
        password=Secret(body.password.get_secret_value()),
        thumbprint_sha256=body.thumbprint_sha256,
    )


@router.get("/{ref}", responses=answers.ok(answers.Vcenter, 404))
def get_vcenter(ctx: Ctx, ref: str) -> Any:
    return vcenters.get(ctx, ref)


@router.patch("/{ref}", responses=answers.ok(answers.Vcenter, 404, 409, 422, 503))
def edit_vcenter(ctx: Ctx, ref: str, body: VcenterChanges) -> Any:
    changes = {name: value for name, value in body.given().items() if value is not None}
    if body.password is not None:
        changes["password"] = Secret(body.password.get_secret_value())
    return vcenters.edit(ctx, ref, changes)


@router.delete("/{ref}", status_code=204, responses={404: {"model": answers.ErrorAnswer}})
def remove_vcenter(ctx: Ctx, ref: str) -> None:
    vcenters.remove(ctx, ref)


@router.get("/{ref}/inventory", responses=answers.ok(dict[str, Any], 404, 503))
def get_inventory(ctx: Ctx, ref: str, refresh: bool = False) -> Any:
    """As last read; `refresh` reads it now."""
    return vcenters.inventory(ctx, ref, refresh=refresh)
