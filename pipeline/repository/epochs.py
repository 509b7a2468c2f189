"""Key epochs from 2 on: `epochs/<number>` holds the epoch's secret once for each key object, in a sealed box.

Two things hold an epoch in its place. The signature says that somebody with the master key made it. The
proof says that whoever made it knew the secret of the epoch before as well as its own, so that somebody
whose key was revoked, who knows the master key for ever, makes no epoch and adds nobody to one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from blake3 import blake3
from nacl.exceptions import CryptoError
from nacl.public import PrivateKey, PublicKey, SealedBox

from pipeline.crypto.keyring import (
    CONTEXT_EPOCH_PROOF,
    FIRST_EPOCH,
    MASTER_KEY_BYTES,
    Keyring,
    derive,
    verify_signature,
)
from pipeline.errors import (
    IntegrityError,
    NewerEpochError,
    ObjectNotFoundError,
    UnsupportedFormatError,
)
from pipeline.repository import layout
from pipeline.repository.format import EPOCH_BOX, EPOCH_HEAD, EPOCH_MAGIC, FORMAT_VERSION
from pipeline.storage.base import Storage

SIGNATURE_BYTES: Final = 64
PROOF_BYTES: Final = 32
SIGNED_BYTES: Final = EPOCH_HEAD.size - SIGNATURE_BYTES
PROVEN_BYTES: Final = SIGNED_BYTES - PROOF_BYTES
_SIGNATURE_WORDS: Final = b"vmhaul key epoch v1\0"


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipient:
    """A key object that an epoch is given to."""

    key_id: bytes
    public_key: bytes
    """X25519."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Epoch:
    """An epoch object whose signature is right."""

    number: int
    created_at_s: int
    proof: bytes
    boxes: Mapping[bytes, tuple[bytes, bytes]] = field(repr=False)
    """Public key and sealed box for each key id."""
    proven: bytes = field(repr=False)
    """What the proof is over."""

    def is_given_to(self, recipient: Recipient) -> bool:
        box = self.boxes.get(recipient.key_id)
        return box is not None and box[0] == recipient.public_key


def format_epoch(
    keyring: Keyring, number: int, secret: bytes, created_at_s: int, recipients: Sequence[Recipient]
) -> bytes:
    """Bytes of the epoch object that follows on the newest one of `keyring`."""
    boxes = b"".join(
        EPOCH_BOX.pack(recipient.key_id, recipient.public_key, _sealed_to(recipient, secret))
        for recipient in recipients
    )
    head = EPOCH_HEAD.pack(
        EPOCH_MAGIC,
        FORMAT_VERSION,
        0,
        number,
        len(recipients),
        created_at_s,
        bytes(PROOF_BYTES),
        bytes(SIGNATURE_BYTES),
    )
    proof = _proof(keyring, keyring.secret_of(number - 1), secret, head[:PROVEN_BYTES] + boxes)
    signed = head[:PROVEN_BYTES] + proof
    return signed + keyring.sign(_signed_message(keyring, signed, boxes)) + boxes


def parse_epoch(keyring: Keyring, number: int, data: bytes) -> Epoch:
    """Raises IntegrityError for what was damaged, replaced or not made with the master key, and
    UnsupportedFormatError for a newer one.
    """
    what = layout.epoch_name(number)
    if len(data) < EPOCH_HEAD.size:
        raise IntegrityError(f"{what} is truncated: {len(data)} bytes; bring it back from a copy")
    magic, version, reserved, its_number, count, created_at_s, proof, signature = (
        EPOCH_HEAD.unpack_from(data)
    )
    if magic != EPOCH_MAGIC:
        raise IntegrityError(f"{what} is damaged: it does not begin as a key epoch")
    if version > FORMAT_VERSION:
        raise UnsupportedFormatError(f"{what} is a key epoch of version {version}; use a newer vmhaul")
    boxes = data[EPOCH_HEAD.size :]
    if version != FORMAT_VERSION or reserved or len(boxes) != count * EPOCH_BOX.size:
        raise IntegrityError(f"{what} is damaged: its header is not one of a key epoch")
    try:
        verify_signature(
            keyring.public_key, _signed_message(keyring, data[:SIGNED_BYTES], boxes), signature
        )
    except IntegrityError as error:
        raise IntegrityError(
            f"{what} is damaged, or was not made by this repository: {error}; bring it back from a copy"
        ) from error
    if its_number != number:
        raise IntegrityError(
            f"{what} is epoch {its_number} under another name; bring it back from a copy"
        )
    return Epoch(
        number=number,
        created_at_s=created_at_s,
        proof=proof,
        boxes={key_id: (public_key, box) for key_id, public_key, box in EPOCH_BOX.iter_unpack(boxes)},
        proven=data[:PROVEN_BYTES] + boxes,
    )


