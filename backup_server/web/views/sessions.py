"""Sessions: the list, one of them with its disks and events, and cancelling it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.routing import Route

from backup_server import formats
from backup_server.db.states import TaskState
from backup_server.services import sessions
from backup_server.services.session_shapes import VM_CHOICES
from backup_server.web.pages import action, page, pages_of

PER_PAGE: Final = 50
VMS_PER_PAGE: Final = 50
EVENTS_SHOWN: Final = 200
MANY_TASKS: Final = 2000
REFRESH_MS: Final = 1500
SLOW_REFRESH_MS: Final = 5000
"""Of sessions with many tasks: nobody sees them move in a second."""


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
    """A page of its VMs. A big session is shown by what its VMs do, what is worked on first."""
    ctx = pages_of(request).ctx
    session_id, query = request.path_params["id"], request.query_params
    only, after = query.get("only") or None, query.get("after") or None
    session = sessions.get(ctx, session_id, limit=VMS_PER_PAGE, after=after, only=only)
    events, left_out = sessions.newest_events(ctx, session["id"], EVENTS_SHOWN)
    asked = {name: value for name, value in (("only", only), ("after", after)) if value}
    return {
        "session": session,
        "only": only or "",
        "after": after or "",
        "asked": f"?{urlencode(asked)}" if asked else "",
        "choices": choices(session["counts"]),
        "every_ms": SLOW_REFRESH_MS if session["counts"]["tasks"] > MANY_TASKS else REFRESH_MS,
        "events": events,
        "events_left_out": left_out,
    }


def choices(counts: Mapping[str, int]) -> list[tuple[str, str, int]]:
    """Value, label and number of VMs of each choice; none for a session that one page shows."""
    if counts["vms"] <= VMS_PER_PAGE:
        return []
    found = [(name, name, counts[name]) for name in VM_CHOICES if counts.get(name)]
    return [("", "all", counts["vms"]), *found]


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
