"""Writing a disk over NFC: one operation for up to 4 MiB, stored, one at a time."""

from __future__ import annotations

from transports.base import SECTOR_BYTES, WriterCapabilities
from transports.errors import TransientTransportError
from transports.network import wire
from transports.network.errors import refusal
from transports.network.session import NfcOpener, NfcSession
from transports.network.wire import Aio


class NfcDiskWriter:
    """A DiskWriter over one NFC session. See `transports.base.DiskWriter`."""

    def __init__(self, opener: NfcOpener) -> None:
        self._opener = opener
        self._session: NfcSession | None = opener.open()
        self._size_bytes = self._session.file.capacity_bytes
        self._closed = False
        self._capabilities = WriterCapabilities(
            mode=opener.mode,
            max_request_bytes=opener.options.write_bytes,
            reads_as_zero_when_new=True,
        )

    @property
    def size_bytes(self) -> int:
        return self._size_bytes

    @property
    def capabilities(self) -> WriterCapabilities:
        return self._capabilities

    def write_from(self, offset: int, buffer: memoryview) -> None:
        self._check_range(offset, len(buffer))
        step = self._opener.options.write_bytes
        for start in range(0, len(buffer), step):
            self._write(offset + start, buffer[start : start + step])

    def flush(self) -> None:
        """Each write was acknowledged by the host before it returned; NFC has no stronger promise."""
        self._live()

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self._session is not None:
            self._session.close()
            self._session = None

    def _write(self, offset: int, data: memoryview) -> None:
        """One operation: its fragments back to back, then one answer for all of them."""
        session = self._live()
        try:
            operation = session.next_operation()
            total = len(data)
            for start in range(0, total, session.buffer_bytes):
                piece = data[start : start + session.buffer_bytes]
                payload = wire.write_request(session.file.handle, offset, total, start, len(piece))
                session.carrier.send(wire.record(Aio.IO, operation, payload), piece)
            self._check_answer(session, operation, offset, total)
        except BaseException:
            session.drop()
            self._session = None
            raise

    def _check_answer(self, session: NfcSession, operation: int, offset: int, total: int) -> None:
        record = session.receive()
        where = f"write {total} bytes to {self._opener.disk.path} at {offset}"
        if record.operation != operation:
            raise TransientTransportError(
                f"cannot {where}: {session.peer} answered operation {record.operation} instead of {operation}"
            )
        if record.kind == Aio.ERROR:
            raise refusal(session.refused(record), where, repeat=True)
        if record.kind != Aio.IO or len(record.payload) != wire.IO.size:
            raise TransientTransportError(f"cannot {where}: {session.peer} answered type {record.kind}")
        answer = wire.fragment(record.payload)
        if (
            answer.status != 0
            or answer.direction != wire.DIRECTION_WRITE
            or (answer.offset, answer.total) != (offset, total)
        ):
            raise TransientTransportError(
                f"cannot {where}: {session.peer} answered status {answer.status} for"
                f" [{answer.offset}, +{answer.total})"
            )

    def _check_range(self, offset: int, length: int) -> None:
        end = offset + length
        if offset < 0 or length <= 0:
            raise ValueError(f"[{offset}, +{length}) is no range of a disk")
        if end > self._size_bytes:
            raise ValueError(
                f"[{offset}, {end}) reaches past the end of the disk of {self._size_bytes} bytes"
            )
        if offset % SECTOR_BYTES or (length % SECTOR_BYTES and end != self._size_bytes):
            raise ValueError(f"[{offset}, {end}) is not aligned to {SECTOR_BYTES} bytes")

    def _live(self) -> NfcSession:
        if self._session is None:
            raise TransientTransportError(
                f"the connection for {self._opener.disk.path} is closed; open the disk again"
            )
        return self._session
