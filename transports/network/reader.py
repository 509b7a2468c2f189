"""Reading a disk over NFC, with several requests in flight on one connection."""

from __future__ import annotations

import re
import zlib
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Final

from transports.base import (
    SECTOR_BYTES,
    Ability,
    Extent,
    ReaderCapabilities,
    ReadRequest,
)
from transports.errors import TransientTransportError, TransportError
from transports.network import fastlz, skipz, wire
from transports.network.allocation import merged, set_runs
from transports.network.errors import HostRefusedError, refusal
from transports.network.options import Compression
from transports.network.session import NfcOpener, NfcSession, Record
from transports.network.wire import Aio, Fragment

# Hosts were tried with 16384 chunks for one question; VDDK's own limit is 524288.
_CHUNKS_PER_QUERY: Final = 32768
# A fragment may be a little larger than the buffers agreed on, never much.
_SLACK_BYTES: Final = 64 << 10
# How vSphere names the deltas of snapshots. A caller that forgot to say so must not cost data.
_DELTA_NAME: Final = re.compile(r"-\d{6}\.vmdk$")


class _InFlight:
    """A request under way: which of its bytes have come."""

    __slots__ = ("_extra", "_filled", "done", "request")

    def __init__(self, request: ReadRequest, done: deque[ReadRequest]) -> None:
        self.request = request
        self.done = done
        self._filled = 0
        """Everything before this has come, nothing of what follows but `_extra`."""
        self._extra: list[tuple[int, int]] = []

    def admit(self, start: int, end: int) -> bool:
        """Note a fragment; False when some of it came before."""
        if start == self._filled and not self._extra:
            self._filled = end
            return True
        if start < self._filled or any(start < e and s < end for s, e in self._extra):
            return False
        self._extra.append((start, end))
        self._extra.sort()
        while self._extra and self._extra[0][0] == self._filled:
            self._filled = self._extra.pop(0)[1]
        return True

    def complete(self) -> bool:
        return self._filled == len(self.request.buffer)


