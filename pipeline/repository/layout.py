"""Names of objects in a repository; section 2 of the format."""

from __future__ import annotations

import os
import re
from typing import Final
from uuid import UUID

CONFIGURATION: Final = "vmhaul-repository.json"
KEYS: Final = "keys/"
EPOCHS: Final = "epochs/"
PACKS: Final = "packs/"
INDEX: Final = "index/"
POINTS: Final = "points/"
WORK: Final = "work/"
FORGOTTEN: Final = "forgotten/"
DOOMED: Final = "doomed/"

OBJECT_ID_BYTES: Final = 16
WORK_ID: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,99}")


def new_object_id() -> bytes:
    return os.urandom(OBJECT_ID_BYTES)


def key_name(key_id: bytes) -> str:
    return KEYS + key_id.hex()


def key_id_of(name: str) -> bytes | None:
    """The id in a key object's name; None for anything else that lies there."""
    try:
        key_id = bytes.fromhex(name.removeprefix(KEYS))
    except ValueError:
        return None
    return key_id if len(key_id) == OBJECT_ID_BYTES and key_name(key_id) == name else None


def epoch_name(epoch: int) -> str:
    return f"{EPOCHS}{epoch}"


def epoch_of(name: str) -> int | None:
    """The number in the name of an epoch; None for anything else that lies there."""
    digits = name.removeprefix(EPOCHS)
    if not (digits.isascii() and digits.isdigit()):
        return None
    return int(digits) if epoch_name(int(digits)) == name else None


def pack_name(pack_id: bytes) -> str:
    digits = pack_id.hex()
    return f"{PACKS}{digits[:2]}/{digits}"


def pack_id_of(name: str) -> bytes | None:
    """The id in a pack's name; None for anything else that lies there."""
    digits = name.rpartition("/")[2]
    try:
        pack_id = bytes.fromhex(digits)
    except ValueError:
        return None
    return pack_id if len(pack_id) == OBJECT_ID_BYTES and pack_name(pack_id) == name else None


def index_name(index_id: bytes) -> str:
    return INDEX + index_id.hex()


def index_id_of(name: str) -> bytes:
    """The id in an index object's name; of a name that is none of ours, its first bytes."""
    digits = name.removeprefix(INDEX)
    try:
        return bytes.fromhex(digits)
    except ValueError:
        return digits.encode()[:OBJECT_ID_BYTES]


def doomed_name(doom_id: bytes) -> str:
    return DOOMED + doom_id.hex()


def point_name(point_id: str) -> str:
    return POINTS + checked_point_id(point_id)


def forgotten_name(point_id: str) -> str:
    return FORGOTTEN + checked_point_id(point_id)


def work_name(work_id: str) -> str:
    """Raises ValueError for a work id that cannot be a name."""
    if not WORK_ID.fullmatch(work_id):
        raise ValueError(
            f"{work_id!r} cannot be a work id: lower-case letters, digits, '.', '_' and '-'"
        )
    return WORK + work_id


def checked_point_id(point_id: str) -> str:
    """Raises ValueError unless it is a UUID in its usual form."""
    if str(UUID(point_id)) != point_id:
        raise ValueError(f"{point_id!r} is not a UUID in lower case with hyphens")
    return point_id
