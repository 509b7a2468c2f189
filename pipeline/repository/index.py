"""Which blob is where. Built from the index objects of a repository, added to while writing."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
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
    INDEX_SEGMENT,
    MAX_PACK_BYTES,
    SealedKind,
)
from pipeline.repository.sealed import seal, unseal
from pipeline.repository.table import CompactTable
from pipeline.storage.base import Storage

_VALUE: Final = Struct("<III")  # number of the pack in this process, offset, length
MAX_LISTINGS: Final = 20


@dataclass(frozen=True, slots=True)
class BlobEntry:
    """One blob in a pack, as footers and index segments tell it."""

    blob_id: bytes
    offset: int
    length: int
    raw_length: int
    kind: int
    encoding: int


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
        end = at + count * BLOB_ENTRY.size
        if end > len(payload) or pack_size > MAX_PACK_BYTES:
            raise IntegrityError(f"{what} is damaged: a segment that cannot be")
        entries = tuple(parse_entries(payload[at:end], pack_size, what))
        segments.append(PackSegment(pack_id, pack_size, entries))
        at = end
    return segments


def format_entries(entries: Iterable[BlobEntry]) -> bytes:
    return b"".join(
        BLOB_ENTRY.pack(
            entry.blob_id, entry.offset, entry.length, entry.raw_length, entry.kind, entry.encoding, 0
        )
        for entry in entries
    )


def parse_entries(payload: bytes, pack_size: int, what: str) -> Iterator[BlobEntry]:
    """Entries of a footer or a segment. Raises IntegrityError for those outside of the pack."""
    if len(payload) % BLOB_ENTRY.size:
        raise IntegrityError(f"{what} is damaged: it ends in the middle of an entry")
    for blob_id, offset, length, raw, kind, encoding, reserved in BLOB_ENTRY.iter_unpack(payload):
        if reserved or length < BLOB_HEADER.size or offset + length > pack_size:
            raise IntegrityError(f"{what} is damaged: an entry that cannot be")
        yield BlobEntry(blob_id, offset, length, raw, kind, encoding)
