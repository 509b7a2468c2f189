"""Lines of JSON between a worker and its data-mover process.

Worker to mover, on standard input: first `{"request": TaskRequest, "secrets": TaskSecrets}`, later
`{"secrets": TaskSecrets}` for each time that the mover asked, or `{"refused": text}`. Mover to worker, on
standard output: `{"progress": ProgressReport}`, `{"need": "secrets"}`, and last one
`{"result": ResultReport}`. Standard input that ends means that the worker is gone: the mover ends too.
"""

from __future__ import annotations

from typing import Any

from proxy_worker.contracts.codec import canonical_json, from_json, to_json
from proxy_worker.contracts.messages import TaskRequest, TaskSecrets


def line(**values: Any) -> bytes:
    return canonical_json(values) + b"\n"


def order_line(request: TaskRequest, secrets: TaskSecrets) -> bytes:
    return line(request=to_json(request), secrets=to_json(secrets))


def parse_order(data: dict[str, Any]) -> tuple[TaskRequest, TaskSecrets]:
    """KeyError or MessageError when it is not an order."""
    return from_json(TaskRequest, data["request"]), from_json(TaskSecrets, data["secrets"])
