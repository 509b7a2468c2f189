"""What routes are handed: the context, the bearer's authority, a page of a list."""

from __future__ import annotations

import hmac
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Final

from fastapi import Depends, Header, Query, Request

from backup_server.errors import BadRequestError, ForbiddenError, UnauthorizedError
from backup_server.services.context import Context
from proxy_worker.trust import is_loopback
from transports.vsphere.model import Secret

DEFAULT_LIMIT: Final = 100
MAX_LIMIT: Final = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Doorstep:
    """What the API needs besides the services."""

    ctx: Context
    token: Secret
    console_link: Callable[[], dict[str, Any]]
    """Makes a one-time link into the console: {path, expires_at}."""
    answer_proxy: Callable[[str, type[Any], str], str]
    """A signed question of that class, and the address from which it came, in; its signed answer out."""
    enrolment: Callable[[str, str], dict[str, Any]] = field(repr=False)
    """What a proxy learns when it enrols: {server_key, broker_url, broker_ca_pem}, by its id and by the name or
    address with which it reached us (empty: it is on this machine)."""


def doorstep(request: Request) -> Doorstep:
    step: Doorstep = request.app.state.doorstep
    return step


def _context(step: Annotated[Doorstep, Depends(doorstep)]) -> Context:
    return step.ctx


def require_private_way(request: Request) -> None:
    """ForbiddenError for a proxy on another machine that comes over plain HTTP."""
    client = request.client.host if request.client else ""
    here = str((request.scope.get("server") or ("",))[0])
    if request.url.scheme != "https" and not is_loopback(client) and client != here:
        raise ForbiddenError(
            "a proxy on another machine is not spoken to over plain HTTP; start the server with "
            "`vmhaul up --proxies-listen ADDRESS` and let the proxy join with a token of it"
        )


Step = Annotated[Doorstep, Depends(doorstep)]
Ctx = Annotated[Context, Depends(_context)]


def require_token(step: Step, authorization: Annotated[str, Header()] = "") -> None:
    """UnauthorizedError unless the request carries the API's token."""
    scheme, _, token = authorization.partition(" ")
    # Compared as a whole in constant time: the time it takes tells nothing of the token.
    same = hmac.compare_digest(token.strip().encode(), step.token.reveal().encode())
    if scheme.lower() != "bearer" or not same:
        raise UnauthorizedError(
            "the request carries no valid token: send 'Authorization: Bearer TOKEN'"
        )


Limit = Annotated[int, Query(ge=1, le=MAX_LIMIT, description="How many items at most.")]
Cursor = Annotated[str | None, Query(description="`next` of the page before.")]


def page(items: Sequence[Any], limit: int, cursor: str | None) -> dict[str, Any]:
    """A slice of a short list that is known as a whole; the cursor is the position to go on from."""
    if cursor is not None and not cursor.isdecimal():
        raise BadRequestError("cursor is not one that this list gave: begin again without it")
    start = int(cursor or 0)
    end = start + limit
    return {"items": list(items[start:end]), "next": str(end) if end < len(items) else None}
