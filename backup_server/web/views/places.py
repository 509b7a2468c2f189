"""Proxies, repositories, storage systems, traffic: where work is done, where data lie, how fast they move."""

from __future__ import annotations

from typing import Any, Final

from starlette.requests import Request
from starlette.routing import Route

from backup_server import formats
from backup_server.services import (
    datastores,
    operations,
    proxies,
    proxy_discovery,
    repositories,
    storage_systems,
    traffic_rules,
)
from backup_server.web.pages import action, page, pages_of

SHOWN_OPERATIONS: Final = 5
"""The newest; `vmhaul operation list` has more."""


def routes() -> list[Route]:
    return [
        Route("/proxies", page("proxies.html")(list_proxies)),
        Route("/proxies/{ref}", page("proxy.html")(show_proxy)),
        Route("/proxies/{ref}/rescan", action(rescan_proxy), methods=["POST"]),
        Route("/proxies/{ref}/confirm-vm", action(confirm_vm), methods=["POST"]),
        Route("/fragments/proxies", page("fragments/proxies.html")(list_proxies)),
        Route("/repositories", page("repositories.html")(list_repositories)),
        Route("/storage", page("storage.html")(list_storage)),
        Route("/traffic", page("traffic.html")(show_traffic)),
    ]


def list_proxies(request: Request) -> dict[str, Any]:
    ctx = pages_of(request).ctx
    return {
        "proxies": proxies.list_all(ctx),
        "operations": operations.list_all(ctx)[:SHOWN_OPERATIONS],
    }


def show_proxy(request: Request) -> dict[str, Any]:
    """Its settings, and what it found when it looked around."""
    proxy = proxies.get(pages_of(request).ctx, request.path_params["ref"])
    found = proxy["discovery"]
    return {"proxy": proxy, "found": found, "vms": formats.proxy_vms(found)}


def rescan_proxy(request: Request, form: dict[str, str]) -> str:
    del form
    return f"/proxies/{proxy_discovery.rescan(pages_of(request).ctx, request.path_params['ref'])}"


def confirm_vm(request: Request, form: dict[str, str]) -> str:
    """What the page showed is what is confirmed: another UUID by now is refused."""
    ctx, ref = pages_of(request).ctx, request.path_params["ref"]
    return f"/proxies/{proxies.confirm_vm(ctx, ref, form.get('vm_uuid', ''))['id']}"


def list_repositories(request: Request) -> dict[str, Any]:
    found = repositories.list_all(pages_of(request).ctx)
    return {"repositories": found, "no_limit_bytes": formats.NO_LIMIT_BYTES}


def list_storage(request: Request) -> dict[str, Any]:
    return {"systems": storage_systems.list_all(pages_of(request).ctx)}


def show_traffic(request: Request) -> dict[str, Any]:
    """What holds tasks back: traffic rules, and what datastores bear."""
    ctx = pages_of(request).ctx
    return {"rules": traffic_rules.list_all(ctx), "stores": datastores.list_all(ctx)}
