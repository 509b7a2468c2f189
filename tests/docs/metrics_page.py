"""Writes docs/reference/metrics.md: `python -m tests.docs.metrics_page > docs/reference/metrics.md`."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry

from backup_server.instruments import PROCESS
from backup_server.services.figures import FIGURES
from proxy_worker.metrics import ProxyMetrics

INTRODUCTION = """# Metrics

`GET /api/v1/metrics` of the server needs no token and has no secrets; it names proxies, jobs, repositories, datastores
and hosts. A proxy gives its own figures where its `metrics_listen` says. How to put both into Prometheus and
Grafana, with rules that wake somebody: [monitoring](../howto/monitoring.md).

Times are Unix times or lengths in seconds, sizes are in bytes. A figure that is not known is left out.

## Of the fleet

Read from the job database when they are asked for, by aggregates over what is open, so that neither the number of VMs
nor years of history make them expensive. Counters (`_total`) stand in the database and survive restarts.
"""
OF_PROCESS = """
## Of the server's process

Zero at every start. Of two servers on one database each has its own.
"""
OF_WORKER = """
## Of a proxy

Zero at every start of its worker.
"""


def _table(rows: Iterator[tuple[str, str, str]]) -> str:
    lines = ["| name | labels | what |", "|---|---|---|"]
    lines += [f"| `{name}` | {labels} | {text} |" for name, labels, text in rows]
    return "\n".join(lines) + "\n"


def _figures() -> Iterator[tuple[str, str, str]]:
    for figure in FIGURES:
        name = figure.name + ("_total" if figure.kind == "counter" else "")
        yield name, ", ".join(figure.labels), figure.text


def _registry(registry: CollectorRegistry) -> Iterator[tuple[str, str, str]]:
    for collector in registry._collector_to_names:
        labels = ", ".join(collector._labelnames)  # type: ignore[attr-defined]
        for family in collector.describe() if hasattr(collector, "describe") else collector.collect():
            ending = {"counter": "_total", "histogram": "_bucket"}.get(family.type, "")
            yield family.name + ending, labels, family.documentation


def worker_registry() -> CollectorRegistry:
    return ProxyMetrics(version="", running=lambda: 0, waiting=lambda: 0, slots=1).registry


def markdown() -> str:
    parts = (
        INTRODUCTION,
        _table(_figures()),
        OF_PROCESS,
        _table(_registry(PROCESS)),
        OF_WORKER,
        _table(_registry(worker_registry())),
    )
    return "\n".join(part.strip("\n") + "\n" for part in parts)


if __name__ == "__main__":
    print(markdown(), end="")
