"""A disk of a restore point, read like a disk: the source of copies."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from itertools import islice
from typing import Final

from pipeline.errors import IntegrityError
from pipeline.repository.format import BLOB_ID_BYTES, NODE_ENTRIES, NODE_ENTRIES_BITS, ZERO_ID
from pipeline.repository.maps import block_count_of, blocks, decode_node, level_for
from pipeline.repository.reader import Batch as Fetch
from pipeline.repository.reader import BlobReader
from pipeline.repository.repository import Repository
from pipeline.storage.base import Buffer
from transports import system
from transports.base import Ability, Extent, ReaderCapabilities, ReadRequest, TransportMode
from transports.errors import TransientTransportError

RUN_BYTES: Final = 1 << 20
"""Stored bytes fetched and decoded by one thread at a time: small enough that all threads have some."""
BATCHES: Final = 2  # one being decoded, one being drawn
MIN_IN_FLIGHT: Final = 2 * BATCHES
MAX_IN_FLIGHT: Final = 128
REPOSITORY_MODE: Final = TransportMode.DIRECT_NFS
"""A reader must name a mode; this one reads storage that is mounted or reached directly."""


@dataclass(frozen=True, slots=True)
class _Piece:
    """A part of a block that goes into a buffer."""

    target: memoryview
    start: int
    """Where in the block's content."""


@dataclass(slots=True)
class _Batch:
    requests: list[ReadRequest]
    reads: list[Future[None]] = field(default_factory=list)


