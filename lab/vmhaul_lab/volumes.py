"""Finds the file systems inside a raw disk image, without the kernel's help.

The kernel of a test machine may neither scan partition tables nor have a device mapper, so GPT and
LVM2 metadata are read here. What is found is a run of bytes, good for a loop device with offset.
"""

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from vmhaul_lab.errors import LabError

SECTOR_BYTES = 512
_GPT_HEADER = struct.Struct("<8sIIIIQQQQ16sQII")  # UEFI 2.10, table 5.5
_GPT_ENTRY = struct.Struct("<16s16sQQQ72s")  # UEFI 2.10, table 5.6


@dataclass(frozen=True, slots=True, kw_only=True)
class Volume:
    """A run of bytes of an image with one file system in it (kind `unknown`: none recognised)."""

    name: str
    offset_bytes: int
    length_bytes: int
    kind: str

    @property
    def mountable(self) -> bool:
        """Whether the lab can mount it (the kernel's own ext4 and XFS)."""
        return self.kind in {"ext4", "xfs"}


def find_volumes(image: Path) -> list[Volume]:
    """All volumes of a raw image in the order of the disk.

    Raises `LabError` when LVM metadata is there but is of a form the lab never writes.
    """
    with image.open("rb") as file:
        size_bytes = image.stat().st_size
        partitions = list(_gpt_partitions(file))
        if not partitions:
            partitions = [("disk", 0, size_bytes)]
        found: list[Volume] = []
        for name, offset, length in partitions:
            if _is_lvm(file, offset):
                found.extend(
                    Volume(name=n, offset_bytes=o, length_bytes=size, kind=_kind(file, o))
                    for n, o, size in _logical_volumes(file, offset)
                )
            else:
                kind = _kind(file, offset)
                found.append(Volume(name=name, offset_bytes=offset, length_bytes=length, kind=kind))
    return found


def _read(file: BinaryIO, offset: int, length: int) -> bytes:
    file.seek(offset)
    return file.read(length)


def _gpt_partitions(file: BinaryIO) -> Iterator[tuple[str, int, int]]:
    header = _read(file, SECTOR_BYTES, _GPT_HEADER.size)
    if len(header) < _GPT_HEADER.size or header[:8] != b"EFI PART":
        return
    fields = _GPT_HEADER.unpack(header)
    table_lba, count, entry_bytes = fields[10], fields[11], fields[12]
    table = _read(file, table_lba * SECTOR_BYTES, count * entry_bytes)
    for index in range(count):
        entry = table[index * entry_bytes : (index + 1) * entry_bytes][: _GPT_ENTRY.size]
        kind, _guid, first, last, _flags, name = _GPT_ENTRY.unpack(entry)
        if kind == bytes(16):
            continue
        label = name.decode("utf-16-le").rstrip("\0") or f"part{index + 1}"
        yield label, first * SECTOR_BYTES, (last - first + 1) * SECTOR_BYTES


def _kind(file: BinaryIO, offset: int) -> str:
    head = _read(file, offset, 4096)
    if head[:4] == b"XFSB":
        return "xfs"
    if head[1080:1082] == b"\x53\xef":
        return "ext4"
    if head[510:512] == b"\x55\xaa" and head[54:59] == b"FAT16":
        return "fat16"
    if head[4086:4096] == b"SWAPSPACE2":
        return "swap"
    return "unknown"


def _is_lvm(file: BinaryIO, offset: int) -> bool:
    label = _read(file, offset + SECTOR_BYTES, 32)
    return label[:8] == b"LABELONE" and label[24:32] == b"LVM2 001"


def lvm_metadata(file: BinaryIO, offset: int) -> str:
    """The text of the newest metadata of the physical volume that starts at `offset`."""
    label = _read(file, offset + SECTOR_BYTES, SECTOR_BYTES)
    (pv_header,) = struct.unpack_from("<I", label, 20)
    # pv_header: 32 bytes of uuid, 8 of size, then lists of (offset, size): data areas, metadata areas
    at = pv_header + 40
    lists: list[list[tuple[int, int]]] = []
    for _ in range(2):
        areas: list[tuple[int, int]] = []
        while True:
            area = struct.unpack_from("<QQ", label, at)
            at += 16
            if area == (0, 0):
                break
            areas.append(area)
        lists.append(areas)
    if not lists[1]:
        raise LabError(f"the physical volume at byte {offset} has no metadata area")
    start, area_bytes = lists[1][0]
    area_header = _read(file, offset + start, SECTOR_BYTES)
    # mda_header: crc 4, magic 16, version 4, start 8, size 8, then raw_locn (offset 8, size 8, ...)
    text_at, text_bytes = struct.unpack_from("<QQ", area_header, 40)
    first = min(text_bytes, area_bytes - text_at)  # the area is a ring behind its header
    text = _read(file, offset + start + text_at, first)
    text += _read(file, offset + start + SECTOR_BYTES, text_bytes - first)
    return text.rstrip(b"\0").decode()


def _logical_volumes(file: BinaryIO, offset: int) -> Iterator[tuple[str, int, int]]:
    text = lvm_metadata(file, offset)
    group = re.search(r"^(\S+) \{", text, re.MULTILINE)
    extent = re.search(r"extent_size = (\d+)", text)
    pe_start = re.search(r"pe_start = (\d+)", text)
    _, separator, body = text.partition("logical_volumes {")
    if group is None or extent is None or pe_start is None or not separator:
        raise LabError(f"the LVM metadata at byte {offset} has no volumes the lab can place")
    extent_bytes = int(extent[1]) * SECTOR_BYTES
    base = offset + int(pe_start[1]) * SECTOR_BYTES
    pattern = re.compile(r"^(?P<name>[\w.+-]+) \{\nid = (?P<rest>.*?)^\}\n\}", re.MULTILINE | re.DOTALL)
    for match in pattern.finditer(body):
        rest = match["rest"]
        segments = re.search(r"segment_count = (\d+)", rest)
        count = re.search(r"extent_count = (\d+)", rest)
        stripe = re.search(r'"pv0", (\d+)', rest)
        if segments is None or segments[1] != "1" or count is None or stripe is None:
            raise LabError(f"logical volume {match['name']} is not one linear run of bytes")
        yield (
            f"{group[1]}/{match['name']}",
            base + int(stripe[1]) * extent_bytes,
            int(count[1]) * extent_bytes,
        )
