"""Which grains of a disk a sparse delta holds, and where in its file: VMFSSPARSE (COWD) and SESPARSE.

A grain table says of every grain whether it is in this file or in the parent. Whole tables become columns of
numbers at once. VMFSSPARSE: VMware's "Virtual Disk Format 5.0" and what open readers have published of both.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from transports.base import SECTOR_BYTES
from transports.direct_san.errors import DamagedMetadataError, NotForSanError
from transports.direct_san.runs import Kind, MapError, Numbers, RunMap, make_map

Read = Callable[[int, int], bytes]
"""read(offset, length) of the delta's file: the whole length, or DamagedMetadataError."""

_COWD: Final = struct.Struct("<4sIIIIIII")
# magic, version, flags, sectors of the disk, sectors of a grain, sector of the directory, its entries, next free
_COWD_MAGIC: Final = b"COWD"
_COWD_TABLE_ENTRIES: Final = 4096
_COWD_HEADER_SECTORS: Final = 4


class _SeSparseHeader(NamedTuple):
    """The constant header; all places and lengths are sectors."""

    magic: int
    version: int
    sectors: int
    grain_sectors: int
    table_sectors: int
    flags: int
    reserved_1: int
    reserved_2: int
    reserved_3: int
    reserved_4: int
    volatile_sector: int
    volatile_sectors: int
    journal_header_sector: int
    journal_header_sectors: int
    journal_sector: int
    journal_sectors: int
    directory_sector: int
    directory_sectors: int
    tables_sector: int
    tables_sectors: int
    free_bitmap_sector: int
    free_bitmap_sectors: int
    backmap_sector: int
    backmap_sectors: int
    grains_sector: int
    grains_sectors: int


_SESPARSE: Final = struct.Struct("<26Q")
_SESPARSE_MAGIC: Final = 0xCAFEBABE
_SESPARSE_VERSION: Final = 0x0000000200000001
_SESPARSE_VOLATILE_MAGIC: Final = 0xCAFECAFE
_SESPARSE_VOLATILE: Final = struct.Struct("<4Q")
_DIRECTORY_TYPE: Final = 0xFFFFFFFF00000000
_DIRECTORY_ALLOCATED: Final = 0x1000000000000000
_GRAIN_LOW_BITS: Final = 0x0000FFFFFFFFFFFF
_GRAIN_HIGH_BITS: Final = 0x0FFF000000000000

_LARGEST_DIRECTORY: Final = 64 << 20
"""Bytes: a disk of 64 TiB has a directory of 32 MiB (SESPARSE)."""
_MOST_GRAIN_SECTORS: Final = 1 << 16


def sparse_runs(kind: str, read: Read, file_bytes: int, disk_bytes: int) -> RunMap:
    """A map of the disk: targets are offsets into the delta's file. `kind` as the descriptor has it.

    DamagedMetadataError when the tables cannot be, NotForSanError for a form that is not read here.
    """
    try:
        if kind == "SESPARSE":
            return _sesparse(read, file_bytes, disk_bytes)
        return _cowd(read, file_bytes, disk_bytes)
    except MapError as error:
        raise DamagedMetadataError(f"its grain tables make no sense: {error}") from error


# ---- VMFSSPARSE -----------------------------------------------------------------------------------


