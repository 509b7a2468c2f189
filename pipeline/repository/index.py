"""Which blob is where. Built from the index objects of a repository, added to while writing."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from struct import Struct
from typing import Final

from pipeline.crypto.aead import Aead
from pipeline.crypto.keyring import Keyring
from pipeline.errors import IntegrityError, ObjectNotFoundError
from pipeline.repository import layout
from pipeline.repository.format import (
    BLOB_ENTRY,
    BLOB_HEADER,
    BLOB_ID_BYTES,
    INDEX_SEGMENT,
    MAX_PACK_BYTES,
    Encoding,
    SealedKind,
)
from pipeline.repository.sealed import seal, unseal
from pipeline.repository.table import CompactTable
from pipeline.storage.base import Storage

_VALUE: Final = Struct("<III")  # number of the pack in this process, offset, length
MAX_LISTINGS: Final = 20
_ENCODING_AT: Final = BLOB_ENTRY.size - 3  # encoding 1, reserved 2
_PATCH: Final = bytes([Encoding.PATCH])


@dataclass(frozen=True, slots=True)
class BlobEntry:
    """One blob in a pack, as footers and index segments tell it."""

    blob_id: bytes
    offset: int
    length: int
    raw_length: int
    kind: int
    encoding: int
    base_id: bytes = b""
    """The blob that a patch is a patch of; empty for every other encoding."""


@dataclass(frozen=True, slots=True)
class PackSegment:
    """What the index knows of one pack."""

    pack_id: bytes
    pack_size: int
    entries: tuple[BlobEntry, ...]


@dataclass(frozen=True, slots=True)
class Location:
    """Where a blob is."""

    pack_id: bytes
    offset: int
    length: int


class Index:
    """All blobs that can be found. May be used by several threads.

    The next form of this class will keep most of it outside of memory; its users rely on `find`,
    `__contains__`, `add` and `pack_sizes` only.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._table = CompactTable(_VALUE.size)
        self._packs: list[bytes] = []
        self._numbers: dict[bytes, int] = {}
        self._sizes: dict[bytes, int] = {}

    def __contains__(self, blob_id: bytes) -> bool:
        with self._lock:
            return blob_id in self._table

    def __len__(self) -> int:
        with self._lock:
            return len(self._table)

    def find(self, blob_id: bytes) -> Location | None:
        with self._lock:
            value = self._table.get(blob_id)
            if value is None:
                return None
            number, offset, length = _VALUE.unpack(value)
            return Location(self._packs[number], offset, length)

    def add(self, segment: PackSegment) -> None:
        """Take over what a segment says."""
        with self._lock:
            number = self._numbers.setdefault(segment.pack_id, len(self._packs))
            if number == len(self._packs):
                self._packs.append(segment.pack_id)
            self._sizes[segment.pack_id] = segment.pack_size
            for entry in segment.entries:
                self._table.put(entry.blob_id, _VALUE.pack(number, entry.offset, entry.length))

    def settle(self) -> None:
        """Bring it to its smallest form after much was added."""
        with self._lock:
            self._table.settle()

    def pack_sizes(self) -> dict[bytes, int]:
        """Every pack that the index names, with the size it should have."""
        with self._lock:
            return dict(self._sizes)


class IndexLoader:
    """Keeps an Index equal to the index objects of a storage."""

    def __init__(self, storage: Storage, keyring: Keyring) -> None:
        self._storage = storage
        self._keyring = keyring
        self._seen: set[str] = set()
        self.index = Index()

    def refresh(self) -> Index:
        """The index as it is now. Only what is new is read; when an object that was read is gone
        (prune merged it), everything is read again, because its packs may be gone too.
        """
        for _ in range(MAX_LISTINGS):
            listed = [entry.name for entry in self._storage.list(layout.INDEX)]
            if not self._seen.issubset(listed):
                self.index = Index()
                self._seen = set()
            try:
                for name in listed:
                    if name not in self._seen:
                        for segment in read_index_object(self._storage, self._keyring, name):
                            self.index.add(segment)
                        self._seen.add(name)
            except ObjectNotFoundError:
                continue  # prune replaced it between the listing and now; list again
            self.index.settle()
            return self.index
        raise IntegrityError(
            f"index objects in {self._storage.location} vanish while they are read; "
            "is another prune running all the time?"
        )

    def written(self, name: str) -> None:
        """An index object that this process wrote, and whose segments it added itself."""
        self._seen.add(name)


