"""Holding a task to a rate: a token bucket around what it reads and what it sends.

What is taken may leave the bucket in debt, so that a block larger than a second's worth passes whole and is waited
for afterwards. A limit that changes takes effect at once, for those that wait as well. Without a limit everything
passes on one look at a field.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import Enum
from time import monotonic
from typing import Final

from pipeline.restore import Expecting
from pipeline.storage.base import Buffer, ObjectWriter, Storage
from pipeline.storage.wrapper import StorageWrapper
from proxy_worker.contracts.messages import RateLimit
from transports.base import (
    SECTOR_BYTES,
    DiskReader,
    DiskWriter,
    Extent,
    ReaderCapabilities,
    ReadRequest,
    WriterCapabilities,
)
from transports.wrappers import close_iterator

BURST_S: Final = 0.25
"""What was not used for longer than this is lost: no second may hold much more than the rate."""
KEEP_ALIVE_S: Final = 30.0
"""An open disk that waits this long reads a sector, so that its host takes nobody for gone."""
_LOOK_S: Final = 0.5


class Side(Enum):
    SOURCE = "source"
    TARGET = "target"


class Throttle:
    """Safe for threads."""

    def __init__(
        self,
        limit: RateLimit | None = None,
        *,
        cancelled: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = monotonic,
        changed: threading.Condition | None = None,
    ) -> None:
        """`cancelled` ends every wait; `clock` never goes back; `changed` is what is waited on."""
        self._clock = clock
        self._cancelled = cancelled
        self._changed = changed or threading.Condition()
        self._limit: RateLimit | None = None
        self._balance_bytes = 0.0
        self._settled_at_s = 0.0
        self.waited_s = 0.0
        """How long something waited here, all threads together."""
        self.passed_bytes = 0
        """What was counted, while there was a limit."""
        self.set(limit)

    @property
    def limit(self) -> RateLimit | None:
        return self._limit

    def set(self, limit: RateLimit | None) -> None:
        """Takes effect at once. Debt of before stays, unless there is no limit any more."""
        with self._changed:
            self._settle()
            self._limit = limit
            if limit is None:
                self._balance_bytes = 0.0
            else:
                self._balance_bytes = min(self._balance_bytes, limit.bytes_per_s * BURST_S)
            self._changed.notify_all()

    @property
    def cancelled(self) -> bool:
        return self._cancelled()

    def counts(self, side: Side) -> bool:
        limit = self._limit
        return limit is not None and (limit.source if side is Side.SOURCE else limit.target)

    def try_pass(self, side: Side, size_bytes: int) -> bool:
        """Take so many bytes when nothing is owed; False: it has to wait."""
        if not self.counts(side):
            return True
        with self._changed:
            return self._take(side, size_bytes)

    def wait(self, side: Side, longest_s: float = float("inf")) -> bool:
        """Until nothing is owed; False when it was cancelled, or `longest_s` are over."""
        began_s = self._clock()
        with self._changed:
            while (owed_s := self._owed_s(side)) > 0:
                left_s = longest_s - (self._clock() - began_s)
                if left_s <= 0 or self._cancelled():
                    break
                self._changed.wait(min(owed_s, left_s, _LOOK_S))
            self.waited_s += self._clock() - began_s
            return owed_s <= 0

    def pass_(self, side: Side, size_bytes: int) -> None:
        """Wait until nothing is owed, then take. A cancelled one passes: what it is for ends elsewhere."""
        while not self.try_pass(side, size_bytes):
            if not self.wait(side) and self._cancelled():
                return

    def charge(self, side: Side, size_bytes: int) -> None:
        """Take without waiting: for what has passed already."""
        if self.counts(side):
            with self._changed:
                self._settle()
                self._balance_bytes -= size_bytes
                self.passed_bytes += size_bytes

    # -- with the lock held

    def _take(self, side: Side, size_bytes: int) -> bool:
        if self._owed_s(side) > 0:
            return False
        if self.counts(side):
            self._balance_bytes -= size_bytes
            self.passed_bytes += size_bytes
        return True

    def _owed_s(self, side: Side) -> float:
        self._settle()
        limit = self._limit
        if limit is None or not self.counts(side) or self._balance_bytes >= 0:
            return 0.0
        return -self._balance_bytes / limit.bytes_per_s

    def _settle(self) -> None:
        now_s = self._clock()
        if self._limit is not None:
            rate = self._limit.bytes_per_s
            earned = self._balance_bytes + (now_s - self._settled_at_s) * rate
            self._balance_bytes = min(earned, rate * BURST_S)
        self._settled_at_s = now_s


class ThrottledReader:
    """A DiskReader that is the source of a task.

    What may not be read yet is not asked for, and nothing is under way while it waits: a host would find its answers
    not taken.
    """

    def __init__(self, reader: DiskReader, throttle: Throttle) -> None:
        self._reader = reader
        self._throttle = throttle

    @property
    def size_bytes(self) -> int:
        return self._reader.size_bytes

    @property
    def capabilities(self) -> ReaderCapabilities:
        return self._reader.capabilities

    def read_into(self, offset: int, buffer: memoryview) -> None:
        self._throttle.pass_(Side.SOURCE, len(buffer))
        self._reader.read_into(offset, buffer)

    def read_many(self, requests: Iterable[ReadRequest]) -> Iterator[ReadRequest]:
        drawing = _Drawing(iter(requests), self._throttle)
        while not drawing.ended:
            answers = self._reader.read_many(drawing)
            try:
                yield from answers
            finally:
                close_iterator(answers)
            if drawing.held is not None and not self._wait(drawing.held.offset):
                return  # cancelled: as when the mover has no buffer any more

    def allocated_extents(self, offset: int, length: int) -> Iterator[Extent]:
        return self._reader.allocated_extents(offset, length)

    def close(self) -> None:
        self._reader.close()

    def _wait(self, offset: int) -> bool:
        while not self._throttle.wait(Side.SOURCE, KEEP_ALIVE_S):
            if self._throttle.cancelled:
                return False
            self._reader.read_into(offset, memoryview(bytearray(SECTOR_BYTES)))
        return True


class _Drawing:
    """The mover's requests as far as they may be read now."""

    def __init__(self, requests: Iterator[ReadRequest], throttle: Throttle) -> None:
        self._requests = requests
        self._throttle = throttle
        self.held: ReadRequest | None = None
        """Drawn, and not read yet."""
        self.ended = False

    def __iter__(self) -> Iterator[ReadRequest]:
        return self

    def __next__(self) -> ReadRequest:
        request = self.held or next(self._requests, None)
        if request is None:
            self.ended = True
            raise StopIteration
        if not self._throttle.try_pass(Side.SOURCE, len(request.buffer)):
            self.held = request
            raise StopIteration
        self.held = None
        return request


