"""Everything that goes wrong leaves the API in one shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from backup_server.errors import VmhaulError, outcome_of
from backup_server.services import database_errors
from backup_server.services.context import Context

_CODES: Final = {
    400: "bad-request",
    401: "unauthorized",
    403: "forbidden",
    404: "not-found",
    409: "conflict",
    413: "bad-request",
    422: "unprocessable",
    503: "unavailable",
}
_INTERNAL: Final = 500


def envelope(
    status: int, code: str, message: str, details: Mapping[str, Any] | None = None
) -> JSONResponse:
    """The error shape of docs/reference/api.md."""
    content = {"error": {"code": code, "message": message, "details": dict(details or {})}}
    headers = {"WWW-Authenticate": "Bearer"} if status == 401 else None  # noqa: PLR2004 - RFC 7235
    return JSONResponse(content, status_code=status, headers=headers)


def install(app: FastAPI, ctx: Context) -> None:
    """Register the handlers. The order does not matter: the nearest class wins."""

    async def of_service(request: Request, error: Exception) -> JSONResponse:
        outcome = outcome_of(error)
        details = error.details if isinstance(error, VmhaulError) else {}
        if outcome.http_status >= _INTERNAL and outcome.code == "internal":
            ctx.log.error("api.error", method=request.method, path=request.url.path, exc_info=error)
        return envelope(outcome.http_status, outcome.code, str(error), details)

    async def of_validation(request: Request, error: Exception) -> JSONResponse:
        del request
        problems = error.errors() if isinstance(error, RequestValidationError) else []
        if any(problem["type"] == "json_invalid" for problem in problems):
            return envelope(400, "bad-request", "the body is not JSON: send a JSON object")
        fields = validation_problems(problems)
        listed = "; ".join(f"{name}: {reason}" for name, reason in fields.items())
        return envelope(422, "unprocessable", f"the request cannot be accepted: {listed}", fields)

    async def of_http(request: Request, error: Exception) -> JSONResponse:
        status = error.status_code if isinstance(error, HTTPException) else _INTERNAL
        if status in {404, 405}:
            what = f"{request.method} {request.url.path}"
            return envelope(
                404, "not-found", f"there is no {what}: see docs/reference/api.md for the routes"
            )
        detail = error.detail if isinstance(error, HTTPException) else "internal error"
        return envelope(status, _CODES.get(status, "internal"), str(detail))

    async def of_anything(request: Request, error: Exception) -> JSONResponse:
        ctx.log.error("api.crash", method=request.method, path=request.url.path, exc_info=error)
        return envelope(
            _INTERNAL,
            "internal",
            "the server could not do this because of an error of its own: see its log",
        )

    async def of_database(request: Request, error: Exception) -> JSONResponse:
        known = database_errors.translated(error)
        if known is None:
            return await of_anything(request, error)
        ctx.log.warning(
            "api.database", method=request.method, path=request.url.path, error=known.message
        )
        return await of_service(request, known)

    app.add_exception_handler(VmhaulError, of_service)
    app.add_exception_handler(database_errors.DatabaseError, of_database)
    app.add_exception_handler(RequestValidationError, of_validation)
    app.add_exception_handler(HTTPException, of_http)
    app.add_exception_handler(Exception, of_anything)


def validation_problems(problems: Sequence[Any]) -> dict[str, str]:
    """Field -> reason. Values are left out: one of them may be a password."""
    found: dict[str, str] = {}
    for problem in problems:
        place = [str(part) for part in problem["loc"] if part not in {"body", "query", "path"}]
        reason = (
            "there is no such field" if problem["type"] == "extra_forbidden" else str(problem["msg"])
        )
        found.setdefault(".".join(place) or "body", reason)
    return found
