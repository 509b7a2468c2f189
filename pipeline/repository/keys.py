"""Key objects: the master key, wrapped with a password."""

from __future__ import annotations

import os
from typing import Final

from blake3 import blake3

from pipeline.crypto.aead import ENGINE, NONCE_BYTES, TAG_BYTES, Aead
from pipeline.crypto.kdf import SALT_BYTES, KdfCost, check_cost, password_key
from pipeline.crypto.keyring import MASTER_KEY_BYTES
from pipeline.errors import IntegrityError, UnsupportedFormatError
from pipeline.repository.format import FORMAT_VERSION, KEY_FILE, KEY_MAGIC

KDF_ARGON2ID: Final = 1
CHECKSUM_BYTES: Final = 16
AUTHENTICATED_BYTES: Final = (
    60  # magic 8 + version 2 + kdf 1 + wrap 1 + ops 4 + memory 4 + salt 16 + nonce 24
)


def wrap_master_key(master_key: bytes, password: str, repository_id: bytes, cost: KdfCost) -> bytes:
    """Bytes of a key object."""
    check_cost(cost)
    salt = os.urandom(SALT_BYTES)
    nonce = os.urandom(NONCE_BYTES[Aead.XCHACHA20_POLY1305])
    no_wrapped = bytes(MASTER_KEY_BYTES + TAG_BYTES[Aead.XCHACHA20_POLY1305])
    head = KEY_FILE.pack(
        KEY_MAGIC,
        FORMAT_VERSION,
        KDF_ARGON2ID,
        Aead.XCHACHA20_POLY1305,
        cost.ops,
        cost.memory_kib,
        salt,
        nonce,
        no_wrapped,
        bytes(CHECKSUM_BYTES),
    )[:AUTHENTICATED_BYTES]
    wrapping_key = password_key(password, salt, cost)
    wrapped = ENGINE.encrypt(
        Aead.XCHACHA20_POLY1305, wrapping_key, nonce, head + repository_id, master_key
    )
    body = head + wrapped
    return body + checksum(body)


def unwrap_master_key(data: bytes, password: str, repository_id: bytes) -> bytes | None:
    """The master key; None when the password is not the one of this key object.

    Raises IntegrityError for a damaged object, UnsupportedFormatError for a newer one.
    """
    if len(data) != KEY_FILE.size or checksum(data[:-CHECKSUM_BYTES]) != data[-CHECKSUM_BYTES:]:
        raise IntegrityError("the key object is damaged; bring it back from a copy of the repository")
    magic, version, kdf, wrap, ops, memory_kib, salt, nonce, wrapped, _ = KEY_FILE.unpack(data)
    if magic != KEY_MAGIC:
        raise IntegrityError("not a key object")
    if version != FORMAT_VERSION or kdf != KDF_ARGON2ID or wrap != Aead.XCHACHA20_POLY1305:
        raise UnsupportedFormatError(
            f"key object of version {version} (derivation {kdf}, wrapping {wrap}); use a newer vmhaul"
        )
    cost = KdfCost(ops=ops, memory_kib=memory_kib)
    try:
        check_cost(cost)
    except ValueError as error:
        raise IntegrityError(f"the key object asks for too much: {error}") from error
    wrapping_key = password_key(password, salt, cost)
    associated = data[:AUTHENTICATED_BYTES] + repository_id
    try:
        master = ENGINE.decrypt(Aead.XCHACHA20_POLY1305, wrapping_key, nonce, associated, wrapped)
    except IntegrityError:
        return None
    return bytes(master)


def checksum(data: bytes) -> bytes:
    return blake3(data).digest()[:CHECKSUM_BYTES]