class ThrottledWriter:
    """A DiskWriter that is the target of a task."""

    def __init__(self, writer: DiskWriter, throttle: Throttle) -> None:
        self._writer = writer
        self._throttle = throttle

    @property
    def size_bytes(self) -> int:
        return self._writer.size_bytes

    @property
    def capabilities(self) -> WriterCapabilities:
        return self._writer.capabilities

    def write_from(self, offset: int, buffer: memoryview) -> None:
        self._throttle.pass_(Side.TARGET, len(buffer))
        self._writer.write_from(offset, buffer)

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class _ExpectingWriter(ThrottledWriter):
    def __init__(self, writer: DiskWriter, throttle: Throttle, inner: Expecting) -> None:
        super().__init__(writer, throttle)
        self._expecting = inner

    def expect(self, offset: int, length: int) -> None:
        self._expecting.expect(offset, length)


def throttled_writer(writer: DiskWriter, throttle: Throttle) -> DiskWriter:
    """With what else the writer wants to be told."""
    if isinstance(writer, Expecting):
        return _ExpectingWriter(writer, throttle, writer)
    return ThrottledWriter(writer, throttle)


class ThrottledStorage(StorageWrapper):
    """A repository's storage; what is read and what is written counts for the side that it is on."""

    def __init__(self, inner: Storage, throttle: Throttle, side: Side) -> None:
        super().__init__(inner)
        self._throttle = throttle
        self._side = side

    def create(self, name: str) -> ObjectWriter:
        return _ThrottledObject(self.inner.create(name), self._throttle, self._side)

    def put(self, name: str, data: Buffer) -> None:
        self._throttle.pass_(self._side, len(data))
        self.inner.put(name, data)

    def replace(self, name: str, data: Buffer) -> None:
        self._throttle.pass_(self._side, len(data))
        self.inner.replace(name, data)

    def read(self, name: str) -> bytes:
        self._throttle.pass_(self._side, 0)
        data = self.inner.read(name)
        self._throttle.charge(self._side, len(data))
        return data

    def read_range(self, name: str, offset: int, length: int) -> bytes:
        self._throttle.pass_(self._side, length)
        return self.inner.read_range(name, offset, length)


class _ThrottledObject:
    def __init__(self, inner: ObjectWriter, throttle: Throttle, side: Side) -> None:
        self._inner = inner
        self._throttle = throttle
        self._side = side

    def write(self, parts: Sequence[Buffer]) -> None:
        self._throttle.pass_(self._side, sum(len(part) for part in parts))
        self._inner.write(parts)

    def commit(self) -> None:
        self._inner.commit()

    def abort(self) -> None:
        self._inner.abort()
