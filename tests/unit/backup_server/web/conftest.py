from __future__ import annotations

from collections.abc import Iterator

import pytest

from backup_server.main import create_app
from backup_server.services.context import Context
from tests.support.asgi import AsgiClient, asgi_client
from tests.unit.backup_server.conftest import TOKEN
from transports.vsphere.model import Secret


@pytest.fixture
def stranger(ctx: Context) -> Iterator[AsgiClient]:
    """Somebody who did not log in."""
    with asgi_client(create_app(ctx, Secret(TOKEN)), "http://127.0.0.1") as client:
        yield client


@pytest.fixture
def console(stranger: AsgiClient) -> AsgiClient:
    """Somebody who logged in."""
    assert stranger.post("/login", data={"token": TOKEN}).status_code == 303
    return stranger
