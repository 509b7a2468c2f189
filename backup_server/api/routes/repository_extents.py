"""Extents of scale-out repositories."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from backup_server.api import answers
from backup_server.api.deps import Ctx
from backup_server.api.schemas import ExtentBody, ExtentChanges, NothingBody
from backup_server.services import extents

router = APIRouter(prefix="/repositories", tags=["repositories"])


@router.get("/{ref}/extents", responses=answers.ok(answers.Extents, 404, 503))
def list_extents(ctx: Ctx, ref: str) -> Any:
    return extents.list_all(ctx, ref)


@router.post("/{ref}/extents", responses=answers.ok(answers.Extents, 404, 409, 422, 503))
def add_extent(ctx: Ctx, ref: str, body: ExtentBody) -> Any:
    """Make a place one more extent; the first makes the repository scale-out."""
    return extents.add(ctx, ref, name=body.name, location=body.location, first_name=body.first_name)


@router.patch("/{ref}/extents/{extent}", responses=answers.ok(answers.Extents, 404, 409, 422, 503))
def change_extent(ctx: Ctx, ref: str, extent: str, body: ExtentChanges) -> Any:
    """Seal it, take it out for maintenance, or activate it."""
    return extents.set_state(ctx, ref, extent, body.state)


@router.post("/{ref}/extents/{extent}/evacuate", responses=answers.ok(answers.Session, 404, 409))
def evacuate_extent(ctx: Ctx, ref: str, extent: str, body: NothingBody | None = None) -> Any:
    """Move its packs to the active extents."""
    del body
    return extents.evacuate(ctx, ref, extent)


@router.delete("/{ref}/extents/{extent}", responses=answers.ok(answers.Extents, 404, 409, 503))
def remove_extent(ctx: Ctx, ref: str, extent: str, *, lost: bool = False) -> Any:
    """Take an evacuated extent out; with `lost` one that will never come back."""
    return extents.remove(ctx, ref, extent, lost=lost)
