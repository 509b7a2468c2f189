"""How a page is made: who asks, which template, what every page knows."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from typing import Any, Final

from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from backup_server import formats
from backup_server.services.context import Context
from backup_server.web.logins import COOKIE, Logins

FORBIDDEN: Final = 403

View = Callable[[Request], dict[str, Any]]
"""Values of a template. Runs in a thread: services block."""

Action = Callable[[Request, dict[str, str]], str]
"""Changes something; answers the address to show next."""


class Pages:
    """Templates and what they share."""

    def __init__(self, ctx: Context, logins: Logins) -> None:
        self.ctx = ctx
        self.logins = logins
        self._templates = Environment(
            loader=PackageLoader("backup_server.web", "templates"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates.filters |= {
            "size": formats.size,
            "rate": formats.rate,
            "duration": formats.duration,
            "percent": percent,
            "retention": formats.retention,
        }
        self._templates.globals |= {"ratio": formats.ratio, "plural": formats.plural}

    def render(
        self, request: Request, template: str, values: dict[str, Any], status: int = 200
    ) -> Response:
        cookie = request.cookies.get(COOKIE, "")
        known = {
            "path": request.url.path,
            "form_token": self.logins.form_token(cookie) if cookie else "",
            "logged_in": bool(cookie) and self.logins.is_valid(cookie),
            **values,
        }
        return HTMLResponse(self._templates.get_template(template).render(known), status_code=status)


def percent(progress: dict[str, Any] | None) -> int:
    """Done share of a progress, 0 to 100."""
    total = (progress or {}).get("total_bytes") or 0
    done = (progress or {}).get("done_bytes") or 0
    return min(100, int(100 * done / total)) if total else 0


def pages_of(request: Request) -> Pages:
    pages: Pages = request.app.state.pages
    return pages


def _logged_in(request: Request) -> bool:
    return pages_of(request).logins.is_valid(request.cookies.get(COOKIE, ""))


def page(template: str) -> Callable[[View], Callable[[Request], Awaitable[Response]]]:
    """A view that needs a login, shown by a template."""

    def wrap(view: View) -> Callable[[Request], Awaitable[Response]]:
        @functools.wraps(view)
        async def endpoint(request: Request) -> Response:
            if not _logged_in(request):
                return RedirectResponse("/login", status_code=303)
            values = await run_in_threadpool(view, request)
            return await run_in_threadpool(pages_of(request).render, request, template, values)

        return endpoint

    return wrap


def action(change: Action) -> Callable[[Request], Awaitable[Response]]:
    """A POST that needs a login and its form token."""

    @functools.wraps(change)
    async def endpoint(request: Request) -> Response:
        if not _logged_in(request):
            return RedirectResponse("/login", status_code=303)
        form = {name: str(value) for name, value in (await request.form()).items()}
        cookie = request.cookies.get(COOKIE, "")
        if not pages_of(request).logins.form_is_right(cookie, form.get("form_token", "")):
            raise HTTPException(FORBIDDEN, "This form is not one of your login: load the page again.")
        target = await run_in_threadpool(change, request, form)
        return RedirectResponse(target, status_code=303)

    return endpoint


def error_page(request: Request, status: int, text: str) -> Response:
    return pages_of(request).render(request, "error.html", {"status": status, "text": text}, status)
