"""Figures for Prometheus, counted when they are asked for."""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Gauge, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from backup_server.services import jobs, proxies, repositories, sessions
from backup_server.services.context import Context

RESULTS = ("success", "warning", "failed", "cancelled")
OPEN_STATES = ("queued", "running")


def render(ctx: Context) -> tuple[bytes, str]:
    """Text and media type of the exposition format."""
    registry = CollectorRegistry()
    _proxies(registry, ctx)
    _jobs(registry, ctx)
    _sessions(registry, ctx)
    _repositories(registry, ctx)
    return generate_latest(registry), CONTENT_TYPE_LATEST


def _gauge(registry: CollectorRegistry, name: str, text: str, labels: Iterable[str] = ()) -> Gauge:
    return Gauge(f"vmhaul_{name}", text, tuple(labels), registry=registry)


def _proxies(registry: CollectorRegistry, ctx: Context) -> None:
    online = _gauge(registry, "proxy_online", "1 while the proxy answers.", ["proxy"])
    slots = _gauge(registry, "proxy_slots", "Task slots of the proxy.", ["proxy"])
    running = _gauge(registry, "proxy_running_tasks", "Tasks that it works on.", ["proxy"])
    for proxy in proxies.list_all(ctx):
        online.labels(proxy["name"]).set(proxy["state"] in {"online", "draining"})
        slots.labels(proxy["name"]).set(proxy["slots"])
        running.labels(proxy["name"]).set(proxy["running"])


def _jobs(registry: CollectorRegistry, ctx: Context) -> None:
    result = _gauge(
        registry, "job_last_result", "1 for the result of the last session.", ["job", "result"]
    )
    for job in jobs.list_all(ctx):
        last = (job.get("last_session") or {}).get("result")
        for name in RESULTS:
            result.labels(job["name"], name).set(name == last)


def _sessions(registry: CollectorRegistry, ctx: Context) -> None:
    count = _gauge(registry, "sessions_open", "Sessions that are not finished.", ["kind", "state"])
    for state in OPEN_STATES:
        tally = Tally(item["kind"] for item in sessions.list_all(ctx, state=state, limit=1000)["items"])
        for kind, number in tally.items():
            count.labels(kind, state).set(number)


def _repositories(registry: CollectorRegistry, ctx: Context) -> None:
    free = _gauge(registry, "repository_free_bytes", "Free space of its volume.", ["repository"])
    for repository in repositories.list_all(ctx):
        if repository.get("free_bytes") is not None:
            free.labels(repository["name"]).set(repository["free_bytes"])
