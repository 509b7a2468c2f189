"""Sessions and their tasks."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query

from backup_server.api import answers
from backup_server.api.deps import DEFAULT_LIMIT, MAX_LIMIT, Ctx, Cursor, Limit
from backup_server.api.schemas import NothingBody
from backup_server.services import sessions

router = APIRouter(tags=["sessions"])


@router.get("/sessions", responses=answers.ok(answers.Page[answers.Session], 404))
def list_sessions(
    ctx: Ctx,
    job: str | None = None,
    state: str | None = None,
    kind: str | None = None,
    limit: Limit = DEFAULT_LIMIT,
    cursor: Cursor = None,
) -> Any:
    """Newest first."""
    return sessions.list_all(ctx, job=job, state=state, kind=kind, limit=limit, after=cursor)


@router.get("/sessions/{session_id}", responses=answers.ok(answers.SessionWithVms, 404))
def get_session(
    ctx: Ctx,
    session_id: str,
    only: Annotated[
        str | None,
        Query(
            description="VMs that are waiting or active, or that ended success, warning, failed, cancelled."
        ),
    ] = None,
    limit: Annotated[int, Query(ge=0, le=MAX_LIMIT, description="VMs to show.")] = DEFAULT_LIMIT,
    cursor: Cursor = None,
) -> Any:
    """With a page of its VMs; `vms_next` is the cursor of the next one. The id, its beginning, or `latest`."""
    return sessions.get(ctx, session_id, limit=limit, after=cursor, only=only)


@router.post("/sessions/{session_id}/cancel", responses=answers.ok(answers.Session, 404, 409))
def cancel_session(ctx: Ctx, session_id: str, body: NothingBody | None = None) -> Any:
    del body
    return sessions.cancel(ctx, session_id)


@router.get("/sessions/{session_id}/events", responses=answers.ok(answers.Page[answers.Event], 404))
def list_events(
    ctx: Ctx,
    session_id: str,
    after: Annotated[int, Query(ge=0, lt=1 << 63, description="Only events with a greater id.")] = 0,
    limit: Limit = DEFAULT_LIMIT,
) -> Any:
    """Oldest first."""
    found = sessions.events(ctx, session_id, after=after, limit=limit)
    return {"items": found, "next": str(found[-1]["id"]) if len(found) == limit else None}


@router.get("/tasks/{task_id}/why", responses=answers.ok(dict[str, Any], 404))
def why_task(ctx: Ctx, task_id: str) -> Any:
    """The placement decision with all candidates and reasons."""
    return sessions.why(ctx, task_id)
