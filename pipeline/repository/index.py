"""Which blob is where. Built from the index objects of a repository, added to while writing."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from typing import Final

from pipeline.crypto.aead import Aead
from pipeline.crypto.keyring import Keyring
from pipeline.errors import IntegrityError, ObjectNotFoundError
from pipeline.repository import layout
from pipeline.repository.entries import (
    BlobEntry,
    Location,
    PackSegment,
    format_entries,
    format_segments,
    parse_entries,
    parse_segments,
)
from pipeline.repository.format import SealedKind
from pipeline.repository.index_recent import RecentIndex, edition_of_segment
from pipeline.repository.sealed import seal, unseal
from pipeline.storage.base import Storage

__all__ = [
    "BlobEntry",
    "Index",
    "IndexLoader",
    "Location",
    "PackSegment",
    "format_entries",
    "format_segments",
    "parse_entries",
    "parse_segments",
    "read_index_object",
    "write_index_object",
]

MAX_LISTINGS: Final = 20


class Index:
    """All blobs that can be found. May be used by several threads; stays the same object while it is
    brought up to date.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._recent = RecentIndex()

    def __contains__(self, blob_id: bytes) -> bool:
        with self._lock:
            return self._recent.has(blob_id)

    def __len__(self) -> int:
        """Number of places; slow, for figures only."""
        with self._lock:
            return len(self._recent)

    def find(self, blob_id: bytes) -> Location | None:
        """A place of the blob; where it has several, one that holds all of its content before a patch."""
        found = self.find_all(blob_id)
        return found[0] if found else None

    def find_all(self, blob_id: bytes) -> list[Location]:
        """Every place of the blob, patches last. A reader that finds one damaged takes the next."""
        with self._lock:
            found = self._recent.find_all(blob_id)
        if len(found) > 1:
            found.sort(key=lambda location: location.is_patch)
        return found

    def add(self, segment: PackSegment) -> None:
        """Take over what this process itself made durable in a pack."""
        self._add(segment, None)

    def settle(self) -> None:
        """Bring it to its smallest form after much was added."""
        with self._lock:
            self._recent.settle()

    def pack_sizes(self) -> dict[bytes, int]:
        """Every pack that the index names, with the size it should have."""
        with self._lock:
            return self._recent.sizes()

    def pack_size_of(self, pack_id: bytes) -> int | None:
        """The size that a pack should have; None when the index does not name it."""
        return self.pack_sizes().get(pack_id)

    # ---- for the loader ------------------------------------------------------------------------

    def take(self, name: str, segments: Iterable[PackSegment]) -> None:
        """Take over what the index object `name` says."""
        for segment in segments:
            self._add(segment, layout.index_id_of(name))

    def drop(self, listed: Iterable[str]) -> None:
        """Only these index objects are still there: what no other named is not in the index any more."""
        ids = {layout.index_id_of(name) for name in listed}
        with self._lock:
            recent = self._recent
            recent.named = {key: named for key, named in recent.named.items() if key in ids}
            recent.keep_alive({edition for named in recent.named.values() for edition in named})

    def _add(self, segment: PackSegment, object_id: bytes | None) -> None:
        edition = edition_of_segment(segment)
        with self._lock:
            self._recent.add(segment, edition)
            if object_id is None:
                self._recent.pin(edition)
            else:
                self._recent.name(object_id, edition)
                self._recent.dead.discard(self._recent.number_of(edition))


class IndexLoader:
    """Keeps an Index equal to the index objects of a storage."""

    def __init__(self, storage: Storage, keyring: Keyring) -> None:
        self._storage = storage
        self._keyring = keyring
        self._seen: set[str] = set()
        self.index = Index()

    def refresh(self) -> Index:
        """The index as it is now: only what is new is read. Packs that no index object names any more
        (prune took them out) are not found any more.
        """
        for _ in range(MAX_LISTINGS):
            listed = [entry.name for entry in self._storage.list(layout.INDEX)]
            try:
                for name in listed:
                    if name not in self._seen:
                        segments = read_index_object(self._storage, self._keyring, name)
                        self.index.take(name, segments)
                        self._seen.add(name)
            except ObjectNotFoundError:
                continue  # prune replaced it between the listing and now; list again
            if not self._seen.issubset(listed):
                self.index.drop(listed)
                self._seen.intersection_update(listed)
            self.index.settle()
            return self.index
        raise IntegrityError(
            f"index objects in {self._storage.location} vanish while they are read; "
            "is another prune running all the time?"
        )

    def written(self, name: str, segments: Sequence[PackSegment] = ()) -> None:
        """An index object that this process wrote. With its `segments` they are added as well; without,
        who wrote it adds them, and they count as there as long as this process lives.
        """
        self.index.take(name, segments)
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
