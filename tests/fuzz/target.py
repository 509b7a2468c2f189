"""A target: a parser, the errors it may raise, and inputs to begin with.

Where a parser stands behind authentication, the target seals the input with a key it knows: what is
proved there is that even who has the key cannot make a reader fall over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nacl.public import PrivateKey
from nacl.signing import SigningKey

from pipeline.crypto.aead import Aead
from pipeline.crypto.keyring import Keyring
from pipeline.errors import IntegrityError, PermanentPipelineError
from pipeline.repository.format import (
    SealedKind,
)
from pipeline.repository.sealed import seal, unseal
from pipeline.testing.storage import MemoryStorage

SEEDS: Final = Path(__file__).parent / "seeds"
KEYRING: Final = Keyring(bytes(range(32)), bytes(range(16)), {2: bytes(32)})
ALGORITHM: Final = Aead.XCHACHA20_POLY1305
POINT_ID: Final = "6f1c2b44-0000-4000-8000-000000000001"
SIGNER: Final = SigningKey(bytes(range(32)))
BOX_KEY: Final = PrivateKey(bytes(range(32)))
PACK_ID: Final = bytes(16)
BLOCK: Final = b"block " * 100
NOW_S: Final = 1_700_000_000.0
MOST_BLOCKS: Final = 4096

Body = Callable[[bytes], object]
Errors = tuple[type[BaseException], ...]
ALLOWED_BY_READERS: Final = (IntegrityError, PermanentPipelineError)


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    name: str
    body: Body
    allowed: Errors
    made_seeds: tuple[bytes, ...]

    def run(self, data: bytes) -> None:
        """Raises what the parser must not raise."""
        try:
            self.body(data)
        except self.allowed:
            return

    def seeds(self) -> list[bytes]:
        kept = sorted((SEEDS / self.name).glob("*")) if (SEEDS / self.name).is_dir() else []
        return [*self.made_seeds, *(path.read_bytes() for path in kept)]


TARGETS: Final[dict[str, Target]] = {}


def target(allowed: Errors, seeds: Iterable[bytes] = ()) -> Callable[[Body], Body]:
    def register(body: Body) -> Body:
        name = body.__name__
        TARGETS[name] = Target(name=name, body=body, allowed=allowed, made_seeds=tuple(seeds))
        return body

    return register


def exactly(data: bytes, length: int) -> bytes:
    return data[:length].ljust(length, b"\0")


def sealed_in(kind: SealedKind, name: str, payload: bytes) -> MemoryStorage:
    storage = MemoryStorage()
    storage.put(name, seal(KEYRING, ALGORITHM, kind, name, payload))
    return storage


def payload_of(kind: SealedKind, name: str, data: bytes) -> bytes:
    return unseal(KEYRING, kind, name, data)
