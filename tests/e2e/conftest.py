from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from vmhaul_lab.site import LabSite
from vmhaul_lab.testing import labvc_binary

from tests.support.postgres import create_database, drop_database

from .platform import Platform, platform

__all__ = ["labvc_binary"]


@pytest.fixture
def site(tmp_path: Path, labvc_binary: Path) -> Iterator[LabSite]:
    with LabSite.quick(tmp_path / "site", binary=labvc_binary) as running:
        yield running


@pytest.fixture
def product(tmp_path: Path) -> Iterator[Platform]:
    with platform(tmp_path / "data") as running:
        yield running


@pytest.fixture
def postgres_database(postgres_url: str) -> Iterator[str]:
    """URL of an empty database on a real PostgreSQL server."""
    name = f"e2e{uuid4().hex}"
    yield create_database(postgres_url, name)
    drop_database(postgres_url, name)
