"""Where the VMFS partition of a LUN begins. Pure, but for reading the first sectors.

Layouts: UEFI Specification 2.10 section 5 (GPT), the classic table of sector 0 (MBR). ESXi 5 and later make GPT.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from transports.direct_san.errors import DamagedMetadataError

VMFS_GPT_TYPE: Final = UUID("aa31e02a-400f-11db-9590-000c2911d1b8")
VMFS_MBR_TYPE: Final = 0xFB
_GPT_HEADER: Final = struct.Struct("<8sIIIIQQQQ16sQIII")
_GPT_ENTRY: Final = struct.Struct("<16s16sQQ")
_MBR_ENTRY: Final = struct.Struct("<B3sB3sII")
_MBR_TABLE: Final = 446
_MBR_SIGNATURE: Final = b"\x55\xaa"
_PROTECTIVE: Final = 0xEE
_LARGEST_TABLE_BYTES: Final = 1 << 20
_SECTORS: Final = (512, 4096)

Read = Callable[[int, int], bytes]
"""read(offset, length) of a LUN: the whole length, or it raises."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Partition:
    number: int
    """As vSphere counts: from 1."""
    offset: int
    length: int
    is_vmfs: bool


def read_partitions(read: Read, size_bytes: int) -> tuple[Partition, ...]:
    """The used partitions of a LUN; none when it has no table. DamagedMetadataError for one that cannot be."""
    if size_bytes < _SECTORS[-1] * 8:
        return ()
    first = read(0, _SECTORS[0])
    if first[-2:] != _MBR_SIGNATURE:
        return ()
    entries = [
        _MBR_ENTRY.unpack_from(first, _MBR_TABLE + number * _MBR_ENTRY.size) for number in range(4)
    ]
    if not any(kind == _PROTECTIVE for _, _, kind, _, _, _ in entries):
        return tuple(
            _inside(
                Partition(
                    number=number,
                    offset=begin * _SECTORS[0],
                    length=count * _SECTORS[0],
                    is_vmfs=kind == VMFS_MBR_TYPE,
                ),
                size_bytes,
            )
            for number, (_, _, kind, _, begin, count) in enumerate(entries, 1)
            if kind and count
        )
    for sector_bytes in _SECTORS:
        header = read(sector_bytes, _GPT_HEADER.size)
        if header.startswith(b"EFI PART"):
            return _gpt(read, size_bytes, header, sector_bytes)
    raise DamagedMetadataError("its partition table says GPT, and there is no GPT header")


def _gpt(read: Read, size_bytes: int, header: bytes, sector_bytes: int) -> tuple[Partition, ...]:
    _, _, header_bytes, crc, _, _, _, _, _, _, table_lba, count, entry_bytes, table_crc = (
        _GPT_HEADER.unpack(header)
    )
    if not _GPT_HEADER.size <= header_bytes <= sector_bytes:
        raise DamagedMetadataError(f"its GPT header says that it has {header_bytes} bytes")
    whole = read(sector_bytes, header_bytes)
    if zlib.crc32(whole[:16] + bytes(4) + whole[20:]) != crc:
        raise DamagedMetadataError("the checksum of its GPT header is wrong")
    table_bytes = count * entry_bytes
    if (
        entry_bytes < _GPT_ENTRY.size
        or table_bytes > _LARGEST_TABLE_BYTES
        or table_lba * sector_bytes + table_bytes > size_bytes
    ):
        raise DamagedMetadataError(f"its GPT has {count} entries of {entry_bytes} bytes")
    table = read(table_lba * sector_bytes, table_bytes)
    if zlib.crc32(table) != table_crc:
        raise DamagedMetadataError("the checksum of its GPT entries is wrong")
    found = []
    for number in range(count):
        kind, _, begin, last = _GPT_ENTRY.unpack_from(table, number * entry_bytes)
        if any(kind):
            found.append(
                _inside(
                    Partition(
                        number=number + 1,
                        offset=begin * sector_bytes,
                        length=(last - begin + 1) * sector_bytes,
                        is_vmfs=UUID(bytes_le=kind) == VMFS_GPT_TYPE,
                    ),
                    size_bytes,
                )
            )
    return tuple(found)


def _inside(partition: Partition, size_bytes: int) -> Partition:
    if partition.length <= 0 or partition.offset + partition.length > size_bytes:
        raise DamagedMetadataError(
            f"its partition {partition.number} is not inside of the LUN's {size_bytes} bytes"
        )
    return partition
