"""Blobs out of packs."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from pipeline.crypto.aead import Aead
from pipeline.crypto.keyring import Keyring
from pipeline.errors import IntegrityError, ObjectNotFoundError
from pipeline.repository import layout
from pipeline.repository.blobs import BlobCodec
from pipeline.repository.format import BlobKind
from pipeline.repository.index import Index, Location
from pipeline.storage.base import Buffer, Storage

NODE_CACHE_ENTRIES: Final = 64  # 64 * 32 KiB = 2 MiB
COALESCE_GAP_BYTES: Final = 256 << 10
"""Reading so much for nothing is cheaper than another request."""
COALESCED_READ_BYTES: Final = 4 << 20


@dataclass(frozen=True, slots=True)
class Wanted:
    """One blob to fetch."""

    blob_id: bytes
    location: Location


@dataclass(frozen=True, slots=True)
class ReadRun:
    """Blobs of one pack that are fetched with one read, in order of offsets."""

    pack_id: bytes
    offset: int
    length: int
    wanted: tuple[Wanted, ...]


class BlobReader:
    """Fetches and verifies blobs. May be used by several threads."""

    def __init__(self, storage: Storage, keyring: Keyring, index: Index) -> None:
        self._storage = storage
        self._keyring = keyring
        self._index = index
        self._codecs = threading.local()
        self._cache_lock = threading.Lock()
        self._nodes: OrderedDict[bytes, bytes] = OrderedDict()

    def locate(self, blob_id: bytes) -> Location:
        """Raises IntegrityError when the index does not know the blob."""
        location = self._index.find(blob_id)
        if location is None:
            raise IntegrityError(
                f"blob {blob_id.hex()} is missing from the index of {self._storage.location}; run a check"
            )
        return location

    def load_block(self, blob_id: bytes) -> Buffer:
        return self._load(BlobKind.BLOCK, blob_id)

    def load_node(self, blob_id: bytes) -> bytes:
        """Content of a map node; recently used ones come from memory."""
        with self._cache_lock:
            known = self._nodes.get(blob_id)
            if known is not None:
                self._nodes.move_to_end(blob_id)
                return known
        content = bytes(self._load(BlobKind.NODE, blob_id))
        with self._cache_lock:
            self._nodes[blob_id] = content
            while len(self._nodes) > NODE_CACHE_ENTRIES:
                self._nodes.popitem(last=False)
        return content

    def fetch_run(self, run: ReadRun) -> memoryview:
        """The stored bytes of a run, in one read."""
        return memoryview(self._read(run.pack_id, run.offset, run.length))

    def decode_from(self, run: ReadRun, data: memoryview, wanted: Wanted) -> Buffer:
        """Content of one block of a run that was fetched. Raises IntegrityError when it is damaged."""
        start = wanted.location.offset - run.offset
        stored = data[start : start + wanted.location.length]
        return self._codec().decode(BlobKind.BLOCK, wanted.blob_id, stored)

    def _load(self, kind: BlobKind, blob_id: bytes) -> Buffer:
        location = self.locate(blob_id)
        stored = self._read(location.pack_id, location.offset, location.length)
        return self._codec().decode(kind, blob_id, stored)

    def _read(self, pack_id: bytes, offset: int, length: int) -> bytes:
        name = layout.pack_name(pack_id)
        try:
            return self._storage.read_range(name, offset, length)
        except ObjectNotFoundError as error:
            raise IntegrityError(
                f"{name} is missing from {self._storage.location}; bring it back from a copy and run a check"
            ) from error

    def _codec(self) -> BlobCodec:
        codec: BlobCodec | None = getattr(self._codecs, "codec", None)
        if codec is None:
            # The algorithm is for writing only; what is read says itself what it uses.
            codec = self._codecs.codec = BlobCodec(self._keyring, Aead.XCHACHA20_POLY1305)
        return codec


def plan_reads(wanted: list[Wanted], max_bytes: int = COALESCED_READ_BYTES) -> list[ReadRun]:
    """Few large reads for many blobs: by pack, in order of offsets, joined over small gaps."""
    runs: list[ReadRun] = []
    group: list[Wanted] = []
    for item in sorted(wanted, key=lambda item: (item.location.pack_id, item.location.offset)):
        if group and not _fits(group, item, max_bytes):
            runs.append(_run_of(group))
            group = []
        group.append(item)
    if group:
        runs.append(_run_of(group))
    return runs


def _fits(group: list[Wanted], item: Wanted, max_bytes: int) -> bool:
    first, last = group[0].location, group[-1].location
    return (
        item.location.pack_id == first.pack_id
        and item.location.offset - (last.offset + last.length) <= COALESCE_GAP_BYTES
        and item.location.offset + item.location.length - first.offset <= max_bytes
    )


def _run_of(group: list[Wanted]) -> ReadRun:
    first, last = group[0].location, group[-1].location
    return ReadRun(first.pack_id, first.offset, last.offset + last.length - first.offset, tuple(group))
