"""Authenticated encryption by libsodium.

PyNaCl's public bindings copy each message twice while they hold the interpreter's lock: measured on
512 KiB, AEGIS-256 runs at 1.2 GB/s through them and at 10 GB/s when libsodium writes into our own buffer.
So libsodium is called through the cffi module that PyNaCl carries; where a PyNaCl has no such module,
the public bindings do the same, slower. Tests run both.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import Any, Final, Protocol

import nacl.bindings
import nacl.exceptions

from pipeline.errors import IntegrityError

Buffer = bytes | bytearray | memoryview


class Aead(IntEnum):
    """Numbers of the format."""

    XCHACHA20_POLY1305 = 1
    AEGIS_256 = 2


AEAD_NAMES: Final = {Aead.XCHACHA20_POLY1305: "xchacha20-poly1305", Aead.AEGIS_256: "aegis-256"}
NONCE_BYTES: Final = {Aead.XCHACHA20_POLY1305: 24, Aead.AEGIS_256: 32}
TAG_BYTES: Final = {Aead.XCHACHA20_POLY1305: 16, Aead.AEGIS_256: 32}
KEY_BYTES: Final = 32


class AeadEngine(Protocol):
    """One way to libsodium. Keys and nonces have the sizes that the algorithm says."""

    def encrypt(
        self, algorithm: Aead, key: bytes, nonce: bytes, associated: bytes, plain: Buffer
    ) -> Buffer:
        """Ciphertext and tag. MUST NOT keep or change `plain`."""

    def decrypt(
        self, algorithm: Aead, key: bytes, nonce: bytes, associated: bytes, sealed: Buffer
    ) -> Buffer:
        """The plain text. MUST raise IntegrityError when anything was changed."""

    def decrypt_into(
        self,
        algorithm: Aead,
        key: bytes,
        nonce: bytes,
        associated: bytes,
        sealed: Buffer,
        out: bytearray | memoryview,
    ) -> int:
        """As decrypt(), into the beginning of `out`, which MUST have room; returns the length."""


def _damaged() -> IntegrityError:
    return IntegrityError(
        "authentication failed: the bytes were changed, or belong to another place or key"
    )


class BindingsEngine:
    """Through nacl.bindings, the public interface of PyNaCl."""

    _functions: Final[dict[Aead, tuple[Callable[..., bytes], Callable[..., bytes]]]] = {
        Aead.XCHACHA20_POLY1305: (
            nacl.bindings.crypto_aead_xchacha20poly1305_ietf_encrypt,
            nacl.bindings.crypto_aead_xchacha20poly1305_ietf_decrypt,
        ),
        Aead.AEGIS_256: (
            nacl.bindings.crypto_aead_aegis256_encrypt,
            nacl.bindings.crypto_aead_aegis256_decrypt,
        ),
    }

    def encrypt(
        self, algorithm: Aead, key: bytes, nonce: bytes, associated: bytes, plain: Buffer
    ) -> Buffer:
        return self._functions[algorithm][0](bytes(plain), associated, nonce, key)

    def decrypt(
        self, algorithm: Aead, key: bytes, nonce: bytes, associated: bytes, sealed: Buffer
    ) -> Buffer:
        if len(sealed) < TAG_BYTES[algorithm]:
            raise _damaged()
        try:
            return self._functions[algorithm][1](bytes(sealed), associated, nonce, key)
        except nacl.exceptions.CryptoError as error:
            raise _damaged() from error

    def decrypt_into(
        self,
        algorithm: Aead,
        key: bytes,
        nonce: bytes,
        associated: bytes,
        sealed: Buffer,
        out: bytearray | memoryview,
    ) -> int:
        plain = self.decrypt(algorithm, key, nonce, associated, sealed)
        check_room(out, len(plain))
        out[: len(plain)] = plain
        return len(plain)


class DirectEngine:
    """Through the cffi module inside PyNaCl, into buffers of our own."""

    def __init__(self, ffi: Any, lib: Any) -> None:
        self._ffi = ffi
        self._functions = {
            Aead.XCHACHA20_POLY1305: (
                lib.crypto_aead_xchacha20poly1305_ietf_encrypt,
                lib.crypto_aead_xchacha20poly1305_ietf_decrypt,
            ),
            Aead.AEGIS_256: (lib.crypto_aead_aegis256_encrypt, lib.crypto_aead_aegis256_decrypt),
        }

    def encrypt(
        self, algorithm: Aead, key: bytes, nonce: bytes, associated: bytes, plain: Buffer
    ) -> Buffer:
        ffi = self._ffi
        check_sizes(algorithm, key, nonce)
        sealed = bytearray(len(plain) + TAG_BYTES[algorithm])
        length = ffi.new("unsigned long long *")
        failed = self._functions[algorithm][0](
            ffi.from_buffer("unsigned char[]", sealed),
            length,
            ffi.from_buffer("unsigned char[]", plain),
            len(plain),
            associated,
            len(associated),
            ffi.NULL,
            nonce,
            key,
        )
        if failed or length[0] != len(sealed):
            raise RuntimeError("libsodium refused to encrypt")
        return sealed

    def decrypt(
        self, algorithm: Aead, key: bytes, nonce: bytes, associated: bytes, sealed: Buffer
    ) -> Buffer:
        plain = bytearray(max(0, len(sealed) - TAG_BYTES[algorithm]))
        self.decrypt_into(algorithm, key, nonce, associated, sealed, plain)
        return plain

    def decrypt_into(
        self,
        algorithm: Aead,
        key: bytes,
        nonce: bytes,
        associated: bytes,
        sealed: Buffer,
        out: bytearray | memoryview,
    ) -> int:
        ffi = self._ffi
        check_sizes(algorithm, key, nonce)
        expected = len(sealed) - TAG_BYTES[algorithm]
        if expected < 0:
            raise _damaged()
        check_room(out, expected)
        length = ffi.new("unsigned long long *")
        failed = self._functions[algorithm][1](
            ffi.from_buffer("unsigned char[]", out),
            length,
            ffi.NULL,
            ffi.from_buffer("unsigned char[]", sealed),
            len(sealed),
            associated,
            len(associated),
            nonce,
            key,
        )
        if failed or length[0] != expected:
            raise _damaged()
        return expected


def check_sizes(algorithm: Aead, key: bytes, nonce: bytes) -> None:
    """libsodium trusts its caller with the sizes. Raises ValueError."""
    if len(key) != KEY_BYTES or len(nonce) != NONCE_BYTES[algorithm]:
        raise ValueError(f"key or nonce of a wrong size for {AEAD_NAMES[algorithm]}")


def check_room(out: bytearray | memoryview, length: int) -> None:
    """Raises ValueError."""
    if len(out) < length:
        raise ValueError(f"a buffer of {len(out)} bytes for {length}")


def direct_engine() -> DirectEngine | None:
    """None where this PyNaCl is built otherwise."""
    try:
        import nacl._sodium as sodium  # type: ignore[import-not-found]
    except ImportError:
        return None
    try:
        return DirectEngine(sodium.ffi, sodium.lib)
    except AttributeError:
        return None


ENGINE: Final[AeadEngine] = direct_engine() or BindingsEngine()


def fastest_algorithm() -> Aead:
    """What a new repository uses: AEGIS-256 where the CPU has AES instructions.

    libsodium has no portable question for that, but refuses AES-256-GCM on CPUs without them.
    """
    try:
        nacl.bindings.crypto_aead_aes256gcm_encrypt(b"", None, bytes(12), bytes(32))
    except nacl.exceptions.CryptoError:
        return Aead.XCHACHA20_POLY1305
    return Aead.AEGIS_256
