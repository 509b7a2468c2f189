"""The reader of a disk map, held to the suite of all disk readers."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from pipeline.map_reader import MapDiskReader
from pipeline.testing.builders import ManualClock, Workbench
from pipeline.testing.storage import MemoryStorage
from transports.base import DiskReader
from transports.testing.contract import DiskReaderContract

BLOCK_SIZES = (4096, 65536, 1 << 20)


class TestMapDiskReader(DiskReaderContract):
    @pytest.fixture
    def image(self) -> bytes:
        content = random.Random(1).randbytes(700 << 10)
        # A hole, content that is there twice, and a last block that is short of most block sizes.
        return content + bytes(200 << 10) + content[: 300 << 10] + bytes(512) + b"end." * 128

    @pytest.fixture(params=BLOCK_SIZES)
    def reader(self, request: pytest.FixtureRequest, image: bytes) -> Iterator[DiskReader]:
        clock = ManualClock()
        bench = Workbench(MemoryStorage(clock), clock, block_size_bytes=request.param)
        done = bench.backup(image)
        reader = MapDiskReader(bench.repository, done.map_root, len(image), window_bytes=256 << 10)
        yield reader
        reader.close()


class TestMapDiskReaderOfZeros(DiskReaderContract):
    @pytest.fixture
    def image(self) -> bytes:
        return bytes(2 << 20)

    @pytest.fixture
    def reader(self, image: bytes) -> Iterator[DiskReader]:
        clock = ManualClock()
        bench = Workbench(MemoryStorage(clock), clock)
        done = bench.backup(image)
        reader = MapDiskReader(bench.repository, done.map_root, len(image))
        yield reader
        reader.close()
