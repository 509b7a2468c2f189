"""A limit on what is read of a request's body."""

from __future__ import annotations

from typing import Final

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_BODY_BYTES: Final = 64 * 1024
"""Of what proxies send: an enrolment and a signed question have a few hundred bytes."""


class _TooLongError(Exception):
    """More came than was announced or allowed."""


class LimitedBody:
    """Refuses longer bodies with 413, before they are read and while they come."""

    def __init__(self, app: ASGIApp, max_bytes: int = MAX_BODY_BYTES) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        length = Headers(scope=scope).get("content-length", "0")
        if not length.isdecimal() or int(length) > self._max_bytes:
            await _refuse(scope, receive, send)
            return
        left = self._max_bytes

        async def limited() -> Message:
            nonlocal left
            message = await receive()
            left -= len(message.get("body", b""))
            if left < 0:
                raise _TooLongError
            return message

        try:
            await self._app(scope, limited, send)
        except _TooLongError:
            await _refuse(scope, receive, send)


async def _refuse(scope: Scope, receive: Receive, send: Send) -> None:
    error = {
        "code": "invalid",
        "message": "the body is longer than any that a proxy sends",
        "details": {},
    }
    await JSONResponse({"error": error}, status_code=413)(scope, receive, send)
