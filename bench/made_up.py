"""Repositories that are too large to be real: index objects and packs that are made up as they are read.

Blob number n of a repository has an id that follows from n, so that who measures can name blobs that are there.
"""

from __future__ import annotations

import hashlib
import heapq
import time
from collections.abc import Iterator

import numpy as np

from pipeline.crypto.aead import Aead
from pipeline.crypto.keyring import Keyring
from pipeline.errors import ObjectNotFoundError
from pipeline.repository import layout
from pipeline.repository.format import BLOB_HEADER, INDEX_SEGMENT, PACK_HEADER, SealedKind
from pipeline.repository.index_build import ENTRY
from pipeline.repository.sealed import seal
from pipeline.storage.base import Storage, StoredObject
from pipeline.storage.wrapper import StorageWrapper
from pipeline.testing.storage import MemoryStorage

KEYRING = Keyring(bytes(range(32)), bytes(range(16)))
BLOBS_PER_PACK = 128
PACKS_PER_OBJECT = 390  # 50,000 blobs, as prune writes them
STORED_BYTES = 512 << 10
LENGTH = BLOB_HEADER.size + STORED_BYTES
PACK_SIZE = PACK_HEADER.size + BLOBS_PER_PACK * LENGTH + 5000


def blob_ids(first: int, count: int) -> np.ndarray:
    """Ids of blobs [first, first + count): 32 bytes each, spread as a keyed hash spreads them."""
    words = np.arange(first * 4, (first + count) * 4, dtype=np.uint64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        words = (words ^ (words >> np.uint64(shift))) * np.uint64(factor)
    words ^= words >> np.uint64(31)
    return words.reshape(count, 4)


def blob_id(number: int) -> bytes:
    return blob_ids(number, 1).tobytes()


def pack_id(number: int) -> bytes:
    return hashlib.blake2b(number.to_bytes(8, "big"), digest_size=16).digest()


def index_payload(first_pack: int, packs: int) -> bytes:
    parts = []
    for number in range(first_pack, first_pack + packs):
        ids = blob_ids(number * BLOBS_PER_PACK, BLOBS_PER_PACK).tobytes()
        halves = np.frombuffer(ids, ">u8").reshape(-1, 4)
        entries = np.zeros(BLOBS_PER_PACK, ENTRY)
        entries["hi"], entries["lo"] = halves[:, 0], halves[:, 1]
        entries["rest"] = np.frombuffer(ids, "V16")[1::2]
        entries["offset"] = PACK_HEADER.size + np.arange(BLOBS_PER_PACK) * LENGTH
        entries["length"] = LENGTH
        entries["raw_length"] = 1 << 20
        entries["kind"] = entries["encoding"] = 1
        parts.append(INDEX_SEGMENT.pack(pack_id(number), PACK_SIZE, BLOBS_PER_PACK))
        parts.append(entries.tobytes())
    return b"".join(parts)


class MadeUpStorage(StorageWrapper):
    """A repository of `blobs` that nobody stored, beside what `inner` has.

    What is deleted of it is remembered by this object alone.
    """

    def __init__(self, blobs: int, inner: Storage | None = None, keyring: Keyring = KEYRING) -> None:
        super().__init__(inner or MemoryStorage())
        self.packs = -(-blobs // BLOBS_PER_PACK)
        self.blobs = self.packs * BLOBS_PER_PACK
        self._keyring = keyring
        self._firsts = {
            layout.index_name(pack_id(1 << 40 | first)): first
            for first in range(0, self.packs, PACKS_PER_OBJECT)
        }
        self._deleted: set[str] = set()
        self.making_s = 0.0
        """Time that went into making things up: not the index's."""

    def read(self, name: str) -> bytes:
        first = self._firsts.get(name)
        if first is None or name in self._deleted:
            return super().read(name)
        began = time.perf_counter()
        payload = index_payload(first, min(PACKS_PER_OBJECT, self.packs - first))
        data = seal(self._keyring, Aead.AEGIS_256, SealedKind.INDEX, name, payload)
        self.making_s += time.perf_counter() - began
        return data

    def list(self, prefix: str) -> Iterator[StoredObject]:
        real = super().list(prefix)
        if prefix == layout.INDEX:
            return heapq.merge(self._made_up_index(), real, key=lambda entry: entry.name)
        if prefix == layout.PACKS:
            return heapq.merge(self._made_up_packs(), real, key=lambda entry: entry.name)
        return real

    def _made_up_index(self) -> Iterator[StoredObject]:
        for name in sorted(self._firsts):
            if name not in self._deleted:
                yield StoredObject(name=name, size_bytes=PACKS_PER_OBJECT * 6300, modified_at_s=0.0)

    def _made_up_packs(self) -> Iterator[StoredObject]:
        for each in sorted(pack_id(number) for number in range(self.packs)):
            name = layout.pack_name(each)
            if name not in self._deleted:
                yield StoredObject(name=name, size_bytes=PACK_SIZE, modified_at_s=0.0)

    def size_bytes(self, name: str) -> int:
        try:
            return super().size_bytes(name)
        except ObjectNotFoundError:
            if name.startswith(layout.PACKS) and name not in self._deleted:
                return PACK_SIZE
            raise

    def delete(self, name: str) -> None:
        if name in self._firsts or name.startswith(layout.PACKS):
            self._deleted.add(name)
        super().delete(name)