def _cowd(read: Read, file_bytes: int, disk_bytes: int) -> RunMap:
    magic, version, _, sectors, grain_sectors, directory_sector, entries, _ = _COWD.unpack(
        read(0, _COWD.size)
    )
    if magic != _COWD_MAGIC:
        raise DamagedMetadataError("it does not begin as a VMFSSPARSE file")
    if version != 1:
        raise NotForSanError(f"is of VMFSSPARSE version {version}; version 1 is known")
    _check_geometry(sectors, grain_sectors, disk_bytes)
    grains = _div_up(sectors, grain_sectors)
    if entries < _div_up(grains, _COWD_TABLE_ENTRIES) or entries * 4 > _LARGEST_DIRECTORY:
        raise DamagedMetadataError(f"its grain directory has {entries} entries for {grains} grains")
    entries = _div_up(grains, _COWD_TABLE_ENTRIES)
    directory = np.frombuffer(read(directory_sector * SECTOR_BYTES, entries * 4), dtype="<u4")
    used = np.flatnonzero(directory)
    positions, targets = [], []
    for index in used.tolist():
        at = int(directory[index]) * SECTOR_BYTES
        table = np.frombuffer(read(at, _COWD_TABLE_ENTRIES * 4), dtype="<u4").astype(np.int64)
        held = np.flatnonzero(table)
        positions.append(held + index * _COWD_TABLE_ENTRIES)
        targets.append(table[held] * SECTOR_BYTES)
    position, target = _joined(positions), _joined(targets)
    if bool((target < _COWD_HEADER_SECTORS * SECTOR_BYTES).any()):
        raise DamagedMetadataError("a grain lies in the header")
    return _grain_map(
        disk_bytes,
        grain_sectors * SECTOR_BYTES,
        grains,
        file_bytes,
        position,
        target,
        np.full(len(position), Kind.DATA),
    )


# ---- SESPARSE -------------------------------------------------------------------------------------


def _sesparse(read: Read, file_bytes: int, disk_bytes: int) -> RunMap:
    header = _SeSparseHeader(*_SESPARSE.unpack(read(0, _SESPARSE.size)))
    if header.magic != _SESPARSE_MAGIC:
        raise DamagedMetadataError("it does not begin as a SESPARSE file")
    if header.version != _SESPARSE_VERSION or header.flags:
        raise NotForSanError(
            f"is of SESPARSE version {header.version:#x} with flags {header.flags:#x}; version "
            f"{_SESPARSE_VERSION:#x} without flags is known"
        )
    _check_geometry(header.sectors, header.grain_sectors, disk_bytes)
    if not 0 < header.table_sectors <= _MOST_GRAIN_SECTORS:
        raise DamagedMetadataError(f"its grain tables have {header.table_sectors} sectors")
    _check_closed(read, header.volatile_sector)
    grains = _div_up(header.sectors, header.grain_sectors)
    table_bytes = header.table_sectors * SECTOR_BYTES
    table_entries = table_bytes // 8
    entries = _div_up(grains, table_entries)
    if entries * 8 > min(header.directory_sectors * SECTOR_BYTES, _LARGEST_DIRECTORY):
        raise DamagedMetadataError(
            f"its grain directory has {header.directory_sectors} sectors for {grains} grains"
        )
    if header.grains_sector * SECTOR_BYTES > file_bytes:
        raise DamagedMetadataError("its grains begin beyond the end of the file")
    directory = np.frombuffer(read(header.directory_sector * SECTOR_BYTES, entries * 8), dtype="<u8")
    used = np.flatnonzero(directory)
    if bool(((directory[used] & np.uint64(_DIRECTORY_TYPE)) != _DIRECTORY_ALLOCATED).any()):
        raise DamagedMetadataError("its grain directory has an entry of no known type")
    positions, targets, kinds = [], [], []
    for index in used.tolist():
        number = int(directory[index]) & 0xFFFFFFFF
        if (number + 1) * header.table_sectors > header.tables_sectors:
            raise DamagedMetadataError(f"its grain table {number} is not among its tables")
        at = header.tables_sector * SECTOR_BYTES + number * table_bytes
        table = np.frombuffer(read(at, table_bytes), dtype="<u8")
        held, kind, target = _sesparse_table(table, header.grain_sectors * SECTOR_BYTES, file_bytes)
        positions.append(held + index * table_entries)
        kinds.append(kind)
        targets.append(np.where(kind == Kind.DATA, target + header.grains_sector * SECTOR_BYTES, 0))
    return _grain_map(
        disk_bytes,
        header.grain_sectors * SECTOR_BYTES,
        grains,
        file_bytes,
        _joined(positions),
        _joined(targets),
        _joined(kinds),
    )


