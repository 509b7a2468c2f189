"""Which VM each restore point is of, remembered by this machine, so that a commit need not read every point.

One file beside the index cache: for each point its id, a keyed hash of the VM's id, and its sequence. No names, nothing
that opens anything. It may be deleted at any time; what it says of a point is compared with the point before it is used.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from struct import Struct
from typing import Final
from uuid import UUID

from blake3 import blake3

from pipeline.crypto.keyring import Keyring
from transports import system

FILE: Final = "points"
_RECORD: Final = Struct("<16s16sI")  # point id, tag of the VM, sequence
_TAG_BYTES: Final = 16
_DIGEST_BYTES: Final = 32


class CatalogueCache:
    """Tags and sequences of points, by point id. One process's copy of the file."""

    def __init__(self, directory: Path, keyring: Keyring) -> None:
        self._path = directory / FILE
        self._keyring = keyring
        self.points: dict[str, tuple[bytes, int]] = self._read()

    def tag_of(self, instance_uuid: str) -> bytes:
        key = self._keyring.node_id_key
        return blake3(b"vm " + instance_uuid.encode(), key=key).digest(_TAG_BYTES)

    def save(self) -> None:
        """A file that cannot be written costs time only, the next time."""
        body = b"".join(
            _RECORD.pack(UUID(point_id).bytes, tag, sequence)
            for point_id, (tag, sequence) in sorted(self.points.items())
        )
        temporary = self._path.with_name(f"{FILE}-{os.urandom(8).hex()}")
        with contextlib.suppress(OSError):
            try:
                self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | system.OPEN_FLAGS, 0o600)
                with os.fdopen(fd, "wb") as file:
                    file.write(body + self._digest(body))
                system.replace_file(temporary, self._path)
            finally:
                temporary.unlink(missing_ok=True)

    def _read(self) -> dict[str, tuple[bytes, int]]:
        """Nothing where it is missing or damaged."""
        try:
            data = system.read_file(self._path)
        except OSError:
            return {}
        body, digest = data[:-_DIGEST_BYTES], data[-_DIGEST_BYTES:]
        if self._digest(body) != digest or len(body) % _RECORD.size:
            return {}
        return {
            str(UUID(bytes=point_id)): (tag, sequence)
            for point_id, tag, sequence in _RECORD.iter_unpack(body)
        }

    def _digest(self, body: bytes) -> bytes:
        return blake3(self._keyring.repository_id + body, key=self._keyring.node_id_key).digest()
