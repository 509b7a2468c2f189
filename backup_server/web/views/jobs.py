"""Jobs: the list, one of them, and running it."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.routing import Route

from backup_server.services import jobs, sessions
from backup_server.web.pages import action, page, pages_of


def routes() -> list[Route]:
    return [
        Route("/jobs", page("jobs.html")(list_jobs)),
        Route("/jobs/{ref}", page("job.html")(show_job)),
        Route("/jobs/{ref}/run", action(run_job), methods=["POST"]),
    ]


def list_jobs(request: Request) -> dict[str, Any]:
    return {"jobs": jobs.list_all(pages_of(request).ctx)}


def show_job(request: Request) -> dict[str, Any]:
    ctx = pages_of(request).ctx
    job = jobs.get(ctx, request.path_params["ref"])
    return {"job": job, "sessions": sessions.list_all(ctx, job=job["id"], limit=20)["items"]}


def run_job(request: Request, form: dict[str, str]) -> str:
    del form
    session = jobs.run(pages_of(request).ctx, request.path_params["ref"])
    return f"/sessions/{session['id']}"
