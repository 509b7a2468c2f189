from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from transports import storage_snapshot
from transports.base import (
    DatastoreRef,
    DiskReader,
    DiskRef,
    LunExtent,
    Presented,
    TransportMode,
)
from transports.errors import TransportUnavailableError
from transports.machine import Machine
from transports.testing.contract import DiskReaderContract
from transports.testing.fakes import MemoryDisk, MemoryReader

MODE = TransportMode.STORAGE_SNAPSHOT
IMAGE = b"".join((n % 251 + 1).to_bytes(1) * 512 for n in range(2048)) + bytes(1 << 20)
CLONE = "naa.624a9370c0ffee001234567800011099"


def disk(storage: DatastoreRef | None = None) -> DiskRef:
    return DiskRef(
        vm_moref="vm-1",
        vm_name="db01",
        disk_key=2000,
        path="[ds] a/a.vmdk",
        capacity_bytes=len(IMAGE),
        datastore="ds",
        storage=storage,
    )


class Server:
    """Presents what it is told to, and remembers who asked for what."""

    def __init__(
        self, mode: TransportMode = TransportMode.DIRECT_NFS, storage: DatastoreRef | None = None
    ) -> None:
        self.presented = Presented(disk=disk(storage), mode=mode)
        self.calls: list[str] = []

    def present(self, mode: TransportMode, *, write: bool) -> Presented:
        assert (mode, write) == (MODE, False)
        self.calls.append("present")
        return self.presented

    def withdraw(self, mode: TransportMode) -> None:
        assert mode is MODE
        self.calls.append("withdraw")


class NoisyReader(MemoryReader):
    """Says when it is closed."""

    def __init__(self, calls: list[str]) -> None:
        super().__init__(MemoryDisk.of(IMAGE))
        self._calls = calls

    def close(self) -> None:
        if "close" not in self._calls:
            self._calls.append("close")
        super().close()


class TestThroughTheWrapper(DiskReaderContract):
    @pytest.fixture
    def image(self) -> bytes:
        return IMAGE

    @pytest.fixture
    def reader(self) -> Iterator[DiskReader]:
        reader = storage_snapshot.open_reader(
            Server(), Machine(), disk(), lambda _: MemoryReader(MemoryDisk.of(IMAGE))
        )
        yield reader
        reader.close()


def test_what_was_presented_is_opened_and_withdrawn_once_after_it_was_closed() -> None:
    server = Server()
    opened: list[Presented] = []

    def direct(presented: Presented) -> DiskReader:
        opened.append(presented)
        return NoisyReader(server.calls)

    reader = storage_snapshot.open_reader(server, Machine(), disk(), direct)
    assert opened == [server.presented]
    assert reader.capabilities.mode is MODE
    reader.close()
    reader.close()
    assert server.calls == ["present", "close", "withdraw"]


def test_a_disk_that_cannot_be_opened_is_withdrawn() -> None:
    server = Server()

    def direct(presented: Presented) -> DiskReader:
        raise TransportUnavailableError(f"no LUN for {presented.disk.path}")

    with pytest.raises(TransportUnavailableError, match="no LUN"):
        storage_snapshot.open_reader(server, Machine(), disk(), direct)
    assert server.calls == ["present", "withdraw"]


def test_a_mode_that_reads_no_clone_is_refused() -> None:
    server = Server(mode=TransportMode.NBDSSL)
    with pytest.raises(TransportUnavailableError, match="reads no clone"):
        storage_snapshot.open_reader(server, Machine(), disk(), lambda _: NoisyReader(server.calls))
    assert server.calls == ["present", "withdraw"]


def machine_with(tmp_path: Path, wwids: dict[str, str]) -> Machine:
    for name, wwid in wwids.items():
        device = tmp_path / "sys/block" / name / "device"
        device.mkdir(parents=True)
        (device.parent / "size").write_text("2048\n")
        (device / "wwid").write_text(f"{wwid}\n")
        (device / "delete").write_text("")
    return Machine(sys_path=str(tmp_path / "sys"), dev_path=str(tmp_path / "dev"))


def test_the_kernel_forgets_the_clone_and_no_other_disk(tmp_path: Path) -> None:
    machine = machine_with(
        tmp_path, {"sda": "naa.1", "sdb": CLONE, "sdc": CLONE, "sdd": CLONE[:-1] + "8"}
    )
    (tmp_path / "sys/block/sdc/holders/dm-0").mkdir(parents=True)
    storage = DatastoreRef(name="ds", kind="VMFS", extents=(LunExtent(lun=CLONE, partition=1),))
    server = Server(TransportMode.DIRECT_SAN, storage)
    reader = storage_snapshot.open_reader(server, machine, disk(), lambda _: NoisyReader(server.calls))
    reader.close()
    told = {
        name: (tmp_path / "sys/block" / name / "device/delete").read_text().strip()
        for name in ("sda", "sdb", "sdc", "sdd")
    }
    assert told == {"sda": "", "sdb": "1", "sdc": "", "sdd": ""}
    assert server.calls[-1] == "withdraw"


def test_it_is_offered_where_one_direct_mode_is() -> None:
    san, nfs = storage_snapshot.DIRECT_MODES
    assert storage_snapshot.missing({san: "no dissect", nfs: ""}) == ""
    assert "no dissect" in storage_snapshot.missing({san: "no dissect", nfs: "no libnfs"})


def test_nothing_is_written() -> None:
    with pytest.raises(TransportUnavailableError, match="never written"):
        storage_snapshot.open_writer(disk())
