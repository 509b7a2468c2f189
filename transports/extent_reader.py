"""Disks that lie on files and devices of this machine, read and written along a map of their runs.

HotAdd and mounted NFS are one run; a file on VMFS is as many as its storage has pieces.
"""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Final, Protocol

from transports.base import (
    Ability,
    Extent,
    ReaderCapabilities,
    ReadRequest,
    TransportMode,
    WriterCapabilities,
)
from transports.direct_file import DirectFile
from transports.errors import PermanentTransportError, TransientTransportError
from transports.extent_map import ExtentMap, Run

__all__ = ["DirectFile", "ExtentMap", "ExtentReader", "ExtentWriter", "File", "Run"]

REQUESTS_IN_FLIGHT: Final = 4
"""One thread each. More helps storage with many spindles behind it, and costs nothing but memory."""
MAX_REQUEST_BYTES: Final = 16 << 20
_ZEROS: Final = memoryview(bytes(1 << 20))


class File(Protocol):
    """What a run may lie on: a DirectFile, or a file of a server. Any number of threads may use it."""

    def read_into(self, offset: int, buffer: memoryview) -> None: ...
    def write_from(self, offset: int, buffer: memoryview) -> None: ...
    def flush(self) -> None: ...
    def close(self) -> None:
        """May be called twice; raises nothing."""


class ExtentReader:
    """A DiskReader. Owns its files: they are closed with it, then `on_close` is called, once."""

    def __init__(
        self,
        files: Sequence[File],
        extents: ExtentMap,
        *,
        mode: TransportMode,
        requests_in_flight: int = REQUESTS_IN_FLIGHT,
        whole_chain: bool = False,
        on_close: Callable[[], None] = lambda: None,
    ) -> None:
        """`extents` name files by their number in `files`. `whole_chain`: they are of the disk and its parents.
        `on_close` must not raise.
        """
        self._files = tuple(files)
        self._extents = extents
        self._on_close = on_close
        self._closed = False
        self._threads: ThreadPoolExecutor | None = None
        self._capabilities = ReaderCapabilities(
            mode=mode,
            allocated_extents=Ability.NATIVE if extents.has_holes else Ability.NONE,
            requests_in_flight=requests_in_flight,
            max_request_bytes=MAX_REQUEST_BYTES,
            whole_chain=whole_chain,
        )

    @property
    def size_bytes(self) -> int:
        return self._extents.size_bytes

    @property
    def capabilities(self) -> ReaderCapabilities:
        return self._capabilities

    def read_into(self, offset: int, buffer: memoryview) -> None:
        for run in list(self._extents.runs(offset, len(buffer))):
            self._check_open()
            start = run.offset - offset
            part = buffer[start : start + run.length]
            if run.device_offset is None:
                _zero(part)
            else:
                self._files[run.device].read_into(run.device_offset, part)

    def read_many(self, requests: Iterable[ReadRequest]) -> Iterator[ReadRequest]:
        self._check_open()
        waiting = iter(requests)
        done: queue.SimpleQueue[Future[ReadRequest]] = queue.SimpleQueue()
        under_way = 0
        more = True
        try:
            while True:
                while more and under_way < self._capabilities.requests_in_flight:
                    request = next(waiting, None)
                    if request is None:
                        more = False
                        break
                    self._pool().submit(self._serve, request).add_done_callback(done.put)
                    under_way += 1
                if not under_way:
                    return
                answer = done.get()
                under_way -= 1
                yield answer.result()
        finally:
            # Left early or failed: the buffers are the mover's again only when no thread fills them.
            for _ in range(under_way):
                done.get()

    def allocated_extents(self, offset: int, length: int) -> Iterator[Extent]:
        self._check_open()
        return self._extents.allocated(offset, length)

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self._threads is not None:
            self._threads.shutdown(wait=True, cancel_futures=True)
        for file in self._files:
            file.close()
        self._on_close()

    def _serve(self, request: ReadRequest) -> ReadRequest:
        self.read_into(request.offset, request.buffer)
        return request

    def _pool(self) -> ThreadPoolExecutor:
        if self._threads is None:
            self._threads = ThreadPoolExecutor(
                self._capabilities.requests_in_flight, thread_name_prefix="read"
            )
        return self._threads

    def _check_open(self) -> None:
        if self._closed:
            raise TransientTransportError("the reader was closed")


class ExtentWriter:
    """A DiskWriter into what is allocated already: it never makes a file or a disk grow. Owns its files as
    ExtentReader does.
    """

    def __init__(
        self,
        files: Sequence[File],
        extents: ExtentMap,
        *,
        mode: TransportMode,
        reads_as_zero_when_new: bool = True,
        threads: int = REQUESTS_IN_FLIGHT,
        on_close: Callable[[], None] = lambda: None,
    ) -> None:
        """Files opened with write=True. `reads_as_zero_when_new`: what vSphere made for a restore does."""
        self._files = tuple(files)
        self._extents = extents
        self._on_close = on_close
        self._closed = False
        self._capabilities = WriterCapabilities(
            mode=mode,
            max_request_bytes=MAX_REQUEST_BYTES,
            reads_as_zero_when_new=reads_as_zero_when_new,
            threads=threads,
        )

    @property
    def size_bytes(self) -> int:
        return self._extents.size_bytes

    @property
    def capabilities(self) -> WriterCapabilities:
        is_cached = any(
            isinstance(file, DirectFile) and file.wrote_through_cache for file in self._files
        )
        return replace(self._capabilities, answered_is_kept=not is_cached)

    def write_from(self, offset: int, buffer: memoryview) -> None:
        """PermanentTransportError where nothing is allocated; then nothing was written."""
        runs = list(self._extents.runs(offset, len(buffer)))
        self._check_open()
        for run in runs:
            if run.device_offset is None:
                raise PermanentTransportError(
                    f"nothing is allocated for bytes [{run.offset}, {run.end}) of the disk, and writing in "
                    f"mode {self._capabilities.mode} never allocates; use another mode for this disk"
                )
        for run in runs:
            start = run.offset - offset
            assert run.device_offset is not None
            self._files[run.device].write_from(run.device_offset, buffer[start : start + run.length])

    def flush(self) -> None:
        self._check_open()
        for file in self._files:
            file.flush()

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        for file in self._files:
            file.close()
        self._on_close()

    def _check_open(self) -> None:
        if self._closed:
            raise TransientTransportError("the writer was closed")


def _zero(buffer: memoryview) -> None:
    for at in range(0, len(buffer), len(_ZEROS)):
        part = buffer[at : at + len(_ZEROS)]
        part[:] = _ZEROS[: len(part)]
