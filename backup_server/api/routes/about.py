"""What the server is, and how it is."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response

from backup_server.api import answers
from backup_server.api.deps import Ctx, Step
from backup_server.api.metrics import render
from backup_server.services import about, doctor

router = APIRouter(tags=["server"])
open_router = APIRouter(tags=["server"])
"""Routes without a token: what probes and monitoring ask."""

UNAVAILABLE = 503


@router.get("/about", responses=answers.ok(answers.About))
def get_about(ctx: Ctx) -> Any:
    """Version, identity and parts of the server."""
    return about.about(ctx)


@open_router.get("/health", responses={200: {"model": answers.Health}, 503: {"model": answers.Health}})
def get_health(ctx: Ctx) -> JSONResponse:
    """Whether the parts that it cannot work without are there."""
    found = about.health(ctx)
    return JSONResponse(found, status_code=200 if found["status"] == "ok" else UNAVAILABLE)


@open_router.get("/metrics", response_class=Response)
def get_metrics(ctx: Ctx) -> Response:
    """Figures for Prometheus."""
    content, media_type = render(ctx)
    return Response(content, media_type=media_type)


@router.get("/doctor", responses=answers.ok(answers.Checks))
def get_doctor(ctx: Ctx) -> Any:
    """Checks of everything the server depends on, with what to do."""
    return {"checks": doctor.run_checks(ctx)}


@router.post("/console-links", responses=answers.ok(answers.ConsoleLink))
def post_console_link(step: Step) -> Any:
    """A link that opens the console once, without the token."""
    return step.console_link()
