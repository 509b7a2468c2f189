"""Committed outbox rows to the broker; the only place of the server that speaks Celery.

A row is deleted after it was sent. A crash between sends it twice: the proxy has seen the attempt and
does nothing. A row whose attempt is over meanwhile is dropped unsent.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import redis
import sqlalchemy as sa
from celery import Celery
from structlog.contextvars import bound_contextvars

from backup_server import instruments
from backup_server.db.states import TaskState
from backup_server.db.tables import OutboxRow, Task
from backup_server.scheduler.down import DownLink
from backup_server.scheduler.needs import SchedulerContext
from backup_server.services.tasks import OUTBOX_RESCAN, OUTBOX_TASK
from proxy_worker.contracts.codec import from_json
from proxy_worker.contracts.envelope import Sealer
from proxy_worker.contracts.events import EventName
from proxy_worker.contracts.ids import ProxyId
from proxy_worker.contracts.logs import task_ids
from proxy_worker.contracts.messages import LeaseAnswer, RescanOrder, TaskRequest
from proxy_worker.contracts.names import DISK_TASK, message_id, task_queue

_BATCH: Final = 100


def celery_sender(broker_url: str) -> Celery:
    """An app that only sends. No result backend: results come as signed reports."""
    app = Celery("vmhaul-server", broker=broker_url, backend=None, set_as_current=False)
    app.conf.update(
        task_serializer="json",
        accept_content=["json"],
        task_ignore_result=True,
        task_send_sent_event=False,
        # Must be the same wherever a queue is written or read: a message of another step is in a list
        # that nobody reads.
        broker_transport_options={
            "priority_steps": [0],
            "socket_timeout": 15,
            "socket_connect_timeout": 5,
            "socket_keepalive": True,
            "health_check_interval": 10,
        },
    )
    return app


class OutboxSender:
    """One for the process; `step` runs on one thread."""

    def __init__(
        self, ctx: SchedulerContext, app: Celery, sealer: Sealer, down: DownLink, leading: Any
    ) -> None:
        self._ctx = ctx
        self._app = app
        self._sealer = sealer
        self._down = down
        self._leading = leading

    def step(self) -> bool:
        """Send what is there, oldest first. True when there may be more."""
        if not self._leading():
            return False
        with self._ctx.db.read() as s:
            rows = s.scalars(sa.select(OutboxRow).order_by(OutboxRow.id).limit(_BATCH)).all()
            ids = [row.task_id for row in rows if row.task_id is not None]
            current = {
                (found.id, found.attempt): found.proxy_name
                for found in s.execute(
                    sa.select(Task.id, Task.attempt, Task.proxy_name).where(
                        Task.id.in_(ids), Task.state == TaskState.RUNNING.value
                    )
                )
            }
        sent: list[int] = []
        try:
            for row in rows:
                if row.task_id is None:
                    self._send(row)
                elif (row.task_id, row.attempt) in current:
                    with bound_contextvars(proxy=current[row.task_id, row.attempt]):
                        self._send(row)
                sent.append(row.id)
        finally:
            self._delete(sent)
        return len(rows) == _BATCH

    def _delete(self, ids: Sequence[int]) -> None:
        if ids:
            with self._ctx.db() as s:
                s.execute(
                    sa.delete(OutboxRow)
                    .where(OutboxRow.id.in_(ids))
                    .execution_options(synchronize_session=False)
                )

    def _send(self, row: OutboxRow) -> None:
        proxy_id = ProxyId(row.proxy_id)
        if row.kind == OUTBOX_RESCAN:
            self._down.send(proxy_id, [from_json(RescanOrder, row.body)])
            return
        if row.kind != OUTBOX_TASK:
            self._down.send(proxy_id, [from_json(LeaseAnswer, row.body)])
            return
        request = from_json(TaskRequest, row.body)
        try:
            self._app.send_task(
                DISK_TASK,
                args=(self._sealer.seal(request, to=proxy_id),),
                queue=task_queue(proxy_id),
                task_id=message_id(request.task_id, request.attempt),
                # What Flower shows instead of the envelope and the bare task name.
                shadow=request.title,
                argsrepr=f"attempt {request.attempt}, {request.mode.value}",
                kwargsrepr=request.title,
                ignore_result=True,
                retry=False,
            )
        except redis.RedisError as error:
            raise ConnectionError(f"the broker did not take a task: {error}") from error
        waited = self._ctx.clock() - row.created_at
        instruments.DISPATCH.observe(max(0.0, waited.total_seconds()))
        self._ctx.log.info(
            EventName.TASK_SENT,
            text=request.title,
            proxy_id=proxy_id,
            **task_ids(request),
        )
