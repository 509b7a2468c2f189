"""What a block of an increment may be a patch of: the block that was in its place before."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.errors import IntegrityError
from pipeline.planning import BackupPlan
from pipeline.repository.format import ZERO_ID
from pipeline.repository.index import Index, Location
from pipeline.repository.maps import MapLookup
from pipeline.repository.reader import BlobReader
from pipeline.storage.base import Buffer


@dataclass(frozen=True, slots=True)
class Base:
    """A stored block with its content."""

    blob_id: bytes
    content: Buffer
    stored_length: int


class Bases:
    """Bases of one disk. May be used by several threads.

    A base is never a patch: where the predecessor is one, its own base is taken. A base that cannot be
    read is no error here: the new block is stored whole, and a check tells of the damage.
    """

    def __init__(self, *, reader: BlobReader, index: Index, plan: BackupPlan) -> None:
        self._reader = reader
        self._index = index
        self._map = MapLookup(reader.load_node, bytes.fromhex(plan.base_root), plan.block_count)

    def load(self, block: int) -> Base | None:
        """The base for a block; None where there is none. Raises storage errors."""
        try:
            found = self.find(block)
            if found is None:
                return None
            blob_id, location = found
            return Base(blob_id, self._reader.load_block(blob_id), location.length)
        except IntegrityError:
            return None

    def find(self, block: int) -> tuple[bytes, Location] | None:
        """Id and place of the base."""
        blob_id = self._map.find(block)
        location = None if blob_id == ZERO_ID else self._index.find(blob_id)
        if location is not None and location.base_id:
            blob_id = location.base_id
            location = self._index.find(blob_id)
        if location is None or location.base_id:
            return None
        return blob_id, location
