"""Flower by itself, as the documentation starts it, at a broker behind TLS."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

import celery
import httpx
import psutil
import pytest
import redis

from backup_server import broker, server_certificates
from tests.integration.up.running import wait_for
from tests.support.ports import free_port

PASSWORD = "of-the-broker"


@pytest.fixture
def tls_broker(tmp_path: Path) -> Iterator[str]:
    """Its URL. Only who has the file of its authority knows it."""
    files = server_certificates.ensure(tmp_path / "tls", ("127.0.0.1",), datetime.now(UTC))
    port = free_port()
    words = {
        "port": 0, "tls-port": port, "bind": "127.0.0.1", "tls-cert-file": files.certificate_file,
        "tls-key-file": files.key_file, "tls-ca-cert-file": files.ca_file, "tls-auth-clients": "no",
        "requirepass": PASSWORD, "dir": tmp_path, "save": "",
    }  # fmt: skip
    configuration = tmp_path / "redis.conf"
    configuration.write_text("".join(f'{name} "{value}"\n' for name, value in words.items()))
    url = f"rediss://:{PASSWORD}@127.0.0.1:{port}/0?ssl_ca_certs={quote(str(files.ca_file), safe='')}"

    def answers() -> bool:
        try:
            with redis.Redis.from_url(url) as client:
                return bool(client.ping())
        except redis.ConnectionError:
            return False

    command = [str(broker.find_program(tls=True)), str(configuration)]
    with (tmp_path / "redis.log").open("wb") as log, subprocess.Popen(command, stdout=log) as server:
        try:
            wait_for("the broker answers", answers)
            yield url
        finally:
            server.terminate()


@pytest.mark.timeout(300)
def test_flower_hears_workers_and_counts_queues_behind_tls(tmp_path: Path, tls_broker: str) -> None:
    login, file = tmp_path / "login", tmp_path / "broker.json"
    login.write_text("me:secret\n")
    file.write_text(json.dumps({"broker_url": tls_broker}))
    port = free_port()
    words = ["--broker-file", str(file), "--listen", f"127.0.0.1:{port}", "--login-file", str(login)]
    command = [sys.executable, "-m", "backup_server.up.flower", *words]
    page = httpx.Client(
        base_url=f"http://127.0.0.1:{port}", auth=("me", "secret"), trust_env=False, timeout=60
    )
    worker = celery.Celery("worker", broker=tls_broker, set_as_current=False)
    with (
        (tmp_path / "flower.log").open("wb") as log,
        subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT) as flower,
        page,
        worker.connection_for_write() as connection,
        worker.events.Dispatcher(connection, hostname="px1@vmhaul") as said,
        redis.Redis.from_url(tls_broker) as client,
    ):
        try:

            def shows(path: str, pattern: str) -> bool:
                said.send("worker-heartbeat", freq=2)
                try:
                    answer = page.get(path)
                except httpx.TransportError:
                    return False
                return answer.status_code == 200 and bool(re.search(pattern, answer.text, re.DOTALL))

            wait_for("Flower shows the worker", lambda: shows("/workers", "px1@vmhaul"))
            client.lpush("celery", *("order",) * 37)
            row = r'<tr id="celery">\s*<td>celery</td>\s*<td[^>]*>[^0-9]*37[^0-9]'
            wait_for("Flower counts", lambda: shows("/broker", row))
            assert httpx.get(f"http://127.0.0.1:{port}/workers", trust_env=False).status_code == 401
            assert PASSWORD not in " ".join(psutil.Process(flower.pid).cmdline())
        finally:
            flower.terminate()
    worker.close()
