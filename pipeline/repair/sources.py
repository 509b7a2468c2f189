"""Other repositories that hold the same restore points."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Final

from pipeline.errors import CancelledError, IntegrityError
from pipeline.map_reader import MapDiskReader
from pipeline.model import DiskPoint, RestorePoint
from pipeline.repository.blobs import block_id, node_id
from pipeline.repository.format import NODE_ENTRIES, NODE_ENTRIES_BITS, ZERO_ID
from pipeline.repository.maps import block_count_of, encode_node
from pipeline.repository.repository import Repository

OPEN_READERS: Final = 4
NEAR_POINTS: Final = 4
"""How many points of a VM are tried for each blob."""


class PointSource:
    """A repository that may hold a copy of what another one lost."""

    def __init__(self, name: str, repository: Repository) -> None:
        """`name`: for people."""
        self.name: Final = name
        self._repository = repository
        self._points: dict[str, list[RestorePoint]] | None = None
        self._readers: OrderedDict[tuple[str, int], MapDiskReader] = OrderedDict()

    def close(self) -> None:
        while self._readers:
            self._readers.popitem()[1].close()

    def disks_like(self, point: RestorePoint, disk: DiskPoint) -> list[DiskPoint]:
        """The same disk as this repository has it: of the same state of the VM first, then of those
        next to it in time, in which most blocks are the same.
        """
        if self._points is None:
            self._points = {}
            for theirs in self._repository.points():
                self._points.setdefault(theirs.vm.instance_uuid, []).append(theirs)
        near = sorted(
            self._points.get(point.vm.instance_uuid, []),
            key=lambda theirs: abs(theirs.created_at - point.created_at),
        )
        found = [
            theirs
            for candidate in near
            for theirs in candidate.disks
            if theirs.disk_key == disk.disk_key and theirs.capacity_bytes == disk.capacity_bytes
        ]
        return found[:NEAR_POINTS]

    def reader(self, disk: DiskPoint) -> MapDiskReader:
        """Open on that disk; a few stay open."""
        key = (disk.map_root, disk.capacity_bytes)
        reader = self._readers.get(key)
        if reader is None:
            reader = MapDiskReader(self._repository, disk.map_root, disk.capacity_bytes)
            self._readers[key] = reader
            while len(self._readers) > OPEN_READERS:
                self._readers.popitem(last=False)[1].close()
        self._readers.move_to_end(key)
        return reader


class Rebuilder:
    """Makes blobs of one repository out of a disk that another one holds."""

    def __init__(self, repository: Repository, cancel: threading.Event) -> None:
        self._repository = repository
        self._size = repository.block_size_bytes
        self._cancel = cancel

    def block(self, reader: MapDiskReader, block: int, wanted: bytes) -> bytes | None:
        """The content of a block when it is the one that was lost; None when it is another, or damaged
        there too.
        """
        try:
            content = self._content(reader, block)
        except IntegrityError:
            return None
        return content if block_id(self._repository.keyring, content) == wanted else None

    def node(self, reader: MapDiskReader, level: int, first_block: int, wanted: bytes) -> bytes | None:
        """The content of a map node, made from the blocks below it: all of them are read and hashed."""
        try:
            content = self._node(reader, level, first_block)
        except IntegrityError:
            return None
        if content is None or node_id(self._repository.keyring, content) != wanted:
            return None
        return content

    def _node(self, reader: MapDiskReader, level: int, first_block: int) -> bytes | None:
        """None for a node that would name nothing."""
        count = block_count_of(reader.size_bytes, self._size)
        ids = bytearray()
        for position in range(NODE_ENTRIES):
            first = first_block + (position << (NODE_ENTRIES_BITS * level))
            if first >= count:
                break
            ids += self._id_of(reader, level - 1, first)
        return encode_node(level, ids) if any(ids) else None

    def _id_of(self, reader: MapDiskReader, level: int, first_block: int) -> bytes:
        if self._cancel.is_set():
            raise CancelledError("the repair was cancelled while a map was made anew")
        keyring = self._repository.keyring
        if level < 0:
            content = self._content(reader, first_block)
            return block_id(keyring, content) if any(content) else ZERO_ID
        node = self._node(reader, level, first_block)
        return ZERO_ID if node is None else node_id(keyring, node)

    def _content(self, reader: MapDiskReader, block: int) -> bytes:
        offset = block * self._size
        buffer = bytearray(min(self._size, reader.size_bytes - offset))
        reader.read_into(offset, memoryview(buffer))
        return bytes(buffer)
