from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.server import Rig


@pytest.fixture
def rig(tmp_path: Path, migrated_url: str) -> Iterator[Rig]:
    """A server over a fresh database with a vCenter and a repository."""
    rig = Rig(tmp_path, migrated_url).site()
    yield rig
    rig.close()
