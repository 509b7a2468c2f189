from __future__ import annotations

import os
import sys

import pytest

from pipeline.crypto.aead import (
    NONCE_BYTES,
    TAG_BYTES,
    Aead,
    AeadEngine,
    BindingsEngine,
    DirectEngine,
    direct_engine,
    fastest_algorithm,
)
from pipeline.errors import IntegrityError

KEY = bytes(range(32))
PLAIN = b"guest data " * 1000
DIRECT = direct_engine()
assert isinstance(DIRECT, DirectEngine), "this PyNaCl has its usual inside"
ENGINES: list[AeadEngine] = [BindingsEngine(), DIRECT]


@pytest.mark.parametrize("algorithm", Aead)
@pytest.mark.parametrize("writer", ENGINES)
@pytest.mark.parametrize("reader", ENGINES)
def test_both_ways_to_libsodium_agree(algorithm: Aead, writer: AeadEngine, reader: AeadEngine) -> None:
    nonce = os.urandom(NONCE_BYTES[algorithm])
    for plain in (b"", b"x", PLAIN, bytearray(PLAIN), memoryview(PLAIN)[3:77]):
        sealed = writer.encrypt(algorithm, KEY, nonce, b"header", plain)
        assert len(sealed) == len(plain) + TAG_BYTES[algorithm]
        assert reader.decrypt(algorithm, KEY, nonce, b"header", sealed) == plain
        assert reader.decrypt(algorithm, KEY, nonce, b"header", memoryview(sealed)) == plain


@pytest.mark.parametrize("algorithm", Aead)
@pytest.mark.parametrize("engine", ENGINES)
def test_every_change_is_noticed(algorithm: Aead, engine: AeadEngine) -> None:
    nonce = os.urandom(NONCE_BYTES[algorithm])
    sealed = bytes(engine.encrypt(algorithm, KEY, nonce, b"header", b"content"))
    for position in range(len(sealed)):
        changed = bytearray(sealed)
        changed[position] ^= 1
        with pytest.raises(IntegrityError):
            engine.decrypt(algorithm, KEY, nonce, b"header", changed)
    other_nonce = bytes([nonce[0] ^ 1]) + nonce[1:]
    for arguments in (
        (bytes(32), nonce, b"header", sealed),
        (KEY, other_nonce, b"header", sealed),
        (KEY, nonce, b"Header", sealed),
        (KEY, nonce, b"header", sealed[:-1]),
        (KEY, nonce, b"header", sealed[: TAG_BYTES[algorithm] - 1]),
        (KEY, nonce, b"header", b""),
    ):
        with pytest.raises(IntegrityError):
            engine.decrypt(algorithm, *arguments)


@pytest.mark.parametrize("algorithm", Aead)
def test_wrong_sizes_never_reach_libsodium(algorithm: Aead) -> None:
    nonce = bytes(NONCE_BYTES[algorithm])
    for key, bad_nonce in ((KEY[:-1], nonce), (KEY, nonce[:-1])):
        with pytest.raises(ValueError, match="size"):
            DIRECT.encrypt(algorithm, key, bad_nonce, b"", b"x")
        with pytest.raises(ValueError, match="size"):
            DIRECT.decrypt(algorithm, key, bad_nonce, b"", bytes(64))


def test_known_answer_of_xchacha20_poly1305() -> None:
    """Appendix A.3.1 of draft-irtf-cfrg-xchacha."""
    plain = (
        b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the future, "
        b"sunscreen would be it."
    )
    sealed = DIRECT.encrypt(
        Aead.XCHACHA20_POLY1305,
        bytes(range(0x80, 0xA0)),
        bytes(range(0x40, 0x58)),
        bytes.fromhex("50515253c0c1c2c3c4c5c6c7"),
        plain,
    )
    assert bytes(sealed[-16:]).hex() == "c0875924c1c7987947deafd8780acf49"


def test_a_pynacl_without_its_usual_inside_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nacl._sodium", None)
    assert direct_engine() is None


def test_the_fastest_algorithm_is_one_of_the_format() -> None:
    assert fastest_algorithm() in set(Aead)
