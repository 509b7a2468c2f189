"""What is needed, as one bit for each record of the cache's runs; ids only for what is not in a run."""

from __future__ import annotations

from itertools import repeat

from pipeline.repository.format import MAX_PATCH_DEPTH, Encoding
from pipeline.repository.index import Index
from pipeline.repository.index_record import FIELD_BITS, KEY_BYTES, VALUE
from pipeline.repository.table import IdSet


class BlobBits:
    """A set of blob ids. The runs that the index has when this is made are its numbering, so the index may
    be brought up to date meanwhile.
    """

    def __init__(self, index: Index) -> None:
        self._runs, self._dead = index.runs_and_dead()
        self._bits = [bytearray((run.units + 7) // 8) for run in self._runs]
        self._others = IdSet()

    def __contains__(self, blob_id: bytes) -> bool:
        key = blob_id[:KEY_BYTES]
        for run, bits in zip(self._runs, self._bits, strict=True):
            unit = run.unit_of(key)
            if unit is not None:
                return bool(bits[unit >> 3] & 1 << (unit & 7))
        return blob_id in self._others

    def add(self, blob_id: bytes) -> bool:
        """True when it was new."""
        return self.add_and_find(blob_id)[0]

    def add_and_find(self, blob_id: bytes) -> tuple[bool, bool]:
        """Whether it was new, and whether a place with all of its content was met on the way."""
        key = blob_id[:KEY_BYTES]
        for run, dead, bits in zip(self._runs, self._dead, self._bits, strict=True):
            unit, values = run.first_of(key)
            if unit < 0:
                continue
            mask = 1 << (unit & 7)
            is_new = not bits[unit >> 3] & mask
            bits[unit >> 3] |= mask
            return is_new, any(map(_is_whole, values, repeat(dead)))
        return self._others.add(blob_id), False


def _is_whole(value: bytes, dead: bytes) -> bool:
    """Whether a record is of a blob with all of its content, in a pack that counts."""
    number, _, length, _ = VALUE.unpack(value)
    return length >> FIELD_BITS != Encoding.PATCH and not (dead and dead[number])


class Needed(BlobBits):
    """Blobs that are needed, and what they are patches of."""

    def __init__(self, index: Index) -> None:
        super().__init__(index)
        self._index = index
        self.unknown = 0
        """Blobs that the index does not have."""

    def add(self, blob_id: bytes) -> bool:
        """True when it was new. The base of a patch is needed with it, unless the whole content is in
        another place.
        """
        is_new, is_whole = self.add_and_find(blob_id)
        added = is_new
        for _ in range(MAX_PATCH_DEPTH):
            if not added or is_whole:
                break
            place = self._index.find(blob_id)
            if place is None:
                self.unknown += 1
                break
            if not place.base_id:
                break
            blob_id = place.base_id
            added, is_whole = self.add_and_find(blob_id)
        return is_new