def opened_secret(epoch: Epoch, key_id: bytes, private_key: bytes) -> bytes | None:
    """The epoch's secret by the box for a key object; None when there is none for it.

    Raises IntegrityError. The secret means nothing before verify_proof().
    """
    own = PrivateKey(private_key)
    public_key, box = epoch.boxes.get(key_id, (b"", b""))
    if public_key != bytes(own.public_key):
        return None
    try:
        secret = SealedBox(own).decrypt(box)
    except CryptoError as error:
        raise IntegrityError(
            f"{layout.epoch_name(epoch.number)} has a box for {layout.key_name(key_id)} that its key does "
            "not open; bring it back from a copy"
        ) from error
    if len(secret) != MASTER_KEY_BYTES:
        raise IntegrityError(f"{layout.epoch_name(epoch.number)} holds a secret of a wrong size")
    return secret


def verify_proof(keyring: Keyring, epoch: Epoch, secret: bytes) -> None:
    """Raises IntegrityError unless the maker knew this epoch's secret and the one before."""
    expected = _proof(keyring, keyring.secret_of(epoch.number - 1), secret, epoch.proven)
    if expected != epoch.proof:
        raise IntegrityError(
            f"{layout.epoch_name(epoch.number)} was planted: who made it did not have the data key before it; "
            "bring the right one back from a copy, and look who writes to this storage"
        )


def epoch_numbers(storage: Storage) -> list[int]:
    """Numbers of all epoch objects, ascending. Raises IntegrityError for a gap. What has another name than
    an epoch is none: an editor's copy, say.
    """
    found = (layout.epoch_of(entry.name) for entry in storage.list(layout.EPOCHS))
    numbers = sorted(number for number in found if number is not None and number > FIRST_EPOCH)
    for expected, number in enumerate(numbers, start=FIRST_EPOCH + 1):
        if number != expected:
            raise IntegrityError(
                f"{layout.epoch_name(expected)} is missing from {storage.location}; bring it back from a copy"
            )
    return numbers


def read_epoch(storage: Storage, keyring: Keyring, number: int) -> Epoch:
    return parse_epoch(keyring, number, storage.read(layout.epoch_name(number)))


def refuse_newer_epochs(storage: Storage, keyring: Keyring) -> None:
    """For who deletes what cannot be read: with the keys of an earlier epoch, what is newer looks damaged.
    Raises NewerEpochError.
    """
    for entry in storage.list(layout.EPOCHS):
        number = layout.epoch_of(entry.name)
        if number is None or number <= keyring.epoch:
            continue
        try:
            read_epoch(storage, keyring, number)
        except (IntegrityError, ObjectNotFoundError):
            continue  # damaged or planted: no data key has ever come from it
        raise NewerEpochError(
            f"{storage.location} is at key epoch {number} and was opened at epoch {keyring.epoch}: its data "
            "key was changed meanwhile; open it again"
        )


def epoch_problems(storage: Storage, keyring: Keyring) -> tuple[str, ...]:
    """What is wrong with the epochs of a repository, for a check: one sentence each."""
    try:
        numbers = epoch_numbers(storage)
    except IntegrityError as error:
        return (str(error),)
    problems = [
        f"{layout.epoch_name(number)} is missing; bring it back from a copy"
        for number in range(max(numbers, default=FIRST_EPOCH) + 1, keyring.epoch + 1)
    ]
    for number in numbers:
        try:
            epoch = read_epoch(storage, keyring, number)
            if number <= keyring.epoch:
                verify_proof(keyring, epoch, keyring.secret_of(number))
        except (IntegrityError, UnsupportedFormatError) as error:
            problems.append(str(error))
    return tuple(problems)


def _sealed_to(recipient: Recipient, secret: bytes) -> bytes:
    try:
        return SealedBox(PublicKey(recipient.public_key)).encrypt(secret)
    except CryptoError as error:  # a point that nothing can be sealed to
        raise IntegrityError(
            f"{layout.key_name(recipient.key_id)} has a public key that is none; revoke it"
        ) from error


def _proof(keyring: Keyring, before: bytes, secret: bytes, proven: bytes) -> bytes:
    key = derive(before + secret, CONTEXT_EPOCH_PROOF)
    return blake3(keyring.repository_id + proven, key=key).digest()


def _signed_message(keyring: Keyring, signed: bytes, boxes: bytes) -> bytes:
    return _SIGNATURE_WORDS + keyring.repository_id + signed + boxes
