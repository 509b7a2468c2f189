"""The fakes and the wrappers, held to the suites that the real modes pass."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from transports.base import DiskReader, DiskWriter, Extent
from transports.testing.contract import DiskReaderContract, DiskWriterContract
from transports.testing.fakes import MemoryDisk, MemoryReader, MemoryWriter
from transports.testing.faults import FaultyReader, FaultyWriter, Script
from transports.wrappers import (
    CountingReader,
    CountingWriter,
    ReconnectingReader,
    ReconnectingWriter,
)


def unwaited(_: float) -> None:
    """Tests do not wait."""


@pytest.fixture
def image() -> bytes:
    return b"".join((n % 251).to_bytes(1) * 512 for n in range(2048)) + bytes(512 << 10)


@pytest.fixture
def size_bytes() -> int:
    return 2 << 20


@pytest.fixture
def disk(size_bytes: int) -> MemoryDisk:
    return MemoryDisk(bytearray(size_bytes))


@pytest.fixture
def content(disk: MemoryDisk) -> Callable[[], bytes]:
    return lambda: bytes(disk.content)


class _ReaderSuite(DiskReaderContract):
    @pytest.fixture
    def image(self, image: bytes) -> bytes:
        return image


class TestMemoryReader(_ReaderSuite):
    @pytest.fixture
    def reader(self, image: bytes) -> DiskReader:
        return MemoryReader(MemoryDisk.of(image))


class TestMemoryReaderThatKnowsItsAllocation(DiskReaderContract):
    @pytest.fixture
    def image(self, image: bytes) -> bytes:
        return image[:65536] + bytes(65536) + image[131072 : 1 << 20] + bytes(1 << 20)

    @pytest.fixture
    def reader(self, image: bytes) -> DiskReader:
        known = (Extent(offset=0, length=65536), Extent(offset=131072, length=(1 << 20) - 131072))
        return MemoryReader(MemoryDisk(bytearray(image), allocated=known))


class TestCountingReader(_ReaderSuite):
    @pytest.fixture
    def reader(self, image: bytes) -> DiskReader:
        return CountingReader(MemoryReader(MemoryDisk.of(image)))


class TestReconnectingReader(_ReaderSuite):
    """Over a reader that is cut again and again."""

    @pytest.fixture
    def reader(self, image: bytes) -> DiskReader:
        script = Script(*range(2, 200, 3))
        return ReconnectingReader(
            lambda: FaultyReader(MemoryReader(MemoryDisk.of(image)), script), 3, unwaited
        )


class TestMemoryWriter(DiskWriterContract):
    @pytest.fixture
    def size_bytes(self, size_bytes: int) -> int:
        return size_bytes

    @pytest.fixture
    def writer(self, disk: MemoryDisk) -> DiskWriter:
        return MemoryWriter(disk)

    @pytest.fixture
    def content(self, content: Callable[[], bytes]) -> Callable[[], bytes]:
        return content


class TestCountingWriter(TestMemoryWriter):
    @pytest.fixture
    def writer(self, disk: MemoryDisk) -> DiskWriter:
        return CountingWriter(MemoryWriter(disk))


class TestReconnectingWriter(TestMemoryWriter):
    @pytest.fixture
    def writer(self, disk: MemoryDisk) -> DiskWriter:
        script = Script(*range(1, 200, 2))
        return ReconnectingWriter(lambda: FaultyWriter(MemoryWriter(disk), script), 3, unwaited)
