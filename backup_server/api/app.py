"""The API as an ASGI application, to be mounted at `/api`."""

from __future__ import annotations

from fastapi import Depends, FastAPI

from backup_server.api import errors
from backup_server.api.deps import Doorstep, require_token
from backup_server.api.routes import (
    about,
    jobs,
    proxies,
    proxy_calls,
    repositories,
    repository_extents,
    repository_keys,
    restore_points,
    sessions,
    storage_systems,
    vcenters,
)

PREFIX = "/v1"


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
        storage_systems.router,
        jobs.router,
        sessions.router,
        restore_points.router,
    ):
        app.include_router(router, prefix=PREFIX, dependencies=[Depends(require_token)])
    return app
