"""Raw image files as disks: the target of a restore to a file, and a source."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from pipeline.errors import PermanentPipelineError
from pipeline.storage.local import translated_os_errors
from pipeline.storage.writeback import start_writeback
from transports.base import (
    Ability,
    Extent,
    ReaderCapabilities,
    ReadRequest,
    TransportMode,
    WriterCapabilities,
    read_one_by_one,
)
from transports.directio import (
    ALIGNMENT_BYTES,
    AlignedMemory,
    data_runs,
    open_direct,
    preallocate,
    write_direct,
)

MAX_REQUEST_BYTES: Final = 16 << 20
WRITEBACK_BYTES: Final = 256 << 10
"""Writes of this size are handed to the disk at once; small ones are left for the kernel to join."""
FILE_MODE: Final = 0o600
WRITING_THREADS: Final = 4
FILE_SYSTEM_MODE: Final = TransportMode.DIRECT_NFS
"""A reader must name a mode; this one reads a file through a mounted file system, as that mode does."""


class RawFileWriter:
    """A sparse raw file; a DiskWriter.

    Aligned data goes past the page cache (O_DIRECT) where the file system allows it: measured, a tenth of
    the CPU, and no cache that is emptied of what others need. Everything else, as the end of a disk of odd
    size, goes through it.
    """

    def __init__(self, path: Path, fd: int, capacity_bytes: int) -> None:
        """Use create()."""
        self._path = path
        self._fd = fd
        self._capacity_bytes = capacity_bytes
        self._direct_fd = open_direct(fd)
        self._is_direct = self._direct_fd >= 0
        self._preallocates = True
        self._memory = AlignedMemory()

    @classmethod
    def create(
        cls, path: str | os.PathLike[str], capacity_bytes: int, *, overwrite: bool = False
    ) -> RawFileWriter:
        """A file of that size that reads as zeros and takes no space yet. An existing file is refused
        unless `overwrite`; then its content is gone at once.

        Raises PermanentPipelineError, StorageFullError, StoragePermissionError.
        """
        target = Path(path)
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | (os.O_TRUNC if overwrite else os.O_EXCL)
        try:
            with translated_os_errors("creating the file", str(target)):
                fd = os.open(target, flags, FILE_MODE)
        except PermanentPipelineError as error:
            if isinstance(error.__cause__, FileExistsError):
                raise PermanentPipelineError(
                    f"{target} exists already; name another file or allow overwriting"
                ) from error
            if isinstance(error.__cause__, FileNotFoundError):
                raise PermanentPipelineError(
                    f"{target} cannot be made: its directory does not exist; create that, or name "
                    "another file"
                ) from error
            raise
        try:
            with translated_os_errors("enlarging the file", str(target)):
                os.ftruncate(fd, capacity_bytes)
        except BaseException:
            os.close(fd)
            raise
        return cls(target, fd, capacity_bytes)

    @property
    def size_bytes(self) -> int:
        return self._capacity_bytes

    @property
    def capabilities(self) -> WriterCapabilities:
        return WriterCapabilities(
            mode=FILE_SYSTEM_MODE,
            max_request_bytes=MAX_REQUEST_BYTES,
            reads_as_zero_when_new=True,
            threads=WRITING_THREADS,
        )

    def expect(self, offset: int, length: int) -> None:
        """Make room for a range that will be written: one large piece is cheaper than many small ones,
        and a full disk shows early. Ranges that nobody expects stay holes.
        """
        if not self._preallocates:
            return
        with translated_os_errors("making room", str(self._path)):
            self._preallocates = preallocate(self._fd, offset, length)

    def write_from(self, offset: int, buffer: memoryview) -> None:
        if offset < 0 or offset + len(buffer) > self._capacity_bytes:
            raise ValueError(f"{self._path}: write past the end of the disk")
        with translated_os_errors("writing", str(self._path)):
            done = self._write_direct(offset, buffer)
            began = done
            while done < len(buffer):
                done += os.pwrite(self._fd, buffer[done:], offset + done)
        if done - began >= WRITEBACK_BYTES:
            start_writeback(self._fd, offset + began, done - began)

    def _write_direct(self, offset: int, buffer: memoryview) -> int:
        """Write what can go past the page cache; how many bytes that were, from the beginning."""
        length = len(buffer) - len(buffer) % ALIGNMENT_BYTES
        if not self._is_direct or not length or offset % ALIGNMENT_BYTES:
            return 0
        try:
            return write_direct(self._direct_fd, buffer[:length], offset, self._memory)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            self._is_direct = False  # this file system wants another alignment
            return 0

    def flush(self) -> None:
        with translated_os_errors("syncing", str(self._path)):
            os.fsync(self._fd)
            directory = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)

    def close(self) -> None:
        fds = (self._fd, self._direct_fd)
        self._fd = self._direct_fd = -1
        self._is_direct = False
        for fd in fds:
            if fd >= 0:
                with contextlib.suppress(OSError):
                    os.close(fd)


class RawFileReader:
    """A raw file or block device as a disk; a DiskReader."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Raises ObjectNotFoundError, StoragePermissionError."""
        self._path = Path(path)
        with translated_os_errors("opening the file", str(self._path)):
            self._fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
            self._size_bytes = os.lseek(self._fd, 0, os.SEEK_END)

    @property
    def size_bytes(self) -> int:
        return self._size_bytes

    @property
    def capabilities(self) -> ReaderCapabilities:
        return ReaderCapabilities(
            mode=FILE_SYSTEM_MODE,
            allocated_extents=Ability.NATIVE,
            requests_in_flight=1,
            max_request_bytes=MAX_REQUEST_BYTES,
        )

    def read_into(self, offset: int, buffer: memoryview) -> None:
        if offset < 0 or offset + len(buffer) > self._size_bytes:
            raise ValueError(f"{self._path}: read past the end of the disk")
        done = 0
        with translated_os_errors("reading", str(self._path)):
            while done < len(buffer):
                count = os.preadv(self._fd, [buffer[done:]], offset + done)
                if count == 0:
                    raise OSError(errno.EIO, "the file became shorter while it was read")
                done += count

    def read_many(self, requests: Iterable[ReadRequest]) -> Iterator[ReadRequest]:
        return read_one_by_one(self, requests)

    def allocated_extents(self, offset: int, length: int) -> Iterator[Extent]:
        end = min(offset + length, self._size_bytes)
        with translated_os_errors("looking for holes", str(self._path)):
            runs = list(data_runs(self._fd, offset, end))
        for start, stop in runs:
            yield Extent(offset=start, length=stop - start)

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            with contextlib.suppress(OSError):
                os.close(fd)
