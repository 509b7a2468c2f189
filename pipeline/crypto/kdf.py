"""Passwords to keys: Argon2id."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from nacl.exceptions import CryptoError
from nacl.pwhash import argon2id

from pipeline.errors import TransientPipelineError
from transports import system

SALT_BYTES: Final = 16
MAX_OPS: Final = 64
MIN_MEMORY_KIB: Final = 8
MAX_MEMORY_KIB: Final = 1 << 20
_SHARE_OF_MEMORY: Final = 8
_SMALLEST_KIB: Final = (
    16 * 1024
)  # 32 passes then; RFC 9106 has nothing below, OWASP's least is 19 MiB and 2


@dataclass(frozen=True, slots=True, kw_only=True)
class KdfCost:
    """What one guess of a password costs. The default takes about half a second of one core."""

    ops: int = 4
    memory_kib: int = 128 * 1024


def cost_for_memory(memory_bytes: int) -> KdfCost:
    """The default cost, on a machine of so much memory: an eighth of it at most, with more passes instead, so
    that a guess costs about the same.
    """
    cost = KdfCost()
    memory_kib = cost.memory_kib
    while memory_kib * 1024 * _SHARE_OF_MEMORY > memory_bytes and memory_kib > _SMALLEST_KIB:
        memory_kib //= 2
    return KdfCost(ops=cost.ops * (cost.memory_kib // memory_kib), memory_kib=memory_kib)


def cost_of_this_machine() -> KdfCost:
    return cost_for_memory(system.memory_bytes())


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
