"""Blobs and packs as footers and index objects tell of them: values, and their bytes (sections 5 and 6 of
the format).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from pipeline.errors import IntegrityError
from pipeline.repository.format import (
    BLOB_ENTRY,
    BLOB_HEADER,
    BLOB_ID_BYTES,
    INDEX_SEGMENT,
    MAX_PACK_BYTES,
    Encoding,
)

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
    encoding: int = Encoding.RAW
    base_id: bytes = b""
    """Of a patch: the blob that it is a patch of."""

    @property
    def is_patch(self) -> bool:
        return self.encoding == Encoding.PATCH


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
