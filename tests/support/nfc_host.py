"""A small ESXi host that serves disks by NFC: a second opinion on the client, written from the protocol's
description alone. It shares no code with the product, and it misbehaves where a test asks it to.
"""

from __future__ import annotations

import hashlib
import random
import select
import socket
import ssl
import struct
import threading
import uuid
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.certificates import Certificate, make_certificate
from transports.base import DiskRef
from transports.errors import PermanentTransportError
from transports.vsphere.model import NfcTicket, Secret

MAGIC = 0xA100DA7A


@dataclass
class Quirks:
    """How this host differs from a plain ESXi 8."""

    sha256: bool = True
    nfcssl: bool = True
    hold_back_36: bool = False  # 36 only after 51 has come
    strict_records: bool = False  # one message for each TLS record or TCP segment
    refuses_tag: bool = False  # ESXi 6.7: message 43 is answered with 4
    largest_buffer: int = 2 << 20
    fragment_bytes: int = 0  # smaller fragments than agreed
    shuffle: bool = False  # fragments out of order
    gather: int = 0  # collect so many reads, answer the newest first
    store_every: int = 0  # each n-th fragment stored although compression was asked
    cut_after: int = 0  # close after so many data bytes, in the middle of a fragment
    cut_connections: int = 1  # how many connections are cut so
    allocation: str = "yes"  # yes, refused, everything
    open_error: tuple[int, str] | None = None
    read_error_at: int = -1  # ERROR for a read that covers this offset
    read_status_at: int = -1  # non-zero status in the reply
    corrupt: str = ""  # duplicate, overrun, wrong-op, wrong-offset, magic, zero-length, bad-zlib
    second_certificate: Certificate | None = None
    wrong_sha256: bool = False
    silent_after_proxy: bool = False
    tls13: bool = True
    write_status: int = 0


@dataclass
class Seen:
    """What clients did."""

    connections: int = 0
    tags: int = 0
    buffers: list[int] = field(default_factory=list)
    in_flight: int = 0  # most reads waiting at once
    stalls: int = 0  # strict records: bytes of a further message that nobody announced
    writes: list[tuple[int, int]] = field(default_factory=list)
    closes: list[int] = field(default_factory=list)
    complete: int = 0
    opened: list[tuple[str, int]] = field(default_factory=list)
    allocation_queries: list[tuple[int, int]] = field(default_factory=list)


class _GoneError(Exception):
    pass


class NfcHost:
    """Serves `disks` (path -> content) on a free loopback port."""

    def __init__(self, certificate: Certificate, disks: dict[str, bytearray], quirks: Quirks) -> None:
        self.certificate = certificate
        self.disks = disks
        self.quirks = quirks
        self.seen = Seen()
        self.tickets: dict[str, bool] = {}
        self.cuts_left = quirks.cut_connections
        self.problems: list[BaseException] = []
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._stopping = False
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()

    # -- the vCenter's part

    def nfc_ticket(self, vm_moref: str, disk_key: int, *, write: bool) -> NfcTicket:
        session_id = str(uuid.uuid4())
        self.tickets[session_id] = write
        digits = hashlib.sha1(self.certificate.der).hexdigest().upper()
        return NfcTicket(
            host="127.0.0.1",
            port=self.port,
            service="vpxa-nfc",
            session_id=Secret(session_id),
            thumbprint_sha1=":".join(digits[i : i + 2] for i in range(0, 40, 2)),
        )

    def disk(self, path: str) -> DiskRef:
        return DiskRef(
            vm_moref="vm-1",
            vm_name="db01",
            disk_key=2000,
            path=path,
            capacity_bytes=len(self.disks[path]),
            datastore="ds1",
        )

    def close(self) -> None:
        self._stopping = True
        socket.create_connection(("127.0.0.1", self.port)).close()
        self._accepting.join()
        self._listener.close()
        for one in self._sockets:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)
        assert not self.problems, self.problems

    def _accept(self) -> None:
        while True:
            one, _ = self._listener.accept()
            if self._stopping:
                one.close()
                return
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.seen.connections += 1
            # The duplicate lets close() wake a thread that is blocked in this connection.
            spare = one.dup()
            self._sockets.append(spare)
            thread = threading.Thread(target=self._serve, args=(one, spare), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, one: socket.socket, spare: socket.socket) -> None:
        try:
            _Connection(self, one).run()
        except (_GoneError, OSError):
            pass
        except BaseException as error:  # noqa: BLE001 (told to the test by close())
            self.problems.append(error)
        finally:
            with suppress(OSError):
                spare.shutdown(socket.SHUT_RDWR)
            spare.close()


