"""Which places of a repository are damaged. Every byte of every pack is read; nothing is written."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, cast

from pipeline.crypto.aead import Aead
from pipeline.crypto.keyring import Keyring
from pipeline.errors import (
    CancelledError,
    IntegrityError,
    ObjectNotFoundError,
    PermanentPipelineError,
)
from pipeline.repository import layout
from pipeline.repository.blobs import BlobCodec
from pipeline.repository.entries import BlobEntry, PackSegment
from pipeline.repository.format import PACK_HEADER, PACK_TRAILER, BlobKind
from pipeline.repository.index import Index, Location, read_index_object
from pipeline.repository.packs import (
    StoredBlob,
    check_pack_header,
    expected_footer_offset,
    iterate_pack,
    parse_footer,
    parse_trailer,
)
from pipeline.repository.reader import BlobReader
from pipeline.storage.base import Storage

READ_WINDOW_BYTES: Final = 8 << 20

Place = tuple[bytes, int]
"""Id of a pack, and offset in it."""


@dataclass(slots=True)
class Survey:
    """What was found."""

    bad_packs: dict[bytes, str] = field(default_factory=dict)
    """Packs that must leave the index, and what is wrong with each."""
    bad_places: set[Place] = field(default_factory=set)
    bad_index_objects: list[str] = field(default_factory=list)
    read_bytes: int = 0

    def is_bad(self, location: Location) -> bool:
        return (location.pack_id, location.offset) in self.bad_places


class SoundIndex:
    """The part of an Index that a BlobReader uses, without the places that are known to be damaged."""

    def __init__(self, index: Index, survey: Survey) -> None:
        self._index = index
        self._survey = survey

    def __contains__(self, blob_id: bytes) -> bool:
        return self.find(blob_id) is not None

    def find(self, blob_id: bytes) -> Location | None:
        found = self.find_all(blob_id)
        return found[0] if found else None

    def find_all(self, blob_id: bytes) -> list[Location]:
        return [one for one in self._index.find_all(blob_id) if not self._survey.is_bad(one)]

    def as_index(self) -> Index:
        return cast("Index", self)


class Surveyor:
    def __init__(
        self, storage: Storage, keyring: Keyring, index: Index, cancel: threading.Event
    ) -> None:
        self._storage = storage
        self._keyring = keyring
        self._cancel = cancel
        self._codec = BlobCodec(keyring, Aead.XCHACHA20_POLY1305)
        self.survey: Final = Survey()
        self._reader = BlobReader(storage, keyring, SoundIndex(index, self.survey).as_index())

    def run(self) -> Survey:
        """Raises CancelledError, and errors of a storage that does not answer."""
        suspects: list[tuple[bytes, BlobEntry]] = []
        # The packs are listed after the index was read: a pack is there before its index object.
        sizes: dict[str, int] = {}
        for segment in each_segment(self._storage, self._keyring, self.survey.bad_index_objects):
            sizes = sizes or {e.name: e.size_bytes for e in self._storage.list(layout.PACKS)}
            suspects += self._look_at(segment, sizes.get(layout.pack_name(segment.pack_id)))
        # Now every damaged place is known: a patch is sound when its base has a sound place.
        for pack_id, entry in suspects:
            self._stop_if_cancelled()
            if not self._is_sound(entry, self._stored(pack_id, entry)):
                self._note_bad(pack_id, entry)
        return self.survey

    def _look_at(self, segment: PackSegment, size: int | None) -> list[tuple[bytes, BlobEntry]]:
        """Notes what is bad for certain; returns patches whose bases may be to blame."""
        wrong = self._wrong_with_pack(segment, size)
        if wrong:
            self.survey.bad_packs[segment.pack_id] = wrong
        suspects = []
        for entry, stored in self._each_blob(segment):
            self._stop_if_cancelled()
            self.survey.read_bytes += entry.length
            if self._is_sound(entry, stored):
                continue
            if entry.base_id and stored is not None:
                suspects.append((segment.pack_id, entry))
            else:
                self._note_bad(segment.pack_id, entry)
        return suspects

    def _note_bad(self, pack_id: bytes, entry: BlobEntry) -> None:
        self.survey.bad_places.add((pack_id, entry.offset))
        self.survey.bad_packs.setdefault(
            pack_id, f"{layout.pack_name(pack_id)}: blob {entry.blob_id.hex()} is damaged"
        )

    def _wrong_with_pack(self, segment: PackSegment, size: int | None) -> str:
        name = layout.pack_name(segment.pack_id)
        if size != segment.pack_size:
            return f"{name} " + (
                "is missing" if size is None else f"has {size} bytes instead of {segment.pack_size}"
            )
        try:
            header = self._storage.read_range(name, 0, PACK_HEADER.size)
            check_pack_header(self._keyring, segment.pack_id, header)
            at = segment.pack_size - PACK_TRAILER.size
            trailer = self._storage.read_range(name, at, PACK_TRAILER.size)
            offset, length = parse_trailer(trailer, segment.pack_id, segment.pack_size)
            footer = self._storage.read_range(name, offset, length)
            said = parse_footer(self._keyring, segment.pack_id, segment.pack_size, footer)
            if said.entries != segment.entries or expected_footer_offset(segment) != offset:
                return f"{name}: index and footer of the pack differ"
        except (IntegrityError, PermanentPipelineError) as error:
            return str(error)
        return ""

    def _each_blob(self, segment: PackSegment) -> Iterator[tuple[BlobEntry, bytes | memoryview | None]]:
        """Every entry with its stored bytes, None where there are none."""
        done: set[int] = set()
        try:
            for blob in iterate_pack(self._storage, segment, READ_WINDOW_BYTES):
                done.add(blob.entry.offset)
                yield blob.entry, memoryview(blob.stored)
        except (IntegrityError, ObjectNotFoundError):
            # A large read failed: what lies before the damage may still be there.
            for entry in segment.entries:
                if entry.offset not in done:
                    yield entry, self._stored(segment.pack_id, entry)

    def _stored(self, pack_id: bytes, entry: BlobEntry) -> bytes | None:
        try:
            return self._storage.read_range(layout.pack_name(pack_id), entry.offset, entry.length)
        except (IntegrityError, ObjectNotFoundError):
            return None

    def _is_sound(self, entry: BlobEntry, stored: bytes | memoryview | None) -> bool:
        if stored is None:
            return False
        try:
            content = self._codec.decode(
                BlobKind(entry.kind), entry.blob_id, stored, self._reader.load_base
            )
        except (IntegrityError, ValueError):
            return False
        return len(content) == entry.raw_length

    def _stop_if_cancelled(self) -> None:
        if self._cancel.is_set():
            raise CancelledError(
                f"repair of {self._storage.location} was cancelled; nothing was changed"
            )


def each_segment(storage: Storage, keyring: Keyring, damaged: list[str]) -> Iterator[PackSegment]:
    """The first segment of each pack, one index object at a time. What is wrong with index objects that
    cannot be read goes into `damaged`.
    """
    seen: set[bytes] = set()
    for entry in storage.list(layout.INDEX):
        try:
            segments = read_index_object(storage, keyring, entry.name)
        except ObjectNotFoundError:
            continue
        except IntegrityError as error:
            damaged.append(str(error))
            continue
        for segment in segments:
            if segment.pack_id not in seen:
                seen.add(segment.pack_id)
                yield segment


def sound_blobs(storage: Storage, segment: PackSegment, survey: Survey) -> Iterator[StoredBlob]:
    """What can be saved from a pack that must go."""
    for entry in segment.entries:
        if (segment.pack_id, entry.offset) not in survey.bad_places:
            name = layout.pack_name(segment.pack_id)
            yield StoredBlob(entry, storage.read_range(name, entry.offset, entry.length))