def read_index_object(storage: Storage, keyring: Keyring, name: str) -> list[PackSegment]:
    return parse_segments(unseal(keyring, SealedKind.INDEX, name, storage.read(name)), name)


def write_index_object(
    storage: Storage, keyring: Keyring, algorithm: Aead, segments: Iterable[PackSegment]
) -> str:
    """Returns the name of the object; it is durable."""
    name = layout.index_name(layout.new_object_id())
    storage.put(name, seal(keyring, algorithm, SealedKind.INDEX, name, format_segments(segments)))
    return name


def format_segments(segments: Iterable[PackSegment]) -> bytes:
    parts = []
    for segment in segments:
        parts.append(INDEX_SEGMENT.pack(segment.pack_id, segment.pack_size, len(segment.entries)))
        parts.append(format_entries(segment.entries))
    return b"".join(parts)


def parse_segments(payload: bytes, what: str) -> list[PackSegment]:
    """Raises IntegrityError where the payload is none of segments."""
    segments = []
    at = 0
    while at < len(payload):
        if at + INDEX_SEGMENT.size > len(payload):
            raise IntegrityError(f"{what} is damaged: it ends in the middle of a segment")
        pack_id, pack_size, count = INDEX_SEGMENT.unpack_from(payload, at)
        at += INDEX_SEGMENT.size
        if at + count * BLOB_ENTRY.size > len(payload) or pack_size > MAX_PACK_BYTES:
            raise IntegrityError(f"{what} is damaged: a segment that cannot be")
        entries, at = _parse_entries(payload, at, count, pack_size, what)
        segments.append(PackSegment(pack_id, pack_size, entries))
    return segments


def format_entries(entries: Sequence[BlobEntry]) -> bytes:
    """All entries, then the base ids of those that are patches, in the same order."""
    parts = [
        BLOB_ENTRY.pack(
            entry.blob_id, entry.offset, entry.length, entry.raw_length, entry.kind, entry.encoding, 0
        )
        for entry in entries
    ]
    parts.extend(entry.base_id for entry in entries if entry.encoding == Encoding.PATCH)
    return b"".join(parts)


def parse_entries(payload: bytes, pack_size: int, what: str) -> tuple[BlobEntry, ...]:
    """Entries of a footer, which does not say how many there are: as many as fill it together with their
    base ids. Raises IntegrityError for those outside of the pack.
    """
    count = patches = 0
    while count * BLOB_ENTRY.size + patches * BLOB_ID_BYTES < len(payload):
        at = count * BLOB_ENTRY.size + _ENCODING_AT
        patches += payload[at : at + 1] == _PATCH
        count += 1
    if count * BLOB_ENTRY.size + patches * BLOB_ID_BYTES != len(payload):
        raise IntegrityError(f"{what} is damaged: it ends in the middle of an entry")
    return _parse_entries(payload, 0, count, pack_size, what)[0]


def _parse_entries(
    payload: bytes, at: int, count: int, pack_size: int, what: str
) -> tuple[tuple[BlobEntry, ...], int]:
    """`count` entries from `at` on, and where they end with their base ids."""
    end = at + count * BLOB_ENTRY.size
    base_at = end
    entries = []
    for fields in BLOB_ENTRY.iter_unpack(memoryview(payload)[at:end]):
        blob_id, offset, length, raw, kind, encoding, reserved = fields
        if reserved or length < BLOB_HEADER.size or offset + length > pack_size:
            raise IntegrityError(f"{what} is damaged: an entry that cannot be")
        base_id = b""
        if encoding == Encoding.PATCH:
            base_id = payload[base_at : base_at + BLOB_ID_BYTES]
            base_at += BLOB_ID_BYTES
        entries.append(BlobEntry(blob_id, offset, length, raw, kind, encoding, base_id))
    if base_at > len(payload):
        raise IntegrityError(f"{what} is damaged: it ends before its base ids")
    return tuple(entries), base_at
