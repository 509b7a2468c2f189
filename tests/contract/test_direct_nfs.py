"""Direct access over NFS against the suites: a real server by versions 4 and 3, and a mount."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest
from vmhaul_lab.nfs import NfsExport, NfsServer

from tests.support.nfs_disks import image_with_holes, lay_down, mountinfo, nfs_disk, nfs_server
from transports.base import Ability, DiskReader, DiskRef, DiskWriter
from transports.direct_nfs import NfsClient, NfsOptions, open_reader, open_writer
from transports.machine import Machine
from transports.testing.contract import DiskReaderContract, DiskWriterContract

EXPORT = "/vol/vmware1"
pytestmark = pytest.mark.lab
NUMBERS = count()


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("export")


@pytest.fixture(scope="module")
def version_4(tmp_path_factory: pytest.TempPathFactory, exported: Path) -> Iterator[NfsServer]:
    exports = [NfsExport(name="vmware1", directory=str(exported), version=4)]
    with nfs_server(tmp_path_factory.mktemp("nfs4"), exports) as server:
        yield server


@pytest.fixture(scope="module")
def version_3(tmp_path_factory: pytest.TempPathFactory, exported: Path) -> Iterator[NfsServer]:
    exports = [NfsExport(name="vmware1", directory=str(exported), version=3)]
    with nfs_server(tmp_path_factory.mktemp("nfs3"), exports) as server:
        yield server


class _Reader(DiskReaderContract):
    options = NfsOptions(client=NfsClient.LIBRARY, connections=4, request_bytes=256 << 10)

    @pytest.fixture
    def image(self) -> bytes:
        return image_with_holes()

    @pytest.fixture
    def name(self, exported: Path, image: bytes) -> str:
        name = f"read{next(NUMBERS)}"
        lay_down(exported, name, image)
        return name

    @pytest.fixture
    def machine(self) -> Machine:
        return Machine()

    @pytest.fixture
    def disk(self, name: str, image: bytes, server: NfsServer) -> DiskRef:
        return nfs_disk(server.host, EXPORT, name, len(image), kind=self.kind)

    kind = "NFS41"

    @pytest.fixture
    def reader(self, disk: DiskRef, machine: Machine) -> Iterator[DiskReader]:
        reader = open_reader(self.options, machine, disk)
        try:
            yield reader
        finally:
            reader.close()


class TestReaderVersion4(_Reader):
    @pytest.fixture
    def server(self, version_4: NfsServer) -> NfsServer:
        return version_4


class TestReaderVersion3(_Reader):
    kind = "NFS"

    @pytest.fixture
    def server(self, version_3: NfsServer) -> NfsServer:
        return version_3


class TestReaderOneConnection(_Reader):
    options = NfsOptions(client=NfsClient.LIBRARY, connections=1)

    @pytest.fixture
    def server(self, version_4: NfsServer) -> NfsServer:
        return version_4


class TestReaderMount(_Reader):
    options = NfsOptions(client=NfsClient.MOUNT, connections=3)

    @pytest.fixture
    def disk(self, name: str, image: bytes) -> DiskRef:
        return nfs_disk("nas.lab", EXPORT, name, len(image))

    @pytest.fixture
    def machine(self, exported: Path, tmp_path: Path) -> Machine:
        told = mountinfo(tmp_path / "mountinfo", exported, f"nas.lab:{EXPORT}")
        return Machine(mountinfo_path=str(told))

    def test_holes_are_not_read(self, reader: DiskReader, image: bytes) -> None:
        assert reader.capabilities.allocated_extents is Ability.NATIVE
        allocated = sum(extent.length for extent in reader.allocated_extents(0, len(image)))
        assert 0 < allocated <= len(image) - (500 << 10)


class _Writer(DiskWriterContract):
    options = NfsOptions(client=NfsClient.LIBRARY, connections=4, request_bytes=256 << 10)
    kind = "NFS41"

    @pytest.fixture
    def name(self, exported: Path, size_bytes: int) -> str:
        name = f"write{next(NUMBERS)}"
        lay_down(exported, name, bytes(size_bytes))
        return name

    @pytest.fixture
    def machine(self) -> Machine:
        return Machine()

    @pytest.fixture
    def disk(self, name: str, size_bytes: int, server: NfsServer) -> DiskRef:
        return nfs_disk(server.host, EXPORT, name, size_bytes, kind=self.kind)

    @pytest.fixture
    def writer(self, disk: DiskRef, machine: Machine) -> Iterator[DiskWriter]:
        writer = open_writer(self.options, machine, disk)
        try:
            yield writer
        finally:
            writer.close()

    @pytest.fixture
    def content(self, exported: Path, name: str) -> Callable[[], bytes]:
        return (exported / name / f"{name}-flat.vmdk").read_bytes

    def test_nothing_but_the_disk_is_on_the_export(
        self, writer: DiskWriter, exported: Path, name: str
    ) -> None:
        writer.write_from(0, memoryview(b"x" * 512))
        writer.flush()
        writer.close()
        assert sorted(file.name for file in (exported / name).iterdir()) == [
            f"{name}-flat.vmdk",
            f"{name}.vmdk",
        ]


class TestWriterVersion4(_Writer):
    @pytest.fixture
    def server(self, version_4: NfsServer) -> NfsServer:
        return version_4


class TestWriterVersion3(_Writer):
    kind = "NFS"

    @pytest.fixture
    def server(self, version_3: NfsServer) -> NfsServer:
        return version_3


class TestWriterMount(_Writer):
    options = NfsOptions(client=NfsClient.MOUNT)

    @pytest.fixture
    def disk(self, name: str, size_bytes: int) -> DiskRef:
        return nfs_disk("nas.lab", EXPORT, name, size_bytes)

    @pytest.fixture
    def machine(self, exported: Path, tmp_path: Path) -> Machine:
        told = mountinfo(tmp_path / "mountinfo", exported, f"nas.lab:{EXPORT}")
        return Machine(mountinfo_path=str(told))
