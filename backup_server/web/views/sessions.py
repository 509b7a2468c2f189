"""Sessions: the list, one of them with its disks and events, and cancelling it."""

from __future__ import annotations

from typing import Any, Final

from starlette.requests import Request
from starlette.routing import Route

from backup_server.services import sessions
from backup_server.web.pages import action, page, pages_of

PER_PAGE: Final = 50
EVENTS_SHOWN: Final = 200


def routes() -> list[Route]:
    return [
        Route("/sessions", page("sessions.html")(list_sessions)),
        Route("/sessions/{id}", page("session.html")(show_session)),
        Route("/fragments/sessions/{id}", page("fragments/session.html")(show_session)),
        Route("/sessions/{id}/cancel", action(cancel_session), methods=["POST"]),
    ]


def list_sessions(request: Request) -> dict[str, Any]:
    cursor = request.query_params.get("after")
    found = sessions.list_all(pages_of(request).ctx, limit=PER_PAGE, after=cursor)
    return {"sessions": found["items"], "next": found["next"]}


def show_session(request: Request) -> dict[str, Any]:
    ctx = pages_of(request).ctx
    session = sessions.get(ctx, request.path_params["id"])
    events = sessions.events(ctx, session["id"])
    return {
        "session": session,
        "events": events[-EVENTS_SHOWN:],
        "events_left_out": max(0, len(events) - EVENTS_SHOWN),
    }


def cancel_session(request: Request, form: dict[str, str]) -> str:
    del form
    session_id = str(request.path_params["id"])
    sessions.cancel(pages_of(request).ctx, session_id)
    return f"/sessions/{session_id}"
