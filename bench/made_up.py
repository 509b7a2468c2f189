"""Repositories that are too large to be real: index objects and packs that are made up as they are read.

Blob number n of a repository has an id that follows from n, so that who measures can name blobs that are there.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator

import numpy as np

from pipeline.crypto.aead import Aead
from pipeline.crypto.keyring import Keyring
from pipeline.repository import layout
from pipeline.repository.format import BLOB_HEADER, INDEX_SEGMENT, PACK_HEADER, SealedKind
from pipeline.repository.index_build import ENTRY
from pipeline.repository.sealed import seal
from pipeline.storage.base import StoredObject
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


class MadeUpStorage(MemoryStorage):
    """What is stored is in memory; beside it, the packs and index objects of a repository of `blobs`.

    Index objects that are deleted are gone; packs too, and each deleted one costs some bytes.
    """

    def __init__(self, blobs: int) -> None:
        super().__init__()
        self.packs = -(-blobs // BLOBS_PER_PACK)
        self.blobs = self.packs * BLOBS_PER_PACK
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
        data = seal(KEYRING, Aead.AEGIS_256, SealedKind.INDEX, name, payload)
        self.making_s += time.perf_counter() - began
        return data

    def list(self, prefix: str) -> Iterator[StoredObject]:
        made_up = []
        if prefix == layout.INDEX:
            made_up = [
                StoredObject(name=name, size_bytes=PACKS_PER_OBJECT * 6300, modified_at_s=0.0)
                for name in self._firsts
                if name not in self._deleted
            ]
        elif prefix == layout.PACKS:
            return self._list_packs()
        return iter(sorted([*made_up, *super().list(prefix)], key=lambda entry: entry.name))

    def _list_packs(self) -> Iterator[StoredObject]:
        names = sorted(pack_id(number) for number in range(self.packs))
        for each in names:
            name = layout.pack_name(each)
            if name not in self._deleted:
                yield StoredObject(name=name, size_bytes=PACK_SIZE, modified_at_s=0.0)
        yield from super().list(layout.PACKS)

    def size_bytes(self, name: str) -> int:
        is_pack = name.startswith(layout.PACKS) and name not in self.objects
        return PACK_SIZE if is_pack and name not in self._deleted else super().size_bytes(name)

    def delete(self, name: str) -> None:
        if name in self._firsts or name.startswith(layout.PACKS):
            self._deleted.add(name)
        super().delete(name)
