"""Which volume bytes a file on VMFS consists of: its pointers read a whole pointer block at a time.

The library resolves one offset at a time, with a third of a millisecond for each block of 1 MiB; here a pointer
block becomes a column of numbers, and what addresses mean is worked out for all of them at once. Layout of the
addresses as dissect.vmfs documents it; a test holds both to the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from transports.direct_san.errors import DamagedMetadataError, NotForSanError
from transports.direct_san.library import understood
from transports.direct_san.runs import Kind, MapError, RunMap, concat, make_map, uniform

_Pointers = npt.NDArray[np.uint64]
_FILE_BLOCK, _SUB_BLOCK, _POINTER_BLOCK, _POINTER_BLOCK_2, _LARGE_FILE_BLOCK = 1, 2, 3, 5, 7
_DOUBLE: Final = 0x10D0
_RESIDENT: Final = 0x10D1
_DIRECT: Final = frozenset({_FILE_BLOCK, _SUB_BLOCK})
_SINGLE: Final = frozenset({_POINTER_BLOCK, _POINTER_BLOCK_2})
_LARGEST_FILE: Final = 64 << 40
_SMALLEST_UNIT_SHIFT, _LARGEST_UNIT_SHIFT = 12, 32
_TYPE: Final = np.uint64(0b111)
_ALL_TO_BE_ZEROED: Final = 0xFF
_HIGHEST_NUMBER: Final = 1 << 28
_MOST_PER_CLUSTER: Final = 1 << 13
"""Of blocks: what an address has room for. Both keep offsets inside of 63 bits."""


def file_runs(fs: Any, fd: Any) -> RunMap:
    """A map of the file (a FileDescriptor of dissect.vmfs): targets are offsets into the volume.

    Holes and blocks to be zeroed are zeros: nobody may read what the LUN holds there. DamagedMetadataError when
    it makes no sense, NotForSanError where it is not known what the file reads as.
    """
    with understood("a file descriptor"):
        size, zla = int(fd.size), int(fd.metadata.zeroLevelAddrType)
        shift = int(fd.metadata.blockOffsetShift)
        if not 0 <= size <= _LARGEST_FILE:
            raise DamagedMetadataError(f"a file of {size} bytes")
        if fd.is_rdm():
            raise NotForSanError("is a raw device mapping: its data is not on the datastore")
        if not size:
            return make_map(0, (), ())
        try:
            if zla == _RESIDENT:
                return _resident(fs, fd, size)
            if not _SMALLEST_UNIT_SHIFT <= shift <= _LARGEST_UNIT_SHIFT:
                raise DamagedMetadataError(f"a file in blocks of 2^{shift} bytes")
            return concat(_parts(_Decoder(fs, fd, shift), fs, fd, zla, size, shift))
        except MapError as error:
            raise DamagedMetadataError(f"the blocks of a file make no sense: {error}") from error


def _resident(fs: Any, fd: Any, size: int) -> RunMap:
    """Small files lie in their descriptor."""
    if size > fs._fd_data_size:  # noqa: SLF001 - the library has no name for it
        raise DamagedMetadataError(f"a file of {size} bytes inside of its descriptor")
    at = int(fd._resolve_offset(0)[0])  # noqa: SLF001 - as above
    return make_map(size, [0], [Kind.DATA], [at])


def _parts(decoder: _Decoder, fs: Any, fd: Any, zla: int, size: int, shift: int) -> Iterator[RunMap]:
    """The file's map in pieces, each as long as one pointer block says."""
    count = -(-size >> shift)
    done = 0
    for pointers, wanted in _tables(fs, fd, zla, count):
        start, end = done << shift, min((done + wanted) << shift, size)
        if pointers is None:
            yield uniform(end - start, Kind.ZERO)
        else:
            yield decoder.decode(pointers[:wanted], start, end)
        done += wanted
    if done < count:
        raise DamagedMetadataError(f"a file of {count} blocks has pointers for {done}")


