"""From a repository to a disk.

The map is walked in windows; in each, blocks are fetched in the order of the packs, with few large reads.
Who decoded a block writes it, out of a buffer that is used again for the next one. Memory: a read of some
MiB and a block or two for each thread, whatever the size of disk or repository.
"""

from __future__ import annotations

import contextlib
import mmap
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Final, Protocol, runtime_checkable

from pipeline.errors import CancelledError, IntegrityError, PermanentPipelineError
from pipeline.model import StageTimes
from pipeline.planning import BlockRanges
from pipeline.progress import MoverProgress
from pipeline.repository.maps import block_count_of, blocks
from pipeline.repository.reader import Batch, BlobReader
from pipeline.repository.repository import Repository
from pipeline.stages.flow import Channel, Clock, Flow, Meter, share
from transports import system
from transports.base import DiskWriter

WINDOW_BLOCKS: Final = 512
"""Blocks whose places are sorted together: enough for long reads, 64 KiB of ids."""
RUNS_WAITING: Final = 2
ZERO_CHUNK_BYTES: Final = 1 << 20
PROGRESS_EVERY_S: Final = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreStats:
    capacity_bytes: int
    read_bytes: int
    """Stored bytes fetched from the repository."""
    written_bytes: int
    zero_bytes: int
    """Of the disk, that hold zeros; written only when they had to be."""
    blocks: int
    """Blocks that are not zeros."""
    duration_s: float
    stages: StageTimes


@runtime_checkable
class Expecting(Protocol):
    """A DiskWriter that wants to know early what will be written, to make room for it in large pieces."""

    def expect(self, offset: int, length: int) -> None:
        """This range will be written whole, soon. From any thread."""


@dataclass(frozen=True, slots=True)
class _Fetch:
    batch: Batch
    places: dict[bytes, list[int]]
    """Blocks of the disk by id; a content may be in several places."""


@dataclass(frozen=True, slots=True)
class _Zeros:
    offset: int
    length: int


def restore_disk(
    *,
    repository: Repository,
    map_root: str,
    capacity_bytes: int,
    writer: DiskWriter,
    skip_zeros: bool,
    cancel: threading.Event,
    progress: Callable[[MoverProgress], None],
    clock: Clock,
    workers: int = 0,
) -> RestoreStats:
    """Write one disk of a restore point. Each block is compared with its id before it is written.

    `skip_zeros`: ranges of zeros are not written; right for a new disk that reads as zeros.
    `workers` 0: one thread for each core and one more. The writer is used by other threads, as many at a
    time as it allows, flushed at the end, and not closed. Raises IntegrityError for damage (then the disk is incomplete),
    CancelledError, storage errors, and what the writer raises.
    """
    if writer.size_bytes < capacity_bytes:
        raise PermanentPipelineError(
            f"the target has {writer.size_bytes} bytes, the disk {capacity_bytes}; make the target larger"
        )
    run = _Restore(
        repository, map_root, capacity_bytes, writer, skip_zeros, cancel, progress, clock, workers
    )
    return run.restore()


