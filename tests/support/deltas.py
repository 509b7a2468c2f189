"""Sparse deltas as small as tests need them, with every field in the test's hand. (The lab writes whole ones.)"""

from __future__ import annotations

import struct
from collections.abc import Mapping

SECTOR = 512
ZERO_GRAIN = "zero"
UNMAPPED_GRAIN = "unmapped"

Grains = Mapping[int, bytes | str]
"""By number: what a grain holds, or one of the words above (SESPARSE only)."""


def cowd(disk_bytes: int, grains: Grains, *, grain_sectors: int = 8, **fields: int) -> bytes:
    """A VMFSSPARSE file. `fields` replace those of the header."""
    grain_bytes = grain_sectors * SECTOR
    count = -(-disk_bytes // grain_bytes)
    tables = -(-count // 4096)
    directory_sector = 4
    directory = [0] * tables
    out = bytearray((directory_sector + -(-tables * 4 // SECTOR)) * SECTOR)
    for number in sorted({grain // 4096 for grain in grains}):
        directory[number] = len(out) // SECTOR
        out += bytes(4096 * 4)
    for grain, data in sorted(grains.items()):
        assert isinstance(data, bytes)
        table, entry = divmod(grain, 4096)
        struct.pack_into("<I", out, directory[table] * SECTOR + entry * 4, len(out) // SECTOR)
        out += data.ljust(grain_bytes, b"\0")
    struct.pack_into(f"<{tables}I", out, directory_sector * SECTOR, *directory)
    header = {
        "magic": 0x44574F43,
        "version": 1,
        "flags": 3,
        "sectors": disk_bytes // SECTOR,
        "grain_sectors": grain_sectors,
        "directory_sector": directory_sector,
        "entries": tables,
        "next_free": len(out) // SECTOR,
    } | fields
    struct.pack_into("<8I", out, 0, *header.values())
    return bytes(out)


def sesparse(disk_bytes: int, grains: Grains, **fields: int) -> bytes:
    """A SESPARSE file with grains of 4 KiB. `fields` replace those of its headers."""
    grain_bytes, table_sectors, per_table = 4096, 64, 4096
    count = -(-disk_bytes // grain_bytes)
    tables = -(-count // per_table)
    directory_sectors = -(-tables * 8 // SECTOR)
    used = sorted({grain // per_table for grain in grains})
    tables_sector = 8 + directory_sectors
    grains_sector = tables_sector + max(1, len(used)) * table_sectors
    out = bytearray(grains_sector * SECTOR)
    for at, number in enumerate(used):
        struct.pack_into("<Q", out, 8 * SECTOR + number * 8, 0x1000000000000000 | at)
    stored = 0
    for grain, data in sorted(grains.items()):
        table, entry = divmod(grain, per_table)
        if data == ZERO_GRAIN:
            value = 0x2000000000000000
        elif data == UNMAPPED_GRAIN:
            value = 0x1000000000000000
        else:
            assert isinstance(data, bytes)
            value = 0x3000000000000000 | (stored & 0xFFF) << 48 | stored >> 12
            out += data.ljust(grain_bytes, b"\0")
            stored += 1
        at = (tables_sector + used.index(table) * table_sectors) * SECTOR + entry * 8
        struct.pack_into("<Q", out, at, value)
    header = {
        "magic": 0xCAFEBABE,
        "version": 0x0000000200000001,
        "sectors": disk_bytes // SECTOR,
        "grain_sectors": 8,
        "table_sectors": table_sectors,
        "flags": 0,
        "r1": 0,
        "r2": 0,
        "r3": 0,
        "r4": 0,
        "volatile_sector": 1,
        "volatile_sectors": 1,
        "journal_header_sector": 2,
        "journal_header_sectors": 2,
        "journal_sector": 4,
        "journal_sectors": 4,
        "directory_sector": 8,
        "directory_sectors": directory_sectors,
        "tables_sector": tables_sector,
        "tables_sectors": max(1, len(used)) * table_sectors,
        "free_sector": 0,
        "free_sectors": 0,
        "back_sector": 0,
        "back_sectors": 0,
        "grains_sector": grains_sector,
        "grains_sectors": stored * 8,
    }
    volatile = {"volatile_magic": 0xCAFECAFE, "free_table": len(used), "next": 1, "replay": 0}
    header |= {name: value for name, value in fields.items() if name in header}
    volatile |= {name: value for name, value in fields.items() if name in volatile}
    assert fields.keys() <= header.keys() | volatile.keys()
    struct.pack_into("<26Q", out, 0, *header.values())
    struct.pack_into("<4Q", out, SECTOR, *volatile.values())
    return bytes(out)


def descriptor(
    *extents: tuple[int, str, str],
    cid: str = "0000aaaa",
    parent_cid: str = "ffffffff",
    parent: str = "",
    more: str = "",
) -> bytes:
    """The text of a descriptor. Extents: bytes, type, file name."""
    lines = "".join(
        f"RW {length // SECTOR} {kind}{f' {chr(34)}{file}{chr(34)}' if file else ''}\n"
        for length, kind, file in extents
    )
    hint = f'parentFileNameHint="{parent}"\n' if parent else ""
    return (
        f'# Disk DescriptorFile\nversion=1\nencoding="UTF-8"\nCID={cid}\nparentCID={parent_cid}\n'
        f'createType="vmfs"\n{hint}\n# Extent description\n{lines}\n# The Disk Data Base\n#DDB\n\n'
        f'ddb.adapterType = "lsilogic"\n{more}'
    ).encode()
