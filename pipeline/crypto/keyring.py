"""The master key of a repository and what comes from it."""

from __future__ import annotations

import os
from typing import Final

from blake3 import blake3
from nacl.exceptions import BadSignatureError
from nacl.signing import SigningKey, VerifyKey

from pipeline.errors import IntegrityError

MASTER_KEY_BYTES: Final = 32
CONTEXT_BLOCK_ID: Final = "vmhaul repository v1: id of a data block"
CONTEXT_NODE_ID: Final = "vmhaul repository v1: id of a map node"
CONTEXT_ENCRYPTION: Final = "vmhaul repository v1: encryption, epoch 1"
CONTEXT_CONFIGURATION: Final = "vmhaul repository v1: configuration"
CONTEXT_SIGNING: Final = "vmhaul repository v1: signing"


class Keyring:
    """Every key of one repository. Prints as ***."""

    __slots__ = (
        "_configuration_key",
        "_signing_key",
        "block_id_key",
        "encryption_key",
        "master_key",
        "node_id_key",
        "repository_id",
    )

    def __init__(self, master_key: bytes, repository_id: bytes) -> None:
        """`repository_id` as 16 bytes: it goes into everything that is authenticated."""
        if len(master_key) != MASTER_KEY_BYTES or len(repository_id) != 16:  # noqa: PLR2004 - a UUID
            raise ValueError("a master key has 32 bytes, a repository id 16")
        self.master_key = master_key
        self.repository_id = repository_id
        self.block_id_key = derive(master_key, CONTEXT_BLOCK_ID)
        self.node_id_key = derive(master_key, CONTEXT_NODE_ID)
        self.encryption_key = derive(master_key, CONTEXT_ENCRYPTION)
        self._configuration_key = derive(master_key, CONTEXT_CONFIGURATION)
        self._signing_key = SigningKey(derive(master_key, CONTEXT_SIGNING))

    def __repr__(self) -> str:
        return "Keyring(***)"

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
