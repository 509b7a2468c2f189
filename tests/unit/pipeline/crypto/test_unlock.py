"""Text forms of key files and recovery keys."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.crypto.kdf import KdfCost, cost_for_memory
from pipeline.crypto.unlock import (
    _ALPHABET,
    KeyKind,
    Unlock,
    by_password,
    key_file_secret,
    key_file_text,
    looks_like_a_key,
    new_key_file,
    new_recovery_key,
    recovery_key_secret,
    recovery_key_text,
    unlock_from_text,
)

secrets = st.binary(min_size=32, max_size=32)


def recovery(secret: bytes) -> str:
    return recovery_key_text(Unlock(kind=KeyKind.RECOVERY, secret=secret))


@given(secrets)
def test_a_recovery_key_comes_back_however_it_is_typed(secret: bytes) -> None:
    text = recovery(secret)
    assert [len(group) for group in text.split("-")] == [5] * 13
    sloppy = text.lower().replace("-", " ").replace("0", "o").replace("1", "l")
    assert recovery_key_secret(text) == recovery_key_secret(sloppy) == secret
    assert recovery_key_secret(f" {text.replace('-', '')}\n") == secret


def test_known_recovery_keys() -> None:
    assert recovery(bytes(32)).startswith("00001-00002-00003")
    assert recovery(b"\xff" * 32)[-5:-1] == "ZZZG", "four spare bits are zero"


@given(secrets, st.integers(0, 64), st.integers(1, 31))
def test_every_wrong_character_is_found_in_its_group(secret: bytes, at: int, step: int) -> None:
    plain = recovery(secret).replace("-", "")
    wrong = _ALPHABET[(_ALPHABET.index(plain[at]) + step) % 32]
    with pytest.raises(ValueError, match=f"group {at // 5 + 1} "):
        recovery_key_secret(plain[:at] + wrong + plain[at + 1 :])


@given(secrets, st.integers(0, 63))
def test_swapped_neighbours_are_found(secret: bytes, at: int) -> None:
    plain = recovery(secret).replace("-", "")
    swapped = plain[:at] + plain[at + 1] + plain[at] + plain[at + 2 :]
    if swapped == plain:
        return
    with pytest.raises(ValueError, match="mistyped"):
        recovery_key_secret(swapped)


@given(secrets, st.integers(0, 12), st.integers(0, 12))
def test_swapped_groups_are_found(secret: bytes, one: int, other: int) -> None:
    groups = recovery(secret).split("-")
    groups[one], groups[other] = groups[other], groups[one]
    if one != other:
        with pytest.raises(ValueError, match="mistyped"):
            recovery_key_secret("-".join(groups))


@pytest.mark.parametrize("text", ["", "00001", recovery(bytes(32)) + "0", "U" * 65])
def test_what_is_no_recovery_key_is_refused_without_repeating_it(text: str) -> None:
    with pytest.raises(ValueError, match=r"recovery key") as caught:
        recovery_key_secret(text)
    assert not text or text not in str(caught.value)


def test_a_key_file_comes_back_and_is_checked() -> None:
    unlock = new_key_file()
    text = key_file_text(unlock, "6a2d")
    assert key_file_secret(text) == unlock.secret
    assert key_file_secret(text.replace("\n", "\r\n")) == unlock.secret
    digits = text.split()[-2]
    other = ("0" if digits[0] != "0" else "1") + digits[1:]
    with pytest.raises(ValueError, match="damaged"):
        key_file_secret(text.replace(digits, other))
    for wrong in ("", "# vmhaul key file\n", text + text, text.replace(digits, digits[:-2])):
        with pytest.raises(ValueError, match="not a vmhaul key file"):
            key_file_secret(wrong)


def test_a_text_tells_what_it_is() -> None:
    file, recovery_key = new_key_file(), new_recovery_key()
    assert unlock_from_text(key_file_text(file, "id")) == file
    assert unlock_from_text(recovery_key_text(recovery_key).lower()) == recovery_key
    assert unlock_from_text("correct horse") == by_password("correct horse")
    assert looks_like_a_key(recovery_key_text(recovery_key))
    assert looks_like_a_key("vmhaul-key-1 broken")
    assert not looks_like_a_key("correct horse")
    with pytest.raises(ValueError, match="not a vmhaul key file"):
        unlock_from_text("vmhaul-key-1 broken")


def test_no_secret_is_printed() -> None:
    secret = random.Random(1).randbytes(32)
    for unlock in (by_password("hunter2"), Unlock(kind=KeyKind.RECOVERY, secret=secret)):
        assert "hunter2" not in repr(unlock)
        assert repr(secret) not in repr(unlock)


def test_a_password_has_no_bytes_of_its_own() -> None:
    with pytest.raises(ValueError, match="has no 32 bytes"):
        by_password("x").wrapping_key_without_password(bytes(16))


@pytest.mark.parametrize(
    ("memory_mib", "cost"),
    [
        (64 << 10, KdfCost()),
        (1024, KdfCost()),
        (512, KdfCost(ops=8, memory_kib=64 * 1024)),
        (100, KdfCost(ops=32, memory_kib=16 * 1024)),
    ],
)
def test_small_machines_take_less_memory_and_more_passes(memory_mib: int, cost: KdfCost) -> None:
    assert cost_for_memory(memory_mib << 20) == cost
