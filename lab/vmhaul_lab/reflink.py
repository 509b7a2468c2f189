"""Copies without copying: file systems that share blocks (XFS, btrfs), and what changed since.

Where the file system cannot share, data is copied sparsely; callers see no difference but the time.
"""

import ctypes
import errno
import fcntl
import itertools
import os
import struct
from collections.abc import Iterator
from pathlib import Path

from vmhaul_lab import sparse

_FICLONE = 0x40049409
_FICLONERANGE = 0x4020940D
_FS_IOC_FIEMAP = 0xC020660B
_FIEMAP_SYNC = 1
_FIEMAP_LAST = 1
_FIEMAP_UNWRITTEN = 0x800
_PUNCH_HOLE_KEEP_SIZE = 3
_ALIGNMENT_BYTES = 4096
_CANNOT = {errno.EOPNOTSUPP, errno.EXDEV, errno.ENOTTY, errno.EINVAL, errno.ENOSYS}
_EXTENT = struct.Struct("<QQQQQIIII")
_EXTENTS_PER_CALL = 512
_libc = ctypes.CDLL(None, use_errno=True)


def clone_file(source: Path, target: Path) -> bool:
    """Make `target` (created or replaced) equal to `source`; whether the blocks are shared."""
    with source.open("rb") as reading, target.open("wb") as writing:
        try:
            fcntl.ioctl(writing.fileno(), _FICLONE, reading.fileno())
        except OSError as error:
            if error.errno not in _CANNOT:
                raise
        else:
            return True
        size = os.fstat(reading.fileno()).st_size
        writing.truncate(size)
        _copy(reading.fileno(), 0, size, writing.fileno(), 0)
    return False


def put_range(
    source: int, source_bytes: int, length_bytes: int, target: int, target_bytes: int
) -> None:
    """Let a range of `target` be what a range of `source` is, holes included; both are descriptors."""
    shared = length_bytes - length_bytes % _ALIGNMENT_BYTES
    if shared and not (source_bytes | target_bytes) % _ALIGNMENT_BYTES:
        order = struct.pack("<qQQQ", source, source_bytes, shared, target_bytes)
        try:
            fcntl.ioctl(target, _FICLONERANGE, order)
        except OSError as error:
            if error.errno not in _CANNOT:
                raise
        else:
            source_bytes, target_bytes = source_bytes + shared, target_bytes + shared
            length_bytes -= shared
    if length_bytes:
        _clear(target, target_bytes, length_bytes)
        _copy(source, source_bytes, length_bytes, target, target_bytes)


def _copy(source: int, source_bytes: int, length_bytes: int, target: int, target_bytes: int) -> None:
    shift = target_bytes - source_bytes
    for at, length in data_ranges(source, source_bytes, length_bytes):
        done = 0
        while done < length:
            part = os.pread(source, min(1 << 20, length - done), at + done)
            if not part:
                break
            done += os.pwrite(target, part, at + shift + done)


def _clear(descriptor: int, offset_bytes: int, length_bytes: int) -> None:
    try:
        punch_hole(descriptor, offset_bytes, length_bytes)
    except OSError as error:
        if error.errno not in _CANNOT:
            raise
        os.pwrite(descriptor, bytes(length_bytes), offset_bytes)


def punch_hole(descriptor: int, offset_bytes: int, length_bytes: int) -> None:
    """Free a range of a file; it reads as zeros. `OSError` where the file system cannot."""
    done = _libc.fallocate64(
        descriptor,
        _PUNCH_HOLE_KEEP_SIZE,
        ctypes.c_int64(offset_bytes),
        ctypes.c_int64(length_bytes),
    )
    if done:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def data_ranges(descriptor: int, offset_bytes: int, length_bytes: int) -> Iterator[tuple[int, int]]:
    """(offset, length) of what is not a hole within a range of a file."""
    end = offset_bytes + length_bytes
    at = offset_bytes
    while at < end:
        try:
            start = os.lseek(descriptor, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            raise
        if start >= end:
            return
        at = min(os.lseek(descriptor, start, os.SEEK_HOLE), end)
        yield start, at - start


def physical_ranges(path: Path) -> list[tuple[int, int, int]]:
    """(offset, place on the disk, length) of a file's written extents, what is in memory flushed before."""
    found: list[tuple[int, int, int]] = []
    with path.open("rb") as file:
        at = 0
        while True:
            buffer = bytearray(32 + _EXTENTS_PER_CALL * _EXTENT.size)
            struct.pack_into(
                "<QQIIII", buffer, 0, at, (1 << 63) - at, _FIEMAP_SYNC, 0, _EXTENTS_PER_CALL, 0
            )
            fcntl.ioctl(file.fileno(), _FS_IOC_FIEMAP, buffer)
            count = struct.unpack_from("<I", buffer, 20)[0]
            for number in range(count):
                logical, physical, length, _, _, flags, *_ = _EXTENT.unpack_from(
                    buffer, 32 + number * _EXTENT.size
                )
                if not flags & _FIEMAP_UNWRITTEN:
                    found.append((logical, physical, length))
                at = logical + length
                if flags & _FIEMAP_LAST:
                    return found
            if not count:
                return found


def written_ranges(path: Path) -> list[tuple[int, int]]:
    """(offset, length) of what was ever written to a file.

    SEEK_DATA will not do: of a range that is allocated but was never written it says "data" as soon as somebody
    has read it.
    """
    try:
        return [(offset, length) for offset, _, length in physical_ranges(path)]
    except OSError as error:
        if error.errno not in _CANNOT:
            raise
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        return list(data_ranges(file.fileno(), 0, size))


def changed_ranges(now: Path, before: Path) -> list[tuple[int, int]]:
    """(offset, length) of what was written to `now` or `before` since `before` was cloned from it.

    Both lie on a file system that shares blocks: what has the same place on the disk was not written.
    """
    new, old = physical_ranges(now), physical_ranges(before)
    edges = sorted(
        {
            at
            for extents in (new, old)
            for offset, _, length in extents
            for at in (offset, offset + length)
        }
    )
    changed: list[tuple[int, int]] = []
    new_at, old_at = _Cursor(new), _Cursor(old)
    for start, end in itertools.pairwise(edges):
        if new_at.place(start) == old_at.place(start):
            continue
        if changed and sum(changed[-1]) == start:
            changed[-1] = (changed[-1][0], end - changed[-1][0])
        else:
            changed.append((start, end - start))
    return changed


class _Cursor:
    """Where on the disk each byte of a file is, asked in ascending order."""

    def __init__(self, extents: list[tuple[int, int, int]]) -> None:
        self._extents = extents
        self._index = 0

    def place(self, at: int) -> int | None:
        while self._index < len(self._extents):
            offset, physical, length = self._extents[self._index]
            if at < offset:
                return None
            if at < offset + length:
                return physical + at - offset
            self._index += 1
        return None


def same_content(left: Path, right: Path) -> bool:
    """Whether two files hold the same bytes, compared by their data alone."""
    if left.stat().st_size != right.stat().st_size:
        return False
    with left.open("rb") as one, right.open("rb") as other:
        size = os.fstat(one.fileno()).st_size
        ranges = [*sparse.data_extents(one.fileno(), size), *sparse.data_extents(other.fileno(), size)]
        return all(
            os.pread(one.fileno(), min(1 << 20, offset + length - at), at)
            == os.pread(other.fileno(), min(1 << 20, offset + length - at), at)
            for offset, length in ranges
            for at in range(offset, offset + length, 1 << 20)
        )
