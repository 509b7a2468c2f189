"""What opens a repository: a password, a key file, or a recovery key, and the text forms of the latter two.

A key file is one line that says what it is, and comments. A recovery key is made to be written down and typed
in again: thirteen groups of four characters and a check character, which finds every single wrong
character, every swap inside of a group, and groups in the wrong order.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final

from blake3 import blake3

from pipeline.crypto.keyring import CONTEXT_KEY_FILE, CONTEXT_RECOVERY_KEY, derive

SECRET_BYTES: Final = 32
_KEY_FILE_WORD: Final = "vmhaul-key-1"
_KEY_FILE_LINE: Final = re.compile(rf"{_KEY_FILE_WORD} ([0-9a-f]{{64}}) ([0-9a-f]{{8}})")
_CHECK_BYTES: Final = 4
_ALPHABET: Final = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"  # Crockford's: no I, L, O, U
_LOOK_ALIKES: Final = str.maketrans({"O": "0", "I": "1", "L": "1"})
_GROUPS: Final = 13
_GROUP_DIGITS: Final = 4  # 13 * 4 * 5 bits = 260: 256 of the key, 4 zeros
_SPARE_BITS: Final = 4
_FIELD_POLYNOMIAL: Final = 0b100101  # x^5 + x^2 + 1, of the field with 32 elements


class KeyKind(IntEnum):
    """Numbers of the format."""

    PASSWORD = 1
    KEY_FILE = 2
    RECOVERY = 3


KEY_KIND_NAMES: Final = {
    KeyKind.PASSWORD: "password",
    KeyKind.KEY_FILE: "key file",
    KeyKind.RECOVERY: "recovery key",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Unlock:
    """One secret that may open a repository. Prints without it."""

    kind: KeyKind
    password: str = field(default="", repr=False)
    secret: bytes = field(default=b"", repr=False)
    """The 32 bytes of a key file or recovery key."""

    def wrapping_key_without_password(self, salt: bytes) -> bytes:
        """Of a key file or recovery key, which need no slow derivation: nobody guesses 256 bits."""
        if self.kind is KeyKind.PASSWORD or len(self.secret) != SECRET_BYTES:
            raise ValueError(f"a {KEY_KIND_NAMES[self.kind]} has no {SECRET_BYTES} bytes of its own")
        context = CONTEXT_KEY_FILE if self.kind is KeyKind.KEY_FILE else CONTEXT_RECOVERY_KEY
        return derive(self.secret + salt, context)


def by_password(password: str) -> Unlock:
    return Unlock(kind=KeyKind.PASSWORD, password=password)


def new_key_file() -> Unlock:
    return Unlock(kind=KeyKind.KEY_FILE, secret=os.urandom(SECRET_BYTES))


def new_recovery_key() -> Unlock:
    return Unlock(kind=KeyKind.RECOVERY, secret=os.urandom(SECRET_BYTES))


def unlock_from_text(text: str) -> Unlock:
    """What somebody gave where a password was asked for: the text of a key file, a recovery key in its groups, or
    else a password. Raises ValueError for a key file that is damaged.
    """
    if any(line.startswith(_KEY_FILE_WORD) for line in text.splitlines()):
        return Unlock(kind=KeyKind.KEY_FILE, secret=key_file_secret(text))
    try:
        return Unlock(kind=KeyKind.RECOVERY, secret=recovery_key_secret(text))
    except ValueError:
        return by_password(text)


def looks_like_a_key(text: str) -> bool:
    """Whether unlock_from_text() would not take this for a password."""
    try:
        return unlock_from_text(text).kind is not KeyKind.PASSWORD
    except ValueError:
        return True


# ---- key files --------------------------------------------------------------------------------------


def key_file_text(unlock: Unlock, repository_id: str) -> str:
    check = blake3(unlock.secret).digest()[:_CHECK_BYTES]
    return (
        "# vmhaul key file: opens a backup repository without a password. Keep it secret and safe.\n"
        f"# repository {repository_id}\n"
        f"{_KEY_FILE_WORD} {unlock.secret.hex()} {check.hex()}\n"
    )


def key_file_secret(text: str) -> bytes:
    """Raises ValueError, which does not repeat the text."""
    lines = [line.strip() for line in text.splitlines()]
    found = [match for line in lines if (match := _KEY_FILE_LINE.fullmatch(line))]
    if len(found) != 1:
        raise ValueError(f"not a vmhaul key file: no line '{_KEY_FILE_WORD} <64 digits> <8 digits>'")
    secret = bytes.fromhex(found[0][1])
    if blake3(secret).digest()[:_CHECK_BYTES].hex() != found[0][2]:
        raise ValueError(
            "the key file is damaged: its check digits do not match; use another copy of it"
        )
    return secret


# ---- recovery keys ----------------------------------------------------------------------------------


def recovery_key_text(unlock: Unlock) -> str:
    number = int.from_bytes(unlock.secret, "big") << _SPARE_BITS
    digits = [number >> (5 * place) & 31 for place in reversed(range(_GROUPS * _GROUP_DIGITS))]
    groups = []
    for group in range(_GROUPS):
        values = digits[group * _GROUP_DIGITS : (group + 1) * _GROUP_DIGITS]
        groups.append("".join(_ALPHABET[value] for value in (*values, _check_value(group, values))))
    return "-".join(groups)


def recovery_key_secret(text: str) -> bytes:
    """The key, however it was typed: small letters, with or without separators, O for 0, I or L for 1.

    Raises ValueError naming the group that is wrong, not the key.
    """
    plain = re.sub(r"[\s_.-]", "", text).upper().translate(_LOOK_ALIKES)
    size = _GROUP_DIGITS + 1
    if len(plain) != _GROUPS * size:
        raise ValueError(
            f"a recovery key has {_GROUPS} groups of {size} characters; {len(plain)} characters were given"
        )
    number = 0
    for group in range(_GROUPS):
        values = [_ALPHABET.find(character) for character in plain[group * size : (group + 1) * size]]
        if -1 in values or _check_value(group, values[:-1]) != values[-1]:
            raise ValueError(f"group {group + 1} of the recovery key is mistyped")
        for value in values[:-1]:
            number = number << 5 | value
    if number & ((1 << _SPARE_BITS) - 1):
        raise ValueError(f"group {_GROUPS} of the recovery key is mistyped")
    return (number >> _SPARE_BITS).to_bytes(SECRET_BYTES, "big")


def _check_value(group: int, values: list[int]) -> int:
    """Group number + sum of place * value, in the field with 32 elements: places differ, so one wrong
    character or two swapped ones change it.
    """
    check = group + 1
    for place, value in enumerate(values, start=1):
        check ^= _field_product(place, value)
    return check


def _field_product(one: int, other: int) -> int:
    product = 0
    while other:
        if other & 1:
            product ^= one
        one <<= 1
        if one & 32:
            one ^= _FIELD_POLYNOMIAL
        other >>= 1
    return product
