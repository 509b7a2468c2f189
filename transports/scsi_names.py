"""Names of disks as SCSI gives them (SPC-4, vital product data page 0x83), in vSphere's form."""

from __future__ import annotations

import re
from typing import Final

_PAGE: Final = 0x83
_HEADER_BYTES: Final = 4
"""Peripheral 1 + page 1 + length 2; and of each designator: code set 1 + type 1 + reserved 1 + length 1."""
_ASSOCIATION: Final = 0x30
"""Bits of a designator's second byte that are 0 when it names the disk itself, not its port or target."""
_TYPE: Final = 0x0F
_T10, _EUI64, _NAA, _TEXT = 1, 2, 3, 8
_HEXADECIMAL: Final = re.compile(r"[0-9a-f]{16}(?:[0-9a-f]{16})?")
_KINDS: Final = ("naa.", "eui.", "t10.")


def normalised(name: str) -> str:
    """A name of storage as this package compares them: "naa.600508b1…", "eui.…", "t10.ata_____disk_4711".

    vSphere writes underscores where the disk has blanks. Bare hexadecimal digits, with or without 0x, are
    taken for NAA; what else is unknown stays as it is, in lower case.
    """
    text = name.strip("\0\n ").lower()
    bare = text.removeprefix("0x").removeprefix("wwn-0x")
    if _HEXADECIMAL.fullmatch(bare):
        return "naa." + bare
    if text.startswith("t10."):
        return re.sub(r"\s", "_", text).rstrip("_")
    return text


def naa_of_uuid(backing_uuid: str) -> str:
    """What a virtual disk with this backing uuid ("6000C29a-bcde-…") says it is."""
    return normalised(backing_uuid.replace("-", "").replace(" ", ""))


def names_of_page_83(page: bytes) -> list[str]:
    """Names of the disk in page 0x83. What is cut off or of another kind is passed over."""
    if len(page) < _HEADER_BYTES or page[1] != _PAGE:
        return []
    end = min(len(page), _HEADER_BYTES + int.from_bytes(page[2:4], "big"))
    names: list[str] = []
    at = _HEADER_BYTES
    while at + _HEADER_BYTES <= end:
        kind, length = page[at + 1], page[at + 3]
        value = page[at + _HEADER_BYTES : at + _HEADER_BYTES + length]
        at += _HEADER_BYTES + length
        if at > end:
            break
        name = "" if kind & _ASSOCIATION else _name(kind & _TYPE, value)
        if name:
            names.append(normalised(name))
    return names


def _name(kind: int, value: bytes) -> str:
    if kind == _NAA:
        return "naa." + value.hex()
    if kind == _EUI64:
        return "eui." + value.hex()
    text = value.decode("ascii", errors="replace").strip("\0 ")
    if kind == _T10:
        return "t10." + text
    if kind == _TEXT and text.lower().startswith(_KINDS):
        return text
    return ""
