from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import redis
from kombu.transport.redis import Channel

from backup_server.scheduler.outbox import celery_sender
from proxy_worker.app import make_app, survive_lost_connections
from proxy_worker.config import Enrolment, ProxyConfig, ProxySettings
from proxy_worker.contracts.ids import ProxyId
from proxy_worker.contracts.names import DISK_TASK
from proxy_worker.service import ProxyService


def test_a_closed_transport_is_a_lost_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Channel, "_connparams", Channel._connparams)
    survive_lost_connections()
    survive_lost_connections()
    for connection in (None, SimpleNamespace(client=None)):
        channel = object.__new__(Channel)
        channel.connection = connection
        with pytest.raises(redis.ConnectionError):
            channel._connparams()


def test_orders_are_read_as_the_server_writes_them(tmp_path: Path) -> None:
    url = "redis+socket:///nowhere/b.sock"
    config = ProxyConfig(
        data_dir=tmp_path,
        enrolment=Enrolment(
            proxy_id=ProxyId("p1"), name="px1", server_url="", server_key="", broker_url=url
        ),
        settings=ProxySettings(),
    )
    executed: list[str] = []
    service = SimpleNamespace(execute=lambda envelope, on_progress: executed.append(envelope))
    app: Any = make_app(config, cast("ProxyService", service), lambda: 0.0)
    sender: Any = celery_sender(url)
    steps = [each.conf.broker_transport_options["priority_steps"] for each in (app, sender)]
    assert steps == [[0], [0]]
    assert [queue.name for queue in app.conf.task_queues] == ["vmhaul.px.p1"]
    assert app.conf.accept_content == ["json"]
    assert not app.conf.task_acks_late
    assert app.conf.worker_disable_prefetch
    assert app.conf.broker_connection_max_retries is None
    app.tasks[DISK_TASK].run("envelope")
    assert executed == ["envelope"]
    for each in (app, sender):
        each.close()