def _sesparse_table(
    table: npt.NDArray[np.uint64], grain_bytes: int, file_bytes: int
) -> tuple[Numbers, Numbers, Numbers]:
    """Positions, kinds and targets (in bytes from the first grain) of what one table holds.

    Types: 0 in the parent, 1 unmapped by the guest, 2 zeros, 3 in this file. An unmapped grain reads as zeros: the
    guest gave it up, and the parent's old data must not come back.
    """
    held = np.flatnonzero(table)
    values = table[held]
    types = (values >> np.uint64(60)).astype(np.int64)
    if bool(((types == 0) | (types > 3)).any()):  # noqa: PLR2004 - the highest type
        raise DamagedMetadataError("its grain tables have an entry of no known type")
    number = ((values & np.uint64(_GRAIN_HIGH_BITS)) >> np.uint64(48)) | (
        (values & np.uint64(_GRAIN_LOW_BITS)) << np.uint64(12)
    )
    data = types == 3  # noqa: PLR2004 - as above
    # Before it is multiplied: what is out of bounds may be out of 63 bits too.
    if bool((number[data] > np.uint64(file_bytes // grain_bytes)).any()):
        raise DamagedMetadataError("a grain lies beyond the end of the file")
    targets = np.where(data, number, np.uint64(0)).astype(np.int64) * grain_bytes
    return held, np.where(data, Kind.DATA, Kind.ZERO), targets


def _check_closed(read: Read, volatile_sector: int) -> None:
    magic, _, _, replay = _SESPARSE_VOLATILE.unpack(
        read(volatile_sector * SECTOR_BYTES, _SESPARSE_VOLATILE.size)
    )
    if magic != _SESPARSE_VOLATILE_MAGIC:
        raise DamagedMetadataError("its volatile header is none")
    if replay:
        raise DamagedMetadataError("its journal was not replayed: a host has it open for writing")


# ---- both -----------------------------------------------------------------------------------------


def _check_geometry(sectors: int, grain_sectors: int, disk_bytes: int) -> None:
    if sectors * SECTOR_BYTES != disk_bytes:
        raise DamagedMetadataError(
            f"it is of a disk of {sectors * SECTOR_BYTES} bytes, its descriptor says {disk_bytes}"
        )
    if not 0 < grain_sectors <= _MOST_GRAIN_SECTORS or grain_sectors & (grain_sectors - 1):
        raise DamagedMetadataError(f"its grains have {grain_sectors} sectors")


def _grain_map(
    disk_bytes: int,
    grain_bytes: int,
    grains: int,
    file_bytes: int,
    positions: Numbers,
    targets: Numbers,
    kinds: Numbers,
) -> RunMap:
    """From the grains that are held, ascending, to runs; between them the parent shows through."""
    inside = positions < grains  # the last table covers more than the disk has
    positions, targets, kinds = positions[inside], targets[inside], kinds[inside]
    starts = positions * grain_bytes
    lengths = np.minimum(grain_bytes, disk_bytes - starts)
    data = kinds == Kind.DATA
    if bool((targets + lengths)[data].max(initial=0) > file_bytes):
        raise DamagedMetadataError(f"a grain lies beyond the end of the file of {file_bytes} bytes")
    gap = np.append(starts[1:], disk_bytes) != starts + lengths
    # Each held grain, and behind it an absent run where the next one does not follow at once.
    all_starts = np.concatenate([starts, (starts + lengths)[gap]])
    all_kinds = np.concatenate([kinds, np.full(int(gap.sum()), Kind.ABSENT)])
    all_targets = np.concatenate([targets, np.zeros(int(gap.sum()), dtype=np.int64)])
    if not len(starts) or starts[0]:
        all_starts = np.append(0, all_starts)
        all_kinds = np.append(Kind.ABSENT, all_kinds)
        all_targets = np.append(0, all_targets)
    order = np.argsort(all_starts, kind="stable")
    return make_map(disk_bytes, all_starts[order], all_kinds[order], all_targets[order])


def _joined(parts: list[Numbers]) -> Numbers:
    return np.concatenate([np.zeros(0, dtype=np.int64), *parts]).astype(np.int64)


def _div_up(number: int, by: int) -> int:
    return -(-number // by)
