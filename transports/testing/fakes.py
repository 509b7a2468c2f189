"""Disks in memory, behind the same interfaces as the real ones."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from transports.base import (
    SECTOR_BYTES,
    Ability,
    Extent,
    ReaderCapabilities,
    ReadRequest,
    TransportMode,
    WriterCapabilities,
)
from transports.errors import TransientTransportError


@dataclass
class MemoryDisk:
    """A disk's content and which parts of it are allocated."""

    content: bytearray
    allocated: tuple[Extent, ...] | None = None
    """None: the disk cannot tell."""
    reads: list[tuple[int, int]] = field(default_factory=list)
    writes: list[tuple[int, int]] = field(default_factory=list)

    @classmethod
    def of(cls, content: bytes) -> MemoryDisk:
        return cls(bytearray(content))

    def check_range(self, offset: int, length: int) -> None:
        end = offset + length
        if offset < 0 or length <= 0:
            raise ValueError(f"[{offset}, +{length}) is no range of a disk")
        if end > len(self.content):
            raise ValueError(f"[{offset}, {end}) reaches past the end of the disk")
        if offset % SECTOR_BYTES or (length % SECTOR_BYTES and end != len(self.content)):
            raise ValueError(f"[{offset}, {end}) is not aligned to {SECTOR_BYTES} bytes")


class MemoryReader:
    """Reads a MemoryDisk; answers the newest of those in flight first, as a host may."""

    def __init__(
        self, disk: MemoryDisk, *, requests_in_flight: int = 4, max_request_bytes: int = 1 << 20
    ) -> None:
        self._disk = disk
        self._closed = False
        self._capabilities = ReaderCapabilities(
            mode=TransportMode.NBDSSL,
            allocated_extents=Ability.NONE if disk.allocated is None else Ability.NATIVE,
            requests_in_flight=requests_in_flight,
            max_request_bytes=max_request_bytes,
        )

    @property
    def size_bytes(self) -> int:
        return len(self._disk.content)

    @property
    def capabilities(self) -> ReaderCapabilities:
        return self._capabilities

    def read_into(self, offset: int, buffer: memoryview) -> None:
        self._disk.check_range(offset, len(buffer))
        if self._closed:
            raise TransientTransportError("the reader is closed")
        self._disk.reads.append((offset, len(buffer)))
        buffer[:] = self._disk.content[offset : offset + len(buffer)]

    def read_many(self, requests: Iterable[ReadRequest]) -> Iterator[ReadRequest]:
        waiting = iter(requests)
        in_flight: deque[ReadRequest] = deque()
        more = True
        while more or in_flight:
            while more and len(in_flight) < self._capabilities.requests_in_flight:
                request = next(waiting, None)
                if request is None:
                    more = False
                    break
                self._disk.check_range(request.offset, len(request.buffer))
                if len(request.buffer) > self._capabilities.max_request_bytes:
                    raise ValueError(f"a request of {len(request.buffer)} bytes is too large")
                in_flight.append(request)
            if in_flight:
                request = in_flight.pop()
                self.read_into(request.offset, request.buffer)
                yield request

    def allocated_extents(self, offset: int, length: int) -> Iterator[Extent]:
        self._disk.check_range(offset, length)
        for extent in self._disk.allocated or (Extent(offset=0, length=self.size_bytes),):
            start, end = max(offset, extent.offset), min(offset + length, extent.end)
            if start < end:
                yield Extent(offset=start, length=end - start)

    def close(self) -> None:
        self._closed = True


class MemoryWriter:
    """Writes a MemoryDisk."""

    def __init__(self, disk: MemoryDisk, *, max_request_bytes: int = 1 << 20) -> None:
        self._disk = disk
        self._closed = False
        self.flushes = 0
        self._capabilities = WriterCapabilities(
            mode=TransportMode.NBDSSL, max_request_bytes=max_request_bytes, reads_as_zero_when_new=True
        )

    @property
    def size_bytes(self) -> int:
        return len(self._disk.content)

    @property
    def capabilities(self) -> WriterCapabilities:
        return self._capabilities

    def write_from(self, offset: int, buffer: memoryview) -> None:
        self._disk.check_range(offset, len(buffer))
        if self._closed:
            raise TransientTransportError("the writer is closed")
        self._disk.writes.append((offset, len(buffer)))
        self._disk.content[offset : offset + len(buffer)] = buffer

    def flush(self) -> None:
        self.flushes += 1

    def close(self) -> None:
        self._closed = True
