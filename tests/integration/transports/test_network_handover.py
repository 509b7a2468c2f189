"""The network modes cut at the start, in the middle and at the end of a disk, and the address they choose."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.nfc_host import NfcHost, Quirks, TicketOffice, nfc_host
from transports.base import DiskReader, DiskWriter, ReadRequest, TransportMode
from transports.errors import (
    PeerIdentityError,
    PermanentTransportError,
    TransientTransportError,
    TransportUnavailableError,
)
from transports.failover import FailoverReader, FailoverWriter, Way
from transports.network import NetworkOptions, open_reader, open_writer
from transports.testing.fakes import MemoryDisk, MemoryReader, MemoryWriter
from transports.testing.faults import FaultyReader, FaultyWriter, Script
from transports.vsphere.model import HostAddress, NfcTicket
from transports.wrappers import ReconnectingReader, ReconnectingWriter

PATH = "[ds1] db01/db01.vmdk"
IMAGE = b"".join((n % 251 + 1).to_bytes(1) * 512 for n in range(2048 + 16))
MODES = [TransportMode.NBDSSL, TransportMode.NBD]
REQUEST_BYTES = 64 << 10
SMALL = NetworkOptions(
    io_timeout_s=10, connect_timeout_s=10, request_bytes=REQUEST_BYTES, requests_in_flight=8
)
# In the first fragment, in the middle, in the last request.
CUTS = [1, len(IMAGE) // 2, len(IMAGE) - 100]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path


def requests() -> Iterator[ReadRequest]:
    for offset in range(0, len(IMAGE), REQUEST_BYTES):
        yield ReadRequest(offset, memoryview(bytearray(min(REQUEST_BYTES, len(IMAGE) - offset))))


def unwaited(_: float) -> None:
    """Tests do not wait."""


def read_through(reader: DiskReader) -> bytes:
    answers = {answer.offset: bytes(answer.buffer) for answer in reader.read_many(requests())}
    return b"".join(answers[offset] for offset in sorted(answers))


def write_through(writer: DiskWriter) -> None:
    for offset in range(0, len(IMAGE), REQUEST_BYTES):
        writer.write_from(offset, memoryview(IMAGE)[offset : offset + REQUEST_BYTES])
    writer.flush()
    writer.close()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("cut_after", CUTS)
def test_reading_goes_on_where_the_connection_was_cut(
    directory: Path, mode: TransportMode, cut_after: int
) -> None:
    with nfc_host(directory, {PATH: bytearray(IMAGE)}, Quirks(cut_after=cut_after)) as host:
        office = TicketOffice(host)
        disk = host.disk(PATH)
        reader = ReconnectingReader(lambda: open_reader(office, disk, mode, SMALL), 3, unwaited)
        assert read_through(reader) == IMAGE
        reader.close()
        assert (reader.reconnects, office.issued, host.cuts_left) == (1, 2, 0)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("cut_after", CUTS)
def test_writing_goes_on_where_the_connection_was_cut(
    directory: Path, mode: TransportMode, cut_after: int
) -> None:
    quirks = Quirks(cut_after=cut_after, largest_buffer=64 << 10)
    with nfc_host(directory, {PATH: bytearray(len(IMAGE))}, quirks) as host:
        office = TicketOffice(host)
        disk = host.disk(PATH)
        writer = ReconnectingWriter(lambda: open_writer(office, disk, mode, SMALL), 3, unwaited)
        write_through(writer)
        assert bytes(host.disks[PATH]) == IMAGE
        assert (writer.reconnects, host.cuts_left) == (1, 0)


@pytest.mark.parametrize("at", [1, 9, 17])
def test_a_disk_that_another_mode_began_is_ended_over_the_network(directory: Path, at: int) -> None:
    with nfc_host(directory, {PATH: bytearray(IMAGE)}) as host:
        office = TicketOffice(host)
        local = MemoryDisk.of(IMAGE)
        script = Script(at, error=lambda: PermanentTransportError("detached"))
        reader = FailoverReader(
            [
                Way(TransportMode.HOTADD, lambda: FaultyReader(MemoryReader(local), script)),
                Way(
                    TransportMode.NBDSSL,
                    lambda: open_reader(office, host.disk(PATH), TransportMode.NBDSSL, SMALL),
                ),
            ]
        )
        assert read_through(reader) == IMAGE
        reader.close()
        assert reader.mode is TransportMode.NBDSSL


@pytest.mark.parametrize("at", [1, 9, 17])
def test_a_restore_that_another_mode_began_is_ended_over_the_network(directory: Path, at: int) -> None:
    with nfc_host(directory, {PATH: bytearray(len(IMAGE))}) as host:
        office = TicketOffice(host)
        # HotAdd writes into the very disk that the host serves.
        shared = MemoryDisk(host.disks[PATH])
        script = Script(at, error=lambda: PermanentTransportError("detached"))
        writer = FailoverWriter(
            [
                Way(TransportMode.HOTADD, lambda: FaultyWriter(MemoryWriter(shared), script)),
                Way(
                    TransportMode.NBDSSL,
                    lambda: open_writer(office, host.disk(PATH), TransportMode.NBDSSL, SMALL),
                ),
            ]
        )
        write_through(writer)
        assert bytes(host.disks[PATH]) == IMAGE
        over_network = sum(length for _, length in host.seen.writes)
        assert over_network == len(IMAGE) - (at - 1) * REQUEST_BYTES


# ---- preferred networks


class Office(TicketOffice):
    """Names an address that cannot be reached in its tickets, as a host in a closed network would have."""

    def __init__(self, host: NfcHost, addresses: tuple[HostAddress, ...], ticket_host: str) -> None:
        super().__init__(host)
        self._addresses = addresses
        self._ticket_host = ticket_host
        self.broken = False

    def nfc_ticket(self, vm_moref: str, disk_key: int, *, write: bool) -> NfcTicket:
        ticket = super().nfc_ticket(vm_moref, disk_key, write=write)
        return NfcTicket(
            host=self._ticket_host,
            port=ticket.port,
            service=ticket.service,
            session_id=ticket.session_id,
            thumbprint_sha1=ticket.thumbprint_sha1,
            host_moref="host-1",
        )

    def host_addresses(self, host_moref: str) -> tuple[HostAddress, ...]:
        assert host_moref == "host-1"
        if self.broken:
            raise TransientTransportError("vCenter is away")
        return self._addresses


LOOPBACK = (HostAddress(address="192.0.2.1"), HostAddress(address="127.0.0.1", for_backup=True))


def with_networks(*networks: str) -> NetworkOptions:
    return NetworkOptions(io_timeout_s=10, connect_timeout_s=10, preferred_networks=networks)


def test_the_host_is_met_in_the_preferred_network(directory: Path) -> None:
    with nfc_host(directory, {PATH: bytearray(IMAGE)}) as host:
        # Nobody listens at the ticket's own address: only the preferred one leads to the host.
        office = Office(host, LOOPBACK, "127.0.0.2")
        options = with_networks("10.0.0.0/8", "127.0.0.1/32")
        reader = open_reader(office, host.disk(PATH), TransportMode.NBDSSL, options)
        assert read_through(reader) == IMAGE
        reader.close()
        for other in (with_networks(), with_networks("10.0.0.0/8")):
            with pytest.raises(TransportUnavailableError, match=r"127\.0\.0\.2"):
                open_reader(office, host.disk(PATH), TransportMode.NBDSSL, other)


@pytest.mark.parametrize("broken", [False, True])
def test_the_tickets_own_address_does_where_the_preferred_one_does_not_answer(
    directory: Path, *, broken: bool
) -> None:
    with nfc_host(directory, {PATH: bytearray(IMAGE)}) as host:
        office = Office(host, (HostAddress(address="127.0.0.2"),), "127.0.0.1")
        office.broken = broken
        reader = open_reader(office, host.disk(PATH), TransportMode.NBD, with_networks("127.0.0.0/8"))
        assert read_through(reader) == IMAGE
        reader.close()
        assert office.issued == 1  # the ticket was not shown where nobody answered


def test_who_answers_in_the_preferred_network_must_be_the_host(directory: Path) -> None:
    with nfc_host(directory, {PATH: bytearray(IMAGE)}) as host:
        office = Office(host, LOOPBACK, "127.0.0.2")
        office.spoil = "thumbprint"
        with pytest.raises(PeerIdentityError, match="other than the one"):
            open_reader(office, host.disk(PATH), TransportMode.NBDSSL, with_networks("127.0.0.0/8"))
