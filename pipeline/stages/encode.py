"""Second stage: name blocks, leave out what is known, compress and encrypt the rest. One thread a core."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Protocol

from pipeline.crypto.keyring import Keyring
from pipeline.repository.blobs import BlobCodec, EncodedBlob, block_id
from pipeline.repository.format import ZERO_ID, BlobKind
from pipeline.repository.index import Index
from pipeline.stages.bases import Bases
from pipeline.stages.flow import Channel, Meter
from pipeline.stages.read import ReadBlock


class Outcome(Enum):
    ZERO = auto()  # nothing but zeros
    KNOWN = auto()  # the index has it, durable
    PENDING = auto()  # another block of this run has the same content and stores it
    NEW = auto()  # stored by this block


@dataclass(frozen=True, slots=True)
class EncodedBlock:
    sequence: int
    block: int
    length: int
    outcome: Outcome
    blob_id: bytes


class Claims:
    """Ids that a thread of this run has undertaken to store and that the index does not have yet."""

    def __init__(self, index: Index) -> None:
        self._index = index
        self._lock = threading.Lock()
        self._claimed: set[bytes] = set()

    def claim(self, blob_id: bytes) -> Outcome:
        """NEW for the first who asks for an id that is nowhere."""
        with self._lock:
            if blob_id in self._claimed:
                return Outcome.PENDING
            if self._is_whole(blob_id):
                return Outcome.KNOWN
            self._claimed.add(blob_id)
            return Outcome.NEW

    def _is_whole(self, blob_id: bytes) -> bool:
        """Whether the index has it, and its base when it is a patch: a repair may have taken that away."""
        if blob_id not in self._index:
            return False
        location = self._index.find(blob_id)
        return location is not None and (not location.base_id or location.base_id in self._index)

    def release(self, blob_ids: Iterable[bytes]) -> None:
        """They are in the index now. MUST be called after they were added there."""
        with self._lock:
            self._claimed.difference_update(blob_ids)


class BlobSink(Protocol):
    def append(self, blob: EncodedBlob) -> None:
        """Take a blob over; from any thread."""


class EncodeStage:
    """One worker."""

    def __init__(
        self,
        *,
        keyring: Keyring,
        codec: BlobCodec,
        claims: Claims,
        bases: Bases | None,
        block_size_bytes: int,
        verify_every: int,
        source: Channel[ReadBlock | None],
        pool: Channel[bytearray],
        packs: BlobSink,
        output: Channel[EncodedBlock | None],
        busy: Meter,
    ) -> None:
        """`bases` None: blocks are never stored as patches."""
        self._keyring = keyring
        self._codec = codec
        self._claims = claims
        self._bases = bases
        self._zeros = bytes(block_size_bytes)
        self._verify_every = verify_every
        self._source = source
        self._pool = pool
        self._packs = packs
        self._output = output
        self._busy = busy
        self._encoded = 0

    def run(self) -> None:
        while (read := self._source.get()) is not None:
            with self._busy:
                result, blob = self._encode(read)
            self._pool.put(read.buffer)
            if blob is not None:
                self._packs.append(blob)
            self._output.put(result, is_urgent=False)
        self._output.put(None)

    def _encode(self, read: ReadBlock) -> tuple[EncodedBlock, EncodedBlob | None]:
        if read.length == len(read.buffer):
            # bytearray == bytes is one memcmp; comparing memoryviews is many times slower.
            is_zero = read.buffer == self._zeros
            content: bytearray | bytes = read.buffer
        else:
            content = bytes(memoryview(read.buffer)[: read.length])
            is_zero = content == self._zeros[: read.length]
        if is_zero:
            self._pass_over(read)
            return EncodedBlock(read.sequence, read.block, read.length, Outcome.ZERO, ZERO_ID), None
        blob_id = block_id(self._keyring, content)
        outcome = self._claims.claim(blob_id)
        blob = None
        if outcome is Outcome.NEW:
            blob = self._stored(read.block, blob_id, content)
        else:
            self._pass_over(read)
        return EncodedBlock(read.sequence, read.block, read.length, outcome, blob_id), blob

    def _pass_over(self, read: ReadBlock) -> None:
        if self._bases is not None:
            self._bases.pass_over(read.block)

    def _stored(self, block: int, blob_id: bytes, content: bytearray | bytes) -> EncodedBlob:
        base = None if self._bases is None else self._bases.load(block, blob_id)
        blob = None
        if base is not None:
            blob = self._codec.encode_patch(
                blob_id, content, base.blob_id, base.content, base.stored_length
            )
        if blob is None:
            blob = self._codec.encode(BlobKind.BLOCK, blob_id, content)
        self._encoded += 1
        if self._verify_every and self._encoded % self._verify_every == 0:
            self._codec.verify(blob, content, lambda _: b"" if base is None else base.content)
        return blob
