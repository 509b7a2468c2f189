"""What every mode needs and no mode does itself: going on after a lost connection, and counting.

A wrapper has the interface of what it wraps, so wrappers stack.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from time import perf_counter
from typing import Final

from transports.base import (
    DiskReader,
    DiskWriter,
    Extent,
    ReaderCapabilities,
    ReadRequest,
    WriterCapabilities,
)
from transports.errors import (
    PermanentTransportError,
    TransientTransportError,
    TransportError,
    TransportUnavailableError,
)
from transports.turnover import Turnover

Wait = Callable[[float], None]
"""Waits so many seconds; may raise to give up (cancel)."""

_FIRST_PAUSE_S: Final = 1.0
_LONGEST_PAUSE_S: Final = 30.0
# At chunks of 64 KiB a window has 65536 extents at most.
_ALLOCATION_WINDOW_BYTES: Final = 8 << 30


class _Patience:
    """Counts failures without progress in between, and pauses ever longer after each."""

    def __init__(self, attempts: int, wait: Wait) -> None:
        if attempts < 1:
            raise ValueError(f"at least one attempt is needed, not {attempts}")
        self._attempts = attempts
        self._wait = wait
        self._failures = 0

    def progressed(self) -> None:
        self._failures = 0

    def failed(self, error: Exception) -> None:
        """Pause, or raise `error` when that was the last attempt."""
        self._failures += 1
        if self._failures >= self._attempts:
            raise error
        self._wait(min(_FIRST_PAUSE_S * 2 ** (self._failures - 1), _LONGEST_PAUSE_S))


# When opening again, a host that cannot be reached may be back in a moment; the first opening is not
# ours, and its failure means another mode.
_REPEATABLE: Final = (TransientTransportError, TransportUnavailableError)


class ReconnectingReader:
    """A DiskReader that opens again after a TransientTransportError and repeats what was not answered.

    `open` makes a new reader (with a new ticket) of the same disk. `attempts`: so many failures in a row,
    without one answer in between, and the last one is raised. `wait` pauses between them.
    """

    def __init__(self, open: Callable[[], DiskReader], attempts: int, wait: Wait) -> None:  # noqa: A002
        self._open = open
        self._patience = _Patience(attempts, wait)
        self._reader: DiskReader | None = open()
        self._size_bytes = self._reader.size_bytes
        self._capabilities = self._reader.capabilities
        self._closed = False
        self.reconnects = 0

    @property
    def size_bytes(self) -> int:
        return self._size_bytes

    @property
    def capabilities(self) -> ReaderCapabilities:
        return self._capabilities

    def read_into(self, offset: int, buffer: memoryview) -> None:
        self._check_open()
        while True:
            try:
                self._live().read_into(offset, buffer)
            except _REPEATABLE as error:
                self._lost(error)
            else:
                self._patience.progressed()
                return

    def read_many(self, requests: Iterable[ReadRequest]) -> Iterator[ReadRequest]:
        self._check_open()
        yield from read_repeating(
            requests,
            lambda drawing: self._live().read_many(drawing),
            on=_REPEATABLE,
            failed=self._lost,
            progressed=self._patience.progressed,
        )

    def allocated_extents(self, offset: int, length: int) -> Iterator[Extent]:
        self._check_open()
        yield from in_windows(offset, length, self._allocated)

    def close(self) -> None:
        self._closed = True
        self._give_up()

    def _check_open(self) -> None:
        if self._closed:
            raise TransientTransportError("the reader was closed")

    def _give_up(self) -> None:
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def _allocated(self, offset: int, length: int) -> list[Extent]:
        while True:
            try:
                extents = list(self._live().allocated_extents(offset, length))
            except _REPEATABLE as error:
                self._lost(error)
            else:
                self._patience.progressed()
                return extents

    def _live(self) -> DiskReader:
        if self._reader is None:
            reader = self._open()
            if reader.size_bytes != self._size_bytes:
                reader.close()
                raise TransientTransportError(
                    f"the disk had {self._size_bytes} bytes and has {reader.size_bytes} after opening it again"
                )
            self._reader = reader
            self.reconnects += 1
        return self._reader

    def _lost(self, error: Exception) -> None:
        self._give_up()
        self._patience.failed(error)


def in_windows(offset: int, length: int, ask: Callable[[int, int], list[Extent]]) -> Iterator[Extent]:
    """Allocated extents asked window by window: an answer cannot change in its middle, and its size has a
    bound. Extents that touch are joined.
    """
    end = offset + length
    last: Extent | None = None
    for start in range(offset, end, _ALLOCATION_WINDOW_BYTES):
        for extent in ask(start, min(_ALLOCATION_WINDOW_BYTES, end - start)):
            if last is not None and last.end == extent.offset:
                last = Extent(offset=last.offset, length=last.length + extent.length)
                continue
            if last is not None:
                yield last
            last = extent
    if last is not None:
        yield last


class Drawing:
    """The mover's requests, those first that were drawn but not answered when a connection was lost."""

    def __init__(self, requests: Iterable[ReadRequest]) -> None:
        self._requests = iter(requests)
        self._open: dict[int, ReadRequest] = {}
        self._repeat: list[ReadRequest] = []
        self._ended = False
        self.failed = False

    def __iter__(self) -> Iterator[ReadRequest]:
        return self

    def __next__(self) -> ReadRequest:
        if self._repeat:
            return self._repeat.pop(0)
        if self._ended:
            raise StopIteration
        try:
            request = next(self._requests)
        except StopIteration:
            self._ended = True
            raise
        except BaseException:
            self.failed = True
            raise
        self._open[id(request)] = request
        return request

    def answered(self, request: ReadRequest) -> None:
        del self._open[id(request)]

    def again(self) -> None:
        self._repeat = list(self._open.values())


