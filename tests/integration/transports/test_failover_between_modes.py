"""One guest disk reached by every mode for real: a volume on LUNs, an NFS server, an attached device, a host.
It is cut in one and ended in another, and what was read or written is counted.
"""

from __future__ import annotations

import itertools
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from vmhaul_lab.nfs import NfsExport
from vmhaul_lab.vmfs import Allocation

from tests.support.hotadd import TreePresenter, disk_ref
from tests.support.nfc_host import NfcHost, TicketOffice, nfc_host
from tests.support.nfs_disks import lay_down, nfs_disk, nfs_server
from tests.support.san import San
from tests.support.sysfs import SysTree
from transports import direct_nfs, direct_san, hotadd, network
from transports.base import DiskReader, DiskWriter, ReadRequest, TransportMode
from transports.errors import PermanentTransportError, TransientTransportError
from transports.failover import FailoverReader, FailoverWriter, Way
from transports.machine import Machine
from transports.testing.faults import FaultyReader, FaultyWriter, Script
from transports.wrappers import ReconnectingReader, ReconnectingWriter

pytestmark = pytest.mark.lab

KIB = 1 << 10
BLOCK = 256 * KIB
BLOCKS = 24
SIZE = BLOCK * BLOCKS
PATH = "[ds1] db01/db01.vmdk"
SAN, NFS, HOTADD, NETWORK = (
    TransportMode.DIRECT_SAN,
    TransportMode.DIRECT_NFS,
    TransportMode.HOTADD,
    TransportMode.NBDSSL,
)
OPTIONS = direct_nfs.NfsOptions(client=direct_nfs.NfsClient.LIBRARY)
ORDERS = [
    (SAN, NFS, NETWORK),
    (NFS, HOTADD, NETWORK),
    (HOTADD, NETWORK),
    (SAN, HOTADD, NFS),
    (NETWORK, HOTADD),
]
NAMES = itertools.count()
MIDDLE = BLOCKS // 2
WRITES = [
    (before, after, at)
    for before, after in ((HOTADD, NETWORK), (NFS, NETWORK), (SAN, HOTADD), (NETWORK, NFS))
    for at in (1, MIDDLE, BLOCKS)
]
Opened = DiskReader | DiskWriter


def image(*, empty: bool = False) -> bytes:
    return bytes(SIZE) if empty else random.Random(9).randbytes(SIZE)


@dataclass
class Site:
    """The disk in every place; `written` has the content of each for a test that writes."""

    readers: dict[TransportMode, Callable[[], DiskReader]]
    writers: dict[TransportMode, Callable[[], DiskWriter]]
    contents: dict[TransportMode, Callable[[], bytes]]


def _site(directory: Path, host: NfcHost, server: str, export: Path, content: bytes) -> Site:
    raw = directory / "raw"
    raw.write_bytes(content)
    (directory / "san").mkdir()
    san = San(directory / "san")
    on_lun = san.add_disk(raw, allocation=Allocation.EAGER)
    name = f"db{next(NAMES)}"
    lay_down(export, name, content)
    on_nfs = nfs_disk(server, "/vol/open", name, SIZE)
    attached = directory / "attached"
    attached.write_bytes(content)
    ref = disk_ref(SIZE)
    numbers = itertools.count()

    def machine() -> tuple[TreePresenter, Machine]:
        """As the guest is before anything was attached."""
        tree = SysTree(directory / f"machine{next(numbers)}")
        tree.add_host(2)
        return TreePresenter(tree, attached, ref), tree.machine

    office, here = TicketOffice(host), Machine()
    small = network.NetworkOptions(io_timeout_s=10, requests_in_flight=8, request_bytes=128 * KIB)
    return Site(
        readers={
            SAN: lambda: direct_san.open_reader(san.machine, on_lun),
            NFS: lambda: direct_nfs.open_reader(OPTIONS, here, on_nfs),
            HOTADD: lambda: hotadd.open_reader(*machine(), ref),
            NETWORK: lambda: network.open_reader(office, host.disk(PATH), NETWORK, small),
        },
        writers={
            SAN: lambda: direct_san.open_writer(san.machine, on_lun),
            NFS: lambda: direct_nfs.open_writer(OPTIONS, here, on_nfs),
            HOTADD: lambda: hotadd.open_writer(*machine(), ref),
            NETWORK: lambda: network.open_writer(office, host.disk(PATH), NETWORK, small),
        },
        contents={
            SAN: lambda: _through(direct_san.open_reader(san.machine, on_lun)),
            NFS: (export / name / f"{name}-flat.vmdk").read_bytes,
            HOTADD: attached.read_bytes,
            NETWORK: lambda: bytes(host.disks[PATH]),
        },
    )