class _Restore:
    def __init__(
        self,
        repository: Repository,
        map_root: str,
        capacity_bytes: int,
        writer: DiskWriter,
        skip_zeros: bool,
        cancel: threading.Event,
        progress: Callable[[MoverProgress], None],
        clock: Clock,
        workers: int,
    ) -> None:
        self._block_size = repository.block_size_bytes
        self._root = bytes.fromhex(map_root)
        self._capacity_bytes = capacity_bytes
        self._writer = writer
        self._skip_zeros = skip_zeros
        self._cancel = cancel
        self._progress = progress
        self._clock = clock
        self._workers = workers or system.usable_cpus() + 1
        self._started_s = clock()
        self._reader: BlobReader = repository.reader()
        self._flow = Flow()
        self._runs: Channel[_Fetch | _Zeros | None] = Channel(self._flow, RUNS_WAITING)
        self._may_write = _at_most(writer.capabilities.threads, self._workers)
        self._expect = writer.expect if isinstance(writer, Expecting) else None
        self._fetching, self._decoding, self._writing = (Meter(clock) for _ in range(3))
        self._lock = threading.Lock()
        self._working = self._workers
        self._read_bytes = 0
        self._written_bytes = 0
        self._done_bytes = 0
        self._zero_bytes = 0
        self._blocks = 0

    def restore(self) -> RestoreStats:
        self._flow.start("locate", self._locate)
        for number in range(self._workers):
            self._flow.start(f"decode-{number}", self._decode)
        self._flow.join(self._report, PROGRESS_EVERY_S)
        self._report()
        return RestoreStats(
            capacity_bytes=self._capacity_bytes,
            read_bytes=self._read_bytes,
            written_bytes=self._written_bytes,
            zero_bytes=self._zero_bytes,
            blocks=self._blocks,
            duration_s=self._clock() - self._started_s,
            stages=self._stages(),
        )

    # ---- stages --------------------------------------------------------------------------------

    def _locate(self) -> None:
        """Walk the map, plan the reads of each window."""
        count = block_count_of(self._capacity_bytes, self._block_size)
        found = blocks(self._reader.load_node, self._root, count)
        next_block = 0
        while window := list(islice(found, WINDOW_BLOCKS)):
            self._stop_if_cancelled()
            places: dict[bytes, list[int]] = {}
            for block, blob_id in window:
                self._zeros(next_block, block)
                next_block = block + 1
                places.setdefault(blob_id, []).append(block)
            self._blocks += len(window)
            self._announce([block for block, _ in window])
            for batch in self._reader.plan(places):
                self._stop_if_cancelled()
                self._runs.put(_Fetch(batch, places))
        self._zeros(next_block, count)
        for _ in range(self._workers):
            self._runs.put(None)

    def _announce(self, blocks_to_come: list[int]) -> None:
        """Tell a writer that wants to know which ranges will be written."""
        if self._expect is None:
            return
        for first, end in BlockRanges((block, block + 1) for block in blocks_to_come):
            offset = first * self._block_size
            length = min(end * self._block_size, self._capacity_bytes) - offset
            if length > 0:
                self._expect(offset, length)

    def _decode(self) -> None:
        # Pages of its own: a writer that goes past the page cache needs memory that is aligned.
        out = memoryview(mmap.mmap(-1, self._block_size))
        while (item := self._runs.get()) is not None:
            if isinstance(item, _Zeros):
                self._write_zeros(item)
                continue
            with self._fetching:
                fetched = self._reader.fetch(item.batch)
            with self._lock:
                self._read_bytes += item.batch.read_bytes
            for wanted in item.batch.wanted:
                self._stop_if_cancelled()
                with self._decoding:
                    content = self._reader.decode(fetched, wanted, out)
                for block in item.places[wanted.blob_id]:
                    self._write_block(block, content)
            # Before the next is read: two reads alive at a time have the allocator give memory back to the
            # kernel, and fault it in again, all the time.
            del fetched
        with self._lock:
            self._working -= 1
            is_last = self._working == 0
        if is_last:
            with self._writing:
                self._writer.flush()

    # ---- inside --------------------------------------------------------------------------------

    def _zeros(self, first_block: int, end_block: int) -> None:
        offset = first_block * self._block_size
        length = min(end_block * self._block_size, self._capacity_bytes) - offset
        if length <= 0:
            return
        self._zero_bytes += length
        if self._skip_zeros:
            with self._lock:
                self._done_bytes += length
        else:
            self._runs.put(_Zeros(offset, length))

    def _write_zeros(self, run: _Zeros) -> None:
        chunk = memoryview(bytes(min(ZERO_CHUNK_BYTES, run.length)))
        for at in range(0, run.length, len(chunk)):
            self._stop_if_cancelled()
            self._write_all(run.offset + at, chunk[: min(len(chunk), run.length - at)])

    def _write_block(self, block: int, content: memoryview) -> None:
        offset = block * self._block_size
        expected = min(self._block_size, self._capacity_bytes - offset)
        if len(content) != expected:
            raise IntegrityError(
                f"block {block} has {len(content)} bytes instead of {expected}; the disk's capacity or map "
                "root is wrong: take them from the restore point"
            )
        self._write_all(offset, content)

    def _write_all(self, offset: int, data: memoryview) -> None:
        step = self._writer.capabilities.max_request_bytes
        for at in range(0, len(data), step):
            with self._may_write, self._writing:
                self._writer.write_from(offset + at, data[at : at + step])
        with self._lock:
            self._written_bytes += len(data)
            self._done_bytes += len(data)

    def _stop_if_cancelled(self) -> None:
        if self._cancel.is_set():
            raise CancelledError("the restore was cancelled; the target is incomplete")

    def _stages(self) -> StageTimes:
        elapsed_s = self._clock() - self._started_s
        return StageTimes(
            source=share(self._fetching.busy_s, self._workers, elapsed_s),
            proxy=share(self._decoding.busy_s, system.usable_cpus(), elapsed_s),
            network=0.0,
            target=share(self._writing.busy_s, 1, elapsed_s),
        )

    def _report(self) -> None:
        self._progress(
            MoverProgress(
                total_bytes=self._capacity_bytes,
                done_bytes=self._done_bytes,
                read_bytes=self._read_bytes,
                stored_bytes=self._written_bytes,
                elapsed_s=self._clock() - self._started_s,
                stages=self._stages(),
            )
        )


def _at_most(allowed: int, workers: int) -> contextlib.AbstractContextManager[object]:
    """What lets so many write at a time. A semaphore is Python code, and asked for each block: where all may
    write there is none.
    """
    return contextlib.nullcontext() if allowed >= workers else threading.Semaphore(allowed)


def ordered_blocks(
    reader: BlobReader, map_root: str, capacity_bytes: int, block_size_bytes: int
) -> Iterator[tuple[int, bytes]]:
    """Number and id of each block that is not zeros; for who reads a disk front to back."""
    count = block_count_of(capacity_bytes, block_size_bytes)
    return blocks(reader.load_node, bytes.fromhex(map_root), count)
