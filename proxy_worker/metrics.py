"""A proxy's own figures for Prometheus, on an address of its choice (`metrics_listen`).

The server's figures have the fleet as the server sees it; these say what a proxy cannot tell while it is not heard.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, Counter, Gauge, start_http_server

from proxy_worker.contracts.messages import ResultReport
from proxy_worker.errors import SetupError

MAX_PORT: Final = 65535


class ProxyMetrics:
    """Safe for threads. Nothing listens before `listen`."""

    def __init__(
        self, *, version: str, running: Callable[[], int], waiting: Callable[[], int], slots: int
    ) -> None:
        """`waiting`: results that the server has not acknowledged."""
        self.registry = CollectorRegistry()
        self._server: WSGIServer | None = None
        self._thread: threading.Thread | None = None
        Gauge(
            "vmhaul_worker_info", "1; the worker's release.", ["version"], registry=self.registry
        ).labels(version).set(1)
        Gauge(
            "vmhaul_worker_max_tasks", "Tasks that this machine bears at most.", registry=self.registry
        ).set(slots)
        Gauge(
            "vmhaul_worker_running_tasks", "Tasks that run here.", registry=self.registry
        ).set_function(running)
        Gauge(
            "vmhaul_worker_outbox_results",
            "Results that the server has not acknowledged.",
            registry=self.registry,
        ).set_function(waiting)
        self._heartbeat = Gauge(
            "vmhaul_worker_heartbeat_timestamp_seconds",
            "When the broker last took a heartbeat of this worker (Unix time).",
            registry=self.registry,
        )
        self._tasks = Counter(
            "vmhaul_worker_attempts",
            "Attempts that ended here.",
            ["kind", "outcome"],
            registry=self.registry,
        )
        self._read = Counter(
            "vmhaul_worker_read_bytes",
            "Bytes read by attempts that succeeded here.",
            ["kind"],
            registry=self.registry,
        )
        self._stored = Counter(
            "vmhaul_worker_stored_bytes", "Bytes that these stored.", ["kind"], registry=self.registry
        )
        self._movers = Counter(
            "vmhaul_worker_movers",
            "Data movers: started, and ended without a result.",
            ["what"],
            registry=self.registry,
        )
        for what in ("started", "crashed"):
            self._movers.labels(what)

    def listen(self, address: str) -> None:
        """Serve them at ADDRESS:PORT. SetupError when that is none or cannot be had."""
        host, separator, port = address.rpartition(":")
        if not separator or not host or not port.isdecimal() or int(port) > MAX_PORT:
            raise SetupError(f"metrics_listen must be ADDRESS:PORT, not {address!r}")
        try:
            self._server, self._thread = start_http_server(
                int(port), host.removeprefix("[").removesuffix("]"), registry=self.registry
            )
        except OSError as error:
            raise SetupError(
                f"metrics_listen: {address} cannot be listened on ({error.strerror}); choose another"
            ) from error

    @property
    def port(self) -> int:
        """Where it listens; 0: nowhere."""
        return 0 if self._server is None else int(self._server.server_port)

    def close(self) -> None:
        if self._server is not None and self._thread is not None:
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()
            self._server = self._thread = None

    def heartbeat_sent(self, at_s: float) -> None:
        self._heartbeat.set(at_s)

    def mover(self, what: str) -> None:
        self._movers.labels(what).inc()

    def ended(self, kind: str, result: ResultReport) -> None:
        self._tasks.labels(kind, result.outcome.value).inc()
        if result.stats is not None:
            self._read.labels(kind).inc(result.stats.read_bytes)
            self._stored.labels(kind).inc(result.stats.stored_bytes)
