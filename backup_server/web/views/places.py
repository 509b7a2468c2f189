"""Proxies and repositories: where work is done and where data lie."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.routing import Route

from backup_server import formats
from backup_server.services import proxies, repositories
from backup_server.web.pages import page, pages_of


def routes() -> list[Route]:
    return [
        Route("/proxies", page("proxies.html")(list_proxies)),
        Route("/fragments/proxies", page("fragments/proxies.html")(list_proxies)),
        Route("/repositories", page("repositories.html")(list_repositories)),
    ]


def list_proxies(request: Request) -> dict[str, Any]:
    return {"proxies": proxies.list_all(pages_of(request).ctx)}


def list_repositories(request: Request) -> dict[str, Any]:
    found = repositories.list_all(pages_of(request).ctx)
    return {"repositories": found, "no_limit_bytes": formats.NO_LIMIT_BYTES}
