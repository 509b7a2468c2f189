"""Sealed objects: a header, then the payload, compressed where that helps, and encrypted."""

from __future__ import annotations

import os
from typing import Final

import zstandard

from pipeline.crypto.aead import ENGINE, NONCE_BYTES, Aead
from pipeline.crypto.keyring import Keyring
from pipeline.errors import IntegrityError
from pipeline.repository.format import (
    FORMAT_VERSION,
    MAX_SEALED_RAW_BYTES,
    NONCE_FIELD_BYTES,
    SEALED_HEADER,
    SEALED_MAGIC,
    Encoding,
    SealedKind,
)

NO_RESERVED: Final = bytes(3)
COMPRESSION_LEVEL: Final = 3
ZSTD_LEAST_BLOCK_BYTES: Final = 4  # a head of 3 bytes, and 1 that is repeated (RFC 8878, 3.1.1.2)
ZSTD_MOST_BLOCK_BYTES: Final = 128 << 10


def seal(keyring: Keyring, algorithm: Aead, kind: SealedKind, name: str, payload: bytes) -> bytes:
    """Bytes of a sealed object that will be stored under `name`."""
    if len(payload) > MAX_SEALED_RAW_BYTES:
        raise ValueError(f"{name}: {len(payload)} bytes are more than a sealed object may hold")
    packed = zstandard.ZstdCompressor(level=COMPRESSION_LEVEL).compress(payload)
    encoding, body = (Encoding.ZSTD, packed) if len(packed) < len(payload) else (Encoding.RAW, payload)
    nonce = os.urandom(NONCE_BYTES[algorithm])
    header = SEALED_HEADER.pack(
        SEALED_MAGIC,
        FORMAT_VERSION,
        kind,
        encoding,
        algorithm,
        NO_RESERVED,
        keyring.epoch,
        len(payload),
        nonce,
    )
    associated = header + keyring.repository_id + name.encode("ascii")
    key = keyring.encryption_key_of(keyring.epoch, name)
    return header + ENGINE.encrypt(algorithm, key, nonce, associated, body)


def unseal(keyring: Keyring, kind: SealedKind, name: str, data: bytes | memoryview) -> bytes:
    """The payload. Raises IntegrityError naming the object."""
    if len(data) < SEALED_HEADER.size:
        raise IntegrityError(f"{name} is truncated: {len(data)} bytes")
    header = bytes(data[: SEALED_HEADER.size])
    magic, version, its_kind, encoding, aead, reserved, epoch, raw_length, nonce = SEALED_HEADER.unpack(
        header
    )
    if magic != SEALED_MAGIC:
        raise IntegrityError(f"{name} is damaged: it does not begin as a sealed object")
    if version != FORMAT_VERSION:
        raise IntegrityError(
            f"{name} has format version {version}: damaged, or written by a newer vmhaul"
        )
    if its_kind != kind or reserved != NO_RESERVED or raw_length > MAX_SEALED_RAW_BYTES:
        raise IntegrityError(f"{name} is damaged: its header is not one of {kind.name.lower()} objects")
    algorithm = checked_aead(aead, nonce, name)
    associated = header + keyring.repository_id + name.encode("ascii")
    key = keyring.encryption_key_of(epoch, name)
    try:
        body = ENGINE.decrypt(
            algorithm,
            key,
            nonce[: NONCE_BYTES[algorithm]],
            associated,
            memoryview(data)[SEALED_HEADER.size :],
        )
    except IntegrityError as error:
        raise IntegrityError(f"{name} is damaged or replaced: {error}") from error
    return bytes(decoded(encoding, body, raw_length, name))


def checked_aead(number: int, nonce_field: bytes, what: str) -> Aead:
    """The algorithm of a header; its nonce field is as the format says."""
    try:
        algorithm = Aead(number)
    except ValueError as error:
        raise IntegrityError(
            f"{what} uses encryption algorithm {number}: damaged, or written by a newer vmhaul"
        ) from error
    if any(nonce_field[NONCE_BYTES[algorithm] : NONCE_FIELD_BYTES]):
        raise IntegrityError(f"{what} is damaged: its nonce is too long")
    return algorithm


def decoded(
    encoding: int, body: bytes | bytearray | memoryview, raw_length: int, what: str
) -> bytes | bytearray:
    """Undo the encoding of what was authenticated already."""
    if encoding == Encoding.RAW:
        if len(body) != raw_length:
            raise IntegrityError(f"{what} is damaged: {len(body)} bytes instead of {raw_length}")
        return body if isinstance(body, bytes | bytearray) else bytes(body)
    if encoding != Encoding.ZSTD:
        raise IntegrityError(f"{what} has encoding {encoding}: damaged, or written by a newer vmhaul")
    plain = decompressed(zstandard.ZstdDecompressor(), body, raw_length, what)
    if len(plain) != raw_length:
        raise IntegrityError(f"{what} is damaged: {len(plain)} bytes instead of {raw_length}")
    return plain


def decompressed(
    decompressor: zstandard.ZstdDecompressor,
    frame: bytes | bytearray | memoryview,
    most_bytes: int,
    what: str,
) -> bytes:
    """Content of one zstandard frame, `most_bytes` at most. Raises IntegrityError.

    The library takes as much memory as the frame says that it needs. So what it says is looked at first,
    and what so few bytes cannot hold is not believed.
    """
    most_bytes = min(most_bytes, (len(frame) // ZSTD_LEAST_BLOCK_BYTES + 1) * ZSTD_MOST_BLOCK_BYTES)
    try:
        if zstandard.frame_content_size(frame) > most_bytes:
            raise IntegrityError(f"{what} is damaged: it would be larger than it can be")
        return decompressor.decompress(frame, max_output_size=most_bytes)
    except zstandard.ZstdError as error:
        raise IntegrityError(f"{what} is damaged: {error}") from error
