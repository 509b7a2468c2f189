"""Writes grafana/dashboards/vmhaul.json: `python monitoring/make_dashboard.py`. Change the panels here, not there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

TARGET: Final = Path(__file__).parent / "grafana" / "dashboards" / "vmhaul.json"
SOURCE: Final = {"type": "prometheus", "uid": "${source}"}
COLUMNS: Final = 24

Query = tuple[str, str]
"""Expression and legend."""

STATS: Final[tuple[tuple[str, str, str], ...]] = (
    ("Proxies online", "sum(vmhaul_proxy_online)", "none"),
    (
        "Slots busy",
        "sum(vmhaul_proxy_running_tasks) / sum(vmhaul_proxy_slots * vmhaul_proxy_online)",
        "percentunit",
    ),
    ("Tasks waiting", 'sum(vmhaul_tasks_open{state="pending"}) or vector(0)', "none"),
    ("Longest wait", "vmhaul_task_oldest_pending_seconds", "s"),
    ("Sessions open", "sum(vmhaul_sessions_open) or vector(0)", "none"),
    ("Left in vSphere", "sum(vmhaul_intents_open) or vector(0)", "none"),
)
GRAPHS: Final[tuple[tuple[str, str, tuple[Query, ...]], ...]] = (
    (
        "Throughput of tasks that ended",
        "Bps",
        (
            ("sum by (kind) (rate(vmhaul_read_bytes_total[5m]))", "read, {{kind}}"),
            ("sum by (kind) (rate(vmhaul_stored_bytes_total[5m]))", "stored, {{kind}}"),
        ),
    ),
    (
        "Tasks",
        "none",
        (("sum by (state, kind) (vmhaul_tasks_open)", "{{state}} {{kind}}"),),
    ),
    (
        "Running tasks by transport mode",
        "none",
        (('sum by (mode) (vmhaul_tasks_open{state="running"})', "{{mode}}"),),
    ),
    (
        "Ends, repeats, failovers",
        "ops",
        (
            ("sum by (result) (rate(vmhaul_tasks_ended_total[5m]))", "ended: {{result}}"),
            ("rate(vmhaul_task_attempts_repeated_total[5m])", "repeated"),
            ("rate(vmhaul_leases_expired_total[5m])", "leases expired"),
            ("sum by (mode) (rate(vmhaul_task_failovers_total[5m]))", "left {{mode}}"),
        ),
    ),
    (
        "Dispatch (commit to broker)",
        "s",
        (
            ("histogram_quantile(0.5, sum by (le) (rate(vmhaul_dispatch_seconds_bucket[5m])))", "p50"),
            ("histogram_quantile(0.99, sum by (le) (rate(vmhaul_dispatch_seconds_bucket[5m])))", "p99"),
        ),
    ),
    (
        "Wait of tasks for a slot",
        "s",
        (
            (
                "histogram_quantile(0.5, sum by (le) (rate(vmhaul_task_wait_seconds_bucket[15m])))",
                "p50",
            ),
            (
                "histogram_quantile(0.99, sum by (le) (rate(vmhaul_task_wait_seconds_bucket[15m])))",
                "p99",
            ),
        ),
    ),
    ("Running tasks of proxies", "none", (("vmhaul_proxy_running_tasks", "{{proxy}}"),)),
    ("Processors of proxies", "percentunit", (("vmhaul_proxy_cpu_share", "{{proxy}}"),)),
    ("Free memory of proxies", "bytes", (("vmhaul_proxy_free_memory_bytes", "{{proxy}}"),)),
    ("Clocks of proxies", "s", (("vmhaul_proxy_clock_offset_seconds", "{{proxy}}"),)),
    (
        "Limits in use",
        "percentunit",
        (
            (
                "vmhaul_repository_running_tasks / (vmhaul_repository_max_tasks > 0)",
                "repository {{repository}}",
            ),
            ("vmhaul_host_running_tasks / on () group_left () vmhaul_host_max_tasks", "host {{host}}"),
        ),
    ),
    ("Read latency of datastores", "s", (("vmhaul_datastore_read_latency_seconds", "{{datastore}}"),)),
    ("Free space of repositories", "bytes", (("vmhaul_repository_free_bytes", "{{repository}}"),)),
    (
        "Oldest of the VMs' youngest restore points",
        "s",
        (("vmhaul_job_oldest_point_seconds", "{{job}}"),),
    ),
    ("Length of the last session", "s", (("vmhaul_job_last_duration_seconds", "{{job}}"),)),
    (
        "Workers: results not acknowledged, movers crashed",
        "none",
        (
            ("vmhaul_worker_outbox_results", "waiting at {{instance}}"),
            ('increase(vmhaul_worker_movers_total{what="crashed"}[5m])', "crashed at {{instance}}"),
        ),
    ),
)


def dashboard() -> dict[str, Any]:
    width = COLUMNS // len(STATS)
    panels = [
        _panel("stat", title, unit, ((query, ""),), x=number * width, y=0, width=width, height=4)
        for number, (title, query, unit) in enumerate(STATS)
    ]
    for number, (title, unit, queries) in enumerate(GRAPHS):
        x, y = number % 2 * 12, 4 + number // 2 * 8
        panels.append(_panel("timeseries", title, unit, queries, x=x, y=y, width=12, height=8))
    for number, panel in enumerate(panels, start=1):
        panel["id"] = number
    return {
        "uid": "vmhaul",
        "title": "vmhaul",
        "tags": ["backup"],
        "schemaVersion": 39,
        "refresh": "30s",
        "time": {"from": "now-12h", "to": "now"},
        "templating": {
            "list": [
                {"name": "source", "label": "Data source", "type": "datasource", "query": "prometheus"}
            ]
        },
        "panels": panels,
    }


def _panel(
    kind: str,
    title: str,
    unit: str,
    queries: tuple[Query, ...],
    *,
    x: int,
    y: int,
    width: int,
    height: int,
) -> dict[str, Any]:
    return {
        "type": kind,
        "title": title,
        "datasource": SOURCE,
        "gridPos": {"x": x, "y": y, "w": width, "h": height},
        "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
        "targets": [
            {
                "refId": chr(ord("A") + number),
                "datasource": SOURCE,
                "expr": query,
                "legendFormat": legend,
            }
            for number, (query, legend) in enumerate(queries)
        ],
    }


def text() -> str:
    return json.dumps(dashboard(), indent=1) + "\n"


if __name__ == "__main__":
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    TARGET.write_text(text())
