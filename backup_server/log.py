"""Logging of the server: the same lines as the proxies', and what its lines about a task have in common."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import structlog

from backup_server.db.tables import Task
from proxy_worker.contracts.logs import HIDDEN, redact, redactor, set_up_logging

__all__ = ["HIDDEN", "about_task", "redact", "redactor", "set_up_logging", "task_ids"]


def task_ids(row: Task) -> dict[str, Any]:
    """As `proxy_worker.contracts.logs.task_ids`, and the proxy that has the attempt."""
    return {
        "session_id": row.session_id,
        "task_id": row.id,
        "attempt": row.attempt,
        "proxy": row.proxy_name,
        "disk": row.title,
    }


def about_task(row: Task) -> AbstractContextManager[None]:
    """Every line written inside, by this thread, carries the ids of the task and its present attempt."""
    return structlog.contextvars.bound_contextvars(**task_ids(row))
