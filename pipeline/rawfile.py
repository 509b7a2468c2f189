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

MAX_REQUEST_BYTES: Final = 16 << 20
WRITEBACK_BYTES: Final = 256 << 10
"""Writes of this size are handed to the disk at once; small ones are left for the kernel to join."""
FILE_MODE: Final = 0o600
FILE_SYSTEM_MODE: Final = TransportMode.DIRECT_NFS
"""A reader must name a mode; this one reads a file through a mounted file system, as that mode does."""


class RawFileWriter:
    """A sparse raw file; a DiskWriter."""

    def __init__(self, path: Path, fd: int, capacity_bytes: int) -> None:
        """Use create()."""
        self._path = path
        self._fd = fd
        self._capacity_bytes = capacity_bytes

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
            mode=FILE_SYSTEM_MODE, max_request_bytes=MAX_REQUEST_BYTES, reads_as_zero_when_new=True
        )

    def write_from(self, offset: int, buffer: memoryview) -> None:
        if offset < 0 or offset + len(buffer) > self._capacity_bytes:
            raise ValueError(f"{self._path}: write past the end of the disk")
        with translated_os_errors("writing", str(self._path)):
            done = 0
            while done < len(buffer):
                done += os.pwrite(self._fd, buffer[done:], offset + done)
        if len(buffer) >= WRITEBACK_BYTES:
            start_writeback(self._fd, offset, len(buffer))

    def flush(self) -> None:
        with translated_os_errors("syncing", str(self._path)):
            os.fsync(self._fd)
            directory = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)

    def close(self) -> None:
        fd, self._fd = self._fd, -1
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
        at = offset
        while at < end:
            start = self._seek(at, os.SEEK_DATA)
            if start is None or start >= end:
                return
            stop = self._seek(start, os.SEEK_HOLE)
            at = end if stop is None else min(stop, end)
            yield Extent(offset=start, length=at - start)

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            with contextlib.suppress(OSError):
                os.close(fd)

    def _seek(self, at: int, whence: int) -> int | None:
        """None past the last data."""
        with translated_os_errors("looking for holes", str(self._path)):
            try:
                return os.lseek(self._fd, at, whence)
            except OSError as error:
                if error.errno == errno.ENXIO:
                    return None
                raise
