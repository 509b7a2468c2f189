"""Blobs: naming, encoding and decoding of blocks and map nodes."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import zstandard
from blake3 import blake3

from pipeline.crypto.aead import ENGINE, NONCE_BYTES, TAG_BYTES, Aead
from pipeline.crypto.keyring import Keyring
from pipeline.errors import IntegrityError
from pipeline.repository.format import (
    BLOB_HEADER,
    BLOB_MAGIC,
    MAX_BLOB_RAW_BYTES,
    PATCH_HEAD,
    BlobKind,
    Encoding,
)
from pipeline.repository.patches import (
    CLEARLY_SMALLER_SHARE,
    difference,
    pack_head,
    parse_head,
    patch_into,
    payload_limit,
)
from pipeline.repository.sealed import checked_aead, decompressed
from pipeline.storage.base import Buffer

COMPRESSION_LEVELS: Final = {"none": None, "fast": 1, "balanced": 3, "high": 9}
"""zstandard's levels; measured ratio and speed are in docs/explanation/performance.md."""
_FAST: Final = zstandard.ZstdCompressionParameters(
    strategy=zstandard.STRATEGY_FAST,
    window_log=22,
    hash_log=14,
    chain_log=13,
    search_log=1,
    min_match=5,
    write_content_size=1,
)
"""Level 1 with the whole block as its window and matches from 5 bytes: stores 3 % less for 5 to 10 % more of the
compressor's CPU. The library shortens the window for smaller blocks by itself. Measured beside other settings in
docs/explanation/performance.md.
"""
WORTH_IT_SHARE: Final = 0.97
"""A block that compresses to more than this is stored as it is: reading it back is then cheaper."""


