"""Key objects: the keys of a repository, wrapped with a password, a key file or a recovery key.

Version 1 holds the master key alone. Version 2 holds all key epochs up to the one it was made in, and a
private key that boxes of later epochs are sealed to; others can see its kind, label and public key when
they have the key of that epoch, and see by it that the object was not planted.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Final

from blake3 import blake3
from nacl.public import PrivateKey

from pipeline.crypto.aead import ENGINE, NONCE_BYTES, TAG_BYTES, Aead
from pipeline.crypto.kdf import SALT_BYTES, KdfCost, check_cost, password_key
from pipeline.crypto.keyring import FIRST_EPOCH, MASTER_KEY_BYTES, MAX_EPOCH, Keyring
from pipeline.crypto.unlock import KEY_KIND_NAMES, KeyKind, Unlock
from pipeline.errors import IntegrityError, UnsupportedFormatError
from pipeline.repository import layout
from pipeline.repository.format import (
    FORMAT_VERSION,
    KEY_DESCRIPTION,
    KEY_FILE,
    KEY_HEAD,
    KEY_MAGIC,
    KEY_PAYLOAD,
    KEY_VERSION,
)

KDF_ARGON2ID: Final = 1
CHECKSUM_BYTES: Final = 16
AUTHENTICATED_BYTES: Final = (
    60  # magic 8 + version 2 + kdf 1 + wrap 1 + ops 4 + memory 4 + salt 16 + nonce 24
)
MAX_LABEL_BYTES: Final = 63
_WRAP: Final = Aead.XCHACHA20_POLY1305
_TAG_BYTES: Final = TAG_BYTES[_WRAP]
_VERSION_AT: Final = 8
_SMALLEST_BYTES: Final = 12  # magic 8 + version 2 + kind 1 + wrap 1


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyContents:
    """What a key object gives to who can open it."""

    master_key: bytes = field(repr=False)
    private_key: bytes = field(default=b"", repr=False)
    """X25519; empty in version 1."""
    epoch_secrets: dict[int, bytes] = field(default_factory=dict, repr=False)
    """Of the epochs from 2 to the one that the object was made in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyObject:
    """A key object, taken apart as far as it can be without its secret. The checksum is right."""

    key_id: bytes
    version: int
    kind: KeyKind
    cost: KdfCost | None
    """Of the password; None for the other kinds."""
    salt: bytes = field(repr=False)
    nonce: bytes = field(repr=False)
    public_key: bytes = field(default=b"", repr=False)
    epoch: int = FIRST_EPOCH
    """The newest one that it holds itself."""
    description_nonce: bytes = field(default=b"", repr=False)
    head: bytes = field(repr=False)
    wrapped: bytes = field(repr=False)
    description: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """What a key object tells to who has the key of its epoch."""

    created_at_s: int
    label: str


# ---- version 1 --------------------------------------------------------------------------------------


def wrap_master_key(master_key: bytes, password: str, repository_id: bytes, cost: KdfCost) -> bytes:
    """Bytes of a key object of version 1, for a repository without key epochs."""
    check_cost(cost)
    salt = os.urandom(SALT_BYTES)
    nonce = os.urandom(NONCE_BYTES[_WRAP])
    no_wrapped = bytes(MASTER_KEY_BYTES + _TAG_BYTES)
    head = KEY_FILE.pack(
        KEY_MAGIC,
        FORMAT_VERSION,
        KDF_ARGON2ID,
        _WRAP,
        cost.ops,
        cost.memory_kib,
        salt,
        nonce,
        no_wrapped,
        bytes(CHECKSUM_BYTES),
    )[:AUTHENTICATED_BYTES]
    wrapping_key = password_key(password, salt, cost)
    wrapped = ENGINE.encrypt(_WRAP, wrapping_key, nonce, head + repository_id, master_key)
    body = head + wrapped
    return body + checksum(body)


# ---- version 2 --------------------------------------------------------------------------------------


def checked_label(label: str) -> str:
    """Raises ValueError for what cannot be a label of a key."""
    if len(label.encode()) > MAX_LABEL_BYTES or not label.isprintable():
        raise ValueError(
            f"a key's label has at most {MAX_LABEL_BYTES} bytes, without line breaks and other controls"
        )
    return label


