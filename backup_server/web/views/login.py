"""Login by token or one-time link, and logout."""

from __future__ import annotations

from typing import Final

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from backup_server.web.logins import COOKIE, LOGIN_S
from backup_server.web.pages import action, pages_of

WRONG: Final = 401


def routes() -> list[Route]:
    return [
        Route("/login", show, methods=["GET"]),
        Route("/login", enter, methods=["POST"]),
        Route("/logout", leave, methods=["POST"]),
    ]


async def show(request: Request) -> Response:
    """The form; with `code`, the end of a one-time link."""
    code = request.query_params.get("code")
    if code is None:
        return pages_of(request).render(request, "login.html", {"problem": ""})
    if pages_of(request).logins.redeem(code):
        return _logged_in(request)
    problem = "This link was used before or is too old. `vmhaul console` prints a new one."
    return pages_of(request).render(request, "login.html", {"problem": problem}, WRONG)


async def enter(request: Request) -> Response:
    form = await request.form()
    if pages_of(request).logins.token_is_right(str(form.get("token", ""))):
        return _logged_in(request)
    problem = "This is not the token of this server."
    return pages_of(request).render(request, "login.html", {"problem": problem}, WRONG)


def _logged_in(request: Request) -> Response:
    response = RedirectResponse("/", status_code=303)
    response.set_cookie(
        COOKIE,
        pages_of(request).logins.new_cookie(),
        max_age=LOGIN_S,
        httponly=True,
        samesite="strict",
        secure=request.url.scheme == "https",
    )
    return response


def _leave(request: Request, form: dict[str, str]) -> str:
    del request, form
    return "/login"


async def leave(request: Request) -> Response:
    response = await action(_leave)(request)
    response.delete_cookie(COOKIE)
    return response
