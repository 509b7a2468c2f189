"""One NFC session: hand-shaken, with one file open. And the opener that makes sessions with new tickets."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from transports.base import DiskRef, TransportMode
from transports.errors import PermanentTransportError, TransientTransportError, TransportError
from transports.network import wire
from transports.network.addresses import preferred_addresses
from transports.network.authd import enter
from transports.network.carrier import Carrier
from transports.network.errors import (
    HandshakeRefusedError,
    HostRefusedError,
    SessionRefusedError,
    refusal,
)
from transports.network.options import NetworkOptions
from transports.network.wire import Aio, Classic, OpenedFile
from transports.vsphere.api import Vsphere
from transports.vsphere.model import NfcTicket

SMALL_BUFFER_BYTES: Final = 64 << 10
_FAREWELL_TIMEOUT_S: Final = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One record of the host, without what follows it uncounted."""

    kind: int
    operation: int
    payload: bytearray


class NfcSession:
    """Records to and from the host. Any exception of its methods ends the session."""

    def __init__(self, carrier: Carrier, peer: str) -> None:
        self.carrier = carrier
        self.peer = peer
        self.buffer_bytes = 0
        self.file = OpenedFile(status=0, handle=0, capacity_bytes=0, sector_bytes=512)
        self._next_operation = 0

    # -- set-up

    def shake_hands(self, *, tag: bool) -> None:
        """The classic messages. Right for hosts that answer 36 before or after they have seen 51."""
        send, receive = self.carrier.send, self._receive_classic
        try:
            if tag:
                send(wire.handshake())
            send(wire.classic(Classic.SESSION_PARAMS))
            send(wire.version())
            params = receive(Classic.SESSION_PARAMS_REPLY)
            if not wire.has_asynchronous_io(params):
                raise PermanentTransportError(
                    f"{self.peer} knows only the I/O of ESXi 6.0 and before, which the network mode does not speak"
                )
            version = wire.classic_version(receive(Classic.VERSION))
            if version < wire.OLDEST_VERSION:
                raise PermanentTransportError(
                    f"{self.peer} speaks NFC version {version}; at least {wire.OLDEST_VERSION} is needed"
                )
            send(wire.connection_data())
            send(wire.CLIENT_NAME)
            send(wire.OPERATION)
            send(wire.session_features())
            send(wire.classic(Classic.AIO_SESSION_OPEN))
            receive(Classic.AIO_SESSION_OPEN)
        except TransientTransportError as error:
            raise HandshakeRefusedError(f"the NFC handshake failed: {error}") from error

    def open_session(self, buffer_bytes: int, buffer_count: int) -> None:
        try:
            self.ask(Aio.OPEN_SESSION, wire.open_session(buffer_bytes, buffer_count))
        except HostRefusedError as refused:
            raise SessionRefusedError(
                f"{self.peer} refused {buffer_count} buffers of {buffer_bytes} bytes: {refused}"
            ) from refused
        self.buffer_bytes = buffer_bytes
        self.ask(Aio.SET_SOCK_OPTS, wire.SET_SOCK_OPTS.pack(0, 0, 0))
        self.ask(Aio.SET_RES_POOL, wire.SET_RES_POOL.pack(1))

    def open_file(self, path: str, *, write: bool) -> None:
        name = path.encode()
        doing = f"open {path} for {'writing' if write else 'reading'} on {self.peer}"
        try:
            reply = self.ask(Aio.OPEN_FILE, wire.open_file(len(name), write=write), name)
        except HostRefusedError as refused:
            # A reply full of zeros follows; it goes down with the connection.
            raise refusal(refused, doing, repeat=False) from refused
        if len(reply) != wire.OPEN_FILE_REPLY.size:
            raise TransientTransportError(f"cannot {doing}: the answer has {len(reply)} bytes")
        self.file = wire.opened_file(reply)
        if self.file.status != 0:
            raise PermanentTransportError(
                f"cannot {doing}: the host answered status {self.file.status}"
            )

    # -- records

    def send(self, kind: Aio, payload: bytes, extra: bytes = b"") -> int:
        """Send a request as one message; its operation number."""
        operation = self.next_operation()
        self.carrier.send(wire.record(kind, operation, payload) + extra)
        return operation

    def next_operation(self) -> int:
        operation = self._next_operation
        self._next_operation = (operation + 1) & 0xFFFFFFFF
        return operation

    def receive(self) -> Record:
        """The next record. HostRefusedError never: an ERROR record is answered as any other."""
        magic, kind, size, operation = wire.HEADER.unpack(self.carrier.receive(wire.HEADER.size))
        if magic != wire.MAGIC:
            raise TransientTransportError(
                f"{self.peer} sent something that is no NFC record ({magic:#x})"
            )
        if size > wire.MAX_PAYLOAD_BYTES:
            raise TransientTransportError(f"{self.peer} announced a payload of {size} bytes")
        return Record(kind=kind, operation=operation, payload=self.carrier.receive(size))

    def refused(self, record: Record) -> HostRefusedError:
        """The content of an ERROR record; its text is read here."""
        if len(record.payload) != wire.ERROR.size:
            raise TransientTransportError(
                f"{self.peer} sent an error record of {len(record.payload)} bytes"
            )
        code, _, text_bytes = wire.ERROR.unpack(record.payload)
        if text_bytes > wire.MAX_ERROR_TEXT_BYTES:
            raise TransientTransportError(f"{self.peer} announced an error text of {text_bytes} bytes")
        text = self.carrier.receive(text_bytes).decode("utf-8", "replace").strip("\0 \r\n")
        return HostRefusedError(code, text)

    def ask(self, kind: Aio, payload: bytes, extra: bytes = b"") -> bytearray:
        """A request and its answer, nothing else being under way. HostRefusedError for an ERROR record."""
        operation = self.send(kind, payload, extra)
        record = self.receive()
        if record.operation != operation or record.kind not in {kind, Aio.ERROR}:
            raise TransientTransportError(
                f"{self.peer} answered type {record.kind}, operation {record.operation}"
                f" to type {kind.value}, operation {operation}"
            )
        if record.kind == Aio.ERROR:
            raise self.refused(record)
        return record.payload

    # -- end

    def close(self) -> None:
        """Close file and session in order, then the connection. Never raises for a lost peer."""
        self.carrier.set_timeout(_FAREWELL_TIMEOUT_S)
        try:
            self.ask(Aio.CLOSE_FILE, wire.CLOSE_FILE.pack(self.file.handle))
            self.ask(Aio.CLOSE_SESSION, wire.CLOSE_SESSION.pack(0))
            self.carrier.send(wire.classic(Classic.SESSION_COMPLETE))
        except (TransportError, HostRefusedError):
            pass  # the host frees what a lost connection held
        finally:
            self.carrier.drop()

    def drop(self) -> None:
        self.carrier.drop()

    def _receive_classic(self, wanted: Classic) -> bytes:
        message = bytes(self.carrier.receive(wire.CLASSIC_BYTES))
        seen = wire.classic_type(message)
        if seen != wanted:
            raise HandshakeRefusedError(f"{self.peer} answered {seen} where {wanted.value} was due")
        return message


