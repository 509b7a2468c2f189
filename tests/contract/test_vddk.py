"""Disks through nbdkit's real vddk plugin against the suites; VMware's library is a stand-in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from tests.support.nfs_disks import image_with_holes
from tests.support.vddk import OneServer, StandIn, build, unpack
from transports.base import Ability, DiskReader, DiskWriter, TransportMode
from transports.testing.contract import DiskReaderContract, DiskWriterContract
from transports.vddk import open_reader, open_writer

VCENTER = cast("Any", OneServer())


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("vddk"))


class TestReader(DiskReaderContract):
    @pytest.fixture
    def image(self) -> bytes:
        return image_with_holes()

    @pytest.fixture
    def vddk(self, library: Path, tmp_path: Path, image: bytes) -> StandIn:
        return unpack(library, tmp_path / "vddk", image)

    @pytest.fixture
    def reader(self, vddk: StandIn, image: bytes) -> Iterator[DiskReader]:
        reader = open_reader(VCENTER, vddk.ref(len(image)), TransportMode.NBDSSL, vddk.options())
        try:
            yield reader
        finally:
            reader.close()

    def test_zeros_are_not_allocated(self, reader: DiskReader, image: bytes) -> None:
        assert reader.capabilities.allocated_extents is Ability.NATIVE
        allocated = sum(extent.length for extent in reader.allocated_extents(0, len(image)))
        assert 0 < allocated <= len(image) - (448 << 10)


class TestWriter(DiskWriterContract):
    @pytest.fixture
    def vddk(self, library: Path, tmp_path: Path, size_bytes: int) -> StandIn:
        return unpack(library, tmp_path / "vddk", bytes(size_bytes))

    @pytest.fixture
    def writer(self, vddk: StandIn, size_bytes: int) -> Iterator[DiskWriter]:
        disk = vddk.ref(size_bytes, snapshot=None)
        writer = open_writer(VCENTER, disk, TransportMode.NBD, vddk.options())
        try:
            yield writer
        finally:
            writer.close()

    @pytest.fixture
    def content(self, vddk: StandIn) -> Callable[[], bytes]:
        return vddk.disk.read_bytes
