"""Files past the page cache: what goes wrong, and what the reader and writer on top say then."""

from __future__ import annotations

import errno
import mmap
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transports import direct_file
from transports.base import Ability, ReadRequest, TransportMode
from transports.errors import (
    OutOfSpaceError,
    PermanentTransportError,
    TransientTransportError,
    TransportUnavailableError,
)
from transports.extent_reader import DirectFile, ExtentMap, ExtentReader, ExtentWriter, Run

MIB = 1 << 20
MODE = TransportMode.DIRECT_SAN


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk"
    path.write_bytes(os.urandom(2 * MIB))
    return path


def broken(monkeypatch: pytest.MonkeyPatch, call: str, number: int) -> None:
    def fail(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, call, fail)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(
        TransportUnavailableError, match=r"nothing cannot be opened for reading: No such"
    ):
        DirectFile(str(tmp_path / "nothing"))


@pytest.mark.parametrize("number", [errno.EIO, errno.ENXIO, errno.ENODEV, errno.ESTALE])
def test_a_lost_path_may_come_back(disk: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    file = DirectFile(str(disk))
    broken(monkeypatch, "preadv", number)
    with pytest.raises(TransientTransportError, match=f"reading {disk}"):
        file.read_into(0, memoryview(bytearray(512)))
    file.close()


def test_other_failures_are_final(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = DirectFile(str(disk), write=True)
    broken(monkeypatch, "preadv", errno.EPERM)
    broken(monkeypatch, "pwrite", errno.EPERM)
    with pytest.raises(PermanentTransportError, match="Operation not permitted"):
        file.read_into(0, memoryview(bytearray(512)))
    with pytest.raises(PermanentTransportError, match=f"writing {disk}"):
        file.write_from(0, memoryview(bytes(512)))
    file.close()


def test_a_full_disk_is_said_to_be_full(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = DirectFile(str(disk), write=True)
    broken(monkeypatch, "pwrite", errno.ENOSPC)
    with pytest.raises(OutOfSpaceError, match="make room"):
        file.write_from(0, memoryview(bytes(512)))
    file.close()


@pytest.mark.parametrize("direct", [True, False])
def test_a_file_that_ends_early(disk: Path, direct: bool) -> None:
    file = DirectFile(str(disk), direct=direct)
    os.truncate(disk, MIB + 512)
    with pytest.raises(TransientTransportError, match="before what was to be read"):
        file.read_into(MIB, memoryview(bytearray(4096)))
    file.close()


def test_aligned_memory_is_read_into_without_a_copy(
    disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = DirectFile(str(disk))
    if not file.is_direct:
        file.close()
        return  # this file system has no direct input; the contract suite covers the other way
    memory = memoryview(mmap.mmap(-1, MIB))
    monkeypatch.setattr(direct_file.AlignedMemory, "room", lambda _: pytest.fail("copied"))
    file.read_into(MIB, memory)
    assert bytes(memory) == disk.read_bytes()[MIB:]
    file.close()


def test_many_threads_that_are_refused_at_once_ask_for_less_one_step_at_a_time(
    disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, gate = os.preadv, threading.Barrier(4)

    def preadv(fd: int, buffers: list[memoryview], offset: int) -> int:
        if not direct_file.is_aligned(buffers[0]):
            gate.wait(timeout=60)
            raise OSError(errno.EINVAL, "Invalid argument")
        return real(fd, buffers, offset)

    monkeypatch.setattr(os, "preadv", preadv)
    file = DirectFile(str(disk))
    if file.is_direct:
        threads = [
            threading.Thread(target=file.read_into, args=(0, memoryview(bytearray(1024))[7:519]))
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=60)
        assert file.is_direct
    file.close()


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_what_is_written_unaligned_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("file") / "disk"
    size = 64 << 10
    model = bytearray(size)
    path.write_bytes(model)
    file = DirectFile(str(path), write=True)
    for number in range(1, data.draw(st.integers(1, 4)) + 1):
        offset = data.draw(st.integers(0, size - 1))
        length = data.draw(st.integers(1, size - offset))
        model[offset : offset + length] = bytes([number]) * length
        file.write_from(offset, memoryview(bytes([number]) * length))
    read = bytearray(size + 1)
    file.read_into(0, memoryview(read)[1:])
    assert bytes(read[1:]) == bytes(model)
    file.flush()
    file.close()
    assert path.read_bytes() == bytes(model)


def test_a_reader_knows_allocation_only_where_there_are_holes(disk: Path) -> None:
    whole = ExtentReader([DirectFile(str(disk))], ExtentMap.whole(2 * MIB), mode=MODE)
    assert whole.capabilities.allocated_extents is Ability.NONE
    holes = ExtentReader([DirectFile(str(disk))], ExtentMap.of_data(2 * MIB, [(0, MIB)]), mode=MODE)
    assert holes.capabilities.allocated_extents is Ability.NATIVE
    whole.close()
    holes.close()


def test_closing_tells_once(disk: Path) -> None:
    told: list[str] = []
    for kind in (ExtentReader, ExtentWriter):
        reader = kind(
            [DirectFile(str(disk), write=True)],
            ExtentMap.whole(2 * MIB),
            mode=MODE,
            on_close=lambda: told.append("closed"),
        )
        reader.close()
        reader.close()
    assert told == ["closed", "closed"]


def test_a_failure_waits_for_what_is_in_flight(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The buffers go back to the mover: no thread may still write to them."""
    real, release = os.preadv, threading.Event()
    finished: list[int] = []

    def preadv(fd: int, buffers: list[memoryview], offset: int) -> int:
        if offset == 0:
            raise OSError(errno.EIO, "Input/output error")
        release.wait(timeout=60)
        count = real(fd, buffers, offset)
        finished.append(offset)
        return count

    monkeypatch.setattr(os, "preadv", preadv)
    reader = ExtentReader([DirectFile(str(disk))], ExtentMap.whole(2 * MIB), mode=MODE)
    drawn: list[int] = []

    def requests() -> Iterator[ReadRequest]:
        for offset in (MIB, MIB + 4096, 0):
            drawn.append(offset)
            if offset == 0:
                threading.Timer(0.05, release.set).start()
            yield ReadRequest(offset, memoryview(mmap.mmap(-1, 4096)))

    with pytest.raises(TransientTransportError):
        list(reader.read_many(requests()))
    assert sorted(finished) == [MIB, MIB + 4096]
    reader.close()


def test_a_writer_never_allocates(disk: Path) -> None:
    before = disk.read_bytes()
    extents = ExtentMap(
        [
            Run(offset=0, length=MIB, device_offset=0),
            Run(offset=MIB, length=MIB, device_offset=None),
        ]
    )
    writer = ExtentWriter([DirectFile(str(disk), write=True)], extents, mode=MODE)
    with pytest.raises(PermanentTransportError, match=r"nothing is allocated .*use another mode"):
        writer.write_from(MIB - 512, memoryview(b"x" * 1024))
    writer.close()
    assert disk.read_bytes() == before


def test_a_flush_that_failed_does_not_succeed_later(
    disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Linux tells of a lost page once."""
    said = iter([OSError(errno.EIO, "Input/output error")])

    def fsync(_: int) -> None:
        for error in said:
            raise error

    monkeypatch.setattr(os, "fsync", fsync)
    file = DirectFile(str(disk), write=True)
    for _ in range(2):
        with pytest.raises(TransientTransportError, match="syncing"):
            file.flush()
    file.close()


@pytest.mark.parametrize(("length", "is_kept"), [(8192, True), (8192 + 100, False)])
def test_the_unaligned_end_of_a_write_goes_through_the_page_cache(
    disk: Path, length: int, is_kept: bool
) -> None:
    file = DirectFile(str(disk), write=True)
    assert file.is_direct
    writer = ExtentWriter([file], ExtentMap.whole(2 * MIB), mode=MODE)
    writer.write_from(0, memoryview(mmap.mmap(-1, 12288))[:length])
    assert writer.capabilities.answered_is_kept is is_kept
    writer.close()