def read_repeating(
    requests: Iterable[ReadRequest],
    answers_of: Callable[[Drawing], Iterator[ReadRequest]],
    *,
    on: tuple[type[Exception], ...],
    failed: Callable[[Exception], None],
    progressed: Callable[[], None] = lambda: None,
) -> Iterator[ReadRequest]:
    """Answers to the requests, each once. After an error of `on`, which `failed` is told and may raise to give up,
    what was drawn and not answered is asked for again, of a fresh `answers_of`. What the requests' own iterator
    raises is nobody's failure and passes.
    """
    drawing = Drawing(requests)
    while True:
        answers = None
        try:
            answers = answers_of(drawing)
            for answer in answers:
                drawing.answered(answer)
                progressed()
                yield answer
        except on as error:
            if drawing.failed:
                raise  # not ours: the mover's own iterator raised it
            failed(error)
            drawing.again()
        else:
            return
        finally:
            if answers is not None:
                close_iterator(answers)


class ReconnectingWriter:
    """A DiskWriter that opens again after a TransientTransportError and repeats the writes under way."""

    def __init__(self, open: Callable[[], DiskWriter], attempts: int, wait: Wait) -> None:  # noqa: A002
        self._open = open
        self._patience = _Patience(attempts, wait)
        writer = open()
        self._size_bytes = writer.size_bytes
        self._turnover = Turnover(writer, self, _REPEATABLE)
        self.reconnects = 0

    @property
    def size_bytes(self) -> int:
        return self._size_bytes

    @property
    def capabilities(self) -> WriterCapabilities:
        return self._turnover.writer.capabilities

    def write_from(self, offset: int, buffer: memoryview) -> None:
        self._turnover.run(lambda writer: writer.write_from(offset, buffer))
        self._patience.progressed()

    def flush(self) -> None:
        self._turnover.run(lambda writer: writer.flush())
        self._patience.progressed()

    def close(self) -> None:
        self._turnover.close()

    def replace(self, old: DiskWriter, error: Exception) -> DiskWriter:
        """A new writer after `error`; the last error when there were too many in a row, and at once when what
        was written so far may not be on the disk.
        """
        try:
            _make_sure(old, error)
        finally:
            old.close()
        writer = self._open_again(error)
        if writer.size_bytes != self._size_bytes:
            writer.close()
            raise PermanentTransportError(
                f"the disk had {self._size_bytes} bytes and has {writer.size_bytes} after opening it again"
            )
        self.reconnects += 1
        return writer

    def _open_again(self, error: Exception) -> DiskWriter:
        failure = error
        while True:
            self._patience.failed(failure)
            try:
                return self._open()
            except _REPEATABLE as again:
                failure = again


