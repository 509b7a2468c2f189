"""The object storage of a round: an imitation of S3 that stays, behind a door that is killed and frozen.

The imitation keeps its objects in memory, so it is not killed itself. A client cannot tell: connections break, answers to
requests that were carried out get lost, nobody listens for a while.
"""

from __future__ import annotations

import socket
import sys
from pathlib import Path
from typing import Final

from tests.chaos.network import ADDRESSES
from tests.chaos.parts import Part
from tests.chaos.plan import OBJECTS, Link
from tests.support.object_servers import ObjectServer, start_moto

_ADDRESS: Final = ADDRESSES[Link.OBJECTS]
_PORT: Final = 9000


class Objects:
    """`start` once, `stop` once."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._server: ObjectServer | None = None
        self._bucket = ""

    def start(self) -> Part:
        """The door, not yet started."""
        self._server = start_moto()
        self._bucket = self._server.new_bucket()
        target = self._server.endpoint.removeprefix("http://")
        command = [sys.executable, "-m", "tests.chaos.relay", f"{_ADDRESS}:{_PORT}", target]
        return Part(OBJECTS, command, self._directory / "objects.log", answers=_listens)

    @property
    def location(self) -> str:
        return f"s3://{self._bucket}/vmhaul?endpoint=http://{_ADDRESS}:{_PORT}&allow_http=true"

    @property
    def secrets(self) -> dict[str, str]:
        assert self._server is not None
        return dict(self._server.secrets)

    def stop(self) -> None:
        if self._server is not None:
            self._server.stop()


def _listens() -> bool:
    try:
        with socket.create_connection((_ADDRESS, _PORT), 2):
            return True
    except OSError:
        return False
