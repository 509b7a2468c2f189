"""Direct SAN, held to the suites that every mode passes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from vmhaul_lab.vmfs import Allocation, FileSpec

from tests.support.deltas import ZERO_GRAIN, descriptor, sesparse
from tests.support.san import MIB, San, raw_disk, whole
from transports import direct_san
from transports.base import DiskReader, DiskWriter
from transports.testing.contract import DiskReaderContract, DiskWriterContract

SIZE = 6 * MIB + 66048


class TestAThinDiskInPieces(DiskReaderContract):
    @pytest.fixture
    def image(self, tmp_path: Path) -> bytes:
        return raw_disk(tmp_path / "raw", SIZE, every=2).read_bytes()

    @pytest.fixture
    def reader(self, image: bytes, tmp_path: Path) -> Iterator[DiskReader]:
        san = San(tmp_path, luns=2)
        disk = san.add_disk(tmp_path / "raw", fragment_blocks=1)
        reader = direct_san.open_reader(san.machine, disk)
        yield reader
        reader.close()


class TestALazilyZeroedDiskOnVmfs5(TestAThinDiskInPieces):
    @pytest.fixture
    def reader(self, image: bytes, tmp_path: Path) -> Iterator[DiskReader]:
        san = San(tmp_path, version=5)
        disk = san.add_disk(tmp_path / "raw", allocation=Allocation.LAZY)
        reader = direct_san.open_reader(san.machine, disk)
        yield reader
        reader.close()


class TestADelta(DiskReaderContract):
    @pytest.fixture
    def image(self, tmp_path: Path) -> bytes:
        content = bytearray(raw_disk(tmp_path / "raw", 3 * MIB, every=2).read_bytes())
        content[4096 : 2 * 4096] = b"newer".ljust(4096, b"\0")
        content[0:4096] = bytes(4096)
        return bytes(content)

    @pytest.fixture
    def reader(self, image: bytes, tmp_path: Path) -> Iterator[DiskReader]:
        san = San(tmp_path)
        san.add_disk(tmp_path / "raw")
        san.store(
            [
                FileSpec(
                    path="vm/a-000001.vmdk",
                    data=descriptor(
                        (3 * MIB, "SESPARSE", "a-000001-sesparse.vmdk"),
                        cid="2",
                        parent_cid="0000aaaa",
                        parent="a.vmdk",
                    ),
                ),
                FileSpec(
                    path="vm/a-000001-sesparse.vmdk",
                    data=sesparse(3 * MIB, {0: ZERO_GRAIN, 1: b"newer"}),
                ),
            ]
        )
        reader = direct_san.open_reader(san.machine, san.disk("vm/a-000001.vmdk", 3 * MIB))
        yield reader
        reader.close()


class TestAnEagerlyZeroedDisk(DiskWriterContract):
    @pytest.fixture
    def san(self, tmp_path: Path) -> San:
        return San(tmp_path, luns=2)

    @pytest.fixture
    def writer(self, san: San, size_bytes: int, tmp_path: Path) -> Iterator[DiskWriter]:
        with (tmp_path / "raw").open("wb") as file:
            file.truncate(size_bytes)
        disk = san.add_disk(tmp_path / "raw", allocation=Allocation.EAGER, fragment_blocks=1)
        writer = direct_san.open_writer(san.machine, disk)
        yield writer
        writer.close()

    @pytest.fixture
    def content(self, san: San, size_bytes: int) -> Callable[[], bytes]:
        def read() -> bytes:
            reader = direct_san.open_reader(san.machine, san.disk("vm/a.vmdk", size_bytes))
            try:
                return whole(reader)
            finally:
                reader.close()

        return read