def _make_sure(old: DiskWriter, error: Exception) -> None:
    """A flush of the next writer says nothing of what this one kept in the page cache."""
    if old.capabilities.answered_is_kept:
        return
    try:
        old.flush()
    except (TransportError, OSError):
        raise TransientTransportError(
            f"the connection failed before what had been written was safe, so the disk has to be written again from "
            f"its beginning: {error}"
        ) from error


@dataclass(slots=True)
class Count:
    """What went through a wrapper. `busy_s` is the time spent inside of what it wraps."""

    bytes: int = 0
    requests: int = 0
    busy_s: float = 0.0


class CountingReader:
    """A DiskReader that keeps a Count, for progress and for finding the bottleneck."""

    def __init__(self, reader: DiskReader) -> None:
        self._reader = reader
        self.count = Count()

    @property
    def size_bytes(self) -> int:
        return self._reader.size_bytes

    @property
    def capabilities(self) -> ReaderCapabilities:
        return self._reader.capabilities

    def read_into(self, offset: int, buffer: memoryview) -> None:
        began = perf_counter()
        try:
            self._reader.read_into(offset, buffer)
        finally:
            self.count.busy_s += perf_counter() - began
        self._add(len(buffer))

    def read_many(self, requests: Iterable[ReadRequest]) -> Iterator[ReadRequest]:
        drawing_s = 0.0

        def drawn() -> Iterator[ReadRequest]:
            # Time spent waiting for the mover's next buffer is not the source's.
            nonlocal drawing_s
            waiting = iter(requests)
            while True:
                began = perf_counter()
                request = next(waiting, None)
                drawing_s += perf_counter() - began
                if request is None:
                    return
                yield request

        answers = self._reader.read_many(drawn())
        try:
            while True:
                began, drawing_s = perf_counter(), 0.0
                answer = next(answers, None)
                self.count.busy_s += perf_counter() - began - drawing_s
                if answer is None:
                    return
                self._add(len(answer.buffer))
                yield answer
        finally:
            close_iterator(answers)

    def allocated_extents(self, offset: int, length: int) -> Iterator[Extent]:
        return self._reader.allocated_extents(offset, length)

    def close(self) -> None:
        self._reader.close()

    def _add(self, length: int) -> None:
        self.count.bytes += length
        self.count.requests += 1


class CountingWriter:
    """A DiskWriter that keeps a Count."""

    def __init__(self, writer: DiskWriter) -> None:
        self._writer = writer
        self.count = Count()

    @property
    def size_bytes(self) -> int:
        return self._writer.size_bytes

    @property
    def capabilities(self) -> WriterCapabilities:
        return self._writer.capabilities

    def write_from(self, offset: int, buffer: memoryview) -> None:
        began = perf_counter()
        try:
            self._writer.write_from(offset, buffer)
        finally:
            self.count.busy_s += perf_counter() - began
        self.count.bytes += len(buffer)
        self.count.requests += 1

    def flush(self) -> None:
        began = perf_counter()
        try:
            self._writer.flush()
        finally:
            self.count.busy_s += perf_counter() - began

    def close(self) -> None:
        self._writer.close()


def close_iterator(iterator: Iterator[ReadRequest]) -> None:
    close = getattr(iterator, "close", None)
    if close is not None:
        close()