LoadBase = Callable[[bytes], Buffer]
"""Content of the block that a patch is a patch of, by its id; raises IntegrityError."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedBlob:
    """A blob as it goes into a pack."""

    blob_id: bytes
    kind: BlobKind
    encoding: Encoding
    raw_length: int
    header: bytes
    body: Buffer
    base_id: bytes = b""
    """Of a patch: the blob it is a patch of."""

    @property
    def length(self) -> int:
        return len(self.header) + len(self.body)


@dataclass(frozen=True, slots=True, kw_only=True)
class BlobFacts:
    """A blob header, taken apart and checked as far as it can be without the key."""

    blob_id: bytes
    kind: BlobKind
    encoding: Encoding
    aead: Aead
    key_epoch: int
    stored_length: int
    raw_length: int
    nonce: bytes


def block_id(keyring: Keyring, content: Buffer) -> bytes:
    return blake3(content, key=keyring.block_id_key).digest()


def node_id(keyring: Keyring, content: Buffer) -> bytes:
    return blake3(content, key=keyring.node_id_key).digest()


def compressor(compression: str) -> zstandard.ZstdCompressor | None:
    """For one thread; None for "none". `compression` is one of COMPRESSION_LEVELS."""
    level = COMPRESSION_LEVELS[compression]
    if level is None:
        return None
    if compression == "fast":
        return zstandard.ZstdCompressor(compression_params=_FAST)
    return zstandard.ZstdCompressor(level=level)


class BlobCodec:
    """Encodes and decodes. One for each thread: the contexts inside are reused and not shared."""

    def __init__(self, keyring: Keyring, algorithm: Aead, compression: str = "fast") -> None:
        """`compression` is one of COMPRESSION_LEVELS; ValueError otherwise."""
        if compression not in COMPRESSION_LEVELS:
            raise ValueError(f"compression {compression!r} is none of {', '.join(COMPRESSION_LEVELS)}")
        self._keyring = keyring
        self._algorithm = algorithm
        self._compressor = compressor(compression)
        self._decompressor = zstandard.ZstdDecompressor()
        self._scratch = bytearray()
        """For what was decrypted and is to be decompressed; as large as the largest so far."""

    def encode(self, kind: BlobKind, blob_id: bytes, content: Buffer) -> EncodedBlob:
        """Compress and encrypt. `content` is not kept."""
        encoding, body = Encoding.RAW, content
        if self._compressor is not None:
            packed = self._compressor.compress(content)
            if len(packed) <= len(content) * WORTH_IT_SHARE:
                encoding, body = Encoding.ZSTD, packed
        return self._sealed(kind, blob_id, encoding, len(content), body)

    def encode_patch(
        self,
        blob_id: bytes,
        content: bytes | bytearray,
        base_id: bytes,
        base: Buffer,
        base_stored_length: int,
    ) -> EncodedBlob | None:
        """A block as a patch of the block `base`; None where that is not clearly smaller.

        What the whole block would take is estimated, not tried: what did not change takes its share of
        `base_stored_length`, the rest what it takes here.
        """
        found = difference(base, content)
        if found is None:
            return None
        payload, share = found
        encoding = Encoding.RAW
        if self._compressor is not None:
            packed = self._compressor.compress(payload)
            if len(packed) < len(payload):
                encoding, payload = Encoding.ZSTD, packed
        length = PATCH_HEAD.size + len(payload)
        if length > CLEARLY_SMALLER_SHARE * (base_stored_length * (1 - share) + len(payload)):
            return None
        body = pack_head(base_id, encoding) + payload
        return self._sealed(BlobKind.BLOCK, blob_id, Encoding.PATCH, len(content), body, base_id)

    def _sealed(
        self,
        kind: BlobKind,
        blob_id: bytes,
        encoding: Encoding,
        raw_length: int,
        body: Buffer,
        base_id: bytes = b"",
    ) -> EncodedBlob:
        nonce = os.urandom(NONCE_BYTES[self._algorithm])
        header = BLOB_HEADER.pack(
            BLOB_MAGIC,
            kind,
            encoding,
            self._algorithm,
            0,
            self._keyring.epoch,
            len(body) + TAG_BYTES[self._algorithm],
            raw_length,
            blob_id,
            nonce,
        )
        associated = header + self._keyring.repository_id
        key = self._keyring.encryption_key_of(self._keyring.epoch, "a new blob")
        sealed = ENGINE.encrypt(self._algorithm, key, nonce, associated, body)
        return EncodedBlob(
            blob_id=blob_id,
            kind=kind,
            encoding=encoding,
            raw_length=raw_length,
            header=header,
            body=sealed,
            base_id=base_id,
        )

    def verify(self, blob: EncodedBlob, content: Buffer, load_base: LoadBase | None = None) -> None:
        """Decode what was just encoded and compare. Raises IntegrityError: this machine's memory or
        processor is not to be trusted.
        """
        stored = b"".join((blob.header, blob.body))
        if self.decode(blob.kind, blob.blob_id, stored, load_base) != content:
            raise IntegrityError(
                f"blob {blob.blob_id.hex()} did not decode to what was encoded; test this machine's memory"
            )

    def decode(
        self,
        kind: BlobKind,
        blob_id: bytes,
        stored: Buffer,
        load_base: LoadBase | None = None,
    ) -> bytearray:
        """The content of a whole stored blob, verified against its id. Raises IntegrityError.

        `load_base` is asked when the blob is a patch; without it a patch is an error.
        """
        facts = self._facts(kind, blob_id, stored)
        content = bytearray(facts.raw_length)
        self._decode(facts, stored, memoryview(content), load_base)
        return content

    def decode_into(
        self,
        kind: BlobKind,
        blob_id: bytes,
        stored: Buffer,
        out: memoryview,
        load_base: LoadBase | None = None,
    ) -> memoryview:
        """As decode(), into the beginning of `out`; returns the part that was filled. A blob that has no
        room there is damage too: who calls knows how large a block can be.
        """
        facts = self._facts(kind, blob_id, stored)
        if facts.raw_length > len(out):
            raise IntegrityError(
                f"blob {blob_id.hex()} has {facts.raw_length} bytes, more than a block; run a check"
            )
        content = out[: facts.raw_length]
        self._decode(facts, stored, content, load_base)
        return content

    def _facts(self, kind: BlobKind, blob_id: bytes, stored: Buffer) -> BlobFacts:
        what = f"blob {blob_id.hex()}"
        facts = parse_blob_header(memoryview(stored)[: BLOB_HEADER.size], what)
        if facts.blob_id != blob_id or facts.kind != kind:
            raise IntegrityError(f"{what} is not where the index says; run a check of the repository")
        if BLOB_HEADER.size + facts.stored_length != len(stored):
            raise IntegrityError(f"{what} is damaged: its length is not the one in the index")
        return facts

    def _decode(
        self, facts: BlobFacts, stored: Buffer, out: memoryview, load_base: LoadBase | None
    ) -> None:
        """Fill `out`, which has the length that the header says."""
        what = f"blob {facts.blob_id.hex()}"
        view = memoryview(stored)
        associated = bytes(view[: BLOB_HEADER.size]) + self._keyring.repository_id
        length = facts.stored_length - TAG_BYTES[facts.aead]
        is_plain = facts.encoding is Encoding.RAW and length == len(out)
        if len(self._scratch) < length and not is_plain:
            self._scratch = bytearray(length)
        key = self._keyring.encryption_key_of(facts.key_epoch, what)
        try:
            length = ENGINE.decrypt_into(
                facts.aead,
                key,
                facts.nonce,
                associated,
                view[BLOB_HEADER.size :],
                out if is_plain else self._scratch,
            )
        except IntegrityError as error:
            raise IntegrityError(f"{what} is damaged: {error}") from error
        if not is_plain:
            body = memoryview(self._scratch)[:length]
            if facts.encoding is Encoding.ZSTD:
                self._decompress_into(body, out, what)
            elif facts.encoding is Encoding.PATCH:
                self._patch_into(facts, body, out, what, load_base)
            else:
                raise IntegrityError(f"{what} is damaged: its content has another length")
        name = block_id if facts.kind is BlobKind.BLOCK else node_id
        if name(self._keyring, out) != facts.blob_id:
            raise IntegrityError(f"{what} is damaged: its content has another id")

    def _patch_into(
        self,
        facts: BlobFacts,
        body: memoryview,
        out: memoryview,
        what: str,
        load_base: LoadBase | None,
    ) -> None:
        head = parse_head(body, what)
        if load_base is None or facts.kind is not BlobKind.BLOCK or head.base_id == facts.blob_id:
            raise IntegrityError(f"{what} is damaged: a patch where none can be")
        payload: Buffer
        if head.encoding is Encoding.ZSTD:
            limit = payload_limit(facts.raw_length, head.piece_bytes)
            payload = self._decompressed(body[PATCH_HEAD.size :], limit, what)
        else:
            # The base may be decoded by this codec, with the same scratch.
            payload = bytes(body[PATCH_HEAD.size :])
        patch_into(out, load_base(head.base_id), payload, head.piece_bytes, what)

    def _decompress_into(self, body: memoryview, out: memoryview, what: str) -> None:
        """Measured: without a new buffer for each block, page faults end, and with them 10 % of the CPU."""
        try:
            length = self._decompressor.stream_reader(body).readinto(out)
        except zstandard.ZstdError as error:
            raise IntegrityError(f"{what} is damaged: {error}") from error
        if length != len(out):
            raise IntegrityError(f"{what} is damaged: its content has another length")

    def _decompressed(self, body: memoryview, length_max: int, what: str) -> bytes:
        return decompressed(self._decompressor, body, length_max, what)


def parse_blob_header(header: Buffer, what: str) -> BlobFacts:
    """Raises IntegrityError."""
    if len(header) != BLOB_HEADER.size:
        raise IntegrityError(f"{what} is truncated")
    magic, kind, encoding, aead, reserved, epoch, stored, raw, blob_id, nonce = BLOB_HEADER.unpack(
        header
    )
    if magic != BLOB_MAGIC or reserved or raw > MAX_BLOB_RAW_BYTES or kind not in {1, 2}:
        raise IntegrityError(f"{what} is damaged: its header is none of a blob")
    if encoding not in {Encoding.RAW, Encoding.ZSTD, Encoding.PATCH}:
        raise IntegrityError(f"{what} has encoding {encoding}: damaged, or written by a newer vmhaul")
    algorithm = checked_aead(aead, nonce, what)
    return BlobFacts(
        blob_id=blob_id,
        kind=BlobKind(kind),
        encoding=Encoding(encoding),
        aead=algorithm,
        key_epoch=epoch,
        stored_length=stored,
        raw_length=raw,
        nonce=nonce[: NONCE_BYTES[algorithm]],
    )
