"""First stage: blocks of the disk into buffers."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator
from dataclasses import dataclass

from pipeline.planning import BackupPlan
from pipeline.stages.flow import Channel, Flow, Meter
from transports.base import DiskReader, ReadRequest


@dataclass(frozen=True, slots=True)
class ReadBlock:
    """A block that is in memory. The buffer goes back to the pool when it has been encoded."""

    sequence: int
    """Counts the blocks of this run in the disk's order."""
    block: int
    buffer: bytearray
    length: int


@dataclass(slots=True)
class _Filling:
    read: ReadBlock
    missing_bytes: int


class ReadStage:
    """Draws buffers, has the reader fill them, hands them on. One thread, the reader's only one."""

    def __init__(
        self,
        *,
        flow: Flow,
        reader: DiskReader,
        plan: BackupPlan,
        first_block: int,
        pool: Channel[bytearray],
        output: Channel[ReadBlock | None],
        workers: int,
        cancel: threading.Event,
        busy: Meter,
        waiting: Meter,
    ) -> None:
        self._flow = flow
        self._reader = reader
        self._plan = plan
        self._first_block = first_block
        self._pool = pool
        self._output = output
        self._workers = workers
        self._cancel = cancel
        self._busy = busy
        self._waiting = waiting
        self._filling: dict[int, _Filling] = {}
        self.error: Exception | None = None
        """Why reading stopped early; None when it did not, or was cancelled."""

    def run(self) -> None:
        try:
            with self._busy:
                self._read_all()
        except Exception as error:  # noqa: BLE001 - raised by the mover, after what was read is stored
            if self._flow.is_failed:
                return
            self.error = error
        for _ in range(self._workers):
            self._output.put(None)

    def _read_all(self) -> None:
        size = self._plan.block_size_bytes
        answers = self._reader.read_many(self._requests())
        try:
            for request in answers:
                block = request.offset // size
                filling = self._filling[block]
                filling.missing_bytes -= len(request.buffer)
                if filling.missing_bytes == 0:
                    del self._filling[block]
                    with self._waiting:
                        self._output.put(filling.read)
        finally:
            # Closing early leaves the reader fit to be closed by its owner.
            if isinstance(answers, Generator):
                answers.close()

    def _requests(self) -> Iterator[ReadRequest]:
        """Requests in the disk's order, one block after the other; ends early when cancelled."""
        size = self._plan.block_size_bytes
        step = min(size, self._reader.capabilities.max_request_bytes)
        sequence = 0
        for run_first, end in self._plan.read:
            for block in range(max(run_first, self._first_block), end):
                with self._waiting:
                    buffer = self._pool.get_unless(self._cancel.is_set)
                if buffer is None:
                    return
                offset = block * size
                length = min(size, self._plan.capacity_bytes - offset)
                self._filling[block] = _Filling(ReadBlock(sequence, block, buffer, length), length)
                sequence += 1
                view = memoryview(buffer)
                for at in range(0, length, step):
                    yield ReadRequest(offset + at, view[at : min(length, at + step)])
