"""Passwords to keys: Argon2id."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from nacl.exceptions import CryptoError
from nacl.pwhash import argon2id

from pipeline.errors import TransientPipelineError

SALT_BYTES: Final = 16
MAX_OPS: Final = 64
MIN_MEMORY_KIB: Final = 8
MAX_MEMORY_KIB: Final = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class KdfCost:
    """What one guess of a password costs. The default takes about half a second of one core."""

    ops: int = 4
    memory_kib: int = 128 * 1024


def password_key(password: str, salt: bytes, cost: KdfCost) -> bytes:
    try:
        return argon2id.kdf(
            32, password.encode(), salt, opslimit=cost.ops, memlimit=cost.memory_kib * 1024
        )
    except (CryptoError, MemoryError) as error:
        raise TransientPipelineError(
            f"deriving the key needs {cost.memory_kib} KiB of memory, which this machine did not give; "
            "free memory and try again"
        ) from error


def check_cost(cost: KdfCost) -> None:
    """Raises ValueError outside of the format's bounds."""
    if not (1 <= cost.ops <= MAX_OPS and MIN_MEMORY_KIB <= cost.memory_kib <= MAX_MEMORY_KIB):
        raise ValueError(
            f"{cost.ops} passes over {cost.memory_kib} KiB are outside of the format's bounds"
        )
