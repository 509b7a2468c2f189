"""The API as an ASGI application, to be mounted at `/api`."""

from __future__ import annotations

from collections.abc import Callable

from fastapi import Depends, FastAPI
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

from backup_server.api import errors
from backup_server.api.deps import Doorstep, require_token
from backup_server.api.limits import LimitedBody
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
from proxy_worker.trust import CA_PATH

PREFIX = "/v1"


def create_door(step: Doorstep, ca_pem: Callable[[], str]) -> Starlette:
    """What proxies on other machines reach: their calls and the authority that the door is known by."""
    app = FastAPI(
        title="vmhaul proxies' door",
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.doorstep = step
    errors.install(app, step.ctx)
    app.include_router(proxy_calls.router, prefix=PREFIX)

    def authority(request: Request) -> PlainTextResponse:
        del request
        return PlainTextResponse(ca_pem(), media_type="application/x-pem-file")

    return Starlette(
        routes=[Route(CA_PATH, authority), Mount("/api", app)],
        middleware=[Middleware(LimitedBody)],
    )


def create_api(step: Doorstep) -> FastAPI:
    """All routes. Those of `open_router` and of proxies have no bearer token."""
    app = FastAPI(
        title="vmhaul",
        version="1",
        summary="Backup of VMware vSphere VMs",
        openapi_url=f"{PREFIX}/openapi.json",
        # The interactive pages load scripts from elsewhere.
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.doorstep = step
    errors.install(app, step.ctx)
    for router in (about.open_router, proxy_calls.router):
        app.include_router(router, prefix=PREFIX)
    for router in (
        about.router,
        vcenters.router,
        repositories.router,
        repository_extents.router,
        repository_keys.router,
        proxies.router,
        servers.router,
        storage_systems.router,
        datastores.router,
        traffic_rules.router,
        jobs.router,
        sessions.router,
        restore_points.router,
    ):
        app.include_router(router, prefix=PREFIX, dependencies=[Depends(require_token)])
    return app
