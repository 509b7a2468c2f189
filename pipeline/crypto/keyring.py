"""The master key of a repository and what comes from it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from blake3 import blake3
from nacl.exceptions import BadSignatureError
from nacl.signing import SigningKey, VerifyKey

from pipeline.errors import IntegrityError, NewerEpochError

MASTER_KEY_BYTES: Final = 32
FIRST_EPOCH: Final = 1
_NO_EPOCHS: Final[Mapping[int, bytes]] = MappingProxyType({})
CONTEXT_BLOCK_ID: Final = "vmhaul repository v1: id of a data block"
CONTEXT_NODE_ID: Final = "vmhaul repository v1: id of a map node"
CONTEXT_ENCRYPTION: Final = "vmhaul repository v1: encryption, epoch 1"
CONTEXT_EPOCH: Final = "vmhaul repository v1: encryption, later epochs"
CONTEXT_CONFIGURATION: Final = "vmhaul repository v1: configuration"
CONTEXT_SIGNING: Final = "vmhaul repository v1: signing"
CONTEXT_KEY_FILE: Final = "vmhaul repository v1: wrapping by a key file"
CONTEXT_RECOVERY_KEY: Final = "vmhaul repository v1: wrapping by a recovery key"
CONTEXT_DESCRIPTION: Final = "vmhaul repository v1: description of a key"
CONTEXT_EPOCH_PROOF: Final = "vmhaul repository v1: proof of a key epoch"
MAX_EPOCH: Final = 4096
"""Bounds what a key object can hold; a rotation a day lasts eleven years."""


class Keyring:
    """Every key of one repository. Prints as ***.

    Data is encrypted with the key of an epoch. The one of epoch 1 comes from the master key, later ones
    are random secrets of their own; new data takes the newest.
    """

    __slots__ = (
        "_configuration_key",
        "_encryption_keys",
        "_epoch_secrets",
        "_signing_key",
        "block_id_key",
        "epoch",
        "master_key",
        "node_id_key",
        "repository_id",
    )

    def __init__(
        self, master_key: bytes, repository_id: bytes, epoch_secrets: Mapping[int, bytes] = _NO_EPOCHS
    ) -> None:
        """`repository_id` as 16 bytes: it goes into everything that is authenticated. `epoch_secrets`:
        32 bytes for each epoch from 2 on.
        """
        if any(
            epoch <= FIRST_EPOCH or len(s) != MASTER_KEY_BYTES for epoch, s in epoch_secrets.items()
        ):
            raise ValueError("secrets of key epochs have 32 bytes, and epoch 1 has none of its own")
        if len(master_key) != MASTER_KEY_BYTES or len(repository_id) != 16:  # noqa: PLR2004 - a UUID
            raise ValueError("a master key has 32 bytes, a repository id 16")
        self.master_key = master_key
        self.repository_id = repository_id
        self.block_id_key = derive(master_key, CONTEXT_BLOCK_ID)
        self.node_id_key = derive(master_key, CONTEXT_NODE_ID)
        self._epoch_secrets = dict(epoch_secrets)
        self._encryption_keys = {FIRST_EPOCH: derive(master_key, CONTEXT_ENCRYPTION)}
        for epoch, secret in epoch_secrets.items():
            self._encryption_keys[epoch] = derive(secret, CONTEXT_EPOCH)
        self.epoch: Final = max(self._encryption_keys)
        """Of new data."""
        self._configuration_key = derive(master_key, CONTEXT_CONFIGURATION)
        self._signing_key = SigningKey(derive(master_key, CONTEXT_SIGNING))

    def __repr__(self) -> str:
        return "Keyring(***)"

    @property
    def epoch_secrets(self) -> Mapping[int, bytes]:
        return self._epoch_secrets

    def encryption_key_of(self, epoch: int, what: str) -> bytes:
        """Raises IntegrityError naming `what` for an epoch whose key is not here; NewerEpochError where
        that is later than all that are.
        """
        key = self._encryption_keys.get(epoch)
        if key is None:
            kind = NewerEpochError if epoch > self.epoch else IntegrityError
            raise kind(
                f"{what} has key epoch {epoch}, which this key does not open: damaged, or written after "
                "the data key was changed; open the repository again"
            )
        return key

    def secret_of(self, epoch: int) -> bytes:
        """What the keys of an epoch come from: the master key for epoch 1. Raises KeyError."""
        return self.master_key if epoch == FIRST_EPOCH else self._epoch_secrets[epoch]

    def with_epoch(self, epoch: int, secret: bytes) -> Keyring:
        """This keyring and one more epoch."""
        return Keyring(self.master_key, self.repository_id, {**self._epoch_secrets, epoch: secret})

    def description_key(self, epoch: int) -> bytes:
        """Seals descriptions of key objects that were made in that epoch. Raises KeyError."""
        return derive(self.secret_of(epoch), CONTEXT_DESCRIPTION)

    def material(self) -> str:
        """Everything needed to make this keyring again, as text: a secret."""
        secrets = (f",{epoch}={secret.hex()}" for epoch, secret in sorted(self._epoch_secrets.items()))
        return self.master_key.hex() + "".join(secrets)

    @classmethod
    def from_material(cls, material: str, repository_id: bytes) -> Keyring:
        """Inverse of material(). Raises ValueError, which does not repeat the text."""
        master, *epochs = material.split(",")
        try:
            pairs = (text.split("=") for text in epochs)
            secrets = {int(epoch): bytes.fromhex(secret) for epoch, secret in pairs}
            return cls(bytes.fromhex(master), repository_id, secrets)
        except ValueError:
            raise ValueError("not the key of a repository") from None

    @property
    def public_key(self) -> bytes:
        """Ed25519 key that verifies restore points."""
        return bytes(self._signing_key.verify_key)

    def sign(self, message: bytes) -> bytes:
        return self._signing_key.sign(message).signature

    def configuration_mac(self, text: bytes) -> bytes:
        return blake3(text, key=self._configuration_key).digest()


def verify_signature(public_key: bytes, message: bytes, signature: bytes) -> None:
    """Raises IntegrityError."""
    try:
        VerifyKey(public_key).verify(message, signature)
    except BadSignatureError as error:
        raise IntegrityError("the signature is not the repository's") from error


def derive(master_key: bytes, context: str) -> bytes:
    return blake3(master_key, derive_key_context=context).digest()


def new_master_key() -> bytes:
    return os.urandom(MASTER_KEY_BYTES)
