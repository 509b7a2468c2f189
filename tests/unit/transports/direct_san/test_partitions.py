from __future__ import annotations

import struct
import zlib
from collections.abc import Callable

import pytest

from transports.direct_san.errors import DamagedMetadataError
from transports.direct_san.partitions import Partition, read_partitions

SIZE = 64 << 20
VMFS = bytes.fromhex("2ae031aa0f40db119590000c2911d1b8")
LINUX = bytes.fromhex("af3dc60f838472478e793d69d8477de4")


def gpt(
    *entries: tuple[int, bytes, int, int], sector: int = 512, **fields: int
) -> Callable[[int, int], bytes]:
    """A LUN with a GPT: (number, type, first sector, last sector)."""
    table = bytearray(128 * 128)
    for number, kind, first, last in entries:
        struct.pack_into("<16s16sQQ", table, (number - 1) * 128, kind, bytes(16), first, last)
    values = {"bytes": 92, "lba": 2, "count": 128, "entry": 128} | fields
    mbr = bytearray(512)
    struct.pack_into("<B3sB3sII", mbr, 446, 0, b"", 0xEE, b"", 1, 0xFFFFFFFF)
    mbr[510:] = b"\x55\xaa"

    def packed(crc: int) -> bytes:
        return struct.pack(
            "<8sIIIIQQQQ16sQIII",
            b"EFI PART",
            0x10000,
            values["bytes"],
            crc,
            0,
            1,
            0,
            34,
            0,
            bytes(16),
            values["lba"],
            values["count"],
            values["entry"],
            values.get("table_crc", zlib.crc32(table[: values["count"] * values["entry"]])),
        )

    header = packed(values.get("crc", zlib.crc32(packed(0))))
    content = bytes(mbr).ljust(sector, b"\0") + header.ljust(sector, b"\0") + bytes(table)

    def read(offset: int, length: int) -> bytes:
        return content[offset : offset + length].ljust(length, b"\0")

    return read


def mbr(*entries: tuple[int, int, int], signature: bytes = b"\x55\xaa") -> Callable[[int, int], bytes]:
    content = bytearray(512)
    for number, (kind, first, count) in enumerate(entries):
        struct.pack_into("<B3sB3sII", content, 446 + number * 16, 0, b"", kind, b"", first, count)
    content[510:] = signature
    return lambda offset, length: bytes(content[offset : offset + length]).ljust(length, b"\0")


def test_what_esxi_makes() -> None:
    read = gpt((1, VMFS, 2048, 131038))
    assert read_partitions(read, SIZE) == (
        Partition(number=1, offset=1 << 20, length=(131038 - 2047) * 512, is_vmfs=True),
    )


def test_other_partitions_are_no_vmfs_and_numbers_are_those_of_the_table() -> None:
    read = gpt((2, LINUX, 2048, 4095), (5, VMFS, 4096, 8191))
    assert [(part.number, part.is_vmfs) for part in read_partitions(read, SIZE)] == [
        (2, False),
        (5, True),
    ]


def test_sectors_of_4096_bytes() -> None:
    (part,) = read_partitions(gpt((1, VMFS, 256, 511), sector=4096), SIZE)
    assert (part.offset, part.length) == (1 << 20, 1 << 20)


def test_a_classic_table() -> None:
    found = read_partitions(mbr((0, 0, 0), (0xFB, 128, 1000), (0x83, 2000, 10)), SIZE)
    assert [(part.number, part.offset, part.is_vmfs) for part in found] == [
        (2, 65536, True),
        (3, 2000 * 512, False),
    ]


def test_without_a_table_there_is_no_partition() -> None:
    assert read_partitions(mbr(signature=b"\0\0"), SIZE) == ()
    assert read_partitions(mbr((0xFB, 1, 1)), 512) == ()


@pytest.mark.parametrize(
    ("read", "says"),
    [
        (mbr((0xEE, 1, 1)), "no GPT header"),
        (gpt((1, VMFS, 2048, 4095), crc=1), "checksum of its GPT header"),
        (gpt((1, VMFS, 2048, 4095), table_crc=1), "checksum of its GPT entries"),
        (gpt((1, VMFS, 2048, 4095), bytes=91), "header says that it has 91"),
        (gpt((1, VMFS, 2048, 4095), bytes=513), "header says that it has 513"),
        (gpt((1, VMFS, 2048, 4095), count=1 << 31), "entries of 128 bytes"),
        (gpt((1, VMFS, 2048, 4095), entry=16), "entries of 16 bytes"),
        (gpt((1, VMFS, 2048, 4095), lba=1 << 40), "GPT has 128 entries"),
        (gpt((1, VMFS, 2048, 1 << 40)), "not inside"),
        (gpt((1, VMFS, 2048, 2047)), "not inside"),
        (mbr((0xFB, 128, 0x7FFFFFFF)), "not inside"),
    ],
)
def test_a_damaged_table_is_told_so(read: Callable[[int, int], bytes], says: str) -> None:
    with pytest.raises(DamagedMetadataError, match=says):
        read_partitions(read, SIZE)
