"""Partition tables of LUNs: one partition over nearly everything, from 1 MiB on."""

import binascii
import struct
import uuid
from typing import BinaryIO

from vmhaul_lab.errors import LabError
from vmhaul_lab.vmfs.values import Lun, Partitioning

SECTOR_BYTES = 512
START_SECTOR = 2048
MBR_TYPE_VMFS = 0xFB
GPT_TYPE_VMFS = uuid.UUID("aa31e02a-400f-11db-9590-000c2911d1b8")

_ENTRIES = 128
_ENTRY_BYTES = 128
_TABLE_SECTORS = _ENTRIES * _ENTRY_BYTES // SECTOR_BYTES


def start_bytes(lun: Lun) -> int:
    """Where the volume's part of a LUN begins."""
    return 0 if lun.partitioning is Partitioning.NONE else START_SECTOR * SECTOR_BYTES


def length_bytes(lun: Lun) -> int:
    """How long the volume's part is; the second GPT needs the end."""
    tail = (_TABLE_SECTORS + 1) * SECTOR_BYTES if lun.partitioning is Partitioning.GPT else 0
    return lun.size_bytes - start_bytes(lun) - tail


def write(lun: Lun, file: BinaryIO) -> None:
    """Write the table that the LUN asks for."""
    if lun.size_bytes % SECTOR_BYTES:
        raise LabError(f"{lun.image}: a LUN's size is a multiple of {SECTOR_BYTES} bytes")
    if lun.partitioning is Partitioning.MBR:
        _put(file, 0, _mbr(MBR_TYPE_VMFS, START_SECTOR, length_bytes(lun) // SECTOR_BYTES))
    elif lun.partitioning is Partitioning.GPT:
        _write_gpt(lun, file)


def _put(file: BinaryIO, offset_bytes: int, data: bytes) -> None:
    file.seek(offset_bytes)
    file.write(data)


def _mbr(kind: int, first_sector: int, sectors: int) -> bytes:
    # CHS addresses at their ends: nobody reads them any more, and zero would look unset.
    entry = struct.pack(
        "<B3sB3sII",
        0,
        b"\xfe\xff\xff",
        kind,
        b"\xfe\xff\xff",
        first_sector,
        min(sectors, 0xFFFFFFFF),
    )
    return b"\0" * 446 + entry + b"\0" * 48 + b"\x55\xaa"


def _write_gpt(lun: Lun, file: BinaryIO) -> None:
    last = lun.size_bytes // SECTOR_BYTES - 1
    entry = struct.pack(
        "<16s16sQQQ72s",
        GPT_TYPE_VMFS.bytes_le,
        _identity(lun, "partition").bytes_le,
        START_SECTOR,
        START_SECTOR + length_bytes(lun) // SECTOR_BYTES - 1,
        0,
        "vmfs".encode("utf-16-le"),
    )
    table = entry.ljust(_ENTRIES * _ENTRY_BYTES, b"\0")
    _put(file, 0, _mbr(0xEE, 1, last))
    _put(file, SECTOR_BYTES, _gpt_header(lun, table, own=1, other=last, first_of_table=2))
    _put(file, 2 * SECTOR_BYTES, table)
    second = last - _TABLE_SECTORS
    _put(file, second * SECTOR_BYTES, table)
    _put(file, last * SECTOR_BYTES, _gpt_header(lun, table, own=last, other=1, first_of_table=second))


def _gpt_header(lun: Lun, table: bytes, *, own: int, other: int, first_of_table: int) -> bytes:
    last = lun.size_bytes // SECTOR_BYTES - 1

    def packed(checksum: int) -> bytes:
        return struct.pack(
            "<8sIIIIQQQQ16sQIII",
            b"EFI PART",
            0x00010000,
            92,
            checksum,
            0,
            own,
            other,
            2 + _TABLE_SECTORS,
            last - _TABLE_SECTORS - 1,
            _identity(lun, "disk").bytes_le,
            first_of_table,
            _ENTRIES,
            _ENTRY_BYTES,
            binascii.crc32(table),
        )

    return packed(binascii.crc32(packed(0))).ljust(SECTOR_BYTES, b"\0")


def _identity(lun: Lun, what: str) -> uuid.UUID:
    return uuid.uuid5(uuid.NAMESPACE_OID, f"{lun.naa or lun.image.name}/{what}")
