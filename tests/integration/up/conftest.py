from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.up.running import Up


@pytest.fixture(scope="session")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """One `vmhaul up` for the tests that do not stop it."""
    with Up(tmp_path_factory.mktemp("up") / "data") as running:
        yield running


@pytest.fixture
def own_up(tmp_path: Path) -> Iterator[Up]:
    """One for a test that stops or hurts it."""
    with Up(tmp_path / "data") as running:
        yield running