@dataclass(frozen=True, slots=True, kw_only=True)
class _Way:
    """How far back in time the host is; found once, kept for the next connection."""

    tag: bool = True
    buffer_bytes: int


class NfcOpener:
    """Makes sessions with one disk open, each with a ticket of its own."""

    def __init__(
        self,
        vsphere: Vsphere,
        disk: DiskRef,
        mode: TransportMode,
        options: NetworkOptions,
        *,
        write: bool,
    ) -> None:
        self._vsphere = vsphere
        self.disk = disk
        self.mode = mode
        self.options = options
        self._write = write
        self._way = _Way(buffer_bytes=options.buffer_bytes)
        self._tag_sent = False

    def open(self) -> NfcSession:
        """A session with the disk open. Falls back for older hosts, with a new ticket each time."""
        while True:
            try:
                return self._open_once()
            except HandshakeRefusedError:
                if not self._shorter_handshake():
                    raise
            except SessionRefusedError:
                if self._way.buffer_bytes <= SMALL_BUFFER_BYTES:
                    raise
                self._way = replace(self._way, buffer_bytes=SMALL_BUFFER_BYTES)

    def _shorter_handshake(self) -> bool:
        """True when one without the tag is left to try; forgets that when it failed as well."""
        if self._tag_sent:
            self._way = replace(self._way, tag=False)
            return True
        self._way = replace(self._way, tag=True)
        return False

    def _open_once(self) -> NfcSession:
        ticket = self._vsphere.nfc_ticket(self.disk.vm_moref, self.disk.disk_key, write=self._write)
        carrier, names_itself = enter(ticket, self.mode, self.options, self._addresses(ticket))
        session = NfcSession(carrier, f"{ticket.host}:{ticket.port}")
        try:
            tag = names_itself and self._way.tag
            self._tag_sent = tag
            session.shake_hands(tag=tag)
            session.open_session(self._way.buffer_bytes, self.options.buffer_count)
            session.open_file(self.disk.path, write=self._write)
            self._check_capacity(session)
        except HostRefusedError as refused:
            session.drop()
            raise refusal(refused, f"set up the session with {session.peer}", repeat=True) from refused
        except BaseException:
            session.drop()
            raise
        return session

    def _addresses(self, ticket: NfcTicket) -> list[str]:
        """Where to try before the ticket's own address."""
        networks = self.options.preferred_networks
        if not networks or not ticket.host_moref:
            return []
        try:
            return preferred_addresses(self._vsphere.host_addresses(ticket.host_moref), networks)
        except TransportError:
            return []  # a preference: the ticket's own address does too

    def _check_capacity(self, session: NfcSession) -> None:
        seen, wanted = session.file.capacity_bytes, self.disk.capacity_bytes
        if seen != wanted:
            raise PermanentTransportError(
                f"{self.disk.path} has {seen} bytes on {session.peer}, but VM {self.disk.vm_name} says"
                f" {wanted}: it is not the disk that the snapshot describes; run the job again"
            )
