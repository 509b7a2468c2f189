"""Sessions: the list, one of them with its disks and events, and cancelling it."""

from __future__ import annotations

from typing import Any, Final

from starlette.requests import Request
from starlette.routing import Route

from backup_server import formats
from backup_server.db.states import TaskState
from backup_server.services import sessions
from backup_server.web.pages import action, page, pages_of

PER_PAGE: Final = 50
EVENTS_SHOWN: Final = 200


def routes() -> list[Route]:
    return [
        Route("/sessions", page("sessions.html")(list_sessions)),
        Route("/sessions/{id}", page("session.html")(show_session)),
        Route("/fragments/sessions/{id}", page("fragments/session.html")(show_session)),
        Route("/tasks/{id}", page("task.html")(show_task)),
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


def show_task(request: Request) -> dict[str, Any]:
    """Why a task runs where it runs, or what it waits for."""
    task = sessions.why(pages_of(request).ctx, request.path_params["id"])
    waits = task["state"] == TaskState.PENDING.value and task["now"]
    decision = (task["now"] if waits else task["decision"]) or {}
    return {
        "task": task,
        "session_id": task["session_id"],
        "decision": decision,
        "candidates": formats.candidate_rows(decision),
    }


def cancel_session(request: Request, form: dict[str, str]) -> str:
    del form
    session_id = str(request.path_params["id"])
    sessions.cancel(pages_of(request).ctx, session_id)
    return f"/sessions/{session_id}"
