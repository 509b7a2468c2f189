from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.server import Rig


@pytest.fixture
def rig(tmp_path: Path, database_url: str) -> Iterator[Rig]:
    """A server over an empty database with a vCenter and a repository."""
    rig = Rig(tmp_path, database_url).site()
    yield rig
    rig.close()
