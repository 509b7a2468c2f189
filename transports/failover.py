"""Going on in another transport mode when one fails, in the middle of a disk too.

A **way** is a mode and how to open the disk in it. Ways are tried in their order and never twice: one that
failed is left for good, with the reason on record, and what was under way is done again in the next.

What makes a way be left is every TransportError and OSError, whether another mode can help or not: the
network modes come last and know from vSphere itself whether the disk still exists, a direct mode may only
not see it. The exception is PeerIdentityError: somebody may sit between us and the host, and going on in
another mode (in clear, perhaps) is what he would want.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Final, Generic, Protocol, TypeVar

from transports.base import (
    DiskReader,
    DiskWriter,
    Extent,
    ReaderCapabilities,
    ReadRequest,
    TransportMode,
    WriterCapabilities,
)
from transports.errors import (
    PeerIdentityError,
    PermanentTransportError,
    TransientTransportError,
    TransportError,
    TransportUnavailableError,
)
from transports.turnover import Turnover
from transports.wrappers import Drawing, close_iterator, in_windows, read_repeating

REQUESTS_IN_FLIGHT: Final = 16
"""Offered at least where there is more than one way: as many as the network modes want."""
_FAILURES: Final = (TransportError, OSError)
_NETWORK: Final = frozenset({TransportMode.NBDSSL, TransportMode.NBD})


class _Closable(Protocol):
    @property
    def size_bytes(self) -> int: ...
    def close(self) -> None: ...


T = TypeVar("T", bound=_Closable)
OnLeft = Callable[[TransportMode, str], None]
"""Told of each mode that was left, and why."""


@dataclass(frozen=True, slots=True)
class Way(Generic[T]):
    mode: TransportMode
    open: Callable[[], T]


class _Ways(Generic[T]):
    """Where in the list of ways we are."""

    def __init__(self, ways: Sequence[Way[T]], on_left: OnLeft) -> None:
        if not ways:
            raise ValueError("no way to open the disk was given")
        self._ways = tuple(ways)
        self._on_left = on_left
        self._at = 0

    @property
    def mode(self) -> TransportMode:
        return self._ways[self._at].mode

    @property
    def are_several(self) -> bool:
        return len(self._ways) > 1

    def open(self, refuse: Callable[[T], str] = lambda _: "") -> T:
        """The disk in the present mode, or in the next that opens. `refuse` says why an opened one will not
        do. Raises the last way's error.
        """
        while True:
            try:
                opened = self._ways[self._at].open()
            except _FAILURES as error:
                self.leave(error)
                continue
            reason = refuse(opened)
            if not reason:
                return opened
            opened.close()
            self.leave(TransportUnavailableError(reason))

    def leave(self, error: Exception) -> None:
        """Go on to the next way; raises when there is none, or when none may be taken after `error`."""
        if isinstance(error, PeerIdentityError):
            raise error
        self.note(error)
        if self._at + 1 < len(self._ways):
            self._at += 1
            return
        if isinstance(error, PermanentTransportError) and self.mode not in _NETWORK:
            # What a direct mode calls final is final for this proxy; another may reach the disk.
            raise TransportUnavailableError(str(error)) from error
        raise error

    def note(self, error: Exception) -> None:
        """Put on record that the present way failed."""
        self._on_left(self.mode, str(error) or type(error).__name__)


def _other_size(expected_bytes: int, found_bytes: int, mode: TransportMode) -> str:
    if expected_bytes == found_bytes:
        return ""
    return f"in mode {mode} the disk has {found_bytes} bytes instead of {expected_bytes}"


class FailoverReader:
    """A DiskReader over several ways. Each request that was answered stays answered.

    Capabilities are those of the first way that opened, but for the mode, which is the present one, and for
    `whole_chain`, which a later way may take back. Raises what the last way raised.
    """

    def __init__(
        self, ways: Sequence[Way[DiskReader]], on_left: OnLeft = lambda _mode, _why: None
    ) -> None:
        self._ways = _Ways(ways, on_left)
        self._reader = self._ways.open()
        self._size_bytes = self._reader.size_bytes
        first = self._reader.capabilities
        in_flight = first.requests_in_flight
        if self._ways.are_several:
            in_flight = max(in_flight, REQUESTS_IN_FLIGHT)
        self._offered = replace(first, requests_in_flight=in_flight)
        self._is_closed = False

    @property
    def mode(self) -> TransportMode:
        return self._ways.mode

    @property
    def size_bytes(self) -> int:
        return self._size_bytes

    @property
    def capabilities(self) -> ReaderCapabilities:
        whole_chain = self._offered.whole_chain and self._reader.capabilities.whole_chain
        return replace(self._offered, mode=self.mode, whole_chain=whole_chain)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        self._check_open()
        while True:
            try:
                for part in _parts(ReadRequest(offset, buffer), self._step()):
                    self._reader.read_into(part.offset, part.buffer)
            except _FAILURES as error:
                self._leave(error)
            else:
                return

    def read_many(self, requests: Iterable[ReadRequest]) -> Iterator[ReadRequest]:
        self._check_open()
        yield from read_repeating(requests, self._answers, on=_FAILURES, failed=self._leave)

    def allocated_extents(self, offset: int, length: int) -> Iterator[Extent]:
        self._check_open()
        yield from in_windows(offset, length, self._allocated)

    def close(self) -> None:
        self._is_closed = True
        self._reader.close()

    def _allocated(self, offset: int, length: int) -> list[Extent]:
        while True:
            if self._offered.whole_chain and not self._reader.capabilities.whole_chain:
                # The caller may count on the whole chain, and this way may know of a delta alone.
                return [Extent(offset=offset, length=length)]
            try:
                return list(self._reader.allocated_extents(offset, length))
            except _FAILURES as error:
                self._leave(error)

    def _check_open(self) -> None:
        if self._is_closed:
            raise TransientTransportError("the reader was closed")

    def _leave(self, error: Exception) -> None:
        self._reader.close()
        self._ways.leave(error)
        self._reader = self._ways.open(
            lambda reader: _other_size(self._size_bytes, reader.size_bytes, self.mode)
        )

    def _step(self) -> int:
        return self._reader.capabilities.max_request_bytes

    def _answers(self, drawing: Drawing) -> Iterator[ReadRequest]:
        """Requests through the present way, cut to what it takes at a time."""
        able, offered = self._reader.capabilities, self._offered
        if able.requests_in_flight <= offered.requests_in_flight:
            if able.max_request_bytes >= offered.max_request_bytes:
                return self._reader.read_many(drawing)
            return _in_parts(self._reader, drawing)
        return _in_batches(self._reader, drawing, offered.requests_in_flight)


def _in_batches(
    reader: DiskReader, requests: Iterator[ReadRequest], size: int
) -> Iterator[ReadRequest]:
    """For a reader that draws more requests before it answers than the mover has buffers for: it would
    wait for a buffer that only comes back with an answer.
    """
    while batch := list(islice(requests, size)):
        yield from _in_parts(reader, iter(batch))


def _in_parts(reader: DiskReader, requests: Iterator[ReadRequest]) -> Iterator[ReadRequest]:
    """Serve requests that may be larger than the reader takes."""
    missing: dict[int, tuple[ReadRequest, int]] = {}
    whole: dict[int, ReadRequest] = {}

    def parts() -> Iterator[ReadRequest]:
        step = reader.capabilities.max_request_bytes
        for request in requests:
            missing[id(request)] = (request, len(request.buffer))
            for part in _parts(request, step):
                whole[id(part)] = request
                yield part

    answers = reader.read_many(parts())
    try:
        for part in answers:
            request = whole.pop(id(part))
            _, left = missing[id(request)]
            left -= len(part.buffer)
            missing[id(request)] = (request, left)
            if not left:
                del missing[id(request)]
                yield request
    finally:
        close_iterator(answers)


def _parts(request: ReadRequest, step: int) -> Iterator[ReadRequest]:
    if len(request.buffer) <= step:
        yield request
        return
    for at in range(0, len(request.buffer), step):
        yield ReadRequest(request.offset + at, request.buffer[at : at + step])


class FailoverWriter:
    """A DiskWriter over several ways. What write_from() returned from is not written again.

    Capabilities are those of the first way that opened, but for the mode. A later way is refused when it
    would not let stand what was left out in the first: ranges that read as zeros because nobody wrote them.
    """

    def __init__(
        self, ways: Sequence[Way[DiskWriter]], on_left: OnLeft = lambda _mode, _why: None
    ) -> None:
        self._ways = _Ways(ways, on_left)
        writer = self._ways.open()
        self._size_bytes = writer.size_bytes
        self._offered = writer.capabilities
        self._turns = threading.BoundedSemaphore(writer.capabilities.threads)
        self._turnover = Turnover(writer, self, _FAILURES)

    @property
    def mode(self) -> TransportMode:
        return self._ways.mode

    @property
    def size_bytes(self) -> int:
        return self._size_bytes

    @property
    def capabilities(self) -> WriterCapabilities:
        return replace(self._offered, mode=self.mode)

    def write_from(self, offset: int, buffer: memoryview) -> None:
        self._turnover.run(lambda writer: self._write(writer, offset, buffer))

    def flush(self) -> None:
        self._turnover.run(lambda writer: writer.flush())

    def close(self) -> None:
        self._turnover.close()

    def replace(self, old: DiskWriter, error: Exception) -> DiskWriter:
        """The disk in the next mode; raises when what was written so far may not be on the disk."""
        try:
            self._make_sure(old, error)
        finally:
            old.close()
        self._ways.leave(error)
        writer = self._ways.open(self._why_not)
        self._turns = threading.BoundedSemaphore(writer.capabilities.threads)
        return writer

    def _write(self, writer: DiskWriter, offset: int, buffer: memoryview) -> None:
        step = writer.capabilities.max_request_bytes
        # The caller keeps to what the first way allowed; this one may take fewer threads.
        with self._turns:
            for at in range(0, len(buffer), step):
                writer.write_from(offset + at, buffer[at : at + step])

    def _make_sure(self, old: DiskWriter, error: Exception) -> None:
        if old.capabilities.answered_is_kept:
            with contextlib.suppress(*_FAILURES):
                old.flush()
            return
        try:
            old.flush()
        except _FAILURES:
            self._ways.note(error)
            raise TransientTransportError(
                f"{self.mode} failed before what it had written was safe, so the disk has to be written again "
                f"from its beginning: {error}"
            ) from error

    def _why_not(self, writer: DiskWriter) -> str:
        promised, able = self._offered, writer.capabilities
        if promised.reads_as_zero_when_new and not able.reads_as_zero_when_new:
            return f"{self.mode} cannot go on with a disk whose zeros were left out"
        return _other_size(self._size_bytes, writer.size_bytes, self.mode)
