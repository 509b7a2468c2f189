"""Proxies whose disks are being attached, for minutes, and everybody else."""

from __future__ import annotations

import threading
from typing import Any

import httpx
from anyio.from_thread import start_blocking_portal

from backup_server.api.app import create_api
from backup_server.api.deps import Doorstep
from backup_server.api.routes.proxy_calls import PATIENT_CALLS
from backup_server.services.context import Context
from proxy_worker.contracts.messages import PresentRequest
from tests.unit.backup_server.conftest import TOKEN
from transports.vsphere.model import Secret


def test_disks_that_take_long_to_attach_keep_nobody_else_waiting(ctx: Context) -> None:
    begun, attached = threading.Semaphore(0), threading.Event()

    def answer(text: str, expect: type[Any], peer: str) -> str:
        assert peer
        if expect is PresentRequest:
            begun.release()
            attached.wait(60)
        return f"{expect.__name__} {text}"

    app = create_api(
        Doorstep(
            ctx=ctx,
            token=Secret(TOKEN),
            console_link=dict,
            answer_proxy=answer,
            enrolment=lambda proxy_id, host: {},
        )
    )
    with start_blocking_portal() as portal:
        client = httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test/v1")

        async def ask(path: str) -> str:
            return (await client.post(path, content=b"x")).text

        waiting = [portal.start_task_soon(ask, "/proxy/present") for _ in range(PATIENT_CALLS + 20)]
        try:
            for _ in range(PATIENT_CALLS):
                assert begun.acquire(timeout=30)
            secrets = portal.start_task_soon(ask, "/proxy/secrets")
            assert secrets.result(timeout=30) == "SecretsRequest x"
        finally:
            attached.set()
        assert {one.result(timeout=30) for one in waiting} == {"PresentRequest x"}
        portal.call(client.aclose)