class NfcDiskReader:
    """A DiskReader over one NFC session. See `transports.base.DiskReader`."""

    def __init__(self, opener: NfcOpener) -> None:
        self._opener = opener
        self._options = opener.options
        self._session: NfcSession | None = opener.open()
        self._size_bytes = self._session.file.capacity_bytes
        self._in_flight: dict[int, _InFlight] = {}
        self._answers: dict[int, bytearray | HostRefusedError | None] = {}
        self._closed = False
        try:
            ability = self._probe_allocation()
        except BaseException:
            self.close()
            raise
        self._capabilities = ReaderCapabilities(
            mode=opener.mode,
            allocated_extents=ability,
            requests_in_flight=self._options.requests_in_flight,
            max_request_bytes=self._options.request_bytes,
        )

    @property
    def size_bytes(self) -> int:
        return self._size_bytes

    @property
    def capabilities(self) -> ReaderCapabilities:
        return self._capabilities

    def read_into(self, offset: int, buffer: memoryview) -> None:
        self._check_range(offset, len(buffer))
        step = self._options.request_bytes
        pieces = (
            ReadRequest(offset=offset + start, buffer=buffer[start : start + step])
            for start in range(0, len(buffer), step)
        )
        for _ in self.read_many(pieces):
            pass

    def read_many(self, requests: Iterable[ReadRequest]) -> Iterator[ReadRequest]:
        waiting = iter(requests)
        done: deque[ReadRequest] = deque()
        depth = self._options.requests_in_flight
        under_way = 0
        more = True
        try:
            while True:
                while more and under_way < depth:
                    request = next(waiting, None)
                    if request is None:
                        more = False
                        break
                    self._request(request, done)
                    under_way += 1
                if not under_way:
                    return
                while not done:
                    self._receive()
                under_way -= 1
                yield done.popleft()
        finally:
            # Left early: the host still answers into buffers that are no longer ours.
            if under_way:
                self._drop()

    def allocated_extents(self, offset: int, length: int) -> Iterator[Extent]:
        self._check_range(offset, length)
        yield from merged(self._allocated(offset, offset + length), offset, offset + length)

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self._session is not None:
            self._session.close()
            self._session = None

    # -- requests and answers

    def _request(self, request: ReadRequest, done: deque[ReadRequest]) -> None:
        length = len(request.buffer)
        self._check_range(request.offset, length)
        if length > self._options.request_bytes:
            raise ValueError(
                f"a request of {length} bytes is larger than the mode's largest, {self._options.request_bytes}"
            )
        session = self._live()
        payload = wire.read_request(
            session.file.handle, request.offset, length, self._options.compression
        )
        try:
            operation = session.send(Aio.IO, payload)
        except BaseException:
            self._drop()
            raise
        self._in_flight[operation] = _InFlight(request, done)

    def _receive(self) -> None:
        """Take one record in and put it where it belongs."""
        session = self._live()
        try:
            record = session.receive()
            if record.kind == Aio.IO and record.operation in self._in_flight:
                self._take_fragment(session, record)
            elif record.operation in self._answers and record.kind in {Aio.QUERY_ALLOCATED, Aio.ERROR}:
                refused = record.kind == Aio.ERROR
                self._answers[record.operation] = session.refused(record) if refused else record.payload
            elif record.kind == Aio.ERROR:
                raise refusal(session.refused(record), self._reading(record), repeat=True)
            else:
                raise TransientTransportError(
                    f"{session.peer} sent type {record.kind} for operation {record.operation}, which nobody asked for"
                )
        except BaseException:
            self._drop()
            raise

    def _take_fragment(self, session: NfcSession, record: Record) -> None:
        if len(record.payload) != wire.IO.size:
            raise TransientTransportError(
                f"{session.peer} sent a read answer of {len(record.payload)} bytes"
            )
        flight = self._in_flight[record.operation]
        piece = wire.fragment(record.payload)
        self._check_fragment(session, flight, piece)
        start = piece.fragment_offset
        target = flight.request.buffer[start : start + piece.fragment_bytes]
        if piece.compression == Compression.NONE:
            session.carrier.receive_into(target)
        else:
            block = session.carrier.receive(piece.wire_bytes)
            _unpack(piece.compression, block, target, session.peer)
        if flight.complete():
            del self._in_flight[record.operation]
            flight.done.append(flight.request)

    def _check_fragment(self, session: NfcSession, flight: _InFlight, piece: Fragment) -> None:
        request = flight.request
        wrong = ""
        if piece.status != 0:
            wrong = f"status {piece.status}"
        elif piece.direction != wire.DIRECTION_READ:
            wrong = f"direction {piece.direction}"
        elif piece.offset != request.offset or piece.total != len(request.buffer):
            wrong = f"an answer for [{piece.offset}, +{piece.total}) that was not asked for"
        elif piece.fragment_bytes == 0 or piece.fragment_offset + piece.fragment_bytes > len(
            request.buffer
        ):
            wrong = (
                f"a fragment [{piece.fragment_offset}, +{piece.fragment_bytes}) outside of the request"
            )
        elif max(piece.wire_bytes, piece.fragment_bytes) > session.buffer_bytes + _SLACK_BYTES:
            wrong = f"a fragment of {piece.wire_bytes} bytes, more than its buffers hold"
        elif not flight.admit(piece.fragment_offset, piece.fragment_offset + piece.fragment_bytes):
            wrong = f"the fragment at {piece.fragment_offset} twice"
        if wrong:
            raise TransientTransportError(
                f"{session.peer} sent {wrong} when reading {self._opener.disk.path} at {request.offset};"
                " the connection is given up"
            )

    # -- allocation

    def _probe_allocation(self) -> Ability:
        """Ask about the first chunk: some datastores refuse, and a refusal costs the connection.

        Of a delta the host tells what that file holds, not what the disk shows: nothing to go by.
        """
        chunk = self._options.allocation_chunk_bytes
        disk = self._opener.disk
        if disk.is_delta or _DELTA_NAME.search(disk.path):
            return Ability.NONE
        if not self._options.query_allocated or self._size_bytes < chunk:
            return Ability.NONE
        try:
            self._query(0, 1)
        except HostRefusedError:
            self._reopen()
            return Ability.NONE
        return Ability.NATIVE

    def _allocated(self, offset: int, end: int) -> Iterator[Extent]:
        chunk = self._options.allocation_chunk_bytes
        if self._capabilities.allocated_extents is Ability.NONE:
            yield Extent(offset=offset, length=end - offset)
            return
        whole = self._size_bytes // chunk
        first, last = offset // chunk, min(-(-end // chunk), whole)
        while first < last:
            count = min(last - first, _CHUNKS_PER_QUERY)
            try:
                bitmap = self._query(first * chunk, count)
            except HostRefusedError:
                self._reopen()
                yield Extent(offset=first * chunk, length=end - first * chunk)
                return
            for start, stop in set_runs(bitmap, count):
                yield Extent(offset=(first + start) * chunk, length=(stop - start) * chunk)
            first += count
        # The host cannot be asked about a last chunk that is not whole.
        if end > whole * chunk:
            yield Extent(offset=whole * chunk, length=end - whole * chunk)

    def _query(self, start: int, count: int) -> bytearray:
        """Bitmap of `count` chunks from `start`. Reads may be in flight meanwhile."""
        session = self._live()
        chunk = self._options.allocation_chunk_bytes
        try:
            payload = wire.query_allocated(session.file.handle, chunk, start, count)
            operation = session.send(Aio.QUERY_ALLOCATED, payload)
            self._answers[operation] = None
            while self._answers[operation] is None:
                self._receive()
            answer = self._answers.pop(operation)
            if isinstance(answer, HostRefusedError):
                raise answer
            return self._bitmap(session, answer, count)
        except TransportError:
            self._drop()
            raise

    def _bitmap(self, session: NfcSession, payload: bytearray | None, count: int) -> bytearray:
        if payload is None or len(payload) != wire.QUERY_ALLOCATED.size:
            raise TransientTransportError(f"{session.peer} sent a wrong answer about allocated blocks")
        told = int.from_bytes(
            payload[wire.QUERY_ALLOCATED_COUNT_OFFSET : wire.QUERY_ALLOCATED_COUNT_OFFSET + 8], "little"
        )
        if told != count:
            raise TransientTransportError(
                f"{session.peer} told about {told} chunks when asked for {count}"
            )
        return session.carrier.receive(wire.bitmap_bytes(count))

    # -- state

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

    def _drop(self) -> None:
        """Give the session up: its records can no longer be told apart."""
        if self._session is not None:
            self._session.drop()
            self._session = None
        self._in_flight.clear()
        self._answers.clear()

    def _reopen(self) -> None:
        """After a refusal the state of the host's session is unknown: take a new one.

        Reads in flight are lost with the old one, which their iterator meets as a lost connection.
        """
        lost = bool(self._in_flight)
        self._drop()
        if lost:
            raise TransientTransportError(
                f"{self._opener.disk.path}: the host refused to tell what is allocated while reads were"
                " under way; open the disk again"
            )
        self._session = self._opener.open()

    def _reading(self, record: Record) -> str:
        flight = self._in_flight.get(record.operation)
        where = f" at {flight.request.offset}" if flight else ""
        return f"read {self._opener.disk.path}{where}"


def _unpack(compression: int, block: bytearray, target: memoryview, peer: str) -> None:
    try:
        if compression == Compression.ZLIB:
            data = zlib.decompress(block)
            if len(data) != len(target):
                raise fastlz.CorruptBlockError(
                    f"the zlib block holds {len(data)} bytes instead of {len(target)}"
                )
            target[:] = data
        elif compression == Compression.FASTLZ:
            fastlz.decompress(block, target)
        elif compression == Compression.SKIPZ:
            skipz.decompress(block, target)
        else:
            raise fastlz.CorruptBlockError(f"compression {compression} is unknown")
    except (fastlz.CorruptBlockError, zlib.error) as error:
        raise TransientTransportError(f"{peer} sent data that cannot be unpacked: {error}") from error
