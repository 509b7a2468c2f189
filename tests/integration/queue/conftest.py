from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from backup_server.db.engine import open_database
from tests.integration.queue.rig import Rig, running
from tests.integration.queue.task_rows import Rows


@pytest.fixture
def rig(migrated_url: str) -> Iterator[Rig]:
    """A platform with its scheduler running and no proxy yet."""
    # pytest's own directories have paths that are too long for a Unix socket
    directory = Path(tempfile.mkdtemp(prefix="vmhaul-q"))
    try:
        with running(Rig(directory, migrated_url)) as made:
            made.start_scheduler()
            yield made
    finally:
        shutil.rmtree(directory)


@pytest.fixture
def rows(migrated_url: str) -> Iterator[Rows]:
    db = open_database(migrated_url)
    yield Rows(db)
    db.close()