def _tables(fs: Any, fd: Any, zla: int, count: int) -> Iterator[tuple[_Pointers | None, int]]:
    """Pointers in their order, with how many of them are wanted; None: a hole as long as a pointer block."""
    own = np.array([int(block) for block in fd.blocks], dtype=np.uint64)
    if zla in _DIRECT:
        yield own[:count], min(count, len(own))
        return
    if zla not in _SINGLE and zla != _DOUBLE:
        raise DamagedMetadataError(f"a file whose pointers are of the unknown kind {zla:#x}")
    per_table = int(fs._ptr_block_num_ptrs)  # noqa: SLF001 - the library has no name for it
    levels = 2 if zla == _DOUBLE else 1
    left = count
    for address in own.tolist():
        for table in _below(fs, address, per_table, levels, -(-left // per_table)):
            wanted = min(left, per_table)
            if not wanted:
                return
            yield table, wanted
            left -= wanted
        if not left:
            return


def _below(fs: Any, address: int, per_table: int, levels: int, most: int) -> Iterator[_Pointers | None]:
    """At most `most` tables of the lowest level below one pointer."""
    if levels == 1:
        yield _table(fs, address, per_table) if address else None
        return
    middle = _table(fs, address, per_table).tolist() if address else [0] * per_table
    for lower in middle[:most]:
        yield _table(fs, lower, per_table) if lower else None


def _table(fs: Any, address: int, per_table: int) -> _Pointers:
    if address & 0b111 not in (_FILE_BLOCK, _SUB_BLOCK, _POINTER_BLOCK, _POINTER_BLOCK_2):
        raise DamagedMetadataError(f"a pointer block at the address {address:#x}")
    content = fs.resources.read(address)
    width = 8 if fs.is_vmfs6 else 4
    if len(content) < per_table * width:
        raise DamagedMetadataError(f"a pointer block of {len(content)} bytes")
    return np.frombuffer(content, dtype=f"<u{width}", count=per_table).astype(np.uint64)


class _Decoder:
    """Turns pointers of one file into runs."""

    def __init__(self, fs: Any, fd: Any, shift: int) -> None:
        self._fs = fs
        self._fd = fd
        self._shift = shift
        self._block_shift = int(fs.file_block_size).bit_length() - 1
        self._zeroing_shift = int(fd.metadata.tbzGranularityShift) or shift
        self._is_6 = bool(fs.is_vmfs6)
        self._large_shift = self._block_shift + (int(fs.descriptor.sfbToLfbShift) if self._is_6 else 0)
        small = fs.resources.SFB if self._is_6 else None
        self._per_cluster = int(small.metadata.resourcesPerCluster) if small is not None else 0
        if self._is_6 and not 0 < self._per_cluster <= _MOST_PER_CLUSTER:
            raise DamagedMetadataError(f"clusters of {self._per_cluster} blocks")

    def decode(self, pointers: _Pointers, start: int, end: int) -> RunMap:
        """A map of [start, end) of the file, counted from 0."""
        types = (pointers & _TYPE).astype(np.int64)
        offsets = (np.arange(len(pointers), dtype=np.int64) << self._shift) + start
        hole = pointers == 0
        small, large = types == _FILE_BLOCK, types == _LARGE_FILE_BLOCK
        if not self._is_6:
            large = np.zeros_like(small)
        other = ~(hole | small | large)
        targets, zeroing = self._blocks(pointers, offsets, small, large)
        for index in np.flatnonzero(other).tolist():
            targets[index] = self._sub_block(int(pointers[index]), int(offsets[index]))
        kinds = np.where(hole | zeroing, Kind.ZERO, Kind.DATA)
        return make_map(end - start, offsets - start, kinds, targets)

    def _blocks(
        self,
        pointers: _Pointers,
        offsets: npt.NDArray[np.int64],
        small: npt.NDArray[np.bool_],
        large: npt.NDArray[np.bool_],
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
        if bool(small.any()) and self._shift > self._block_shift:
            raise DamagedMetadataError("a pointer to less than it stands for")
        if bool(large.any()) and self._shift > self._large_shift:
            raise DamagedMetadataError("a pointer to less than it stands for")
        if not self._is_6:
            number = ((pointers >> np.uint64(6)) & np.uint64(0x3FFFFFF)).astype(np.int64)
            inside = offsets & ((1 << self._block_shift) - 1)
            zeroing = ((pointers >> np.uint64(5)) & np.uint64(1)) != 0
            return (number << self._block_shift) + inside, zeroing & small
        number = ((pointers >> np.uint64(15)) & np.uint64(0x7FFFFFFF)).astype(np.int64)
        resource = (pointers >> np.uint64(51)).astype(np.int64)
        if bool((number[small | large] > _HIGHEST_NUMBER).any()):
            raise DamagedMetadataError("a pointer beyond every volume")
        in_small = offsets & ((1 << self._block_shift) - 1)
        in_large = offsets & ((1 << self._large_shift) - 1)
        targets = np.where(
            large,
            (number << self._large_shift) + in_large,
            ((number * self._per_cluster + resource) << self._block_shift) + in_small,
        )
        return targets, self._zeroing(pointers, small | large)

    def _zeroing(self, pointers: _Pointers, blocks: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        """VMFS 6 has eight bits of "to be zeroed" for each block. All: it is zeros. Some of them, where a bit
        stands for less than the block: which part is meant by which bit has not been seen on a real volume.
        """
        bits = ((pointers >> np.uint64(7)) & np.uint64(0xFF)).astype(np.int64)
        bits = np.where(blocks, bits, 0)
        partly = (bits != 0) & (bits != _ALL_TO_BE_ZEROED)
        if bool(partly.any()) and self._zeroing_shift < self._shift:
            raise NotForSanError(
                "has blocks of which a part is still to be zeroed, and direct SAN cannot tell which part"
            )
        zeroing: npt.NDArray[np.bool_] = bits != 0
        return zeroing

    def _sub_block(self, pointer: int, offset: int) -> int:
        """Small files lie in sub-blocks, one or a few of them: the library's own way is quick enough."""
        if pointer & 0b111 != _SUB_BLOCK:
            raise DamagedMetadataError(f"a block at the address {pointer:#x}")
        return int(self._fd._resolve_offset(offset)[0])  # noqa: SLF001 - the library has no name for it
