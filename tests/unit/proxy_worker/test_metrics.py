from __future__ import annotations

import http.client

import pytest

from proxy_worker.contracts.ids import Attempt, TaskId
from proxy_worker.contracts.messages import ResultReport, TaskOutcome
from proxy_worker.errors import SetupError
from proxy_worker.metrics import ProxyMetrics


def made() -> ProxyMetrics:
    return ProxyMetrics(version="1.2.3", running=lambda: 3, waiting=lambda: 2, slots=8)


def test_figures_of_a_worker_are_served_until_it_ends() -> None:
    metrics = made()
    metrics.listen("127.0.0.1:0")
    metrics.heartbeat_sent(1234.5)
    metrics.mover("started")
    report = ResultReport(
        task_id=TaskId("t"), attempt=Attempt(1), outcome=TaskOutcome.SUCCESS, reason=""
    )
    metrics.ended("backup-disk", report)
    try:
        connection = http.client.HTTPConnection("127.0.0.1", metrics.port, timeout=10)
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
        connection.close()
    finally:
        metrics.close()
    assert 'vmhaul_worker_info{version="1.2.3"} 1.0' in text
    assert "vmhaul_worker_running_tasks 3.0" in text
    assert "vmhaul_worker_outbox_results 2.0" in text
    assert "vmhaul_worker_heartbeat_timestamp_seconds 1234.5" in text
    assert 'vmhaul_worker_attempts_total{kind="backup-disk",outcome="success"} 1.0' in text
    assert 'vmhaul_worker_movers_total{what="started"} 1.0' in text
    assert metrics.port == 0


@pytest.mark.parametrize("address", ["9470", "127.0.0.1:", ":9470", "127.0.0.1:x", "127.0.0.1:70000"])
def test_what_is_no_address_is_said(address: str) -> None:
    with pytest.raises(SetupError, match="ADDRESS:PORT"):
        made().listen(address)


def test_an_address_that_is_taken_is_said() -> None:
    first, second = made(), made()
    first.listen("127.0.0.1:0")
    try:
        with pytest.raises(SetupError, match="choose another"):
            second.listen(f"127.0.0.1:{first.port}")
    finally:
        first.close()
