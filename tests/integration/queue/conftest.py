from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.queue.rig import Rig, running


@pytest.fixture
def rig(database_url: str) -> Iterator[Rig]:
    """A platform with its scheduler running and no proxy yet."""
    # pytest's own directories have paths that are too long for a Unix socket
    directory = Path(tempfile.mkdtemp(prefix="vmhaul-q"))
    try:
        with running(Rig(directory, database_url)) as made:
            made.start_scheduler()
            yield made
    finally:
        shutil.rmtree(directory)
