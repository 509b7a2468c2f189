"""Lines of JSON between a worker and its data-mover process.

Worker to mover, on standard input: first `{"request": TaskRequest, "secrets": TaskSecrets, "options":
ModeOptions}`, later one line for each question of the mover: `{"secrets": TaskSecrets}`, `{"answer":
PresentAnswer | WithdrawAnswer}`, or `{"refused": text, "other_mode": bool}`; and, unasked, to a restore to a VM
`{"lease": seconds}`: until when the lease lasts, by `clocks.uptime_s`, to all `{"rate": RateLimit | null}`; and
`{"stop": true}` from a worker on Windows, which has no SIGTERM to send. Mover
to worker, on standard
output: `{"progress": ProgressReport}`, `{"need": "secrets"}`, `{"present": PresentRequest}`, `{"withdraw":
WithdrawRequest}`, and last one `{"result": ResultReport}`. Standard input that ends means that the worker
is gone: the mover ends too.
"""

from __future__ import annotations

from typing import Any, Final

from proxy_worker.contracts.codec import canonical_json, from_json, to_json
from proxy_worker.contracts.messages import RateLimit, TaskRequest, TaskSecrets
from transports.registry import ModeOptions


def line(**values: Any) -> bytes:
    return canonical_json(values) + b"\n"


def order_line(request: TaskRequest, secrets: TaskSecrets, options: ModeOptions | None = None) -> bytes:
    return line(
        request=to_json(request),
        secrets=to_json(secrets),
        options=to_json(options or ModeOptions()),
    )


def rate_line(limit: RateLimit | None) -> bytes:
    return line(rate=None if limit is None else to_json(limit))


STOP_LINE: Final = line(stop=True)


def parse_rate(data: dict[str, Any]) -> RateLimit | None:
    """KeyError or MessageError when it is none."""
    return None if data["rate"] is None else from_json(RateLimit, data["rate"])


def parse_order(data: dict[str, Any]) -> tuple[TaskRequest, TaskSecrets, ModeOptions]:
    """KeyError or MessageError when it is not an order."""
    return (
        from_json(TaskRequest, data["request"]),
        from_json(TaskSecrets, data["secrets"]),
        from_json(ModeOptions, data["options"]),
    )
