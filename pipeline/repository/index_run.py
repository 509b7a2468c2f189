"""A run: one file of an index cache. Sorted records in buckets, looked up with one `pread` each.

| where | what |
|---|---|
| 0 | head, see HEAD |
| 4096 | buckets: records of `index_record` ascending by key, then the base ids of those that are patches; a record's base field is the place of its base's id in the bucket, in units of 32 bytes |
| after them | tables: where each bucket begins (in units), how many records it has, CRC-32 of each bucket; then packs, see PACK, ascending by id |

A run never changes. What it costs in memory: 12 bytes for each bucket of 64 to 128 records, 32 bytes for
each pack. The tables are verified when it is opened, a bucket each time it is read. `pread` and not a mapping: pages
of a mapping count as this process's memory, and a file that is damaged or truncated would end it.
"""

from __future__ import annotations

import os
import zlib
from array import array
from collections.abc import Iterator
from pathlib import Path
from struct import Struct
from typing import Final

from blake3 import blake3

from pipeline.errors import TransientPipelineError
from pipeline.repository.index_record import KEY_BYTES, RECORD_BYTES
from transports import system

HEAD: Final = Struct("<8sHHI16sQQI32s")
"""Magic, version, bucket bits, packs, repository id, units, records, length of the tables, their BLAKE3."""
HEAD_HASH_BYTES: Final = 16
MAGIC: Final = b"VMHLIRUN"
VERSION: Final = 1
BUCKETS_AT: Final = 4096
PACK: Final = Struct("<16sIIQ")  # id, size, places in this run, edition
BUCKET_RECORDS: Final = 128
MAX_BUCKET_BITS: Final = 28
UNIT: Final = RECORD_BYTES
PREFIX_BITS: Final = 64


class CacheDamagedError(TransientPipelineError):
    """A cache file is not what was written. It is made again from the repository."""


def bucket_bits_for(records: int) -> int:
    """So many buckets that each has at most BUCKET_RECORDS on average, and at least half."""
    bits = 1
    while bits < MAX_BUCKET_BITS and records > BUCKET_RECORDS << bits:
        bits += 1
    return bits


def bucket_of(key: bytes, bits: int) -> int:
    return int.from_bytes(key[:8], "big") >> (PREFIX_BITS - bits)


class Run:
    """An open run. May be used by several threads; the file may be unlinked meanwhile, where the system allows it."""

    def __init__(self, path: Path, repository_id: bytes) -> None:
        """Raises FileNotFoundError, CacheDamagedError, OSError."""
        self.path = path
        self._fd = -1
        self._fd = os.open(path, os.O_RDONLY | system.OPEN_FLAGS)
        head = self._read(HEAD.size + HEAD_HASH_BYTES, 0)
        fields = HEAD.unpack(head[: HEAD.size])
        magic, version, bits, pack_count, its_id, units, records, length, digest = fields
        self.bits: Final[int] = bits
        self.pack_count: Final[int] = pack_count
        self.units: Final[int] = units
        self.records: Final[int] = records
        if (
            blake3(head[: HEAD.size]).digest(HEAD_HASH_BYTES) != head[HEAD.size :]
            or (magic, version, its_id) != (MAGIC, VERSION, repository_id)
            or length != self._tables_bytes
        ):
            raise self.damaged("its head is wrong")
        tables = self._read(length, BUCKETS_AT + self.units * UNIT)
        if blake3(tables).digest() != digest:
            raise self.damaged("its tables are")
        buckets = 1 << self.bits
        self.starts = _words(tables[: (buckets + 1) * 4])
        self.counts = _words(tables[(buckets + 1) * 4 : (2 * buckets + 1) * 4])
        self._sums = _words(tables[(2 * buckets + 1) * 4 : (3 * buckets + 1) * 4])
        self.packs = tables[(3 * buckets + 1) * 4 :]

    def __del__(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)

    @property
    def _tables_bytes(self) -> int:
        return (3 * (1 << self.bits) + 1) * 4 + self.pack_count * PACK.size

    def find(self, key: bytes) -> list[tuple[bytes, bytes]]:
        """Value and base id (empty where there is none) of every record of a key."""
        data, places = self._places(key)
        found = []
        for at in places:
            value = data[at + KEY_BYTES : at + UNIT]
            base = int.from_bytes(value[-4:], "little") * UNIT
            found.append((value, data[base : base + UNIT] if base else b""))
        return found

    def first_of(self, key: bytes) -> tuple[int, list[bytes]]:
        """Number of the first unit of a key in this run (-1: none), and the values of all its records."""
        data, places = self._places(key)
        if not places:
            return -1, []
        unit = self.starts[bucket_of(key, self.bits)] + places[0] // UNIT
        return unit, [data[at + KEY_BYTES : at + UNIT] for at in places]

    def unit_of(self, key: bytes) -> int | None:
        """Number of the first unit of a key in this run; None when it has none."""
        unit = self.first_of(key)[0]
        return None if unit < 0 else unit

    def bucket(self, number: int) -> bytes:
        """The bytes of a bucket, verified."""
        start = self.starts[number]
        data = self._read((self.starts[number + 1] - start) * UNIT, BUCKETS_AT + start * UNIT)
        if zlib.crc32(data) != self._sums[number]:
            raise self.damaged(f"bucket {number} is")
        return data

    def buckets(self, first: int, end: int) -> bytes:
        """The bytes of buckets [first, end), verified."""
        start = self.starts[first]
        data = self._read((self.starts[end] - start) * UNIT, BUCKETS_AT + start * UNIT)
        view = memoryview(data)
        for number in range(first, end):
            at, until = self.starts[number] - start, self.starts[number + 1] - start
            if zlib.crc32(view[at * UNIT : until * UNIT]) != self._sums[number]:
                raise self.damaged(f"bucket {number} is")
        return data

    def pack(self, number: int) -> tuple[bytes, int, int, int]:
        """Id, size, places in this run, edition."""
        pack_id, size, count, edition = PACK.unpack_from(self.packs, number * PACK.size)
        return pack_id, size, count, edition

    def pack_id(self, number: int) -> bytes:
        return self.packs[number * PACK.size : number * PACK.size + KEY_BYTES]

    def numbers_of(self, pack_id: bytes) -> Iterator[int]:
        """Packs of this id: one for each edition."""
        low, high = 0, self.pack_count
        while low < high:
            middle = (low + high) // 2
            if self.pack_id(middle) < pack_id:
                low = middle + 1
            else:
                high = middle
        while low < self.pack_count and self.pack_id(low) == pack_id:
            yield low
            low += 1

    def damaged(self, what: str) -> CacheDamagedError:
        return CacheDamagedError(
            f"the index cache {self.path} is damaged: {what}; it is made again from the repository"
        )

    def _places(self, key: bytes) -> tuple[bytes, list[int]]:
        number = bucket_of(key, self.bits)
        data = self.bucket(number)
        end = self.counts[number] * UNIT
        places = []
        at = data.find(key, 0, end)
        while at >= 0:
            if at % UNIT == 0:
                places.append(at)
            at = data.find(key, at + 1, end)
        return data, places

    def _read(self, length: int, offset: int) -> bytes:
        data = system.pread(self._fd, length, offset)
        while len(data) < length:
            part = system.pread(self._fd, length - len(data), offset + len(data))
            if not part:
                raise self.damaged("it is truncated and")
            data += part
        return data


def _words(data: bytes) -> array[int]:
    """Little-endian, as it is written: vmhaul runs on such machines, others swap."""
    words = array("I", data)
    if array("H", b"\x01\x00")[0] != 1:
        words.byteswap()
    return words
