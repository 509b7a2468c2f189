"""Delta files as ESXi writes them: VMFSSPARSE (signature COWD) and SESPARSE, over a parent.

A delta holds *grains*, the pieces of the disk that were written since it became the top of its chain; what it
does not hold is the parent's. VMFSSPARSE has grains of one sector, SESPARSE of 4 KiB and also a mark "zeros".
The layouts are those that qemu's vmdk driver and dissect.hypervisor read.
"""

import array
import os
import struct
from collections.abc import Iterable, Iterator
from enum import StrEnum
from pathlib import Path

from vmhaul_lab.errors import LabError

SECTOR_BYTES = 512
_TABLE_ENTRIES = 4096
NO_PARENT_CID = "ffffffff"


class DeltaKind(StrEnum):
    """Kind of a delta file; the value is how a descriptor's extent line names it."""

    VMFS_SPARSE = "VMFSSPARSE"
    SE_SPARSE = "SESPARSE"

    @property
    def grain_bytes(self) -> int:
        """Length of a grain."""
        return SECTOR_BYTES if self is DeltaKind.VMFS_SPARSE else 4096

    @property
    def create_type(self) -> str:
        """The descriptor's createType."""
        return "vmfsSparse" if self is DeltaKind.VMFS_SPARSE else "seSparse"

    @property
    def suffix(self) -> str:
        """What follows the disk's name in the extent file's name."""
        return "-delta.vmdk" if self is DeltaKind.VMFS_SPARSE else "-sesparse.vmdk"


def write_delta(
    target: Path, disk: Path, changed: Iterable[tuple[int, int]], kind: DeltaKind = DeltaKind.SE_SPARSE
) -> None:
    """Write a delta file with what `disk` (a whole raw disk) holds in the `changed` (offset, length) ranges.

    Ranges may overlap and need no alignment. Written beside and renamed, so that nobody sees it half done.
    """
    size = disk.stat().st_size
    if size % SECTOR_BYTES:
        raise LabError(f"{disk} is no disk: {size} bytes are no whole number of sectors")
    runs = list(_grain_runs(changed, size, kind.grain_bytes))
    part = target.with_name(f".{target.name}.part")
    with disk.open("rb") as source, part.open("wb") as file:
        if kind is DeltaKind.VMFS_SPARSE:
            _write_vmfs_sparse(file.fileno(), source.fileno(), size, runs)
        else:
            _write_se_sparse(file.fileno(), source.fileno(), size, runs)
    part.replace(target)


def descriptor(
    extent: str,
    capacity_bytes: int,
    kind: DeltaKind | None,
    *,
    cid: str,
    parent_cid: str = NO_PARENT_CID,
    parent: str = "",
    thin: bool = False,
) -> str:
    """The text of a disk's descriptor; `kind` None: a flat disk without a parent."""
    words = "VMFS" if kind is None else kind.value
    lines = [
        "# Disk DescriptorFile",
        "version=1",
        'encoding="UTF-8"',
        f"CID={cid}",
        f"parentCID={parent_cid}",
        f'createType="{"vmfs" if kind is None else kind.create_type}"',
        *([f'parentFileNameHint="{parent}"'] if parent else []),
        "# Extent description",
        f'RW {capacity_bytes // SECTOR_BYTES} {words} "{extent}"',
        "# The Disk Data Base",
        "#DDB",
        'ddb.adapterType = "lsilogic"',
        *(['ddb.thinProvisioned = "1"'] if thin else []),
        'ddb.virtualHWVersion = "19"',
    ]
    return "\n".join(lines) + "\n"