class _Connection:
    def __init__(self, host: NfcHost, plain: socket.socket) -> None:
        self.host = host
        self.quirks = host.quirks
        self.seen = host.seen
        self.link: socket.socket = plain
        self.sent_data = 0
        self.write_ticket = False
        self.buffer = 0
        self.path = ""
        self.waiting: list[tuple[int, bytes]] = []
        self.fragments = 0

    def run(self) -> None:
        try:
            self.door()
            while self.quirks.silent_after_proxy:
                self.exactly(1)
            self.handshake()
            self.records()
        finally:
            self.link.close()

    # -- bytes

    def exactly(self, count: int) -> bytes:
        out = bytearray()
        while len(out) < count:
            part = self.link.recv(count - len(out))
            if not part:
                raise _GoneError
            out += part
        return bytes(out)

    def message(self, count: int) -> bytes:
        """The head of a message. A strict host looks at the descriptor first and never at what TLS has
        already decrypted, so a second message in one record goes unnoticed."""
        if self.quirks.strict_records:
            pending = self.link.pending() if isinstance(self.link, ssl.SSLSocket) else 0
            if pending:
                self.seen.stalls += 1
            ready, _, _ = select.select([self.link], [], [], 5)
            if not ready:
                raise _GoneError
        return self.exactly(count)

    def say(self, data: bytes | bytearray | memoryview) -> None:
        self.link.sendall(data)

    def line(self) -> str:
        out = bytearray()
        while not out.endswith(b"\r\n"):
            out += self.exactly(1)
        return out[:-2].decode()

    def tls(self, certificate: Certificate) -> None:
        context = certificate.server_context()
        if not self.quirks.tls13:
            context.maximum_version = ssl.TLSVersion.TLSv1_2
        self.link = context.wrap_socket(self.link, server_side=True)

    # -- door

    def door(self) -> None:
        greeting = (
            "220 VMware Authentication Daemon Version 1.10: SSL Required, ServerDaemonProtocol:SOAP"
        )
        if self.quirks.nfcssl:
            greeting += ", NFCSSL supported/t"
        if self.quirks.sha256:
            greeting += ", SHA256 supported"
        self.say(greeting.encode() + b"\r\n")
        self.tls(self.host.certificate)
        ticket = ""
        while True:
            line = self.line()
            verb, _, rest = line.partition(" ")
            if verb == "SESSION":
                ticket = rest
            elif line == "BANNER ":
                self.say(b"220 VMware Authentication Daemon Version 1.10\r\n")
            elif verb == "THUMBPRINT_SHA2" and self.quirks.sha256:
                assert ":" not in rest
                der = b"other" if self.quirks.wrong_sha256 else self.host.certificate.der
                digits = hashlib.sha256(der).hexdigest().upper()
                self.say(
                    b"200 " + ":".join(digits[i : i + 2] for i in range(0, 64, 2)).encode() + b"\r\n"
                )
            elif verb == "PROXY":
                if ticket not in self.host.tickets or not rest.startswith("vpxa-nfc"):
                    self.say(b"530 Please login with USER and PASS.\r\n")
                    raise _GoneError
                self.write_ticket = self.host.tickets.pop(ticket)
                secure = rest.endswith("ssl")
                self.say(b"200 Connect ha-nfcssl\r\n" if secure else b"200 Connect ha-nfc\r\n")
                self.link = socket.socket(fileno=self.link.detach())
                if secure:
                    self.tls(self.quirks.second_certificate or self.host.certificate)
                return
            else:
                self.say(b"530 Please login with USER and PASS.\r\n")

    # -- handshake

    def classic(self, kind: int, body: bytes = b"") -> None:
        self.say((struct.pack("<I", kind) + body).ljust(264, b"\0"))

    def handshake(self) -> None:
        held = False
        while True:
            message = self.message(264)
            kind = struct.unpack_from("<I", message)[0]
            if kind == 43:
                self.seen.tags += 1
                assert message[4:13] == b"PlainText"
                if self.quirks.refuses_tag:
                    self.classic(4)
                    raise _GoneError
            elif kind == 33:
                held = True
                if not self.quirks.hold_back_36:
                    self.classic(36, bytes(12) + struct.pack("<I", 1))
                    held = False
            elif kind == 51:
                assert struct.unpack_from("<I", message, 4)[0] == 11
                if held:
                    self.classic(36, bytes(12) + struct.pack("<I", 1))
                self.classic(51, struct.pack("<I", 11))
            elif kind == 54:
                name, operation = struct.unpack_from("<II", message, 4)
                assert self.exactly(name)
                assert self.exactly(operation) == b"nbdmode"
            elif kind == 55:
                assert struct.unpack_from("<I", message, 4)[0] == 3
            elif kind == 52:
                self.classic(52)
                return
            else:
                self.classic(4)
                raise _GoneError

    # -- records

    def record(self, kind: int, op: int, payload: bytes, extra: bytes = b"") -> None:
        self.say(struct.pack("<IIII", MAGIC, kind, len(payload), op) + payload + extra)

    def error(self, op: int, code: int, text: str) -> None:
        self.record(1, op, struct.pack("<QII", code, 0, len(text)), text.encode())

    def records(self) -> None:
        while True:
            if self.waiting and not select.select([self.link], [], [], 0.05)[0]:
                self.answer_waiting()
            magic, kind, size, op = struct.unpack("<IIII", self.message(16))
            assert magic == MAGIC, hex(magic)
            payload = self.exactly(size)
            if kind == 2:
                _, buffer, count, _ = struct.unpack("<IIII", payload)
                self.seen.buffers.append(buffer)
                if buffer > self.quirks.largest_buffer:
                    self.error(op, 3, "buffer too large")
                    raise _GoneError
                assert count
                self.buffer = buffer
                self.record(2, op, bytes(size))
            elif kind == 9:
                self.record(9, op, struct.pack("<III", 1675000, 1675000, 1))
            elif kind == 22:
                self.record(22, op, payload)
            elif kind == 4:
                self.open_file(op, payload)
            elif kind == 7:
                self.io(op, payload)
            elif kind == 13:
                self.allocated(op, payload)
            elif kind in {3, 5}:
                self.seen.closes.append(kind)
                self.record(kind, op, bytes(size))
                if kind == 3:
                    self.message(264)
                    self.seen.complete += 1
                    raise _GoneError
            else:
                self.error(op, 1, "unknown type")
                raise _GoneError

    def open_file(self, op: int, payload: bytes) -> None:
        length = struct.unpack_from("<I", payload)[0]
        file_type, flags = struct.unpack_from("<II", payload, 16)
        path = self.exactly(length).decode()
        self.seen.opened.append((path, flags))
        write = not flags & 0x04
        refusal = self.quirks.open_error
        if path not in self.host.disks or (write and not self.write_ticket) or file_type != 2:
            refusal = (11, "NfcAioProcessOpenFileMsg: permission check failed for path")
        if refusal:
            self.error(op, *refusal)
            self.record(4, op, bytes(60))
            return
        self.path = path
        size = len(self.host.disks[path])
        self.record(
            4,
            op,
            struct.pack(
                "<QQIIIQIIII8x", 0, 0xFFFFFFFF80002A1F, 2, flags, 0, size, 512, size >> 20, 64, 32
            ),
        )

    def io(self, op: int, payload: bytes) -> None:
        handle, direction, _, offset, total, start, length, wire, _ = struct.unpack(
            "<QIIQIIIII", payload
        )
        assert handle == 0xFFFFFFFF80002A1F
        if direction == 1:
            self.waiting.append((op, payload))
            self.seen.in_flight = max(self.seen.in_flight, len(self.waiting))
            if len(self.waiting) >= max(1, self.quirks.gather):
                self.answer_waiting()
            return
        assert self.write_ticket
        assert length == wire <= self.buffer
        disk = self.host.disks[self.path]
        data = self.exactly(wire)
        if self.count_data(len(data)):
            raise _GoneError
        disk[offset + start : offset + start + length] = data
        if start + length == total:
            self.seen.writes.append((offset, total))
            self.record(
                7,
                op,
                struct.pack(
                    "<QIIQIIIII", self.quirks.write_status, 0, 0, offset, total, 0, total, total, 0
                ),
            )

    def answer_waiting(self) -> None:
        for op, payload in reversed(self.waiting):
            self.answer(op, payload)
        self.waiting.clear()

    def answer(self, op: int, payload: bytes) -> None:
        _, _, compression, offset, total, _, _, _, _ = struct.unpack("<QIIQIIIII", payload)
        disk = self.host.disks[self.path]
        quirks = self.quirks
        if offset <= quirks.read_error_at < offset + total:
            self.error(op, 1, "Input/output error")
            return
        step = quirks.fragment_bytes or self.buffer
        pieces = [(start, min(step, total - start)) for start in range(0, total, step)]
        if quirks.shuffle:
            random.Random(op).shuffle(pieces)
        if quirks.corrupt == "duplicate":
            pieces.insert(1, pieces[0])
        if quirks.corrupt == "overrun":
            pieces[-1] = (pieces[-1][0] + 512, pieces[-1][1])
        if quirks.corrupt == "zero-length":
            pieces.insert(0, (0, 0))
        for start, length in pieces:
            data = bytes(disk[offset + start : offset + start + length])
            self.fragments += 1
            stored = quirks.store_every and self.fragments % quirks.store_every == 0
            used, block = (0, data) if stored else compress(data, compression)
            if quirks.corrupt == "bad-zlib":
                used, block = 1, b"\x78\x01nonsense"
            status = 5 if offset <= quirks.read_status_at < offset + total else 0
            base = offset + 512 if quirks.corrupt == "wrong-offset" else offset
            head = struct.pack("<QIIQIIIII", status, 1, used, base, total, start, length, len(block), 0)
            wire = struct.pack(
                "<IIII",
                MAGIC + (quirks.corrupt == "magic"),
                7,
                44,
                op + (quirks.corrupt == "wrong-op"),
            )
            if self.count_data(len(block)):
                self.say(wire + head + block[: len(block) // 2])
                self.link.close()
                raise _GoneError
            self.say(wire + head + block)

    def count_data(self, length: int) -> bool:
        """True when this connection is to be cut now."""
        self.sent_data += length
        limit = self.quirks.cut_after
        if limit and self.sent_data > limit and self.host.cuts_left > 0:
            self.host.cuts_left -= 1
            return True
        return False

    def allocated(self, op: int, payload: bytes) -> None:
        handle, _, chunk, start, count, _ = struct.unpack("<QQQQQQ", payload)
        assert handle == 0xFFFFFFFF80002A1F
        disk = self.host.disks[self.path]
        self.seen.allocation_queries.append((start, count))
        if self.quirks.allocation == "refused" or start % chunk or start + count * chunk > len(disk):
            self.error(op, 3, "NfcAioProcessQueryAllocatedBlocks: failed")
            return
        bitmap = bytearray(4 * -(-count // 32))
        for index in range(count):
            at = start + index * chunk
            if self.quirks.allocation == "everything" or any(disk[at : at + chunk]):
                bitmap[index // 8] |= 1 << index % 8
        self.record(13, op, bytes(32) + struct.pack("<QQ", count, 0), bytes(bitmap))


def compress(data: bytes, compression: int) -> tuple[int, bytes]:
    """(code, block): stored where the compression gains nothing, as hosts do."""
    if compression == 1:
        block = zlib.compress(data, 1)
    elif compression == 2:
        block = fastlz_literals(data)
    elif compression == 3:
        block = skipz(data)
    else:
        return 0, data
    return (compression, block) if len(block) < len(data) else (0, data)


def fastlz_literals(data: bytes) -> bytes:
    """FastLZ level 1 that knows one trick only: a run of one byte is a literal and a match."""
    out = bytearray()
    at = 0
    while at < len(data):
        run = 1
        while at + run < len(data) and run < 200 and data[at + run] == data[at]:
            run += 1
        if run >= 12:
            out += bytes([0, data[at]])
            out += bytes([7 << 5, run - 1 - 9, 0])
            at += run
        else:
            part = data[at : at + min(32, run)]
            out += bytes([len(part) - 1]) + part
            at += len(part)
    return bytes(out)


def skipz(data: bytes) -> bytes:
    out = bytearray(struct.pack("<II", len(data), 0))
    at = 0
    while at < len(data):
        while at < len(data) and not data[at]:
            at += 1
        end = at
        while end < len(data) and any(data[end : end + 16]):
            end = min(end + 16, len(data))
        if end > at:
            out += struct.pack("<II", at, end - at) + data[at:end]
        at = end
    return bytes(out)


@contextmanager
def nfc_host(
    directory: Path, disks: dict[str, bytearray], quirks: Quirks | None = None
) -> Iterator[NfcHost]:
    host = NfcHost(make_certificate(directory / "host.pem"), disks, quirks or Quirks())
    try:
        yield host
    finally:
        host.close()


class TicketOffice:
    """The one part of Vsphere that the network modes use; counts, and hands out wrong tickets on request."""

    def __init__(self, host: NfcHost) -> None:
        self.host = host
        self.issued = 0
        self.spoil = ""

    def nfc_ticket(self, vm_moref: str, disk_key: int, *, write: bool) -> NfcTicket:
        self.issued += 1
        ticket = self.host.nfc_ticket(vm_moref, disk_key, write=write)
        if self.spoil == "spent":
            self.host.tickets.clear()
        if self.spoil == "thumbprint":
            return NfcTicket(
                host=ticket.host,
                port=ticket.port,
                service=ticket.service,
                session_id=ticket.session_id,
                thumbprint_sha1="00:" * 19 + "00",
            )
        if self.spoil == "refused":
            raise PermanentTransportError("no ticket today")
        return ticket
