"""The console as an ASGI application, to be mounted at `/`."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from backup_server.errors import VmhaulError, outcome_of
from backup_server.services import database_errors
from backup_server.services.context import Context
from backup_server.web.logins import Logins
from backup_server.web.pages import Pages, error_page
from backup_server.web.views import jobs, login, overview, places, restore_points, sessions

STATIC: Final = Path(__file__).parent / "static"
NOT_FOUND: Final = 404

SECURITY_HEADERS: Final = {
    # Everything comes from this server; nothing may put the console into a frame.
    "content-security-policy": "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "cache-control": "no-store",
}


def create_console(ctx: Context, logins: Logins) -> Starlette:
    """All pages."""
    app = Starlette(
        routes=[
            Mount("/static", StaticFiles(directory=STATIC)),
            *login.routes(),
            *overview.routes(),
            *jobs.routes(),
            *sessions.routes(),
            *restore_points.routes(),
            *places.routes(),
        ],
        exception_handlers={
            HTTPException: _of_http,
            VmhaulError: _of_service,
            database_errors.DatabaseError: _of_database,
            Exception: _of_anything,
        },
    )
    app.state.pages = Pages(ctx, logins)
    app.add_middleware(SecurityHeaders)
    return app


async def _of_http(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    if request.url.path.startswith("/api"):
        message = f"there is no {request.method} {request.url.path}: the API is below /api/v1"
        return JSONResponse(
            {"error": {"code": "not-found", "message": message, "details": {}}}, status_code=NOT_FOUND
        )
    detail = error.detail if isinstance(error, HTTPException) else ""
    text = f"There is no page {request.url.path}." if status == NOT_FOUND else detail
    return error_page(request, status, text)


async def _of_service(request: Request, error: Exception) -> Response:
    return error_page(request, outcome_of(error).http_status, str(error))


async def _of_database(request: Request, error: Exception) -> Response:
    known = database_errors.translated(error)
    if known is None:
        return await _of_anything(request, error)
    return await _of_service(request, known)


async def _of_anything(request: Request, error: Exception) -> Response:
    pages: Pages = request.app.state.pages
    pages.ctx.log.error("console.crash", path=request.url.path, exc_info=error)
    return error_page(
        request, 500, "The server could not show this because of an error of its own: see its log."
    )


class SecurityHeaders:
    """Adds SECURITY_HEADERS to every answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await self._app(scope, receive, with_headers)
