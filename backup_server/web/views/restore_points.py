"""Restore points, with the commands that restore them."""

from __future__ import annotations

from typing import Any, Final

from starlette.requests import Request
from starlette.routing import Route

from backup_server.services import restore_points
from backup_server.web.pages import page, pages_of

PER_PAGE: Final = 100


def routes() -> list[Route]:
    return [
        Route("/restore-points", page("restore_points.html")(list_points)),
        Route("/restore-points/{id}", page("restore_point.html")(show_point)),
    ]


def list_points(request: Request) -> dict[str, Any]:
    vm = request.query_params.get("vm") or None
    cursor = request.query_params.get("after")
    found = restore_points.list_all(pages_of(request).ctx, vm=vm, limit=PER_PAGE, after=cursor)
    return {"points": found["items"], "next": found["next"], "vm": vm or ""}


def show_point(request: Request) -> dict[str, Any]:
    return {"point": restore_points.get(pages_of(request).ctx, request.path_params["id"])}
