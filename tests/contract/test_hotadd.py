"""HotAdd, held to the suites that every mode passes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.hotadd import TreePresenter, disk_ref
from tests.support.sysfs import SysTree
from transports import hotadd
from transports.base import DiskReader, DiskWriter
from transports.testing.contract import DiskReaderContract, DiskWriterContract


@pytest.fixture
def tree(tmp_path: Path) -> SysTree:
    tree = SysTree(tmp_path)
    tree.add_host(2)
    return tree


@pytest.fixture
def disk_file(tmp_path: Path) -> Path:
    return tmp_path / "disk"


class TestReader(DiskReaderContract):
    @pytest.fixture
    def image(self) -> bytes:
        return b"".join((n % 251).to_bytes(1) * 512 for n in range(3 << 11))

    @pytest.fixture
    def reader(self, tree: SysTree, image: bytes, disk_file: Path) -> Iterator[DiskReader]:
        disk_file.write_bytes(image)
        disk = disk_ref(len(image))
        reader = hotadd.open_reader(TreePresenter(tree, disk_file, disk), tree.machine, disk)
        yield reader
        reader.close()


class TestWriter(DiskWriterContract):
    @pytest.fixture
    def writer(self, tree: SysTree, size_bytes: int, disk_file: Path) -> Iterator[DiskWriter]:
        disk_file.write_bytes(bytes(size_bytes))
        disk = disk_ref(size_bytes)
        writer = hotadd.open_writer(TreePresenter(tree, disk_file, disk), tree.machine, disk)
        yield writer
        writer.close()

    @pytest.fixture
    def content(self, disk_file: Path) -> Callable[[], bytes]:
        return disk_file.read_bytes
