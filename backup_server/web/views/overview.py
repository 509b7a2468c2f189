"""The first page: what runs, how jobs went, what needs a look."""

from __future__ import annotations

from typing import Any, Final

from starlette.requests import Request
from starlette.routing import Route

from backup_server.services import jobs, proxies, repositories, sessions
from backup_server.services.context import Context
from backup_server.web.pages import page, pages_of

RECENT: Final = 8
LOW_SPACE_SHARE: Final = 0.1


def routes() -> list[Route]:
    return [
        Route("/", page("overview.html")(overview)),
        Route("/fragments/overview", page("fragments/overview.html")(overview)),
    ]


def overview(request: Request) -> dict[str, Any]:
    ctx = pages_of(request).ctx
    recent = sessions.list_all(ctx, limit=RECENT)["items"]
    running = sessions.list_all(ctx, state="running", limit=50)["items"]
    running += sessions.list_all(ctx, state="queued", limit=50)["items"]
    found_jobs = jobs.list_all(ctx)
    found_proxies = proxies.list_all(ctx)
    found_repositories = repositories.list_all(ctx)
    return {
        "running": running,
        "recent": [item for item in recent if item["state"] == "finished"],
        "jobs": found_jobs,
        "proxies": found_proxies,
        "repositories": found_repositories,
        "warnings": warnings(found_jobs, found_proxies, found_repositories),
        "first_steps": first_steps(ctx, found_jobs, found_repositories),
    }


def warnings(
    found_jobs: list[dict[str, Any]],
    found_proxies: list[dict[str, Any]],
    found_repositories: list[dict[str, Any]],
) -> list[str]:
    """What a person should look at now, one sentence each."""
    texts = [
        f"Proxy {proxy['name']} does not answer."
        for proxy in found_proxies
        if proxy["enabled"] and proxy["state"] == "offline"
    ]
    texts += [
        f"Proxy {proxy['name']} gets no new tasks: {proxy['state_note']}."
        for proxy in found_proxies
        if proxy["enabled"] and proxy["state"] == "online" and proxy["state_note"]
    ]
    if found_proxies and not any(proxy["state"] == "online" for proxy in found_proxies):
        texts.append("No proxy is online: tasks wait until one is.")
    for job in found_jobs:
        last = job["last_session"] or {}
        if last.get("result") == "failed":
            texts.append(f"Job {job['name']} failed: {last.get('reason') or 'see its last session'}.")
    for repository in found_repositories:
        if (repository["last_check"] or {}).get("result") == "failed":
            texts.append(f"The last check of repository {repository['name']} failed: see its session.")
        free, total = repository["free_bytes"], repository["total_bytes"]
        if free is not None and total and free < total * LOW_SPACE_SHARE:
            texts.append(f"Repository {repository['name']} is nearly full.")
    return [text.replace("..", ".") for text in texts]


def first_steps(
    ctx: Context, found_jobs: list[dict[str, Any]], found_repositories: list[dict[str, Any]]
) -> list[str]:
    """Commands that a new installation still needs."""
    from backup_server.services import vcenters

    steps = []
    if not vcenters.list_all(ctx):
        steps.append("vmhaul vcenter add prod vcenter.example.com --user backup@vsphere.local")
    if not found_repositories:
        steps.append("vmhaul repository add main /backup/vmhaul")
    if not found_jobs:
        steps.append("vmhaul job create nightly --vcenter prod --repository main --vm 'web*'")
    return steps
