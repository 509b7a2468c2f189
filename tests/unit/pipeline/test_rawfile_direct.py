"""Raw files that are written past the page cache, and file systems that do not take that."""

from __future__ import annotations

import errno
import mmap
import os
import random
import threading
from pathlib import Path
from typing import Any

import pytest

from pipeline import rawfile
from pipeline.errors import StorageFullError
from pipeline.rawfile import RawFileWriter
from pipeline.restore import Expecting, restore_disk
from pipeline.testing.builders import BLOCK_SIZE_BYTES, ManualClock, Workbench
from pipeline.testing.storage import MemoryStorage
from transports import directio
from transports.directio import BOUNCE_BYTES

MIB = 1 << 20


def aligned(content: bytes) -> memoryview:
    memory = mmap.mmap(-1, max(1, len(content)))
    memory[: len(content)] = content
    return memoryview(memory)[: len(content)]


class Calls:
    """Which writes went which way."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, writer: RawFileWriter) -> None:
        self.direct: list[tuple[int, int]] = []
        self.cached: list[tuple[int, int]] = []
        self._writer = writer
        self._pwrite = os.pwrite
        monkeypatch.setattr(os, "pwrite", self)

    def __call__(self, fd: int, data: memoryview, offset: int) -> int:
        way = self.direct if fd == self._writer._direct_fd else self.cached
        way.append((offset, len(data)))
        return self._pwrite(fd, data, offset)


@pytest.fixture
def direct_path(tmp_path: Path) -> Path:
    """Where files can be written directly: a file system that cannot is the other tests' matter."""
    return tmp_path / "disk.raw"


def test_what_is_aligned_is(direct_path: Path) -> None:
    view = aligned(bytes(8192))
    assert directio.is_aligned(view)
    assert not directio.is_aligned(view[1:])
    assert directio.is_aligned(view[4096:])
    assert not directio.is_aligned(memoryview(bytes(4096)))
    assert directio.open_direct(-5) == -1


@pytest.mark.parametrize("capacity", [4096, 4097, 10 * 4096 + 512, 3 * MIB + 1, 100])
@pytest.mark.parametrize("is_aligned", [True, False])
def test_every_size_is_written_whole(
    direct_path: Path, monkeypatch: pytest.MonkeyPatch, capacity: int, is_aligned: bool
) -> None:
    content = random.Random(capacity).randbytes(capacity)
    writer = RawFileWriter.create(direct_path, capacity)
    calls = Calls(monkeypatch, writer)
    writer.write_from(0, aligned(content) if is_aligned else memoryview(content))
    if writer._direct_fd >= 0:
        assert sum(length for _, length in calls.direct) == capacity - capacity % 4096
        assert sum(length for _, length in calls.cached) == capacity % 4096
        if not is_aligned:
            assert max((length for _, length in calls.direct), default=0) <= BOUNCE_BYTES
    writer.flush()
    writer.close()
    assert direct_path.read_bytes() == content


