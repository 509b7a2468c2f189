"""Who may call as a proxy over plain HTTP, and how much is read of anybody."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from anyio.from_thread import start_blocking_portal

from backup_server.api.app import create_api, create_door
from backup_server.api.deps import Doorstep
from backup_server.api.limits import MAX_BODY_BYTES
from backup_server.services.context import Context
from tests.unit.backup_server.conftest import TOKEN
from transports.vsphere.model import Secret


def step_of(ctx: Context) -> Doorstep:
    return Doorstep(
        ctx=ctx,
        token=Secret(TOKEN),
        console_link=dict,
        answer_proxy=lambda text, expect, peer: f"{expect.__name__} {len(text)} from {peer}",
        enrolment=lambda proxy_id, host: {},
    )


def ask(app: Any, url: str, client: str, content: Any = b"x") -> httpx.Response:
    transport = httpx.ASGITransport(app=app, client=(client, 4711))

    async def post() -> httpx.Response:
        async with httpx.AsyncClient(transport=transport) as http:
            return await http.post(url, content=content)

    with start_blocking_portal() as portal:
        return portal.call(post)


@pytest.mark.parametrize(
    ("url", "client", "status"),
    [
        ("http://backup.example/v1/proxy/secrets", "192.0.2.7", 403),
        ("http://backup.example/v1/enrol", "192.0.2.7", 403),
        ("http://backup.example/v1/proxy/secrets", "127.0.0.1", 200),
        ("http://backup.example/v1/proxy/secrets", "::1", 200),
        # On the server's own address: a proxy of the same machine.
        ("http://192.0.2.7/v1/proxy/secrets", "192.0.2.7", 200),
        # Behind a TLS proxy, which says so.
        ("https://backup.example/v1/proxy/secrets", "192.0.2.7", 200),
    ],
)
def test_plain_http_from_another_machine_is_refused(
    ctx: Context, url: str, client: str, status: int
) -> None:
    answer = ask(create_api(step_of(ctx)), url, client)
    assert answer.status_code == status
    if status == 403:
        assert "--proxies-listen" in answer.json()["error"]["message"]


def test_long_bodies_are_not_read(ctx: Context) -> None:
    door = create_door(step_of(ctx), lambda: "PEM")
    url = "https://backup.example/api/v1/enrol"
    assert ask(door, url, "192.0.2.7", b"x" * (MAX_BODY_BYTES + 1)).status_code == 413
    read = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal read
        while True:
            read += 8192
            yield b" " * 8192

    # FastAPI says it in its own way when a body breaks off.
    assert ask(door, url, "192.0.2.7", endless()).status_code in {400, 413}
    assert read <= MAX_BODY_BYTES + 2 * 8192
    assert ask(door, "https://backup.example/ca.pem", "192.0.2.7").status_code == 405
