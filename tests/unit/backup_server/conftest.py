"""API and console over real services on SQLite."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from backup_server.services.context import Context
from tests.support.history import Clock, Seeded, make_context, seed

TOKEN: Final = "the-token-of-this-server"


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