def wrap_keyring(
    keyring: Keyring,
    unlock: Unlock,
    key_id: bytes,
    *,
    label: str,
    created_at_s: int,
    cost: KdfCost,
) -> bytes:
    """Bytes of a key object of version 2, to be stored under `key_id`."""
    text = checked_label(label).encode()
    check_cost(cost)
    is_password = unlock.kind is KeyKind.PASSWORD
    private_key = PrivateKey.generate()
    salt = os.urandom(SALT_BYTES)
    nonce, description_nonce = os.urandom(NONCE_BYTES[_WRAP]), os.urandom(NONCE_BYTES[_WRAP])
    head = KEY_HEAD.pack(
        KEY_MAGIC,
        KEY_VERSION,
        unlock.kind,
        _WRAP,
        cost.ops if is_password else 0,
        cost.memory_kib if is_password else 0,
        salt,
        nonce,
        bytes(private_key.public_key),
        description_nonce,
        keyring.epoch,
    )
    payload = KEY_PAYLOAD.pack(keyring.master_key, bytes(private_key)) + b"".join(
        keyring.secret_of(epoch) for epoch in range(FIRST_EPOCH + 1, keyring.epoch + 1)
    )
    associated = head + keyring.repository_id + key_id
    wrapping_key = _wrapping_key(unlock, salt, cost if is_password else None)
    wrapped = bytes(ENGINE.encrypt(_WRAP, wrapping_key, nonce, associated, payload))
    description = ENGINE.encrypt(
        _WRAP,
        keyring.description_key(keyring.epoch),
        description_nonce,
        associated + wrapped,
        KEY_DESCRIPTION.pack(created_at_s, len(text), text),
    )
    body = head + wrapped + bytes(description)
    return body + checksum(body)


def parse_key(key_id: bytes, data: bytes) -> KeyObject:
    """Raises IntegrityError for a damaged object, UnsupportedFormatError for a newer one."""
    if (
        len(data) < _SMALLEST_BYTES + CHECKSUM_BYTES
        or checksum(data[:-CHECKSUM_BYTES]) != data[-CHECKSUM_BYTES:]
    ):
        raise IntegrityError("the key object is damaged; bring it back from a copy of the repository")
    if data[: len(KEY_MAGIC)] != KEY_MAGIC:
        raise IntegrityError("not a key object")
    version = int.from_bytes(data[_VERSION_AT : _VERSION_AT + 2], "little")
    number, wrap = data[_VERSION_AT + 2], data[_VERSION_AT + 3]
    if version not in {FORMAT_VERSION, KEY_VERSION} or wrap != _WRAP or not _is_known(version, number):
        raise UnsupportedFormatError(
            f"key object of version {version} (kind {number}, wrapping {wrap}); use a newer vmhaul"
        )
    found = _parse_first(key_id, data) if version == FORMAT_VERSION else _parse_second(key_id, data)
    if found.cost is not None:
        try:
            check_cost(found.cost)
        except ValueError as error:
            raise IntegrityError(f"the key object asks for too much: {error}") from error
    return found


def open_key(key: KeyObject, unlock: Unlock, repository_id: bytes) -> KeyContents | None:
    """What the object holds; None when `unlock` is not what opens it.

    Raises IntegrityError when its contents are not those of a key object.
    """
    if unlock.kind is not key.kind:
        return None
    associated = key.head + repository_id + (key.key_id if key.version == KEY_VERSION else b"")
    wrapping_key = _wrapping_key(unlock, key.salt, key.cost)
    try:
        payload = bytes(ENGINE.decrypt(_WRAP, wrapping_key, key.nonce, associated, key.wrapped))
    except IntegrityError:
        return None
    if key.version == FORMAT_VERSION:
        return KeyContents(master_key=payload)
    master_key, private_key = KEY_PAYLOAD.unpack_from(payload)
    if bytes(PrivateKey(private_key).public_key) != key.public_key:
        raise IntegrityError("the key object holds another private key than it says")
    secrets = payload[KEY_PAYLOAD.size :]
    return KeyContents(
        master_key=master_key,
        private_key=private_key,
        epoch_secrets={
            epoch: secrets[at : at + MASTER_KEY_BYTES]
            for epoch, at in enumerate(range(0, len(secrets), MASTER_KEY_BYTES), start=FIRST_EPOCH + 1)
        },
    )


