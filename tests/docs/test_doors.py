"""The pages about command line and API say what is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from fastapi.routing import APIRoute

from backup_server.api.app import PREFIX
from backup_server.api.routes import (
    about,
    datastores,
    jobs,
    proxies,
    proxy_calls,
    repositories,
    repository_extents,
    repository_keys,
    restore_points,
    servers,
    sessions,
    storage_systems,
    traffic_rules,
    vcenters,
)
from backup_server.cli.reference import markdown

DOCS = Path(__file__).parents[2] / "docs" / "reference"
ROUTERS = (
    about.open_router,
    about.router,
    jobs.router,
    proxies.router,
    proxy_calls.router,
    repositories.router,
    repository_extents.router,
    repository_keys.router,
    restore_points.router,
    servers.router,
    sessions.router,
    storage_systems.router,
    datastores.router,
    traffic_rules.router,
    vcenters.router,
)


def test_the_command_reference_is_current() -> None:
    """Run `python -m backup_server.cli.reference > docs/reference/cli.md` when this fails."""
    assert (DOCS / "cli.md").read_text() == markdown()


def _plain(path: str) -> str:
    return re.sub(r"\{[^}]*\}", "{}", path)


def _documented() -> set[tuple[str, str]]:
    rows = [line for line in (DOCS / "api.md").read_text().splitlines() if line.startswith("| ")]
    calls = [re.findall(r"(GET|POST|PATCH|DELETE) (/[^\s,|]*)", row.split("|")[1]) for row in rows]
    return {(method, _plain(path)) for row in calls for method, path in row}


def _served() -> set[tuple[str, str]]:
    routes = [route for router in ROUTERS for route in router.routes if isinstance(route, APIRoute)]
    return {(method, _plain(route.path)) for route in routes for method in route.methods}


def test_every_route_is_documented_and_every_documented_route_exists() -> None:
    assert _served() == _documented()
    assert PREFIX == "/v1"


@pytest.mark.parametrize("page", ["api.md", "cli.md"])
def test_pages_hold_no_empty_cells_where_words_belong(page: str) -> None:
    first_cells = [
        line.split("|")[1].strip()
        for line in (DOCS / page).read_text().splitlines()
        if line.startswith("| ")
    ]
    assert all(first_cells)