class MapDiskReader:
    """A DiskReader over a disk map. Every block is compared with its id, as in a restore."""

    def __init__(
        self,
        repository: Repository,
        map_root: str,
        capacity_bytes: int,
        *,
        request_bytes: int = 0,
        window_bytes: int = 8 << 20,
        workers: int = 0,
    ) -> None:
        """`request_bytes`: how large requests will be (0: a block of the repository); together with
        `window_bytes` it decides how many are in flight. `workers` 0: one thread for each core.
        """
        self._repository = repository
        self._reader: BlobReader = repository.reader()
        self._block_size = repository.block_size_bytes
        self._root = bytes.fromhex(map_root)
        self._capacity_bytes = capacity_bytes
        self._level = level_for(block_count_of(capacity_bytes, self._block_size))
        self._leaf: tuple[int, bytes] = (-1, b"")
        largest = max(request_bytes or self._block_size, self._block_size)
        self._in_flight = max(MIN_IN_FLIGHT, min(MAX_IN_FLIGHT, window_bytes // largest))
        self._renewing = threading.Lock()
        self._own = threading.local()
        self._pool = ThreadPoolExecutor(
            workers or system.usable_cpus(), thread_name_prefix="map-reader"
        )
        self._is_closed = False

    @property
    def size_bytes(self) -> int:
        return self._capacity_bytes

    @property
    def capabilities(self) -> ReaderCapabilities:
        return ReaderCapabilities(
            mode=REPOSITORY_MODE,
            allocated_extents=Ability.NATIVE,
            requests_in_flight=self._in_flight,
            max_request_bytes=16 << 20,
        )

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Raises IntegrityError for a block that is damaged or missing."""
        batch = self._begin([ReadRequest(offset, buffer)])
        self._finish(batch)

    def read_many(self, requests: Iterable[ReadRequest]) -> Iterator[ReadRequest]:
        remaining = iter(requests)
        batches: deque[_Batch] = deque()
        try:
            while True:
                while len(batches) < BATCHES:
                    drawn = list(islice(remaining, self._in_flight // BATCHES))
                    if not drawn:
                        break
                    batches.append(self._begin(drawn))
                if not batches:
                    return
                batch = batches.popleft()
                self._finish(batch)
                yield from batch.requests
        finally:
            # Nobody may write into a buffer that is the mover's again.
            for batch in batches:
                _settle(batch)

    def allocated_extents(self, offset: int, length: int) -> Iterator[Extent]:
        end = min(offset + length, self._capacity_bytes)
        for extent in _extents(self._reader, self._root, self._capacity_bytes, self._block_size):
            first, last = max(extent.offset, offset), min(extent.end, end)
            if first < last:
                yield Extent(offset=first, length=last - first)

    def close(self) -> None:
        self._is_closed = True
        self._pool.shutdown(wait=True, cancel_futures=True)

    # ---- inside --------------------------------------------------------------------------------

    def _begin(self, requests: list[ReadRequest]) -> _Batch:
        if self._is_closed:
            raise TransientTransportError("the reader of this disk map was closed; open it again")
        pieces: dict[bytes, list[_Piece]] = {}
        for request in requests:
            self._divide(request, pieces)
        batch = _Batch(requests)
        for fetch in self._planned(list(pieces)):
            batch.reads.append(self._pool.submit(self._fill, fetch, pieces))
        return batch

    def _finish(self, batch: _Batch) -> None:
        wait(batch.reads)
        for read in batch.reads:
            read.result()

    def _divide(self, request: ReadRequest, pieces: dict[bytes, list[_Piece]]) -> None:
        """Which blocks a request needs, and zeros where there is none."""
        offset, buffer = request.offset, request.buffer
        end = offset + len(buffer)
        if offset < 0 or end > self._capacity_bytes:
            raise ValueError(f"read past the end of a disk of {self._capacity_bytes} bytes")
        at = offset
        while at < end:
            block = at // self._block_size
            stop = min(end, (block + 1) * self._block_size)
            target = buffer[at - offset : stop - offset]
            blob_id = self._id_of(block)
            if blob_id == ZERO_ID:
                target[:] = bytes(len(target))
            else:
                pieces.setdefault(blob_id, []).append(_Piece(target, at - block * self._block_size))
            at = stop

    def _id_of(self, block: int) -> bytes:
        number = block // NODE_ENTRIES
        if self._leaf[0] != number:
            self._leaf = (number, self._entries_of(number))
        at = (block % NODE_ENTRIES) * BLOB_ID_BYTES
        return self._leaf[1][at : at + BLOB_ID_BYTES] or ZERO_ID

    def _entries_of(self, leaf_number: int) -> bytes:
        """Ids of a level 0 node; nothing where all of it is zeros."""
        node = self._root
        for level in range(self._level, -1, -1):
            if node == ZERO_ID:
                return b""
            entries = decode_node(self._load_node(node), level)
            if level == 0:
                return entries
            position = (leaf_number >> (NODE_ENTRIES_BITS * (level - 1))) % NODE_ENTRIES
            node = entries[position * BLOB_ID_BYTES : (position + 1) * BLOB_ID_BYTES] or ZERO_ID
        return b""

    def _load_node(self, node_id: bytes) -> bytes:
        reader = self._reader
        try:
            return reader.load_node(node_id)
        except IntegrityError:
            return self._renewed(reader).load_node(node_id)

    def _planned(self, blob_ids: list[bytes]) -> list[Fetch]:
        reader = self._reader
        try:
            return reader.plan(blob_ids, RUN_BYTES)
        except IntegrityError:
            return self._renewed(reader).plan(blob_ids, RUN_BYTES)

    def _fill(self, fetch: Fetch, pieces: dict[bytes, list[_Piece]]) -> None:
        """Fetch some blocks and hand them out; on a thread of the pool."""
        reader = self._reader
        scratch = self._scratch()
        try:
            fetched = reader.fetch(fetch)
            for wanted in fetch.wanted:
                content = reader.decode(fetched, wanted, scratch)
                for piece in pieces[wanted.blob_id]:
                    _hand_out(piece, content)
        except IntegrityError:
            # A prune may have moved the blocks to another pack since the index was read.
            reader = self._renewed(reader)
            for wanted in fetch.wanted:
                for piece in pieces[wanted.blob_id]:
                    _hand_out(piece, reader.load_block(wanted.blob_id))

    def _scratch(self) -> memoryview:
        """Room for a block; each thread has one."""
        scratch: memoryview | None = getattr(self._own, "scratch", None)
        if scratch is None:
            scratch = self._own.scratch = memoryview(bytearray(self._block_size))
        return scratch

    def _renewed(self, old: BlobReader) -> BlobReader:
        """A reader by the index as it is now, unless another thread was faster."""
        with self._renewing:
            if self._reader is old:
                self._reader = self._repository.reader()
            return self._reader


def stored_extents(repository: Repository, map_root: str, capacity_bytes: int) -> Iterator[Extent]:
    """Ranges of a disk that are not zeros, ascending, merged."""
    return _extents(
        repository.reader(), bytes.fromhex(map_root), capacity_bytes, repository.block_size_bytes
    )


def _extents(reader: BlobReader, root: bytes, capacity_bytes: int, size: int) -> Iterator[Extent]:
    first = end = 0
    for block, _ in blocks(reader.load_node, root, block_count_of(capacity_bytes, size)):
        if block != end:
            if end > first:
                yield Extent(offset=first * size, length=(end - first) * size)
            first = block
        end = block + 1
    if end > first:
        offset = first * size
        yield Extent(offset=offset, length=min(end * size, capacity_bytes) - offset)


def _settle(batch: _Batch) -> None:
    """Return when no thread works on the batch any more."""
    for read in batch.reads:
        read.cancel()
    wait(batch.reads)


def _hand_out(piece: _Piece, content: Buffer) -> None:
    part = memoryview(content)[piece.start : piece.start + len(piece.target)]
    if len(part) != len(piece.target):
        raise IntegrityError(
            f"a block has {len(content)} bytes, fewer than the disk needs; its capacity or map root is "
            "wrong: take them from the restore point"
        )
    piece.target[:] = part
