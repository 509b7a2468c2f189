"""How the server keeps one repository agent, and when it asks another."""

from __future__ import annotations

from typing import Any

import pytest

from backup_server.errors import ConflictError
from backup_server.services.repository_agent import RepositoryAccess, RepositoryAgent
from transports.vsphere.model import Secret

REPOSITORY_ID = "ab" * 16


class Link:
    """An agent whose directory is gone when it is asked for the space."""

    def __init__(self, *, gone: bool) -> None:
        self._gone = gone
        self.closed = False

    @property
    def alive(self) -> bool:
        return not self.closed

    def call(self, call: str, args: dict[str, Any], *, timeout_s: float) -> dict[str, Any]:
        del args, timeout_s
        if call == "open":
            return {
                "repository_id": REPOSITORY_ID,
                "master_key": "00" * 32,
                "block_size_bytes": 1 << 20,
            }
        if self._gone:
            raise ConflictError("directory /backup is not the one that was opened")
        return {"free_bytes": 1, "total_bytes": 2, "used_bytes": 1}

    def close(self) -> None:
        self.closed = True


def test_an_agent_whose_place_was_changed_is_replaced() -> None:
    links = [Link(gone=True), Link(gone=False)]
    started = iter(links)
    access = RepositoryAccess(
        location="/backup", password=Secret("long enough"), repository_id=REPOSITORY_ID
    )
    agent = RepositoryAgent(lambda: next(started), access, timeout_s=1, long_timeout_s=1)
    with pytest.raises(ConflictError, match="not the one"):
        agent.space()
    assert links[0].closed
    assert agent.space().free_bytes == 1
    agent.close()
