"""The API over real services on SQLite."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from backup_server.main import create_app
from backup_server.services.context import Context
from tests.support.asgi import AsgiClient, asgi_client
from tests.support.history import Clock, Seeded, make_context, seed
from transports.vsphere.model import Secret

TOKEN = "the-token-of-this-server"
URL = "http://127.0.0.1/api/v1"


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(scope="session")
def empty_installation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory after its first start: copying it is quicker than migrating anew."""
    data = tmp_path_factory.mktemp("empty") / "data"
    make_context(data, Clock()).close()
    return data


@pytest.fixture
def ctx(tmp_path: Path, clock: Clock, empty_installation: Path) -> Iterator[Context]:
    shutil.copytree(empty_installation, tmp_path / "data")
    context = make_context(tmp_path / "data", clock)
    yield context
    context.close()


@pytest.fixture
def seeded(ctx: Context) -> Seeded:
    return seed(ctx)


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
