"""Directories: a plain list of entries in VMFS 5, a hashed file of 4 KiB blocks in VMFS 6."""

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from vmhaul_lab.errors import LabError

ENTRY5_BYTES = 140

_HEADER_BYTES = 0x10000
_BLOCK_BYTES = 0x1000
_BLOCK_HEADER_BYTES = 64
_VERSION = 0xF50001
_SELF_AT = 0x3B8
_PARENT_AT = 0x4D8
_HASHES_AT = 0x5F8
_HASHES = 16001
_ENTRY_BYTES = 0x120
_ENTRIES_PER_BLOCK = (_BLOCK_BYTES - _BLOCK_HEADER_BYTES) // _ENTRY_BYTES
_LINKS_PER_GROUP = 12
_GROUP = struct.Struct("<HBBBB72sIH")
_GROUPS_PER_BLOCK = (_BLOCK_BYTES - _BLOCK_HEADER_BYTES) // _GROUP.size
_ENTRIES_BLOCK, _LINKS_BLOCK, _MAP_BLOCK = 1, 2, 3

# The last 28 places of the root's table belong to the system files.
_RESERVED = 28
_SYSTEM_PLACES = {
    name: 0x3E66 + number
    for number, name in enumerate(
        (
            ".fbb.sf",
            ".fdc.sf",
            ".pbc.sf",
            ".sbc.sf",
            ".vh.sf",
            ".pb2.sf",
            ".sdd.sf",
            ".jbc.sf",
            ".unmap.sf",
            ".dfd.sf",
        )
    )
}
_SALT = 0x739A75C28E61B017
_SEED = 42
_WORD = (1 << 64) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A name in a directory."""

    name: str
    address: int
    number: int  # of the descriptor
    kind: int


def pack5(entries: Sequence[Entry], own: Entry, parent: Entry) -> bytes:
    """A directory of VMFS 5."""
    return b"".join(
        struct.pack("<III128s", entry.kind, entry.address, entry.number + 1, name.encode())
        for name, entry in [(".", own), ("..", parent), *((entry.name, entry) for entry in entries)]
    )


def length6(count: int) -> int:
    """The most that a directory of VMFS 6 with `count` names takes."""
    # One map, a block of names even when there are none, and at worst a group of links for each pair.
    names = max(1, -(-count // _ENTRIES_PER_BLOCK))
    links = -(-(count // 2) // _GROUPS_PER_BLOCK)
    return _HEADER_BYTES + (1 + names + links) * _BLOCK_BYTES


def pack6(entries: Sequence[Entry], own: Entry, parent: Entry, *, root: bool) -> bytes:
    """A directory of VMFS 6: header with hash table, map of blocks, names, links for names that collide."""
    header = bytearray(_HEADER_BYTES)
    struct.pack_into("<IIIII", header, 0, _VERSION, len(entries) + 2, len(entries) + 2, 1, 0)
    header[_SELF_AT : _SELF_AT + _ENTRY_BYTES] = _entry(own, ".", 0, 0, _SELF_AT)
    header[_PARENT_AT : _PARENT_AT + _ENTRY_BYTES] = _entry(parent, "..", 0, 0, _PARENT_AT)
    name_blocks = max(1, -(-len(entries) // _ENTRIES_PER_BLOCK))
    names = bytearray(name_blocks * _BLOCK_BYTES)
    at_hash: dict[int, list[tuple[int, int]]] = {}
    for index, entry in enumerate(entries):
        block, slot = divmod(index, _ENTRIES_PER_BLOCK)
        link, place = name_hash(entry.name, root=root)
        at = block * _BLOCK_BYTES + _BLOCK_HEADER_BYTES + slot * _ENTRY_BYTES
        # Block 0 is the map, so names begin in block 1.
        offset = _HEADER_BYTES + _BLOCK_BYTES + at
        names[at : at + _ENTRY_BYTES] = _entry(entry, entry.name, place, link, offset)
        at_hash.setdefault(place, []).append((_location(_ENTRIES_BLOCK, block + 1, slot), link))
    for block in range(name_blocks):
        used = min(_ENTRIES_PER_BLOCK, len(entries) - block * _ENTRIES_PER_BLOCK)
        at = block * _BLOCK_BYTES
        names[at : at + _BLOCK_HEADER_BYTES] = _block_header(_ENTRIES_BLOCK, _ENTRIES_PER_BLOCK, used)
    links = _Links(first_block=1 + name_blocks)
    for place, found in at_hash.items():
        location = found[0][0] if len(found) == 1 else links.add(place, found)
        struct.pack_into("<I", header, _HASHES_AT + 4 * place, location)
    kinds = [_MAP_BLOCK] + [_ENTRIES_BLOCK] * name_blocks + [_LINKS_BLOCK] * links.blocks
    return bytes(header) + _block_map(kinds) + bytes(names) + links.pack()


def name_hash(name: str, *, root: bool) -> tuple[int, int]:
    """(hash that tells colliding names apart, place in the table) of a name.

    The name, its zero byte and a salt up to 256 bytes go through Bob Jenkins' 64 bit hash of 1997, which adds
    the number of words in its last round.
    """
    if root and name in _SYSTEM_PLACES:
        return _SYSTEM_PLACES[name], _SYSTEM_PLACES[name]
    raw = name.encode()
    salted = bytearray(256)
    salted[: len(raw)] = raw
    for at in range((len(raw) + 8) & ~7, 127, 8):
        struct.pack_into("<Q", salted, at, _SALT)
    value = _jenkins(struct.unpack("<32Q", salted))
    return value >> 16 & 0xFFFF, value % (_HASHES - _RESERVED if root else _HASHES)


def _jenkins(words: Sequence[int]) -> int:
    a = b = _SEED
    c = 0x9E3779B97F4A7C13
    whole = len(words) - len(words) % 3
    for at in range(0, whole, 3):
        a, b, c = _mix(a + words[at], b + words[at + 1], c + words[at + 2])
    rest = [*words[whole:], 0, 0]
    return _mix(a + rest[0], b + rest[1], c + len(words))[2]


def _mix(a: int, b: int, c: int) -> tuple[int, int, int]:
    for right_a, left_b, right_c in ((43, 9, 8), (38, 23, 5), (35, 49, 11), (12, 18, 22)):
        a = (a - b - c) & _WORD
        a ^= (c & _WORD) >> right_a
        b = (b - c - a) & _WORD
        b ^= (a << left_b) & _WORD
        c = (c - a - b) & _WORD
        c ^= b >> right_c
    return a, b, c


def _entry(entry: Entry, name: str, place: int, link: int, offset_bytes: int) -> bytes:
    return struct.pack(
        "<IIIHHQ256sQ",
        entry.kind,
        entry.address,
        entry.number + 1,
        place,
        link,
        offset_bytes,
        name.encode(),
        0,
    )


def _location(kind: int, block: int, slot: int) -> int:
    return kind | block << 2 | slot << 24


def _block_header(kind: int, slots: int, used: int) -> bytes:
    free = ((1 << slots) - 1) >> used << used
    return struct.pack("<HHHH", 1, kind, slots, slots - used) + free.to_bytes(56, "little")


def _block_map(kinds: Sequence[int]) -> bytes:
    # Four bits a block, the first in the high half; bit 3: was never written, bit 2: has room.
    slots = 2 * (_BLOCK_BYTES - _BLOCK_HEADER_BYTES)
    if len(kinds) > slots:
        raise LabError(f"a directory of {len(kinds)} blocks needs a second map, which is not written")
    halves = [*kinds, *[0xC] * (slots - len(kinds))]
    body = bytes(high << 4 | low for high, low in zip(halves[::2], halves[1::2], strict=True))
    return _block_header(_MAP_BLOCK, 0, 0) + body


class _Links:
    """Groups of links, for places of the table that several names fell on."""

    def __init__(self, *, first_block: int) -> None:
        self._first_block = first_block
        self._groups: list[bytes] = []

    @property
    def blocks(self) -> int:
        return -(-len(self._groups) // _GROUPS_PER_BLOCK)

    def add(self, place: int, found: Sequence[tuple[int, int]]) -> int:
        """The location of the first group that leads to all of `found`: (location, hash) pairs."""
        if len({link for _, link in found}) < len(found):
            raise LabError("two names of a directory have both hashes in common; rename one of them")
        following = 0
        for start in reversed(range(0, len(found), _LINKS_PER_GROUP)):
            part = found[start : start + _LINKS_PER_GROUP]
            links = b"".join(struct.pack("<IH", location, link) for location, link in part)
            free = _LINKS_PER_GROUP - len(part)
            self._groups.append(
                _GROUP.pack(place, _LINKS_PER_GROUP, free, len(part) % 12, 0, links, following, 0)
            )
            block, slot = divmod(len(self._groups) - 1, _GROUPS_PER_BLOCK)
            following = _location(_LINKS_BLOCK, self._first_block + block, slot)
        return following

    def pack(self) -> bytes:
        image = bytearray()
        for block in range(self.blocks):
            part = self._groups[block * _GROUPS_PER_BLOCK : (block + 1) * _GROUPS_PER_BLOCK]
            header = _block_header(_LINKS_BLOCK, _GROUPS_PER_BLOCK, len(part))
            image += (header + b"".join(part)).ljust(_BLOCK_BYTES, b"\0")
        return bytes(image)
