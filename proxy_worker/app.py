"""The Celery application of a proxy, and the worker that runs in this process.

Celery carries orders here and shows the fleet in Flower; nothing rests on it. Messages are acknowledged
when they are taken (a late acknowledgement is delivered again after the visibility time-out, while the
first copy still runs), there is no result backend (its outages end or hold up tasks), and recovery is the
server's leases alone.
"""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any, Final

import redis
from celery import Celery, bootsteps, signals
from celery.exceptions import SecurityWarning
from celery.worker import control
from kombu.entity import Queue
from kombu.transport.redis import Channel

from proxy_worker.config import ProxyConfig
from proxy_worker.contracts.envelope import Clock
from proxy_worker.contracts.names import task_queue, worker_host
from proxy_worker.service import ProxyService
from proxy_worker.tasks import register

LOOKING: Final = frozenset(
    {
        "active", "active_queues", "clock", "conf", "ping", "registered", "reserved", "revoked", "scheduled",
        "stats",
    }
)  # fmt: skip
"""Control messages that a worker answers: those that only look. Flower asks them. What a worker is to do comes in
signed messages alone; a control message has no signature."""
SPARE_THREADS: Final = 4
"""More threads than slots: a message that comes when all are taken must be answered, not wait."""


def make_app(config: ProxyConfig, service: ProxyService, clock: Clock) -> Celery:
    app = Celery("vmhaul-proxy", broker=config.enrolment.broker_url, backend=None, set_as_current=True)
    queue = task_queue(config.enrolment.proxy_id)
    app.conf.update(
        task_serializer="json",
        accept_content=["json"],
        event_serializer="json",
        task_ignore_result=True,
        task_acks_late=False,
        task_queues=[Queue(queue)],  # type: ignore[no-untyped-call]
        task_default_queue=queue,
        task_create_missing_queues=False,
        task_send_sent_event=False,
        # The control mailbox goes with its connection. Were it to expire, kombu would keep its deadline in a
        # key that all workers write, and act on what any of them wrote there.
        control_queue_expires=None,
        worker_prefetch_multiplier=1,
        worker_disable_prefetch=True,
        worker_send_task_events=True,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        # A worker that gave up connecting would be a proxy that is lost until somebody looks.
        broker_connection_retry=True,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_channel_error_retry=True,
        broker_transport_options={
            # The same as in the server's outbox: messages of another step are in a list nobody reads.
            "priority_steps": [0],
            "socket_timeout": 15,
            "socket_connect_timeout": 5,
            "socket_keepalive": True,
            "health_check_interval": 10,
            # Own keys: with one shared hash every proxy could see the others' messages.
            "unacked_key": f"{queue}.unacked",
            "unacked_index_key": f"{queue}.unacked_index",
            "unacked_mutex_key": f"{queue}.unacked_mutex",
        },
        timezone="UTC",
        enable_utc=True,
    )
    app.steps["worker"].add(_service_step(service))
    register(app, service, clock)
    return app


def only_look(log: Any) -> None:
    """Let every control command that changes something do nothing: shutdown, revoke, pool and queue changes."""

    def ignore(name: str, state: Any, **given: Any) -> None:
        del state, given
        # Flower asks for events all the time; they are on.
        if name not in {"enable_events", "disable_events"}:
            log.warning("control.ignored", text=f"the control message {name!r} was ignored")

    for name in control.Panel.data.keys() - LOOKING:
        control.Panel.data[name] = partial(ignore, name)


def _service_step(service: ProxyService) -> type[bootsteps.StartStopStep]:
    class ServiceStep(bootsteps.StartStopStep):  # type: ignore[misc]
        """Heartbeat, listener and outbox live as long as the pool."""

        requires = ("celery.worker.components:Pool",)

        def start(self, parent: Any) -> None:
            del parent
            service.start()

    return ServiceStep


def survive_lost_connections() -> None:
    """Work around a defect of kombu 5.7.

    When the broker goes away while a message is unacknowledged, closing the channel restores that
    message, which asks a connection without a client for its parameters: AttributeError, not among the
    errors that Celery expects there, and the worker's main loop ends. A ConnectionError is what it
    means and what Celery handles by connecting again.
    """
    original = Channel._connparams  # noqa: SLF001
    if getattr(original, "survives_lost_connections", False):
        return

    def connparams(self: Any, asynchronous: bool = False) -> Any:
        if self.connection is None or self.connection.client is None:
            raise redis.ConnectionError("the transport is closed already")
        return original(self, asynchronous)  # type: ignore[no-untyped-call]

    connparams.survives_lost_connections = True  # type: ignore[attr-defined]
    Channel._connparams = connparams  # type: ignore[method-assign]  # noqa: SLF001


def run_worker(
    config: ProxyConfig, clock: Clock, log: Any, *, service: ProxyService | None = None
) -> int:
    """Run until SIGTERM or SIGINT; answers the exit code. `service`: what the tasks are for, where the caller has it.

    The first signal stops in order: no more tasks, movers stopped after the grace, results kept and
    sent. What is still unsent stays in the outbox for the next start.
    """
    survive_lost_connections()
    only_look(log)
    # Celery warns of root because of pickled messages; here only JSON is taken in, and only when signed.
    warnings.filterwarnings("ignore", category=SecurityWarning)
    service = service or ProxyService(config, clock, log)
    app = make_app(config, service, clock)

    def on_shutdown(**_: Any) -> None:
        service.begin_stop()

    # A strong reference: Celery's signals keep weak ones by default.
    signals.worker_shutting_down.connect(on_shutdown, weak=False)
    worker = app.Worker(
        hostname=worker_host(config.enrolment.name),
        pool="threads",
        concurrency=config.settings.max_tasks + SPARE_THREADS,
        queues=[task_queue(config.enrolment.proxy_id)],
        task_events=True,
        without_gossip=True,
        without_mingle=True,
        loglevel=config.settings.log_level.upper(),
        quiet=True,
    )
    try:
        worker.start()
    finally:
        signals.worker_shutting_down.disconnect(on_shutdown)
        service.stop()
    code = worker.exitcode
    return int(code) if code else 0
