"""Jobs: the list, one of them, and running it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from starlette.requests import Request
from starlette.routing import Route

from backup_server import formats
from backup_server.db.states import JobKind
from backup_server.errors import ConflictError, InvalidError
from backup_server.services import jobs, retention, sessions
from backup_server.web.pages import action, page, pages_of

_PERIODS: Final = ("weekly", "monthly", "yearly")


def routes() -> list[Route]:
    return [
        Route("/jobs", page("jobs.html")(list_jobs)),
        Route("/jobs/{ref}", page("job.html")(show_job)),
        Route("/jobs/{ref}/plan", page("plan.html")(show_plan)),
        Route("/jobs/{ref}/retention", page("retention.html")(show_retention)),
        Route("/jobs/{ref}/run", action(run_job), methods=["POST"]),
    ]


def list_jobs(request: Request) -> dict[str, Any]:
    return {"jobs": jobs.list_all(pages_of(request).ctx)}


def show_job(request: Request) -> dict[str, Any]:
    ctx = pages_of(request).ctx
    job = jobs.get(ctx, request.path_params["ref"])
    return {"job": job, "sessions": sessions.list_all(ctx, job=job["id"], limit=20)["items"]}


def show_plan(request: Request) -> dict[str, Any]:
    """What the next run would take, and where each disk would go."""
    ctx = pages_of(request).ctx
    job = jobs.get(ctx, request.path_params["ref"])
    plan = jobs.plan(ctx, job["id"])
    if job["kind"] != JobKind.BACKUP.value:
        raise ConflictError(f"job {job['name']!r} copies restore points; `vmhaul job plan` lists them")
    return {
        "job": job,
        "plan": plan,
        "vms": plan["vms"],
        "disk_count": sum(len(vm["disks"]) for vm in plan["vms"]),
        "warnings": formats.plan_warnings(plan),
        "left_out": formats.plan_left_out(plan),
    }


def show_retention(request: Request) -> dict[str, Any]:
    """The job's rule, or the one that the form gives; nothing is changed."""
    ctx = pages_of(request).ctx
    job = jobs.get(ctx, request.path_params["ref"])
    wanted = asked_rule(request.query_params, job["retention"])
    problem = ""
    try:
        shown = retention.preview(ctx, job["id"], wanted)
    except InvalidError as error:
        problem, wanted = str(error), None
        shown = retention.preview(ctx, job["id"])
    rule = shown["retention"]
    return {
        "job": job,
        "shown": shown,
        "rule": rule,
        "is_other": rule != job["retention"],
        "options": options_of(rule),
        "problem": problem,
    }


def asked_rule(query: Mapping[str, str], own: Mapping[str, Any]) -> dict[str, Any] | None:
    """The rule of the form, with what it does not ask from the job's; None when nothing was asked."""
    if "count" not in query:
        return None
    rule = {name: value for name, value in own.items() if name not in {"keep", "days"}}
    rule["days" if query.get("base") == "days" else "keep"] = _number(query["count"])
    return rule | {name: _number(query[name]) for name in _PERIODS if query.get(name)}


def _number(text: str) -> int | str:
    """What is no number is left to the service to refuse."""
    return int(text) if text.isdecimal() else text


def options_of(rule: Mapping[str, Any]) -> str:
    """The options of `vmhaul job edit` that set this rule."""
    words = [f"--keep-days {rule['days']}" if "days" in rule else f"--keep {rule['keep']}"]
    words += [f"--{name} {rule.get(name, 0)}" for name in _PERIODS]
    return " " + " ".join(words)


def run_job(request: Request, form: dict[str, str]) -> str:
    del form
    session = jobs.run(pages_of(request).ctx, request.path_params["ref"])
    return f"/sessions/{session['id']}"