def unwrap_master_key(data: bytes, password: str, repository_id: bytes) -> bytes | None:
    """The master key out of a key object of version 1; None when the password is not its own."""
    key = parse_key(bytes(layout.OBJECT_ID_BYTES), data)
    contents = open_key(key, Unlock(kind=KeyKind.PASSWORD, password=password), repository_id)
    return contents.master_key if contents else None


def describe(key: KeyObject, keyring: Keyring) -> Description:
    """Label and age of a key object of version 2. Raises IntegrityError when it was not made by somebody
    who had the data key of its epoch.
    """
    name = layout.key_name(key.key_id)
    associated = key.head + keyring.repository_id + key.key_id + key.wrapped
    try:
        secret = keyring.description_key(key.epoch)
    except KeyError:
        raise IntegrityError(
            f"{name} was made in key epoch {key.epoch}, which is not open here"
        ) from None
    try:
        plain = ENGINE.decrypt(_WRAP, secret, key.description_nonce, associated, key.description)
    except IntegrityError as error:
        raise IntegrityError(f"{name} was planted or belongs to another place: {error}") from error
    created_at_s, length, text = KEY_DESCRIPTION.unpack(plain)
    try:
        return Description(created_at_s=created_at_s, label=text[:length].decode())
    except UnicodeDecodeError as error:
        raise IntegrityError(f"{name} has a label that is no text") from error


def checksum(data: bytes) -> bytes:
    return blake3(data).digest()[:CHECKSUM_BYTES]


def _is_known(version: int, number: int) -> bool:
    """Kinds of version 2; in version 1 the same byte names the derivation."""
    return number in KEY_KIND_NAMES if version == KEY_VERSION else number == KDF_ARGON2ID


def _parse_first(key_id: bytes, data: bytes) -> KeyObject:
    if len(data) != KEY_FILE.size:
        raise IntegrityError("the key object is damaged; bring it back from a copy of the repository")
    *_, ops, memory_kib, salt, nonce, wrapped, _checksum = KEY_FILE.unpack(data)
    return KeyObject(
        key_id=key_id,
        version=FORMAT_VERSION,
        kind=KeyKind.PASSWORD,
        cost=KdfCost(ops=ops, memory_kib=memory_kib),
        salt=salt,
        nonce=nonce,
        head=data[:AUTHENTICATED_BYTES],
        wrapped=wrapped,
    )


def _parse_second(key_id: bytes, data: bytes) -> KeyObject:
    damaged = IntegrityError("the key object is damaged: its header is not one of version 2")
    if len(data) < KEY_HEAD.size:
        raise damaged
    *_, kind, _wrap, ops, memory_kib, salt, nonce, public_key, description_nonce, epoch = (
        KEY_HEAD.unpack_from(data)
    )
    if not FIRST_EPOCH <= epoch <= MAX_EPOCH:
        raise damaged
    wrapped_bytes = KEY_PAYLOAD.size + (epoch - FIRST_EPOCH) * MASTER_KEY_BYTES + _TAG_BYTES
    description_at = KEY_HEAD.size + wrapped_bytes
    if len(data) != description_at + KEY_DESCRIPTION.size + _TAG_BYTES + CHECKSUM_BYTES:
        raise damaged
    if kind != KeyKind.PASSWORD and (ops or memory_kib):
        raise damaged
    return KeyObject(
        key_id=key_id,
        version=KEY_VERSION,
        kind=KeyKind(kind),
        cost=KdfCost(ops=ops, memory_kib=memory_kib) if kind == KeyKind.PASSWORD else None,
        salt=salt,
        nonce=nonce,
        public_key=public_key,
        epoch=epoch,
        description_nonce=description_nonce,
        head=data[: KEY_HEAD.size],
        wrapped=data[KEY_HEAD.size : description_at],
        description=data[description_at:-CHECKSUM_BYTES],
    )


def _wrapping_key(unlock: Unlock, salt: bytes, cost: KdfCost | None) -> bytes:
    if cost is None:
        return unlock.wrapping_key_without_password(salt)
    return password_key(unlock.password, salt, cost)
