"""The proxy's own key pairs: one to sign with, one that secrets are sealed to."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from nacl.public import PrivateKey
from nacl.signing import SigningKey

from proxy_worker.errors import SetupError
from proxy_worker.private_files import write_private
from transports import system

KEY_BYTES: Final = 32  # seeds of Ed25519 and X25519 alike


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    signing: SigningKey = field(repr=False)
    sealing: PrivateKey = field(repr=False)

    @property
    def signing_public(self) -> str:
        """Ed25519 verify key, hexadecimal."""
        return bytes(self.signing.verify_key).hex()

    @property
    def sealing_public(self) -> str:
        """X25519 public key, hexadecimal."""
        return bytes(self.sealing.public_key).hex()


def load_or_create_identity(data_dir: Path) -> Identity:
    """The keys in `signing.key` and `sealing.key`, made at the first start (mode 0600)."""
    return Identity(
        signing=SigningKey(_load_or_create(data_dir / "signing.key", bytes(SigningKey.generate()))),
        sealing=PrivateKey(_load_or_create(data_dir / "sealing.key", bytes(PrivateKey.generate()))),
    )


def _load_or_create(path: Path, fresh: bytes) -> bytes:
    if not path.exists():
        write_private(path, fresh)
        return fresh
    if shows := system.others_may_read(path):
        raise SetupError(
            f"the key file {path} has {shows}, so others may have read it; remove both key "
            "files and enrol this proxy again"
        )
    key = path.read_bytes()
    if len(key) != KEY_BYTES:
        raise SetupError(f"the key file {path} is damaged; remove it and enrol this proxy again")
    return key
