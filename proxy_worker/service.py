"""The proxy beside Celery: everything that a task body needs and everything that runs all the time."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Final
from uuid import uuid4

from nacl.signing import VerifyKey
from structlog.contextvars import bound_contextvars

from pipeline.storage import NO_DIRECTORIES
from proxy_worker.cache_argument import cache_arguments
from proxy_worker.config import ProxyConfig, installed_version, local_server_url, server_trust
from proxy_worker.contracts.codec import MessageError
from proxy_worker.contracts.envelope import SERVER, Clock, Opener, Sealer
from proxy_worker.contracts.events import EventName
from proxy_worker.contracts.logs import task_ids
from proxy_worker.contracts.messages import (
    DownMessage,
    LeasesHeld,
    LeaseVerdict,
    ProgressReport,
    RateOrder,
    RescanOrder,
    ResultAck,
    ResultReport,
    RunningTask,
    TaskOutcome,
    TaskRequest,
    TaskSecrets,
)
from proxy_worker.discovery import Discovery
from proxy_worker.errors import LeaseRefusedError, ServerUnavailableError
from proxy_worker.heartbeat import Heartbeat
from proxy_worker.identity import load_or_create_identity
from proxy_worker.link import DownListener, UpLink, broker_client
from proxy_worker.metrics import ProxyMetrics
from proxy_worker.outbox import ResultOutbox
from proxy_worker.reporter import Reporter
from proxy_worker.runner import Runner, end_of
from proxy_worker.server_api import ServerClient
from proxy_worker.slots import NoSlotError, SeenBeforeError, Slots, StopReason, TaskHandle

OnProgress = Callable[[ProgressReport], None]

_SECRETS_PAUSE_S: Final = 2.0
_STOP_S: Final = 5.0
LEASE_SHARE: Final = 0.75
"""Of a lease in which a mover may begin a write: the rest is for writes on their way."""


class ProxyService:
    """`start()` once, `execute()` for each order, `begin_stop()` and `stop()` at the end."""

    def __init__(self, config: ProxyConfig, clock: Clock, log: Any) -> None:
        """`clock` is Unix time in seconds."""
        settings = config.settings
        enrolment = config.enrolment
        identity = load_or_create_identity(config.data_dir)
        server_key = VerifyKey(bytes.fromhex(enrolment.server_key))
        proxy_id = enrolment.proxy_id

        def key_of(sender: str) -> VerifyKey | None:
            return server_key if sender == SERVER else None

        self._config = config
        self._clock = clock
        self._log = log.bind(proxy=enrolment.name)
        self._slots = Slots(settings.max_tasks)
        self._opener = Opener(proxy_id, key_of, clock)
        self._clients = [broker_client(enrolment.broker_url) for _ in range(2)]
        self._outbox = ResultOutbox(config.outbox_file)
        sealer = Sealer(proxy_id, identity.signing, clock)
        link = UpLink(self._clients[0], proxy_id, sealer)
        self._reporter = Reporter(
            link,
            self._outbox,
            clock,
            progress_s=settings.progress_s,
            resend_s=settings.resend_s,
            log=self._log,
        )
        self._metrics = ProxyMetrics(
            version=installed_version(),
            running=lambda: len(self._slots.running()),
            waiting=lambda: len(self._outbox.attempts()),
            slots=settings.max_tasks,
        )
        self._heartbeat = Heartbeat(
            link,
            proxy_id=proxy_id,
            boot_id=uuid4().hex,
            version=installed_version(),
            max_tasks=settings.max_tasks,
            modes=config.modes(),
            no_directories=NO_DIRECTORIES,
            running=self._running,
            every_s=settings.heartbeat_s,
            clock=clock,
            after_each=self._after_heartbeat,
            log=self._log,
        )
        self._listener = DownListener(
            self._clients[1],
            proxy_id,
            self._opener,
            on_message=self._on_message,
            on_connect=self._on_connect,
            log=self._log,
        )
        self._server = ServerClient(
            lambda: local_server_url(config.data_dir) or enrolment.server_url,
            sealer,
            self._opener,
            identity.sealing,
            more_urls=enrolment.more_server_urls,
            trust=server_trust(config.data_dir),
        )
        self._runner = Runner(
            (*config.mover_command, *cache_arguments(config.data_dir)),
            kill_grace_s=settings.kill_grace_s,
            log=self._log,
            presentations=self._server,
            options=settings.mode_options(),
            count=self._metrics.mover,
        )
        self._discovery = Discovery(
            proxy_id=proxy_id,
            options=settings.mode_options(),
            datastores=self._server.datastores,
            send=link.send,
            log=self._log,
        )
        self._stop_begun = threading.Event()
        self._stopper = threading.Thread(target=self._end_tasks, name="vmhaul-stop", daemon=True)

    # -- life

    def start(self) -> None:
        if self._config.settings.metrics_listen:
            self._metrics.listen(self._config.settings.metrics_listen)
        # What an earlier self finished goes out before the first heartbeat, which names a new boot and
        # so ends that self's leases.
        self._reporter.resend(all_of_them=True)
        self._stopper.start()
        self._listener.start()
        self._heartbeat.start()
        self._discovery.start()

    def begin_stop(self) -> None:
        """No more tasks; those that run are handed back after the grace. Safe in a signal handler."""
        self._stop_begun.set()

    def stop(self) -> None:
        """After the last task has ended."""
        self._stop_begun.set()
        self._discovery.stop(_STOP_S)
        self._heartbeat.stop(_STOP_S)
        self._listener.stop(_STOP_S)
        self._metrics.close()
        self._outbox.close()
        self._server.close()
        for client in self._clients:
            client.close()

    def _end_tasks(self) -> None:
        self._stop_begun.wait()
        self._slots.close()
        self._heartbeat.announce_stop()
        threading.Event().wait(self._config.settings.stop_grace_s)
        for handle in self._slots.handles():
            handle.stop(StopReason.SHUTDOWN)

    # -- what runs

    def _after_heartbeat(self) -> None:
        self._metrics.heartbeat_sent(self._clock())
        self._reporter.resend()

    def _running(self) -> list[RunningTask]:
        """Attempts that run, and those whose results were not heard yet: their leases have to last
        until they are.
        """
        running = self._slots.running()
        return running + [task for task in self._reporter.unacknowledged() if task not in running]

    def _on_connect(self) -> None:
        self._reporter.resend(all_of_them=True)
        self._heartbeat.changed()

    def _on_message(self, message: DownMessage) -> None:
        if isinstance(message, RescanOrder):
            self._discovery.now()
            return
        if isinstance(message, ResultAck):
            self._reporter.acknowledged(message.task_id, message.attempt)
            return
        if isinstance(message, RateOrder):
            self._slots.set_rate(message.task_id, message.attempt, message.rate)
            return
        if isinstance(message, LeasesHeld):
            for task in message.held:
                handle = self._slots.find(task.task_id, task.attempt)
                if handle is not None:
                    self._lease_held(handle, message.sequence)
            return
        handle = self._slots.find(message.task_id, message.attempt)
        if handle is None:
            if message.verdict is LeaseVerdict.LOST:
                # Nobody waits for that result any more.
                self._reporter.acknowledged(message.task_id, message.attempt)
            return
        if message.verdict is LeaseVerdict.LOST:
            self._log.warning(
                EventName.LEASE_LOST,
                text="the server gave the task away; stopping",
                **task_ids(handle.request),
            )
            handle.stop(StopReason.LOST)
        elif message.verdict is LeaseVerdict.CANCEL:
            handle.stop(StopReason.CANCEL)
        else:
            self._lease_held(handle, message.sequence)

    def _lease_held(self, handle: TaskHandle, sequence: int) -> None:
        """The server's lease began when it read that heartbeat, so not before we sent it."""
        sent_at_s = self._heartbeat.sent_at_s(sequence)
        if sent_at_s is not None:
            handle.leased(sent_at_s + LEASE_SHARE * handle.request.lease_s)

    # -- one task

    def execute(self, envelope: str, on_progress: OnProgress) -> None:
        """Carry out an order, when it is one for us; answers when it is over. Never raises for what is
        wrong with the order: nobody but the log would hear it.
        """
        request = self._accept(envelope)
        if request is None:
            return
        try:
            handle = self._slots.begin(request)
        except SeenBeforeError:
            self._refuse(request, "it was begun here before")
            return
        except NoSlotError:
            reason = "the worker is stopping" if self._slots.closed else "no task slot was free"
            self._reporter.result(end_of(request, TaskOutcome.RETRY, reason))
            return
        self._heartbeat.changed()
        try:
            self._carry_out(handle, on_progress)
        finally:
            self._slots.end(handle)
            self._heartbeat.changed()

    def _accept(self, envelope: str) -> TaskRequest | None:
        try:
            request = self._opener.open(envelope, expect={TaskRequest}).message
        except MessageError as error:
            self._log.warning(EventName.TASK_REFUSED, text=f"an order was refused: {error}")
            return None
        if not isinstance(request, TaskRequest):
            return None
        if request.proxy_id != self._config.enrolment.proxy_id:
            self._refuse(request, "it is for another proxy")
            return None
        if self._clock() > request.expires_at_s:
            self._refuse(request, "it came too late")
            return None
        return request

    def _refuse(self, request: TaskRequest, reason: str) -> None:
        self._log.warning(
            EventName.TASK_REFUSED,
            text=f"an order was refused: {reason}",
            **task_ids(request),
        )

    def _carry_out(self, handle: TaskHandle, on_progress: OnProgress) -> None:
        request = handle.request
        with bound_contextvars(**task_ids(request)):
            self._log.info(EventName.TASK_STARTED, text=request.title)
            result = self._result(handle, on_progress)
            if handle.reason is StopReason.LOST:
                self._log.info(EventName.TASK_FINISHED, text="lost; nothing is reported")
                return
            self._reporter.result(result)
            self._metrics.ended(request.kind.value, result)
            self._log.info(
                EventName.TASK_FINISHED,
                text=request.title,
                outcome=result.outcome.value,
                reason=result.reason,
            )

    def _result(self, handle: TaskHandle, on_progress: OnProgress) -> ResultReport:
        request = handle.request

        def forward(report: ProgressReport) -> None:
            self._reporter.progress(report)
            on_progress(report)

        try:
            secrets = self._fetch_secrets(handle)
            return self._runner.run(handle, secrets, self._fetch_secrets, forward)
        except LeaseRefusedError as error:
            self._log.warning(EventName.LEASE_LOST, text=f"the server gave no secrets: {error}")
            handle.stop(StopReason.REFUSED)
            return end_of(request, TaskOutcome.RETRY, f"the server gave no secrets: {error}")
        except ServerUnavailableError as error:
            return end_of(request, TaskOutcome.RETRY, str(error))
        except Exception as error:  # noqa: BLE001 - said below why
            # A defect of ours must not leave the server waiting for the lease to end.
            self._log.exception("task.broken", text=request.title)
            reason = f"the worker failed: {type(error).__name__}"
            return end_of(request, TaskOutcome.RETRY, reason)

    def _fetch_secrets(self, handle: TaskHandle) -> TaskSecrets:
        """Waits for a server that is being restarted, for as long as the settings say."""
        until = self._clock() + self._config.settings.secrets_timeout_s
        while True:
            try:
                return self._server.secrets(handle.request)
            except ServerUnavailableError:
                if self._clock() >= until or handle.stop_requested.wait(_SECRETS_PAUSE_S):
                    raise
