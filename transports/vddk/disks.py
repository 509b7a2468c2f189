"""Reader and writer of a disk that nbdkit serves."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final

import numpy as np

from transports.base import (
    Ability,
    Extent,
    ReaderCapabilities,
    ReadRequest,
    TransportMode,
    WriterCapabilities,
)
from transports.errors import TransientTransportError
from transports.vddk.nbdkit import NbdkitDisk, address_of
from transports.vddk_options import VddkOptions

_EXTENTS_AT_ONCE_BYTES: Final = 1 << 30
"""VDDK takes its time for a question about allocation, and answers in whole chunks of 64 KiB."""
_WRITE_BYTES: Final = 2 << 20


class VddkReader:
    """A DiskReader."""

    def __init__(self, disk: NbdkitDisk, mode: TransportMode, options: VddkOptions) -> None:
        """Owns `disk`."""
        self._disk = disk
        self._closed = False
        self._capabilities = ReaderCapabilities(
            mode=mode,
            allocated_extents=Ability.NATIVE if disk.can_tell_extents else Ability.NONE,
            requests_in_flight=options.requests_in_flight,
            max_request_bytes=options.request_bytes,
        )

    @property
    def size_bytes(self) -> int:
        return self._disk.size_bytes

    @property
    def capabilities(self) -> ReaderCapabilities:
        return self._capabilities

    def read_into(self, offset: int, buffer: memoryview) -> None:
        step = self._capabilities.max_request_bytes
        parts = (ReadRequest(offset + at, buffer[at : at + step]) for at in range(0, len(buffer), step))
        _check_range(offset, len(buffer), self.size_bytes)
        for _ in self.read_many(parts):
            pass

    def read_many(self, requests: Iterable[ReadRequest]) -> Iterator[ReadRequest]:
        self._check_open()
        waiting = iter(requests)
        # The arrays keep the buffers where they are until they are filled.
        under_way: dict[int, tuple[ReadRequest, Any]] = {}
        ended = whole = False
        try:
            while True:
                while not ended and len(under_way) < self._capabilities.requests_in_flight:
                    request = next(waiting, None)
                    if request is None:
                        ended = True
                        break
                    _check_range(request.offset, len(request.buffer), self.size_bytes)
                    array = np.frombuffer(request.buffer, np.uint8)
                    number = self._disk.read(address_of(array), len(array), request.offset)
                    under_way[number] = (request, array)
                if not under_way:
                    whole = True
                    return
                answer, _ = under_way.pop(self._disk.next_done())
                yield answer
        finally:
            if not whole and under_way:
                # Left early or failed: nothing may come into the mover's buffers any more.
                self.close()

    def allocated_extents(self, offset: int, length: int) -> Iterator[Extent]:
        self._check_open()
        if self._capabilities.allocated_extents is Ability.NONE:
            yield Extent(offset=offset, length=length)
            return
        start = at = offset
        end = offset + length
        while at < end:
            runs = self._disk.extents(at, min(end - at, _EXTENTS_AT_ONCE_BYTES))
            if not sum(run for run, _ in runs):
                raise TransientTransportError("VDDK gave an empty answer about allocation")
            for run, is_zero in runs:
                stop = min(at + run, end)
                if is_zero:
                    if at > start:
                        yield Extent(offset=start, length=at - start)
                    start = stop
                at = stop
        if at > start:
            yield Extent(offset=start, length=at - start)

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._disk.close()

    def _check_open(self) -> None:
        if self._closed:
            raise TransientTransportError("the reader was closed")


class VddkWriter:
    """A DiskWriter."""

    def __init__(self, disk: NbdkitDisk, mode: TransportMode) -> None:
        """Owns `disk`."""
        self._disk = disk
        self._closed = False
        self._capabilities = WriterCapabilities(
            mode=mode, max_request_bytes=_WRITE_BYTES, reads_as_zero_when_new=True
        )

    @property
    def size_bytes(self) -> int:
        return self._disk.size_bytes

    @property
    def capabilities(self) -> WriterCapabilities:
        return self._capabilities

    def write_from(self, offset: int, buffer: memoryview) -> None:
        self._check_open()
        _check_range(offset, len(buffer), self.size_bytes)
        array = np.frombuffer(buffer, np.uint8)
        for at in range(0, len(array), _WRITE_BYTES):
            part = array[at : at + _WRITE_BYTES]
            self._disk.wait(self._disk.write(address_of(part), len(part), offset + at))

    def flush(self) -> None:
        self._check_open()
        self._disk.flush()

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._disk.close()

    def _check_open(self) -> None:
        if self._closed:
            raise TransientTransportError("the writer was closed")


def _check_range(offset: int, length: int, size_bytes: int) -> None:
    if offset < 0 or length <= 0:
        raise ValueError(f"[{offset}, +{length}) is no range of a disk")
    if offset + length > size_bytes:
        raise ValueError(
            f"[{offset}, {offset + length}) reaches past the end of the disk, {size_bytes}"
        )
