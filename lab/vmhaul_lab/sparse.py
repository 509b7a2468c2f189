"""Walks and copies sparse files by their data, not by their length."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

_STEP_BYTES = 1 << 20


def data_extents(descriptor: int, size_bytes: int) -> Iterator[tuple[int, int]]:
    """(offset, length) of each run of a file that is not a hole, in order."""
    at = 0
    while at < size_bytes:
        try:
            start = os.lseek(descriptor, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole up to the end
                return
            raise
        at = min(os.lseek(descriptor, start, os.SEEK_HOLE), size_bytes)
        yield start, at - start


def copy(source: Path, target: Path) -> int:
    """Copy a file with its holes; returns how many bytes of data it held."""
    copied = 0
    with source.open("rb", buffering=0) as reader, target.open("wb", buffering=0) as writer:
        size_bytes = os.fstat(reader.fileno()).st_size
        writer.truncate(size_bytes)
        for start, length in data_extents(reader.fileno(), size_bytes):
            end = start + length
            at = start
            while at < end:
                piece = os.pread(reader.fileno(), min(_STEP_BYTES, end - at), at)
                at += os.pwrite(writer.fileno(), piece, at)
            copied += length
    return copied
