from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from backup_server.services.agent_link import AgentProcess
from tests.fakes.server import Rig


@pytest.fixture
def rig(tmp_path: Path, migrated_url: str) -> Iterator[Rig]:
    """A server over a fresh database with a vCenter and a repository."""
    rig = Rig(tmp_path, migrated_url).site()
    yield rig
    rig.close()


@pytest.fixture
def real_agent_rig(tmp_path: Path, sqlite_template: Path) -> Iterator[Rig]:
    """The services over the real repository agent, and a repository in a directory."""
    database = tmp_path / "jobs.db"
    database.write_bytes(sqlite_template.read_bytes())
    rig = Rig(tmp_path, f"sqlite:///{database}")
    rig.ctx.agents.start = lambda: AgentProcess(tmp_path / "agent.log")  # type: ignore[method-assign]
    rig.site(location=str(tmp_path / "repository"))
    yield rig
    rig.close()
