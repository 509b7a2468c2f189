"""Packs: written front to back, each with its footer, and taken apart again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

from pipeline.crypto.aead import Aead
from pipeline.crypto.keyring import Keyring
from pipeline.errors import IntegrityError
from pipeline.repository import layout
from pipeline.repository.blobs import EncodedBlob
from pipeline.repository.format import (
    BLOB_HEADER,
    FORMAT_VERSION,
    PACK_END_MAGIC,
    PACK_HEADER,
    PACK_MAGIC,
    PACK_TARGET_BYTES,
    PACK_TRAILER,
    SealedKind,
)
from pipeline.repository.index import BlobEntry, PackSegment, format_entries, parse_entries
from pipeline.repository.sealed import seal, unseal
from pipeline.storage.base import Buffer, ObjectWriter, Storage

WRITE_BUFFER_BYTES: Final = 256 << 10
"""Small blobs are gathered up to this before they go to the storage in one call. Not more: what was just
encrypted is still in the processor's cache, and written from there several times as fast.
"""


@dataclass(frozen=True, slots=True)
class StoredBlob:
    """A blob as it lies in a pack: header and ciphertext in one."""

    entry: BlobEntry
    stored: Buffer


class PackWriter:
    """One pack at a time. Used by one thread at a time.

    A blob that was appended counts only when close() returned its segment; then the pack is durable.
    """

    def __init__(
        self, storage: Storage, keyring: Keyring, algorithm: Aead, target_bytes: int = PACK_TARGET_BYTES
    ) -> None:
        self._storage = storage
        self._keyring = keyring
        self._algorithm = algorithm
        self._target_bytes = target_bytes
        self._writer: ObjectWriter | None = None
        self._pack_id = b""
        self._size = 0
        self._entries: list[BlobEntry] = []
        self._gathered: list[Buffer] = []
        self._gathered_bytes = 0

    @property
    def is_empty(self) -> bool:
        return not self._entries

    @property
    def is_full(self) -> bool:
        return self._size >= self._target_bytes

    def append(self, blob: EncodedBlob) -> None:
        self._make_ready()
        entry = BlobEntry(
            blob.blob_id,
            self._size,
            blob.length,
            blob.raw_length,
            int(blob.kind),
            int(blob.encoding),
            blob.base_id,
        )
        self._append(entry, [blob.header, blob.body])

    def append_stored(self, blob: StoredBlob) -> None:
        """Move a blob from another pack as it is."""
        self._make_ready()
        self._append(replace(blob.entry, offset=self._size), [blob.stored])

    def close(self) -> PackSegment | None:
        """End the pack and make it durable; None when nothing was appended since the last time."""
        if self._writer is None:
            return None
        name = layout.pack_name(self._pack_id)
        footer = seal(
            self._keyring,
            self._algorithm,
            SealedKind.PACK_FOOTER,
            name,
            format_entries(self._entries),
        )
        trailer = PACK_TRAILER.pack(self._size, len(footer), self._pack_id, PACK_END_MAGIC)
        self._gather(footer)
        self._gather(trailer)
        self._flush()
        self._writer.commit()
        self._writer = None
        segment = PackSegment(self._pack_id, self._size, tuple(self._entries))
        self._entries = []
        return segment

    def abort(self) -> None:
        """Drop the pack that is open. MAY be called at any time."""
        writer, self._writer = self._writer, None
        self._entries = []
        self._gathered = []
        self._gathered_bytes = 0
        if writer is not None:
            writer.abort()

    def _append(self, entry: BlobEntry, parts: list[Buffer]) -> None:
        self._entries.append(entry)
        for part in parts:
            self._gather(part)
        if self._gathered_bytes >= WRITE_BUFFER_BYTES:
            self._flush()

    def _make_ready(self) -> None:
        """Begin a pack, where none is open."""
        if self._writer is not None:
            return
        self._pack_id = layout.new_object_id()
        self._writer = self._storage.create(layout.pack_name(self._pack_id))
        self._size = 0
        self._gather(pack_header(self._keyring, self._pack_id))

    def _gather(self, part: Buffer) -> None:
        self._gathered.append(part)
        self._gathered_bytes += len(part)
        self._size += len(part)

    def _flush(self) -> None:
        gathered, self._gathered = self._gathered, []
        self._gathered_bytes = 0
        if self._writer is not None:
            self._writer.write(gathered)


def pack_header(keyring: Keyring, pack_id: bytes) -> bytes:
    return PACK_HEADER.pack(PACK_MAGIC, FORMAT_VERSION, 0, 0, keyring.repository_id, pack_id)


def parse_trailer(trailer: Buffer, pack_id: bytes, pack_size: int) -> tuple[int, int]:
    """Offset and length of the footer. Raises IntegrityError."""
    footer_offset, footer_length, its_id, magic = PACK_TRAILER.unpack(trailer)
    if (
        magic != PACK_END_MAGIC
        or its_id != pack_id
        or footer_offset < PACK_HEADER.size
        or footer_offset + footer_length + PACK_TRAILER.size != pack_size
    ):
        raise IntegrityError(f"{layout.pack_name(pack_id)} is truncated or its trailer is damaged")
    return footer_offset, footer_length


def parse_footer(
    keyring: Keyring, pack_id: bytes, pack_size: int, footer: bytes | memoryview
) -> PackSegment:
    name = layout.pack_name(pack_id)
    payload = unseal(keyring, SealedKind.PACK_FOOTER, name, footer)
    return PackSegment(pack_id, pack_size, parse_entries(payload, pack_size, f"footer of {name}"))


def check_pack_header(keyring: Keyring, pack_id: bytes, header: Buffer) -> None:
    """Raises IntegrityError."""
    if bytes(header) == pack_header(keyring, pack_id):
        return
    name = layout.pack_name(pack_id)
    if len(header) == PACK_HEADER.size:
        magic, version, *_ = PACK_HEADER.unpack(header)
        if magic == PACK_MAGIC and version > FORMAT_VERSION:
            raise IntegrityError(
                f"{name} has format version {version}: damaged, or written by a newer vmhaul"
            )
    raise IntegrityError(f"{name} is damaged, or a pack of another repository: its header is wrong")


def iterate_pack(storage: Storage, segment: PackSegment, window_bytes: int) -> Iterator[StoredBlob]:
    """Every blob of a pack, in order, reading at most `window_bytes` (or one blob) at a time."""
    name = layout.pack_name(segment.pack_id)
    entries = sorted(segment.entries, key=lambda entry: entry.offset)
    at = 0
    while at < len(entries):
        first = entries[at]
        end = at + 1
        while (
            end < len(entries)
            and entries[end].offset + entries[end].length - first.offset <= window_bytes
        ):
            end += 1
        last = entries[end - 1]
        length = last.offset + last.length - first.offset
        window = memoryview(storage.read_range(name, first.offset, length))
        if len(window) != length:  # prune would store the stump as if it were the blob
            raise IntegrityError(f"{name} gave {len(window)} of {length} bytes; read it again")
        for entry in entries[at:end]:
            start = entry.offset - first.offset
            yield StoredBlob(entry, window[start : start + entry.length])
        at = end


def expected_footer_offset(segment: PackSegment) -> int:
    """Where the footer begins when the blobs lie back to back. Raises IntegrityError when they do not."""
    at = PACK_HEADER.size
    for entry in sorted(segment.entries, key=lambda entry: entry.offset):
        if entry.offset != at or entry.length < BLOB_HEADER.size:
            raise IntegrityError(
                f"{layout.pack_name(segment.pack_id)} is damaged: its blobs do not lie back to back"
            )
        at += entry.length
    return at
