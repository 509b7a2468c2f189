"""The NFC client against a host that behaves oddly, or badly."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.certificates import make_certificate
from tests.support.nfc_host import NfcHost, Quirks, TicketOffice, nfc_host
from transports.base import Ability, DiskReader, DiskRef, Extent, ReadRequest, TransportMode
from transports.errors import (
    PeerIdentityError,
    PermanentTransportError,
    TransientTransportError,
    TransportUnavailableError,
)
from transports.network import Compression, NetworkOptions, open_reader, open_writer
from transports.vsphere.model import NfcTicket
from transports.wrappers import ReconnectingReader, ReconnectingWriter

PATH = "[ds1] db01/db01.vmdk"
IMAGE = b"".join((n % 251 + 1).to_bytes(1) * 512 for n in range(4096))
MODES = [TransportMode.NBD, TransportMode.NBDSSL]
OPTIONS = NetworkOptions(io_timeout_s=10)
SMALL = NetworkOptions(io_timeout_s=10, request_bytes=64 << 10, requests_in_flight=8)

Start = Callable[[Quirks], AbstractContextManager[NfcHost]]


@pytest.fixture
def start(tmp_path: Path) -> Start:
    return lambda quirks: nfc_host(tmp_path, {PATH: bytearray(IMAGE)}, quirks)


def read_all(reader: DiskReader) -> bytes:
    buffer = bytearray(reader.size_bytes)
    reader.read_into(0, memoryview(buffer))
    return bytes(buffer)


def requests(step: int = 64 << 10) -> Iterator[ReadRequest]:
    for offset in range(0, len(IMAGE), step):
        yield ReadRequest(offset, memoryview(bytearray(min(step, len(IMAGE) - offset))))


def unwaited(_: float) -> None:
    """Tests do not wait."""


# ---- the ways of hosts


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "quirks",
    [
        Quirks(),
        Quirks(hold_back_36=True),
        Quirks(strict_records=True),
        Quirks(strict_records=True, hold_back_36=True, tls13=False),
        Quirks(sha256=False),
        Quirks(fragment_bytes=512 * 100, shuffle=True),
        Quirks(gather=8),
    ],
    ids=str,
)
def test_reads_from_hosts_of_all_kinds(start: Start, mode: TransportMode, quirks: Quirks) -> None:
    with start(quirks) as host:
        reader = open_reader(TicketOffice(host), host.disk(PATH), mode, SMALL)
        assert read_all(reader) == IMAGE
        reader.close()
        assert host.seen.stalls == 0
        assert host.seen.closes == [5, 3]
        assert host.seen.tags == (1 if quirks.sha256 else 0)


@pytest.mark.parametrize("compression", list(Compression))
@pytest.mark.parametrize("store_every", [0, 2])
def test_compression_is_taken_as_the_host_gives_it(
    start: Start, compression: Compression, store_every: int
) -> None:
    with start(Quirks(store_every=store_every, fragment_bytes=64 << 10)) as host:
        host.disks[PATH][100_000:900_000] = bytes(800_000)
        options = NetworkOptions(io_timeout_s=10, compression=compression)
        reader = open_reader(TicketOffice(host), host.disk(PATH), TransportMode.NBD, options)
        assert read_all(reader) == bytes(host.disks[PATH])
        reader.close()


def test_several_requests_are_in_flight(start: Start) -> None:
    with start(Quirks(gather=8)) as host:
        reader = open_reader(TicketOffice(host), host.disk(PATH), TransportMode.NBD, SMALL)
        answers = [answer.offset for answer in reader.read_many(requests())]
        reader.close()
        assert host.seen.in_flight == 8
        assert sorted(answers) == [request.offset for request in requests()]
        assert answers != sorted(answers), "the host answered the newest first"


def test_a_host_that_refuses_the_tag_gets_a_second_ticket_and_no_tag(start: Start) -> None:
    with start(Quirks(refuses_tag=True)) as host:
        office = TicketOffice(host)
        reader = open_reader(office, host.disk(PATH), TransportMode.NBDSSL, OPTIONS)
        assert read_all(reader) == IMAGE
        reader.close()
        assert (office.issued, host.seen.tags) == (2, 1)


def test_refused_buffers_fall_back_with_a_new_ticket(start: Start) -> None:
    with start(Quirks(largest_buffer=64 << 10)) as host:
        office = TicketOffice(host)
        reader = open_reader(office, host.disk(PATH), TransportMode.NBD, OPTIONS)
        assert read_all(reader) == IMAGE
        reader.close()
        assert office.issued == 2
        assert host.seen.buffers == [2 << 20, 64 << 10]


def test_a_host_that_refuses_every_buffer_is_not_asked_for_ever(start: Start) -> None:
    with (
        start(Quirks(largest_buffer=512)) as host,
        pytest.raises(TransientTransportError, match="buffers"),
    ):
        open_reader(TicketOffice(host), host.disk(PATH), TransportMode.NBD, OPTIONS)


# ---- who the host is


@pytest.mark.parametrize("mode", MODES)
def test_another_certificate_than_the_tickets_ends_before_anything_is_sent(
    start: Start, mode: TransportMode
) -> None:
    with start(Quirks()) as host:
        office = TicketOffice(host)
        office.spoil = "thumbprint"
        with pytest.raises(PeerIdentityError, match="nothing was sent"):
            open_reader(office, host.disk(PATH), mode, OPTIONS)
        assert len(host.tickets) == 1, "the ticket was not shown to anybody"


def test_a_wrong_sha256_line_is_noticed(start: Start) -> None:
    with (
        start(Quirks(wrong_sha256=True)) as host,
        pytest.raises(PeerIdentityError, match="names another"),
    ):
        open_reader(TicketOffice(host), host.disk(PATH), TransportMode.NBD, OPTIONS)


def test_another_certificate_for_the_data_is_noticed(start: Start, tmp_path: Path) -> None:
    other = make_certificate(tmp_path / "other.pem")
    with (
        start(Quirks(second_certificate=other)) as host,
        pytest.raises(PeerIdentityError, match="for the data"),
    ):
        open_reader(TicketOffice(host), host.disk(PATH), TransportMode.NBDSSL, OPTIONS)


def test_a_whole_certificate_in_the_ticket_is_preferred(start: Start, tmp_path: Path) -> None:
    class WithCertificate(TicketOffice):
        der = b""

        def nfc_ticket(self, vm_moref: str, disk_key: int, *, write: bool) -> NfcTicket:
            ticket = super().nfc_ticket(vm_moref, disk_key, write=write)
            pem = ssl.DER_cert_to_PEM_cert(self.der)
            return replace(ticket, certificate_pem=pem, thumbprint_sha1="")

    with start(Quirks()) as host:
        office = WithCertificate(host)
        office.der = host.certificate.der
        reader = open_reader(office, host.disk(PATH), TransportMode.NBDSSL, OPTIONS)
        assert read_all(reader) == IMAGE
        reader.close()
        office.der = make_certificate(tmp_path / "other.pem").der
        with pytest.raises(PeerIdentityError):
            open_reader(office, host.disk(PATH), TransportMode.NBDSSL, OPTIONS)


# ---- refusals at opening


@pytest.mark.parametrize("mode", MODES)
def test_a_spent_ticket_is_worth_another_try_and_not_printed(start: Start, mode: TransportMode) -> None:
    with start(Quirks()) as host:
        office = TicketOffice(host)
        office.spoil = "spent"
        with pytest.raises(TransientTransportError, match="did not accept the ticket") as caught:
            open_reader(office, host.disk(PATH), mode, OPTIONS)
        assert not any(len(word) == 36 and word.count("-") == 4 for word in str(caught.value).split())


def test_a_host_without_encrypted_nfc_is_for_another_mode(start: Start) -> None:
    with start(Quirks(nfcssl=False)) as host:
        with pytest.raises(TransportUnavailableError, match="mode nbd"):
            open_reader(TicketOffice(host), host.disk(PATH), TransportMode.NBDSSL, OPTIONS)
        reader = open_reader(TicketOffice(host), host.disk(PATH), TransportMode.NBD, OPTIONS)
        assert read_all(reader) == IMAGE
        reader.close()


def test_a_host_that_does_not_answer_at_all(start: Start) -> None:
    with start(Quirks()) as host:
        office = TicketOffice(host)
        disk = host.disk(PATH)
    with pytest.raises(TransportUnavailableError, match="firewall"):
        open_reader(office, disk, TransportMode.NBD, OPTIONS)


def test_a_silent_host_is_not_waited_for(start: Start) -> None:
    options = NetworkOptions(io_timeout_s=0.2)
    with (
        start(Quirks(silent_after_proxy=True)) as host,
        pytest.raises(TransientTransportError, match="has not answered"),
    ):
        open_reader(TicketOffice(host), host.disk(PATH), TransportMode.NBD, options)


@pytest.mark.parametrize(
    ("refusal", "error", "text"),
    [
        (
            (11, "NfcAioProcessOpenFileMsg: permission check failed"),
            PermanentTransportError,
            "not a file",
        ),
        (
            (3, "Sparse disks cannot be opened in multiwriter mode"),
            PermanentTransportError,
            "running VM",
        ),
        (
            (3, "DiskLib error 16392: Failed to lock the file"),
            TransientTransportError,
            "another reader",
        ),
    ],
)
def test_refused_files(
    start: Start, refusal: tuple[int, str], error: type[Exception], text: str
) -> None:
    with start(Quirks(open_error=refusal)) as host, pytest.raises(error, match=text):
        open_reader(TicketOffice(host), host.disk(PATH), TransportMode.NBDSSL, OPTIONS)


def test_a_read_ticket_does_not_write(start: Start) -> None:
    class ReadOnly(TicketOffice):
        def nfc_ticket(self, vm_moref: str, disk_key: int, *, write: bool) -> NfcTicket:
            assert write
            return super().nfc_ticket(vm_moref, disk_key, write=False)

    with start(Quirks()) as host, pytest.raises(PermanentTransportError, match="permission"):
        open_writer(ReadOnly(host), host.disk(PATH), TransportMode.NBD, OPTIONS)


def test_another_capacity_is_another_disk(start: Start) -> None:
    with start(Quirks()) as host:
        disk = host.disk(PATH)
        resized = DiskRef(
            vm_moref=disk.vm_moref,
            vm_name=disk.vm_name,
            disk_key=disk.disk_key,
            path=disk.path,
            capacity_bytes=disk.capacity_bytes + 512,
            datastore=disk.datastore,
        )
        with pytest.raises(PermanentTransportError, match="not the disk that the snapshot describes"):
            open_reader(TicketOffice(host), resized, TransportMode.NBD, OPTIONS)


# ---- answers that are not to be believed


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "corrupt",
    ["duplicate", "overrun", "wrong-op", "wrong-offset", "magic", "zero-length", "bad-zlib"],
)
def test_corrupt_answers_end_the_connection(start: Start, mode: TransportMode, corrupt: str) -> None:
    with start(Quirks(corrupt=corrupt, fragment_bytes=64 << 10)) as host:
        reader = open_reader(
            TicketOffice(host),
            host.disk(PATH),
            mode,
            NetworkOptions(io_timeout_s=10, query_allocated=False),
        )
        with pytest.raises(TransientTransportError):
            read_all(reader)
        with pytest.raises(TransientTransportError, match="open the disk again"):
            reader.read_into(0, memoryview(bytearray(512)))
        reader.close()


@pytest.mark.parametrize("quirks", [Quirks(read_error_at=1 << 20), Quirks(read_status_at=1 << 20)])
def test_a_failed_read_is_told(start: Start, quirks: Quirks) -> None:
    with start(quirks) as host:
        reader = open_reader(TicketOffice(host), host.disk(PATH), TransportMode.NBD, OPTIONS)
        reader.read_into(0, memoryview(bytearray(512)))
        with pytest.raises(TransientTransportError, match=r"db01\.vmdk"):
            reader.read_into(1 << 20, memoryview(bytearray(512)))
        reader.close()


# ---- allocation


def test_allocation_comes_from_the_host(start: Start) -> None:
    with start(Quirks()) as host:
        host.disks[PATH][256 << 10 : 1 << 20] = bytes(768 << 10)
        reader = open_reader(TicketOffice(host), host.disk(PATH), TransportMode.NBD, OPTIONS)
        assert reader.capabilities.allocated_extents is Ability.NATIVE
        assert list(reader.allocated_extents(0, reader.size_bytes)) == [
            Extent(offset=0, length=256 << 10),
            Extent(offset=1 << 20, length=1 << 20),
        ]
        reader.close()


def test_a_last_chunk_that_is_not_whole_is_always_listed(start: Start) -> None:
    with start(Quirks()) as host:
        host.disks[PATH] = bytearray((1 << 20) + 512)
        reader = open_reader(TicketOffice(host), host.disk(PATH), TransportMode.NBD, OPTIONS)
        assert list(reader.allocated_extents(0, reader.size_bytes)) == [
            Extent(offset=1 << 20, length=512)
        ]
        reader.close()


@pytest.mark.parametrize("is_delta", [False, True])
def test_what_a_delta_allocates_is_not_believed(tmp_path: Path, is_delta: bool) -> None:
    """A host tells what the one file holds; what its parents hold would be lost."""
    path = PATH if is_delta else "[ds1] db01/db01-000001.vmdk"
    with nfc_host(tmp_path, {path: bytearray(1 << 20)}) as host:
        disk = replace(host.disk(path), is_delta=is_delta)
        reader = open_reader(TicketOffice(host), disk, TransportMode.NBD, OPTIONS)
        assert reader.capabilities.allocated_extents is Ability.NONE
        assert list(reader.allocated_extents(0, 1 << 20)) == [Extent(offset=0, length=1 << 20)]
        reader.close()
        assert host.seen.allocation_queries == []


def test_a_host_that_cannot_tell_costs_one_more_ticket(start: Start) -> None:
    with start(Quirks(allocation="refused")) as host:
        office = TicketOffice(host)
        reader = open_reader(office, host.disk(PATH), TransportMode.NBDSSL, OPTIONS)
        assert reader.capabilities.allocated_extents is Ability.NONE
        assert list(reader.allocated_extents(512, 1024)) == [Extent(offset=512, length=1024)]
        assert read_all(reader) == IMAGE
        reader.close()
        assert office.issued == 2


def test_allocation_may_be_asked_while_reads_are_in_flight(start: Start) -> None:
    """A planner that draws its extents as it goes asks in the middle of read_many."""
    with start(Quirks(gather=3)) as host:
        reader = open_reader(TicketOffice(host), host.disk(PATH), TransportMode.NBDSSL, SMALL)

        def planned() -> Iterator[ReadRequest]:
            for start_at in range(0, len(IMAGE), 512 << 10):
                for extent in reader.allocated_extents(start_at, 512 << 10):
                    for offset in range(extent.offset, extent.end, 64 << 10):
                        yield ReadRequest(offset, memoryview(bytearray(64 << 10)))

        seen = {answer.offset: bytes(answer.buffer) for answer in reader.read_many(planned())}
        reader.close()
        assert b"".join(seen[offset] for offset in sorted(seen)) == IMAGE


# ---- lost connections


@pytest.mark.parametrize("mode", MODES)
def test_a_cut_in_the_middle_is_bridged_with_a_new_ticket(start: Start, mode: TransportMode) -> None:
    with start(Quirks(cut_after=700_000, cut_connections=2)) as host:
        office = TicketOffice(host)
        disk = host.disk(PATH)
        reader = ReconnectingReader(lambda: open_reader(office, disk, mode, SMALL), 3, unwaited)
        answered = [answer.offset for answer in reader.read_many(requests())]
        assert sorted(answered) == [request.offset for request in requests()]
        reader.close()
        assert (reader.reconnects, office.issued, host.cuts_left) == (2, 3, 0)


@pytest.mark.parametrize("mode", MODES)
def test_the_bytes_are_right_after_a_cut(start: Start, mode: TransportMode) -> None:
    with start(Quirks(cut_after=500_000, cut_connections=3, gather=5)) as host:
        office = TicketOffice(host)
        disk = host.disk(PATH)
        reader = ReconnectingReader(lambda: open_reader(office, disk, mode, SMALL), 2, unwaited)
        for answer in reader.read_many(requests()):
            assert bytes(answer.buffer) == IMAGE[answer.offset : answer.offset + len(answer.buffer)]
        assert read_all(reader) == IMAGE
        reader.close()
        assert host.cuts_left == 0


def test_failures_without_progress_end(start: Start) -> None:
    with start(Quirks(cut_after=1, cut_connections=100)) as host:
        office = TicketOffice(host)
        disk = host.disk(PATH)
        pauses: list[float] = []
        reader = ReconnectingReader(
            lambda: open_reader(office, disk, TransportMode.NBD, SMALL), 4, pauses.append
        )
        with pytest.raises(TransientTransportError):
            list(reader.read_many(requests()))
        reader.close()
        assert pauses == [1.0, 2.0, 4.0]


@pytest.mark.parametrize("mode", MODES)
def test_a_cut_write_is_repeated(start: Start, mode: TransportMode) -> None:
    options = NetworkOptions(io_timeout_s=10, write_bytes=128 << 10)
    with start(Quirks(cut_after=700_000, cut_connections=2, largest_buffer=64 << 10)) as host:
        host.disks[PATH] = bytearray(len(IMAGE))
        office = TicketOffice(host)
        disk = host.disk(PATH)
        writer = ReconnectingWriter(lambda: open_writer(office, disk, mode, options), 2, unwaited)
        for offset in range(0, len(IMAGE), 256 << 10):
            writer.write_from(offset, memoryview(IMAGE)[offset : offset + (256 << 10)])
        writer.flush()
        writer.close()
        assert bytes(host.disks[PATH]) == IMAGE
        assert (writer.reconnects, host.cuts_left) == (2, 0)


def test_closing_after_a_lost_connection_does_not_raise(start: Start) -> None:
    with start(Quirks(cut_after=1)) as host:
        reader = open_reader(TicketOffice(host), host.disk(PATH), TransportMode.NBDSSL, OPTIONS)
        with pytest.raises(TransientTransportError):
            reader.read_into(0, memoryview(bytearray(4096)))
        reader.close()
        reader.close()


# ---- writing


@pytest.mark.parametrize("mode", MODES)
def test_one_operation_for_a_large_write(start: Start, mode: TransportMode) -> None:
    with start(Quirks(largest_buffer=64 << 10, strict_records=True)) as host:
        host.disks[PATH] = bytearray(len(IMAGE))
        writer = open_writer(TicketOffice(host), host.disk(PATH), mode, OPTIONS)
        writer.write_from(0, memoryview(IMAGE))
        writer.flush()
        writer.close()
        assert host.seen.writes == [(0, len(IMAGE))]
        assert bytes(host.disks[PATH]) == IMAGE
        assert host.seen.opened[-1] == (PATH, 0x1A)


def test_a_failed_write_is_told(start: Start) -> None:
    with start(Quirks(write_status=5)) as host:
        writer = open_writer(TicketOffice(host), host.disk(PATH), TransportMode.NBD, OPTIONS)
        with pytest.raises(TransientTransportError, match="status 5"):
            writer.write_from(0, memoryview(bytes(512)))
        writer.close()
