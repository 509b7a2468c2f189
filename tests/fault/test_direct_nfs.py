"""Direct access over NFS when the server goes away, hangs, loses the disk, or answers by halves."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from vmhaul_lab.nfs import NfsExport, NfsServer

from tests.support.disks import read_all, unwaited
from tests.support.nfs_disks import lay_down, nfs_disk, nfs_server
from tests.support.tcp_front import tcp_front
from transports.base import DiskRef, ReadRequest
from transports.direct_nfs import NfsClient, NfsOptions, open_reader, open_writer, probe
from transports.direct_nfs.connection import NFS_PORT
from transports.errors import (
    OutOfSpaceError,
    TransientTransportError,
    TransportError,
    TransportUnavailableError,
)
from transports.machine import Machine
from transports.wrappers import ReconnectingReader, ReconnectingWriter

pytestmark = pytest.mark.lab
OPTIONS = NfsOptions(
    client=NfsClient.LIBRARY, connections=3, request_bytes=64 << 10, io_timeout_s=1, connect_timeout_s=2
)
HERE = Machine()
SIZE = 8 << 20
STEP = 64 << 10


@pytest.fixture(scope="module")
def image() -> bytes:
    return os.urandom(SIZE)


@pytest.fixture
def exported(tmp_path: Path, image: bytes) -> Path:
    root = tmp_path / "export"
    root.mkdir()
    lay_down(root, "db", image)
    return root


@pytest.fixture
def server(tmp_path: Path, exported: Path) -> Iterator[NfsServer]:
    exports = [NfsExport(name="a", directory=str(exported), version=4)]
    with nfs_server(tmp_path / "server", exports) as server:
        yield server


@pytest.fixture
def disk(server: NfsServer) -> DiskRef:
    return nfs_disk(server.host, "/vol/a", "db", SIZE)


def requests() -> Iterator[ReadRequest]:
    for offset in range(0, SIZE, STEP):
        yield ReadRequest(offset, memoryview(bytearray(STEP)))


def test_a_server_that_is_killed_ends_the_reading_at_once(server: NfsServer, disk: DiskRef) -> None:
    reader = open_reader(OPTIONS, HERE, disk)
    try:
        answers = reader.read_many(requests())
        next(answers)
        server.stop()
        with pytest.raises(TransientTransportError):
            list(answers)
    finally:
        reader.close()


def test_reading_goes_on_when_the_server_is_back(
    server: NfsServer, disk: DiskRef, image: bytes
) -> None:
    came_back = threading.Event()

    def wait(_: float) -> None:
        if not came_back.is_set():
            server.start()
            came_back.set()

    reader = ReconnectingReader(lambda: open_reader(OPTIONS, HERE, disk), 20, wait)
    answered: list[int] = []
    try:
        for number, answer in enumerate(reader.read_many(requests())):
            assert bytes(answer.buffer) == image[answer.offset : answer.offset + STEP]
            answered.append(answer.offset)
            if number == SIZE // STEP // 2:
                server.stop()
    finally:
        reader.close()
    assert sorted(answered) == list(range(0, SIZE, STEP))
    assert reader.reconnects >= 1


def test_writing_goes_on_when_the_server_is_back(
    server: NfsServer, exported: Path, image: bytes
) -> None:
    lay_down(exported, "new", bytes(SIZE))
    target = nfs_disk(server.host, "/vol/a", "new", SIZE)
    came_back = threading.Event()

    def wait(_: float) -> None:
        if not came_back.is_set():
            server.start()
            came_back.set()

    writer = ReconnectingWriter(lambda: open_writer(OPTIONS, HERE, target), 20, wait)
    try:
        for offset in range(0, SIZE, STEP):
            if offset == SIZE // 2:
                server.stop()
            writer.write_from(offset, memoryview(image)[offset : offset + STEP])
        writer.flush()
    finally:
        writer.close()
    assert writer.reconnects >= 1
    assert (exported / "new" / "new-flat.vmdk").read_bytes() == image


def freeze(pid: int) -> None:
    """Returns when every thread has stopped: until then one may still answer."""
    os.kill(pid, signal.SIGSTOP)
    pause = threading.Event()
    tasks = Path(f"/proc/{pid}/task")
    for _ in range(3000):
        states = [(task / "stat").read_text().rpartition(")")[2].split()[0] for task in tasks.iterdir()]
        if set(states) == {"T"}:
            return
        pause.wait(0.01)
    raise AssertionError(f"threads of {pid} go on: {states}")


def test_a_server_that_hangs_is_left_after_the_time_out(server: NfsServer, disk: DiskRef) -> None:
    reader = open_reader(OPTIONS, HERE, disk)
    try:
        freeze(server.pid)
        began = time.monotonic()
        with pytest.raises(TransientTransportError):
            reader.read_into(0, memoryview(bytearray(STEP)))
        with pytest.raises(TransportUnavailableError):
            open_reader(OPTIONS, HERE, disk)
        assert disk.storage is not None
        found = probe(OPTIONS, HERE, disk.storage)
        assert found is not None
        assert not found.readable
        reader.close()
        # A bound, not a speed: without it this would never end.
        assert time.monotonic() - began < 200
    finally:
        os.kill(server.pid, signal.SIGCONT)
        reader.close()


def test_a_disk_that_is_deleted_is_for_another_mode(
    server: NfsServer, disk: DiskRef, exported: Path
) -> None:
    reader = open_reader(OPTIONS, HERE, disk)
    reader.close()
    (exported / "db" / "db-flat.vmdk").unlink()
    with pytest.raises(TransportUnavailableError, match="db-flat"):
        open_reader(OPTIONS, HERE, disk)


def test_an_export_that_is_taken_back_is_for_another_mode(server: NfsServer, disk: DiskRef) -> None:
    reader = ReconnectingReader(lambda: open_reader(OPTIONS, HERE, disk), 2, unwaited)
    try:
        server.stop()
        with pytest.raises(TransportError, match="does not answer"):
            read_all(reader)
    finally:
        reader.close()


def test_a_file_that_shrinks_is_never_zeros(server: NfsServer, disk: DiskRef, exported: Path) -> None:
    reader = open_reader(OPTIONS, HERE, disk)
    try:
        os.truncate(exported / "db" / "db-flat.vmdk", SIZE // 2)
        with pytest.raises(TransientTransportError, match="ends at byte"):
            reader.read_into(SIZE - STEP, memoryview(bytearray(STEP)))
    finally:
        reader.close()
    with pytest.raises(TransportUnavailableError, match="has 4194304 bytes"):
        open_reader(OPTIONS, HERE, disk)


@pytest.mark.parametrize("after_bytes", [3000, 70_001, 1_000_003])
def test_half_an_answer_is_no_answer(
    server: NfsServer, disk: DiskRef, image: bytes, after_bytes: int
) -> None:
    address = f"127.98.{server.pid % 250}.77"
    assert disk.storage is not None
    behind = replace(disk, storage=replace(disk.storage, nfs_hosts=(address,)))
    with tcp_front(address, NFS_PORT, server.host, cut_after_bytes=after_bytes) as front:
        try:
            first = open_reader(OPTIONS, HERE, behind)
        except TransportUnavailableError:
            first = open_reader(OPTIONS, HERE, behind)  # cut while it was opened
        readers = iter([first])
        reader = ReconnectingReader(
            lambda: next(readers, None) or open_reader(OPTIONS, HERE, behind), 5, unwaited
        )
        try:
            for answer in reader.read_many(requests()):
                assert bytes(answer.buffer) == image[answer.offset : answer.offset + STEP]
        finally:
            reader.close()
        assert front.cuts == 1


def test_a_full_datastore_is_no_lost_connection(tmp_path: Path) -> None:
    root = tmp_path / "small"
    root.mkdir()
    assert os.system(f"mount -t tmpfs -o size=1m none {root}") == 0
    try:
        lay_down(root, "new", bytes(SIZE))
        exports = [NfsExport(name="a", directory=str(root), version=4)]
        with nfs_server(tmp_path / "server", exports) as server:
            writer = open_writer(OPTIONS, HERE, nfs_disk(server.host, "/vol/a", "new", SIZE))
            try:
                with pytest.raises(OutOfSpaceError, match="make room"):
                    writer.write_from(0, memoryview(b"x" * SIZE))
            finally:
                writer.close()
    finally:
        assert os.system(f"umount -l {root}") == 0
