"""Disks in memory, for tests of the data mover."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from transports.base import (
    Ability,
    Extent,
    ReaderCapabilities,
    ReadRequest,
    TransportMode,
    WriterCapabilities,
)


class MemoryDisk:
    """A bytearray as DiskReader and DiskWriter. Remembers which bytes were read and written."""

    def __init__(
        self,
        image: bytes | bytearray,
        *,
        requests_in_flight: int = 4,
        max_request_bytes: int = 1 << 20,
        allocated: Callable[[], list[Extent]] | None = None,
        before_read: Callable[[int], None] = lambda _offset: None,
    ) -> None:
        """`before_read` is called with each offset and may raise, or set an event."""
        self.image = bytearray(image)
        self.reads: list[Extent] = []
        self.writes: list[Extent] = []
        self.flushes = 0
        self._requests_in_flight = requests_in_flight
        self._max_request_bytes = max_request_bytes
        self._allocated = allocated
        self._before_read = before_read

    @property
    def size_bytes(self) -> int:
        return len(self.image)

    @property
    def capabilities(self) -> ReaderCapabilities:
        return ReaderCapabilities(
            mode=TransportMode.NBD,
            allocated_extents=Ability.NONE if self._allocated is None else Ability.NATIVE,
            requests_in_flight=self._requests_in_flight,
            max_request_bytes=self._max_request_bytes,
        )

    def read_into(self, offset: int, buffer: memoryview) -> None:
        if offset + len(buffer) > len(self.image):
            raise ValueError("read past the end of the disk")
        self._before_read(offset)
        self.reads.append(Extent(offset=offset, length=len(buffer)))
        buffer[:] = self.image[offset : offset + len(buffer)]

    def read_many(self, requests: Iterable[ReadRequest]) -> Iterator[ReadRequest]:
        """Answers in bunches, each in reverse order: the mover must not rely on the order."""
        bunch: list[ReadRequest] = []
        for request in requests:
            bunch.append(request)
            if len(bunch) == self._requests_in_flight:
                yield from self._answered(bunch)
                bunch = []
        yield from self._answered(bunch)

    def allocated_extents(self, offset: int, length: int) -> Iterator[Extent]:
        if self._allocated is None:
            yield Extent(offset=offset, length=length)
            return
        for extent in self._allocated():
            start, end = max(offset, extent.offset), min(offset + length, extent.end)
            if start < end:
                yield Extent(offset=start, length=end - start)

    def close(self) -> None:
        return

    def _answered(self, bunch: list[ReadRequest]) -> Iterator[ReadRequest]:
        for request in bunch:
            self.read_into(request.offset, request.buffer)
        yield from reversed(bunch)


class MemoryTarget:
    """A disk in memory to restore to."""

    def __init__(self, size_bytes: int, *, max_request_bytes: int = 1 << 20, fill: int = 0) -> None:
        """`fill`: what the disk holds before; not 0 for a disk that does not read as zeros."""
        self.image = bytearray([fill]) * size_bytes
        self.flushes = 0
        self._max_request_bytes = max_request_bytes
        self._new_is_zero = fill == 0

    @property
    def size_bytes(self) -> int:
        return len(self.image)

    @property
    def capabilities(self) -> WriterCapabilities:
        return WriterCapabilities(
            mode=TransportMode.NBD,
            max_request_bytes=self._max_request_bytes,
            reads_as_zero_when_new=self._new_is_zero,
        )

    def write_from(self, offset: int, buffer: memoryview) -> None:
        if offset + len(buffer) > len(self.image):
            raise ValueError("write past the end of the disk")
        if len(buffer) > self._max_request_bytes:
            raise ValueError("a request larger than the writer allows")
        self.image[offset : offset + len(buffer)] = buffer

    def flush(self) -> None:
        self.flushes += 1

    def close(self) -> None:
        return
