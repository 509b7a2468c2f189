"""Log lines as events: a stable name, ids bound by context, text for people; secrets never.

Server and proxies write alike, so that one search finds a disk in the logs of all of them: every line about a task
has `session_id`, `task_id`, `attempt` and `proxy`. `task_ids` is what a worker binds for as long as it works for a task.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Mapping, MutableMapping
from typing import IO, Any, Final

import structlog

from proxy_worker.contracts.messages import TaskRequest
from transports.vsphere.model import Secret

HIDDEN: Final = "***"
_SECRET_NAMES: Final = re.compile(
    r"pass(word|wd|phrase)?$|secret|token|ticket|master_key|repository_key|account_key|access_key|service_account|authorization|cookie|^key$",
    re.IGNORECASE,
)
# user:password@host in a URL, and "Bearer ..." in a header
_URL_PASSWORD: Final = re.compile(r"(?<=://)([^/\s:@]*):([^@/\s]+)@")
_BEARER: Final = re.compile(r"(?i)\b(bearer)\s+\S+")
_TALKATIVE: Final = ("httpx", "httpcore")
_HASHES: Final = ("token_hash", "join_token_hash")


def task_ids(request: TaskRequest) -> dict[str, Any]:
    """What stands in every line about one attempt. `disk` is for people: "backup db01 / Hard disk 2"."""
    return {
        "session_id": request.session_id,
        "task_id": request.task_id,
        "attempt": request.attempt,
        "disk": request.title,
    }


def redact(value: Any, name: str = "") -> Any:
    """`value` fit to be logged: secrets by type, by name of their field and by shape are hidden."""
    if isinstance(value, Secret):
        return HIDDEN
    if name not in _HASHES and _SECRET_NAMES.search(name) and value not in (None, "", False, True):
        return HIDDEN
    if isinstance(value, dict):
        return {key: redact(item, str(key)) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [redact(item) for item in value]
    if isinstance(value, str):
        return _BEARER.sub(rf"\1 {HIDDEN}", _URL_PASSWORD.sub(rf"\1:{HIDDEN}@", value))
    return value


def redactor(logger: Any, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """The processor that hides secrets; the last before the renderer, so it sees tracebacks too."""
    del logger, method
    return {key: redact(value, key) for key, value in event.items()}


def set_up_logging(
    *,
    level: str = "info",
    form: str = "console",
    stream: IO[str] | None = None,
    always: Mapping[str, str] | None = None,
) -> None:
    """Configure structlog and the standard library's logging alike. Called by each program when it starts.

    `form`: console or json, one object a line. `always` stands in every line, those of libraries too.
    """
    number = logging.getLevelNamesMapping()[level.upper()]
    fixed = dict(always or {})

    def with_fixed(logger: Any, method: str, event: MutableMapping[str, Any]) -> Any:
        del logger, method
        return {**fixed, **event}

    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        with_fixed,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        redactor,
    ]
    target = stream or sys.stderr
    renderer: Any = (
        structlog.processors.JSONRenderer(default=str)
        if form == "json"
        else structlog.dev.ConsoleRenderer(colors=target.isatty())
    )
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(target)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
            foreign_pre_chain=shared,
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(number)
    # Each request to a vCenter as a line of its own would bury what happened.
    for library in _TALKATIVE:
        logging.getLogger(library).setLevel(max(number, logging.WARNING))