def test_places_that_are_not_aligned_go_through_the_cache(
    direct_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(1)
    model = bytearray(MIB + 512)
    writer = RawFileWriter.create(direct_path, len(model))
    calls = Calls(monkeypatch, writer)
    for _ in range(200):
        offset = rng.randrange(0, len(model) // 512) * 512
        length = min(rng.choice([512, 4096, 5000, 70_000]), len(model) - offset)
        content = rng.randbytes(length)
        writer.write_from(offset, aligned(content) if rng.random() < 0.5 else memoryview(content))
        model[offset : offset + length] = content
    writer.flush()
    writer.close()
    assert direct_path.read_bytes() == model
    assert calls.cached


def test_a_file_system_without_direct_writes(
    direct_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """tmpfs of old kernels refuses to open; some refuse to write with this alignment."""
    monkeypatch.setattr(rawfile, "open_direct", lambda _fd: -1)
    content = random.Random(2).randbytes(MIB)
    writer = RawFileWriter.create(direct_path, MIB)
    writer.write_from(0, aligned(content))
    writer.flush()
    writer.close()
    assert direct_path.read_bytes() == content


def test_a_refused_alignment_is_not_tried_again(
    direct_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = os.pwrite
    refused: list[int] = []
    writer = RawFileWriter.create(direct_path, 2 * MIB)
    monkeypatch.setattr(writer, "_direct_fd", 10_000)
    monkeypatch.setattr(writer, "_is_direct", True)

    def pwrite(fd: int, data: memoryview, offset: int) -> int:
        if fd == 10_000:
            refused.append(offset)
            raise OSError(errno.EINVAL, "no")
        return honest(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", pwrite)
    content = random.Random(3).randbytes(2 * MIB)
    writer.write_from(0, aligned(content[:MIB]))
    writer.write_from(MIB, aligned(content[MIB:]))
    assert refused == [0]
    writer.flush()
    assert direct_path.read_bytes() == content


def test_a_disk_that_runs_full_in_the_middle_of_a_write(
    direct_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel writes a part, then says that there is no room."""
    left = [3 * 4096 + 512]
    honest = os.pwrite

    def pwrite(fd: int, data: memoryview, offset: int) -> int:
        if not left[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        taken = min(left[0], len(data))
        left[0] -= taken
        # What the kernel takes is not aligned here, so it must not go to the direct descriptor.
        return honest(writer._fd, data[:taken], offset)

    writer = RawFileWriter.create(direct_path, MIB)
    monkeypatch.setattr(os, "pwrite", pwrite)
    with pytest.raises(StorageFullError, match="free space"):
        writer.write_from(0, aligned(b"x" * MIB))
    writer.close()


def test_room_is_made_and_holes_stay(direct_path: Path) -> None:
    writer = RawFileWriter.create(direct_path, 64 * MIB)
    assert isinstance(writer, Expecting)
    writer.expect(8 * MIB, 4 * MIB)
    held = direct_path.stat().st_blocks * 512
    assert held < 5 * MIB
    if writer._preallocates:
        assert held >= 4 * MIB
    writer.close()
    assert direct_path.stat().st_size == 64 * MIB


def test_without_preallocation_nothing_is_reserved(
    direct_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def refuse(_fd: int, _mode: int, offset: int, _length: int) -> int:
        asked.append(offset)
        directio.ctypes.set_errno(errno.EOPNOTSUPP)
        return -1

    monkeypatch.setattr(directio, "_FALLOCATE", refuse)
    writer = RawFileWriter.create(direct_path, 64 * MIB)
    writer.expect(0, MIB)
    writer.expect(MIB, MIB)
    assert asked == [0]
    writer.close()
    assert direct_path.stat().st_blocks * 512 < MIB


def test_no_room_is_told_before_anything_is_written(
    direct_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_arguments: Any) -> int:
        directio.ctypes.set_errno(errno.ENOSPC)
        return -1

    monkeypatch.setattr(directio, "_FALLOCATE", full)
    writer = RawFileWriter.create(direct_path, 64 * MIB)
    with pytest.raises(StorageFullError, match="making room"):
        writer.expect(0, MIB)
    writer.close()


@pytest.mark.parametrize("tail", [0, 512, 1000, 4095])
def test_a_restore_into_a_file_is_bit_for_bit_and_sparse(tmp_path: Path, tail: int) -> None:
    clock = ManualClock()
    bench = Workbench(MemoryStorage(clock), clock)
    rng = random.Random(tail)
    image = bytearray(3 * MIB + tail)
    for number in [*range(20), *range(300, 310), len(image) // BLOCK_SIZE_BYTES - 1]:
        at = number * BLOCK_SIZE_BYTES
        image[at : at + BLOCK_SIZE_BYTES] = rng.randbytes(BLOCK_SIZE_BYTES)
    if tail:
        image[-tail:] = rng.randbytes(tail)
    backup = bench.backup(image)
    path = tmp_path / "disk.raw"
    writer = RawFileWriter.create(path, len(image))
    restore_disk(
        repository=bench.repository,
        map_root=backup.map_root,
        capacity_bytes=len(image),
        writer=writer,
        skip_zeros=True,
        cancel=threading.Event(),
        progress=lambda _progress: None,
        clock=bench.clock,
    )
    writer.close()
    assert path.read_bytes() == image
    assert path.stat().st_blocks * 512 < MIB