def _grain_runs(
    changed: Iterable[tuple[int, int]], size_bytes: int, grain_bytes: int
) -> Iterator[tuple[int, int]]:
    """(first grain, count), ascending, without overlap."""
    last = -(-size_bytes // grain_bytes)
    end = 0
    for offset, length in sorted(changed):
        first = max(offset // grain_bytes, end)
        stop = min(-(-(offset + length) // grain_bytes), last)
        if stop > first:
            yield first, stop - first
            end = stop


def _write_vmfs_sparse(target: int, source: int, size_bytes: int, runs: list[tuple[int, int]]) -> None:
    sectors = size_bytes // SECTOR_BYTES
    tables = -(-sectors // _TABLE_ENTRIES)
    directory_at = 4  # sectors; the header takes the first four
    table_sectors = _TABLE_ENTRIES * 4 // SECTOR_BYTES
    next_sector = directory_at + -(-tables * 4 // SECTOR_BYTES)
    directory = array.array("I", bytes(tables * 4))
    entries: dict[int, array.array[int]] = {}
    needed = {
        number
        for first, count in runs
        for number in range(first // _TABLE_ENTRIES, (first + count - 1) // _TABLE_ENTRIES + 1)
    }
    for number in sorted(needed):
        entries[number] = array.array("I", bytes(_TABLE_ENTRIES * 4))
        directory[number] = next_sector
        next_sector += table_sectors
    for first, count in runs:
        for grain in range(first, first + count):
            entries[grain // _TABLE_ENTRIES][grain % _TABLE_ENTRIES] = next_sector + grain - first
        _copy(source, first * SECTOR_BYTES, count * SECTOR_BYTES, size_bytes, target, next_sector * 512)
        next_sector += count
    # signature, version, flags, sectors, grain, directory, its entries, next free sector, geometry
    header = struct.pack(
        "<4s10I",
        b"COWD",
        1,
        3,
        sectors,
        1,
        directory_at,
        tables,
        next_sector,
        max(1, sectors // (255 * 63)),
        255,
        63,
    )
    os.pwrite(target, header.ljust(directory_at * SECTOR_BYTES, b"\0"), 0)
    os.pwrite(target, directory.tobytes(), directory_at * SECTOR_BYTES)
    for number, table in entries.items():
        os.pwrite(target, table.tobytes(), directory[number] * SECTOR_BYTES)
    os.ftruncate(target, next_sector * SECTOR_BYTES)


_SE_MAGIC, _SE_VOLATILE_MAGIC = 0xCAFEBABE, 0xCAFECAFE
_SE_VERSION = 0x0000000200000001
_SE_GRAIN_SECTORS = 8
_SE_TABLE_SECTORS = 64
_SE_ZERO, _SE_DATA = 0x2 << 60, 0x3 << 60
# Where the parts stand that do not depend on the disk, in sectors.
_SE_JOURNAL_HEADER_AT, _SE_JOURNAL_AT, _SE_JOURNAL_SECTORS, _SE_DIRECTORY_AT = 2, 2048, 2048, 4096
_MIB_SECTORS = 2048


def _write_se_sparse(target: int, source: int, size_bytes: int, runs: list[tuple[int, int]]) -> None:
    sectors = size_bytes // SECTOR_BYTES
    tables = -(-sectors // (_TABLE_ENTRIES * _SE_GRAIN_SECTORS))
    directory_sectors = _whole_mib(-(-tables * 8 // SECTOR_BYTES))
    tables_at = _SE_DIRECTORY_AT + directory_sectors
    tables_sectors = _whole_mib(tables * _SE_TABLE_SECTORS)
    # Free map and back map are of use to a writer only; they have their places.
    free_at = tables_at + tables_sectors
    back_at = free_at + _MIB_SECTORS
    grains_at = back_at + _MIB_SECTORS
    directory = array.array("Q", bytes(tables * 8))
    entries: dict[int, array.array[int]] = {}
    grains = 0
    for first, count in runs:
        for grain, data in enumerate(_grains(source, first, count, size_bytes), start=first):
            number, place = divmod(grain, _TABLE_ENTRIES)
            if number not in entries:
                directory[number] = 0x1 << 60 | len(entries)
                entries[number] = array.array("Q", bytes(_TABLE_ENTRIES * 8))
            if not any(data):
                entries[number][place] = _SE_ZERO
                continue
            entries[number][place] = _SE_DATA | (grains & 0xFFF) << 48 | grains >> 12
            os.pwrite(target, data, grains_at * SECTOR_BYTES + grains * 4096)
            grains += 1
    grains_sectors = grains * _SE_GRAIN_SECTORS
    header = struct.pack(
        "<26Q",
        _SE_MAGIC,
        _SE_VERSION,
        sectors,
        _SE_GRAIN_SECTORS,
        _SE_TABLE_SECTORS,
        0,
        *(0, 0, 0, 0),
        *(1, 1),
        *(_SE_JOURNAL_HEADER_AT, 2),
        *(_SE_JOURNAL_AT, _SE_JOURNAL_SECTORS),
        *(_SE_DIRECTORY_AT, directory_sectors),
        *(tables_at, tables_sectors),
        *(free_at, _MIB_SECTORS),
        *(back_at, _MIB_SECTORS),
        *(grains_at, grains_sectors),
    )
    volatile = struct.pack("<4Q", _SE_VOLATILE_MAGIC, len(entries), 1, 0)
    os.pwrite(target, header.ljust(SECTOR_BYTES, b"\0") + volatile.ljust(SECTOR_BYTES, b"\0"), 0)
    os.pwrite(target, directory.tobytes(), _SE_DIRECTORY_AT * SECTOR_BYTES)
    for index, table in enumerate(entries.values()):
        at = tables_at + index * _SE_TABLE_SECTORS
        os.pwrite(target, table.tobytes(), at * SECTOR_BYTES)
    os.ftruncate(target, (grains_at + grains_sectors) * SECTOR_BYTES)


def _whole_mib(sectors: int) -> int:
    return -(-sectors // _MIB_SECTORS) * _MIB_SECTORS


def _grains(source: int, first: int, count: int, size_bytes: int) -> Iterator[bytes]:
    for start in range(first, first + count, 256):
        number = min(256, first + count - start)
        data = _read(source, start * 4096, number * 4096, size_bytes)
        for at in range(0, len(data), 4096):
            yield data[at : at + 4096]


def _read(source: int, offset_bytes: int, length_bytes: int, size_bytes: int) -> bytes:
    """Bytes of a disk; what lies behind its end reads as zeros."""
    wanted = min(length_bytes, size_bytes - offset_bytes)
    data = b""
    while len(data) < wanted:
        data += os.pread(source, wanted - len(data), offset_bytes + len(data))
    return data.ljust(length_bytes, b"\0")


def _copy(
    source: int, offset_bytes: int, length_bytes: int, size_bytes: int, target: int, target_bytes: int
) -> None:
    for at in range(0, length_bytes, 1 << 20):
        data = _read(source, offset_bytes + at, min(1 << 20, length_bytes - at), size_bytes)
        os.pwrite(target, data, target_bytes + at)
