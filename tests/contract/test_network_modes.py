"""The NFC client against the suites, on an independent host, in both modes and with odd hosts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.nfc_host import NfcHost, Quirks, TicketOffice, nfc_host
from transports.base import DiskReader, DiskWriter, TransportMode
from transports.network import Compression, NetworkOptions, open_reader, open_writer
from transports.testing.contract import DiskReaderContract, DiskWriterContract

PATH = "[ds1] db01/db01.vmdk"
OPTIONS = NetworkOptions(
    io_timeout_s=10, requests_in_flight=4, request_bytes=128 << 10, write_bytes=512 << 10
)


class _NetworkReader(DiskReaderContract):
    mode = TransportMode.NBD
    quirks = Quirks()
    options = OPTIONS

    @pytest.fixture
    def image(self) -> bytes:
        head = b"".join((n % 251 + 1).to_bytes(1) * 512 for n in range(1024))
        return head + bytes(512 << 10) + head[::-1] + bytes(3 * 512)

    @pytest.fixture
    def reader(self, image: bytes, tmp_path: Path) -> Iterator[DiskReader]:
        with nfc_host(tmp_path, {PATH: bytearray(image)}, self.quirks) as host:
            reader = open_reader(TicketOffice(host), host.disk(PATH), self.mode, self.options)
            try:
                yield reader
            finally:
                reader.close()


class TestNbd(_NetworkReader):
    pass


class TestNbdssl(_NetworkReader):
    mode = TransportMode.NBDSSL


class TestShuffledFragments(_NetworkReader):
    quirks = Quirks(shuffle=True, fragment_bytes=5120, hold_back_36=True)


class TestNewestFirst(_NetworkReader):
    mode = TransportMode.NBDSSL
    quirks = Quirks(gather=4, strict_records=True)


class TestSmallBuffers(_NetworkReader):
    quirks = Quirks(largest_buffer=64 << 10, sha256=False)


class TestNoAllocation(_NetworkReader):
    quirks = Quirks(allocation="refused")


class TestSkipz(_NetworkReader):
    options = NetworkOptions(
        io_timeout_s=10, requests_in_flight=4, request_bytes=128 << 10, compression=Compression.SKIPZ
    )
    quirks = Quirks(store_every=3)


class _NetworkWriter(DiskWriterContract):
    mode = TransportMode.NBD
    quirks = Quirks()

    @pytest.fixture
    def host(self, size_bytes: int, tmp_path: Path) -> Iterator[NfcHost]:
        with nfc_host(tmp_path, {PATH: bytearray(size_bytes)}, self.quirks) as host:
            yield host

    @pytest.fixture
    def writer(self, host: NfcHost) -> Iterator[DiskWriter]:
        writer = open_writer(TicketOffice(host), host.disk(PATH), self.mode, OPTIONS)
        try:
            yield writer
        finally:
            writer.close()

    @pytest.fixture
    def content(self, host: NfcHost) -> Callable[[], bytes]:
        return lambda: bytes(host.disks[PATH])


class TestNbdWriter(_NetworkWriter):
    quirks = Quirks(largest_buffer=64 << 10)


class TestNbdsslWriter(_NetworkWriter):
    mode = TransportMode.NBDSSL
    quirks = Quirks(strict_records=True)