def _through(reader: DiskReader) -> bytes:
    buffer = bytearray(SIZE)
    reader.read_into(0, memoryview(buffer))
    reader.close()
    return bytes(buffer)


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("export")
    root.chmod(0o755)
    return root


@pytest.fixture(scope="module")
def nfs_address(tmp_path_factory: pytest.TempPathFactory, export: Path) -> Iterator[str]:
    exports = [NfsExport(name="open", directory=str(export), version=4)]
    with nfs_server(tmp_path_factory.mktemp("server"), exports) as server:
        yield server.host


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, nfs_address: str, export: Path) -> Iterator[Site]:
    directory = tmp_path_factory.mktemp("read")
    with nfc_host(directory, {PATH: bytearray(image())}) as host:
        yield _site(directory, host, nfs_address, export, image())


@dataclass
class Count:
    """Blocks that came out of a mode, and of which."""

    answered: Counter[int] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)


class Counted:
    """A reader that counts what it answered, before a fault may keep the answer from anybody."""

    def __init__(self, reader: DiskReader, count: Count) -> None:
        self._reader = reader
        self._count = count
        self.size_bytes = reader.size_bytes
        self.capabilities = reader.capabilities
        self.allocated_extents = reader.allocated_extents
        self.close = reader.close
        self.read_into = reader.read_into

    def read_many(self, requests: Iterator[ReadRequest]) -> Iterator[ReadRequest]:
        for answer in self._reader.read_many(requests):
            for at in range(answer.offset, answer.offset + len(answer.buffer), 128 * KIB):
                self._count.answered[at] += 1
            yield answer


def requests(step: int) -> Iterator[ReadRequest]:
    for offset in range(0, SIZE, step):
        yield ReadRequest(offset, memoryview(bytearray(step)))


def unwaited(_: float) -> None:
    """Tests do not wait."""


@pytest.mark.parametrize("order", ORDERS, ids=lambda order: "-".join(mode.value for mode in order))
@pytest.mark.parametrize("at", [1, BLOCKS // 2, BLOCKS - 3], ids=["start", "middle", "end"])
@pytest.mark.parametrize("error", [PermanentTransportError, TransientTransportError])
def test_a_disk_is_ended_in_another_mode_and_read_once(
    site: Site, order: tuple[TransportMode, ...], at: int, error: type[Exception]
) -> None:
    count = Count()
    first = Script(*range(at, at + 3), error=lambda: error("cut"))

    def way(mode: TransportMode) -> Way[DiskReader]:
        def open_it() -> DiskReader:
            counted = Counted(site.readers[mode](), count)
            return FaultyReader(counted, first) if mode is order[0] else counted

        return Way(mode, lambda: ReconnectingReader(open_it, 3, unwaited))

    left: list[TransportMode] = []
    reader = FailoverReader([way(mode) for mode in order], lambda mode, _: left.append(mode))
    step = min(BLOCK, reader.capabilities.max_request_bytes)
    found = {answer.offset: bytes(answer.buffer) for answer in reader.read_many(requests(step))}
    reader.close()
    assert b"".join(found[offset] for offset in sorted(found)) == image()
    assert (left, reader.mode) == ([order[0]], order[1])
    assert len(count.answered) == SIZE // (128 * KIB)
    # An answer that the fault swallowed is asked for again, and nothing else.
    cuts = 3 if error is TransientTransportError else 1
    again = sum(count.answered.values()) - len(count.answered)
    assert again <= cuts * 2


@pytest.mark.parametrize(("before", "after", "at"), WRITES)
def test_a_restore_is_ended_in_another_mode_and_nothing_written_twice(
    tmp_path: Path,
    nfs_address: str,
    export: Path,
    before: TransportMode,
    after: TransportMode,
    at: int,
) -> None:
    """Each mode has a disk of its own here, so what each wrote can be told apart."""
    content = image()
    with nfc_host(tmp_path, {PATH: bytearray(SIZE)}) as host:
        place = _site(tmp_path, host, nfs_address, export, image(empty=True))
        script = Script(at, error=lambda: PermanentTransportError("detached"))

        def way(mode: TransportMode) -> Way[DiskWriter]:
            def open_it() -> DiskWriter:
                writer = place.writers[mode]()
                return FaultyWriter(writer, script) if mode is before else writer

            return Way(mode, lambda: ReconnectingWriter(open_it, 3, unwaited))

        writer = FailoverWriter([way(before), way(after)])
        for offset in range(0, SIZE, BLOCK):
            writer.write_from(offset, memoryview(content)[offset : offset + BLOCK])
        writer.flush()
        writer.close()
        assert writer.mode is after
        # The write that failed had been done: in the next mode it is done again, what came before is not.
        done = at * BLOCK
        first, second = (place.contents[mode]() for mode in (before, after))
        assert first == content[:done] + bytes(SIZE - done)
        kept = (at - 1) * BLOCK
        assert second == bytes(kept) + content[kept:]
