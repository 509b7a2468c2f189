"""The index made anew from the packs themselves: from their footers, and where a footer is damaged, from the
headers of the blobs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from pipeline.crypto.aead import ENGINE, Aead
from pipeline.crypto.keyring import Keyring
from pipeline.errors import IntegrityError, ObjectNotFoundError, ObjectRetainedError
from pipeline.repository import layout
from pipeline.repository.blobs import parse_blob_header
from pipeline.repository.doomed import is_whole
from pipeline.repository.epochs import refuse_newer_epochs
from pipeline.repository.format import BLOB_HEADER, PACK_HEADER, PACK_TRAILER, Encoding
from pipeline.repository.index import BlobEntry, PackSegment, read_index_object, write_index_object
from pipeline.repository.packs import parse_footer, parse_trailer
from pipeline.repository.patches import parse_head
from pipeline.storage.base import Storage

ENTRIES_PER_INDEX_OBJECT: Final = 50_000


@dataclass(frozen=True, slots=True, kw_only=True)
class RebuildReport:
    packs: int
    """In the new index."""
    blobs: int
    scanned_packs: int
    """Of them those whose footer is damaged: known by the headers of their blobs."""
    unreadable: tuple[str, ...]
    """Packs of which nothing is known any more, one sentence each."""


class IndexRebuilder:
    """One run. Nobody may prune or commit meanwhile; writers may write: what they add is left as it is."""

    def __init__(self, storage: Storage, keyring: Keyring, algorithm: Aead) -> None:
        self._storage = storage
        self._keyring = keyring
        self._algorithm = algorithm
        self._packs = self._blobs = self._scanned = 0
        self._unreadable: list[str] = []

    def run(self) -> RebuildReport:
        """The new index is durable before the old one goes. Raises NewerEpochError with the keys of an
        earlier epoch, and storage errors.
        """
        refuse_newer_epochs(self._storage, self._keyring)
        # Listed before the packs: who adds an index object later has a pack that is listed, or a new one.
        old = [entry.name for entry in self._storage.list(layout.INDEX)]
        batch: list[PackSegment] = []
        entries = 0
        for segment in self._segments(old):
            batch.append(segment)
            entries += len(segment.entries)
            if entries >= ENTRIES_PER_INDEX_OBJECT:
                self._write(batch)
                batch, entries = [], 0
        self._write(batch)
        for name in old:
            try:
                self._storage.delete(name)
            except ObjectRetainedError:
                continue  # what it says is true, and it is in the new index too
        return RebuildReport(
            packs=self._packs,
            blobs=self._blobs,
            scanned_packs=self._scanned,
            unreadable=tuple(self._unreadable),
        )

    def _write(self, batch: list[PackSegment]) -> None:
        if batch:
            write_index_object(self._storage, self._keyring, self._algorithm, batch)
            self._packs += len(batch)
            self._blobs += sum(len(segment.entries) for segment in batch)

    def _segments(self, old: list[str]) -> Iterator[PackSegment]:
        listed: set[bytes] = set()
        without_footer: dict[bytes, int] = {}
        for entry in self._storage.list(layout.PACKS):
            pack_id = layout.pack_id_of(entry.name)
            if pack_id is None:
                continue
            listed.add(pack_id)
            try:
                yield self._by_footer(pack_id, entry.size_bytes)
            except (IntegrityError, ObjectNotFoundError):
                without_footer[pack_id] = entry.size_bytes
        yield from self._not_listed(old, listed)
        if without_footer:
            yield from self._by_index(old, without_footer)
        for pack_id, size in without_footer.items():
            found = tuple(self._scanned_entries(pack_id, size))
            if found:
                self._scanned += 1
                yield PackSegment(pack_id, size, found)
            else:
                self._unreadable.append(
                    f"{layout.pack_name(pack_id)} has neither a footer nor blobs that can be read"
                )

    def _by_footer(self, pack_id: bytes, size: int) -> PackSegment:
        name = layout.pack_name(pack_id)
        if size < PACK_HEADER.size + PACK_TRAILER.size:
            raise IntegrityError(f"{name} is truncated")
        trailer = self._storage.read_range(name, size - PACK_TRAILER.size, PACK_TRAILER.size)
        offset, length = parse_trailer(trailer, pack_id, size)
        footer = self._storage.read_range(name, offset, length)
        return parse_footer(self._keyring, pack_id, size, footer)

    def _not_listed(self, old: list[str], listed: set[bytes]) -> Iterator[PackSegment]:
        """What the old index says of packs that are there all the same: in an extent that is in maintenance,
        or listed late.
        """
        for segment in self._told_by(old):
            if segment.pack_id not in listed and is_whole(self._storage, segment):
                listed.add(segment.pack_id)
                yield segment

    def _by_index(self, old: list[str], wanted: dict[bytes, int]) -> Iterator[PackSegment]:
        """What index objects that can still be read say of these packs, which are taken out of `wanted`."""
        for segment in self._told_by(old):
            if wanted.get(segment.pack_id) == segment.pack_size:
                del wanted[segment.pack_id]
                yield segment

    def _told_by(self, old: list[str]) -> Iterator[PackSegment]:
        """The old index, as far as it can be read."""
        for name in old:
            try:
                yield from read_index_object(self._storage, self._keyring, name)
            except (IntegrityError, ObjectNotFoundError):
                continue

    def _scanned_entries(self, pack_id: bytes, size: int) -> Iterator[BlobEntry]:
        """Blobs one after the other, as far as their headers lead; those that cannot be decrypted are left
        out.
        """
        name = layout.pack_name(pack_id)
        at = PACK_HEADER.size
        while at + BLOB_HEADER.size <= size:
            try:
                header = self._storage.read_range(name, at, BLOB_HEADER.size)
                facts = parse_blob_header(header, name)
                length = BLOB_HEADER.size + facts.stored_length
                if at + length > size:
                    return
                stored = self._storage.read_range(name, at, length)
            except (IntegrityError, ObjectNotFoundError):
                return
            base_id = self._base_id(stored, name)
            if base_id is not None:
                yield BlobEntry(
                    facts.blob_id,
                    at,
                    length,
                    facts.raw_length,
                    int(facts.kind),
                    int(facts.encoding),
                    base_id,
                )
            at += length

    def _base_id(self, stored: bytes, name: str) -> bytes | None:
        """What a blob is a patch of (empty: it is none); None when it is damaged."""
        header = stored[: BLOB_HEADER.size]
        facts = parse_blob_header(header, name)
        try:
            body = ENGINE.decrypt(
                facts.aead,
                self._keyring.encryption_key_of(facts.key_epoch, name),
                facts.nonce,
                header + self._keyring.repository_id,
                memoryview(stored)[BLOB_HEADER.size :],
            )
            return parse_head(body, name).base_id if facts.encoding is Encoding.PATCH else b""
        except IntegrityError:
            return None
