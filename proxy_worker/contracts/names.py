"""Names on the broker that server and proxy agree on."""

from __future__ import annotations

from typing import Final
from urllib.parse import parse_qs, quote, unquote, urlencode, urlsplit, urlunsplit

from proxy_worker.contracts.ids import Attempt, ProxyId, TaskId

DISK_TASK: Final = "vmhaul.disk"
"""Name of the one Celery task that a proxy knows."""

UP_ENTRIES: Final = 10_000
"""About what an up stream keeps while the server does not read. Results that are trimmed away are sent
again; the rest is only worth something while it is fresh."""
_HOW_KNOWN: Final = "ssl_cert_reqs"
STREAM_FIELD: Final = "m"
"""Field of a stream entry that holds the envelope."""


def task_queue(proxy_id: ProxyId) -> str:
    return f"vmhaul.px.{proxy_id}"


def up_stream(proxy_id: ProxyId) -> str:
    return f"vmhaul:up:{proxy_id}"


def down_stream(proxy_id: ProxyId) -> str:
    return f"vmhaul:down:{proxy_id}"


def worker_host(name: str) -> str:
    """Celery's name of a proxy's worker, as Flower shows it; its control mailbox is called after it."""
    return f"{name}@vmhaul"


def message_id(task_id: TaskId, attempt: Attempt) -> str:
    """Id of the Celery message of one attempt."""
    return f"{task_id}-a{attempt}"


def celery_socket_url(path: str, user: str = "", password: str = "") -> str:
    """Broker URL of a Unix socket, in the form that Celery reads."""
    login = f"{quote(user, safe='')}:{quote(password, safe='')}@" if user or password else ""
    return f"redis+socket://{login}{quote(path)}"


def with_tls_verified(broker_url: str) -> str:
    """The same broker, known by its certificate. Where a URL says nothing of that, Celery would tell the login to
    whoever shows any certificate at all.
    """
    parts = urlsplit(broker_url)
    if parts.scheme != "rediss" or _HOW_KNOWN in parse_qs(parts.query):
        return broker_url
    query = "&".join(filter(None, (parts.query, f"{_HOW_KNOWN}=required")))
    return urlunsplit(parts._replace(query=query))


def redis_client_url(broker_url: str) -> str:
    """The same broker in the form that redis-py reads: only Unix sockets are written differently."""
    parts = urlsplit(broker_url)
    if parts.scheme != "redis+socket":
        return broker_url
    query = parse_qs(parts.query)
    options = {"db": query["virtual_host"][0]} if "virtual_host" in query else {}
    if "password" in query:
        options["password"] = query["password"][0]
    login = f"{parts.netloc}" if "@" in parts.netloc else ""
    # redis-py unquotes the path itself
    path = quote(unquote(parts.path))
    return f"unix://{login}{path}" + (f"?{urlencode(options)}" if options else "")
