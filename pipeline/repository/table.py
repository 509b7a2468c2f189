"""A compact table of short keys, spread evenly, to values of one size.

Keys are the first KEY_BYTES bytes of blob ids. Ids are keyed hashes that nobody outside can choose, so
128 bits are enough never to meet a collision; readers compare the whole id when they have the blob.

A bucket is one bytearray of sorted records and a small dict of recent ones, merged when it grows. A
record costs KEY_BYTES + value bytes and nothing else; a dict would cost four times as much.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

KEY_BYTES: Final = 16
BUCKET_BITS: Final = 10
BUCKETS: Final = 1 << BUCKET_BITS
MIN_RECENT: Final = 64
RECENT_SHARE: Final = 4  # a bucket is merged when a quarter of it is recent


class CompactTable:
    """Maps ids to values of `value_bytes`; a later value of the same key replaces the earlier one.

    Not for several threads at once; who shares it brings a lock.
    """

    def __init__(self, value_bytes: int) -> None:
        self._record_bytes = KEY_BYTES + value_bytes
        self._sorted = [bytearray() for _ in range(BUCKETS)]
        self._recent: list[dict[bytes, bytes]] = [{} for _ in range(BUCKETS)]

    def __len__(self) -> int:
        """Number of keys; merges what is recent first, so not for a hot loop."""
        self.settle()
        return sum(map(len, self._sorted)) // self._record_bytes

    def get(self, blob_id: bytes) -> bytes | None:
        key = blob_id[:KEY_BYTES]
        bucket = _bucket_of(key)
        recent = self._recent[bucket].get(key)
        if recent is not None:
            return recent
        records = self._sorted[bucket]
        size = self._record_bytes
        low, high = 0, len(records) // size
        while low < high:
            middle = (low + high) // 2
            at = middle * size
            found = records[at : at + KEY_BYTES]
            if found < key:
                low = middle + 1
            elif found == key:
                return bytes(records[at + KEY_BYTES : at + size])
            else:
                high = middle
        return None

    def __contains__(self, blob_id: bytes) -> bool:
        return self.get(blob_id) is not None

    def put(self, blob_id: bytes, value: bytes) -> None:
        key = blob_id[:KEY_BYTES]
        bucket = _bucket_of(key)
        recent = self._recent[bucket]
        recent[key] = value
        limit = max(MIN_RECENT, len(self._sorted[bucket]) // self._record_bytes // RECENT_SHARE)
        if len(recent) > limit:
            self._merge(bucket)

    def settle(self) -> None:
        """Merge everything recent: the smallest form, after many put()."""
        for bucket in range(BUCKETS):
            if self._recent[bucket]:
                self._merge(bucket)

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """Keys and values, ascending by key. Nothing may be put meanwhile."""
        self.settle()
        size = self._record_bytes
        for records in self._sorted:
            for at in range(0, len(records), size):
                yield bytes(records[at : at + KEY_BYTES]), bytes(records[at + KEY_BYTES : at + size])

    def raw(self) -> bytes:
        """Keys and values back to back, ascending."""
        self.settle()
        return b"".join(self._sorted)

    def _merge(self, bucket: int) -> None:
        recent = self._recent[bucket]
        records = self._sorted[bucket]
        size = self._record_bytes
        merged = {
            bytes(records[at : at + KEY_BYTES]): bytes(records[at + KEY_BYTES : at + size])
            for at in range(0, len(records), size)
        }
        merged.update(recent)
        self._sorted[bucket] = bytearray(b"".join(key + merged[key] for key in sorted(merged)))
        self._recent[bucket] = {}


class IdSet:
    """Blob ids, compactly."""

    def __init__(self) -> None:
        self._table = CompactTable(0)

    def __contains__(self, blob_id: bytes) -> bool:
        return blob_id in self._table

    def __len__(self) -> int:
        return len(self._table)

    def add(self, blob_id: bytes) -> bool:
        """True when it was new."""
        if blob_id in self._table:
            return False
        self._table.put(blob_id, b"")
        return True


def _bucket_of(key: bytes) -> int:
    return (key[0] << 8 | key[1]) >> (16 - BUCKET_BITS)
