from __future__ import annotations

from collections.abc import Iterator

import pytest

from backup_server.main import create_app
from backup_server.services.context import Context
from tests.support.asgi import AsgiClient, asgi_client
from tests.unit.backup_server.conftest import TOKEN
from transports.vsphere.model import Secret

URL = "http://127.0.0.1/api/v1"


@pytest.fixture
def stranger(ctx: Context) -> Iterator[AsgiClient]:
    """Somebody without the token."""
    with asgi_client(create_app(ctx, Secret(TOKEN)), URL) as client:
        yield client


@pytest.fixture
def api(ctx: Context) -> Iterator[AsgiClient]:
    with asgi_client(
        create_app(ctx, Secret(TOKEN)), URL, {"Authorization": f"Bearer {TOKEN}"}
    ) as client:
        yield client
