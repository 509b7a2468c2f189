"""The data mover: one disk from a transport mode into a repository.

docs/explanation/data-mover.md tells how the stages work together.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from pipeline.continuing import Continuation, is_backed
from pipeline.errors import (
    CancelledError,
    IntegrityError,
    RestorePointRefusedError,
)
from pipeline.model import BlobId, BlockCounts, DiskStats, ReadMode, StageTimes
from pipeline.planning import ZERO_ROOT, BackupPlan, BlockRanges, bytes_of
from pipeline.progress import MoverProgress
from pipeline.repository.blobs import COMPRESSION_LEVELS, BlobCodec
from pipeline.repository.index import IndexLoader
from pipeline.repository.reader import BlobReader
from pipeline.repository.repository import Repository
from pipeline.repository.work import WorkRecord, WorkState, read_work, write_work
from pipeline.stages.bases import Bases
from pipeline.stages.encode import Claims, EncodedBlock, EncodeStage
from pipeline.stages.flow import Channel, Clock, Flow, Meter, share
from pipeline.stages.pack import PackStage
from pipeline.stages.read import ReadBlock, ReadStage
from pipeline.stages.store import StoreStage, Tally
from transports import system
from transports.base import DiskReader

BUFFERS_PER_WORKER: Final = 3  # one being encoded, one waiting, one being filled
RESULTS_WAITING: Final = 256  # a few words each
PROGRESS_EVERY_S: Final = 0.25
NODE_COMPRESSION: Final = "fast"


@dataclass(frozen=True, slots=True, kw_only=True)
class MoverOptions:
    workers: int = 0
    """Encoding threads; 0: one for each core of this process."""
    checkpoint_every_s: float = 10.0
    """How much work a crash may cost. Each checkpoint closes the open pack."""
    verify_every: int = 64
    """Each so-manieth stored block is decoded again and compared before it is written; 0: none, 1: all.
    Measured: all costs 15 to 50 % more CPU (the more, the better the data compresses), one in 16 1 to 3 %.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskBackup:
    map_root: BlobId
    stats: DiskStats


def backup_disk(
    *,
    repository: Repository,
    reader: DiskReader,
    plan: BackupPlan,
    compression: str,
    work_id: str,
    cancel: threading.Event,
    progress: Callable[[MoverProgress], None],
    clock: Clock,
    options: MoverOptions = MoverOptions(),
    continued: Continuation | None = None,
) -> DiskBackup:
    """Back up one disk as planned. `reader` is used by one other thread meanwhile and not closed.

    `continued`: what `go_on_from` made; `plan` is its plan then.

    An earlier attempt with the same `work_id` is continued; one that was finished is answered from its
    record. Raises what the reader raised (then everything read before is durable and the next attempt
    goes on from there), CancelledError (likewise), StorageFullError and other storage errors,
    IntegrityError. Memory: some 10 buffers of a block for each core, and the repository's index.
    """
    if compression not in COMPRESSION_LEVELS:
        raise ValueError(f"compression {compression!r} is none of {', '.join(COMPRESSION_LEVELS)}")
    if plan.block_size_bytes != repository.block_size_bytes:
        raise ValueError(
            f"the plan has blocks of {plan.block_size_bytes} bytes, the repository of "
            f"{repository.block_size_bytes}"
        )
    if reader.size_bytes != plan.capacity_bytes:
        raise RestorePointRefusedError(
            f"the disk has {reader.size_bytes} bytes and was planned with {plan.capacity_bytes}; "
            "it was resized meanwhile: run the backup again"
        )
    if continued is not None and plan is not continued.plan:
        raise ValueError("a backup that goes on from earlier work goes by the plan of that")
    run = _Run(
        repository, reader, plan, compression, work_id, cancel, progress, clock, options, continued
    )
    return run.backup()


class _Run:
    """One attempt."""

    def __init__(
        self,
        repository: Repository,
        reader: DiskReader,
        plan: BackupPlan,
        compression: str,
        work_id: str,
        cancel: threading.Event,
        progress: Callable[[MoverProgress], None],
        clock: Clock,
        options: MoverOptions,
        continued: Continuation | None = None,
    ) -> None:
        self._repository = repository
        self._reader = reader
        self._plan = plan
        self._compression = compression
        self._work_id = work_id
        self._cancel = cancel
        self._progress = progress
        self._clock = clock
        self._options = options
        self._continued = continued
        self._workers = options.workers or system.usable_cpus()
        self._total_bytes = plan.read_bytes
        self._started_s = clock()
        self._reading, self._waiting, self._encoding, self._storing = (Meter(clock) for _ in range(4))
        self._tally = Tally()

    def backup(self) -> DiskBackup:
        record = self._usable_record()
        if record is not None:
            self._tally = Tally.of(record.stats)
            if record.state is WorkState.DONE:
                return self._result(record.map_root)
        # Written before the index is read: prune keeps what such a writer may find in the index.
        begun_at_s = record.begun_at_s if record is not None else self._begin()
        loader = self._repository.index_loader()
        index = loader.refresh()
        if record is not None and not is_backed(record, index):
            record = None
            self._tally = Tally()
            begun_at_s = self._begin()
        return self._move(record, begun_at_s, loader)

    def _usable_record(self) -> WorkRecord | None:
        """What an earlier attempt left, when it was at the same disk in the same way."""
        repository, plan = self._repository, self._plan
        try:
            record = read_work(repository.storage, repository.keyring, self._work_id)
        except IntegrityError:
            return None  # a damaged record only costs the time to read again
        if record is None or (
            record.capacity_bytes,
            record.read_mode,
            record.base_root,
        ) != (plan.capacity_bytes, plan.read_mode.value, plan.base_root):
            return None
        return record

    def _begin(self) -> float:
        begun_at_s = self._clock()
        record = WorkRecord(
            state=WorkState.BEGUN,
            begun_at_s=begun_at_s,
            capacity_bytes=self._plan.capacity_bytes,
            read_mode=self._plan.read_mode.value,
            base_root=self._plan.base_root,
            first_base=self._first_base,
        )
        repository = self._repository
        write_work(repository.storage, repository.keyring, repository.aead, self._work_id, record)
        return begun_at_s

    @property
    def _first_base(self) -> str:
        return self._continued.first_base if self._continued is not None else ""

    def _move(self, record: WorkRecord | None, begun_at_s: float, loader: IndexLoader) -> DiskBackup:
        repository, plan = self._repository, self._plan
        first_block = record.next_block if record is not None else 0
        flow = Flow()
        buffers = self._reader.capabilities.requests_in_flight + BUFFERS_PER_WORKER * self._workers
        pool: Channel[bytearray] = Channel(flow, buffers, newest_first=True)
        to_encode: Channel[ReadBlock | None] = Channel(flow, buffers + self._workers)
        to_store: Channel[EncodedBlock | None] = Channel(flow, RESULTS_WAITING)
        claims = Claims(loader.index)
        reader = BlobReader(repository.storage, repository.keyring, loader.index)
        bases = None
        # The map of earlier work is not stored yet; what that had for its base serves as well.
        patched = replace(plan, base_root=self._first_base) if self._first_base else plan
        if repository.makes_patches and patched.base_root != ZERO_ROOT:
            bases = Bases(
                flow=flow, reader=reader, index=loader.index, plan=patched, first_block=first_block
            )
        packs = PackStage(
            flow=flow,
            storage=repository.storage,
            keyring=repository.keyring,
            algorithm=repository.aead,
            target_bytes=repository.pack_target_bytes,
            loader=loader,
            claims=claims,
            clock=self._clock,
            busy=self._storing,
        )
        read = ReadStage(
            flow=flow,
            reader=self._reader,
            plan=plan,
            first_block=first_block,
            pool=pool,
            output=to_encode,
            workers=self._workers,
            cancel=self._cancel,
            busy=self._reading,
            waiting=self._waiting,
        )
        store = StoreStage(
            storage=repository.storage,
            keyring=repository.keyring,
            algorithm=repository.aead,
            codec=BlobCodec(repository.keyring, repository.aead, NODE_COMPRESSION),
            index=loader.index,
            plan=plan,
            work_id=self._work_id,
            begun_at_s=begun_at_s,
            tally=self._tally,
            packs=packs,
            source=to_store,
            workers=self._workers,
            checkpoint_every_s=self._options.checkpoint_every_s,
            clock=self._clock,
            busy=self._storing,
            first_base=self._first_base,
            nodes=self._continued.nodes if self._continued is not None else {},
        )
        if record is not None:
            store.go_on(record)
        to_read = plan.read.difference(BlockRanges([(0, first_block)]))
        planned = to_read.block_count
        self._total_bytes = self._tally.done_bytes + bytes_of(
            to_read, plan.capacity_bytes, plan.block_size_bytes
        )
        if planned:
            for _ in range(buffers):
                pool.put(bytearray(plan.block_size_bytes))
        flow.start("read", read.run)
        for number in range(self._workers):
            encode = EncodeStage(
                keyring=repository.keyring,
                codec=BlobCodec(repository.keyring, repository.aead, self._compression),
                claims=claims,
                bases=bases,
                block_size_bytes=plan.block_size_bytes if planned else 0,
                verify_every=self._options.verify_every,
                source=to_encode,
                pool=pool,
                packs=packs,
                output=to_store,
                busy=self._encoding,
            )
            flow.start(f"encode-{number}", encode.run)
        flow.start("store", lambda: self._store(store, planned, bases))
        if bases is not None:
            flow.start("bases", bases.run)
        flow.start("pack", packs.run)
        try:
            flow.join(self._report, PROGRESS_EVERY_S)
        finally:
            packs.abort()
        if read.error is not None:
            raise read.error
        if not store.is_complete:
            raise CancelledError(
                f"backup {self._work_id} was cancelled; what was read is kept for another attempt"
            )
        self._report()
        return self._result(store.map_root)

    @staticmethod
    def _store(store: StoreStage, planned: int, bases: Bases | None) -> None:
        try:
            store.run(planned)
        finally:
            if bases is not None:
                bases.end()

    def _report(self) -> None:
        tally = self._tally
        self._progress(
            MoverProgress(
                total_bytes=self._total_bytes,
                done_bytes=tally.done_bytes,
                read_bytes=tally.read_bytes,
                stored_bytes=tally.stored_bytes,
                elapsed_s=self._clock() - self._started_s,
                stages=self._stages(),
            )
        )

    def _stages(self) -> StageTimes:
        elapsed_s = self._clock() - self._started_s
        return StageTimes(
            source=share(self._reading.busy_s - self._waiting.busy_s, 1, elapsed_s),
            proxy=share(self._encoding.busy_s, self._workers, elapsed_s),
            network=0.0,
            target=share(self._storing.busy_s, 1, elapsed_s),
        )

    def _result(self, map_root: str) -> DiskBackup:
        plan, tally = self._plan, self._tally
        # Not by the plan: an earlier attempt may have had another one, in a mode that knew more or less of
        # what is allocated.
        untouched = plan.block_count - tally.zero - tally.new - tally.deduplicated
        kept = untouched
        if plan.read_mode is not ReadMode.INCREMENT:
            kept = 0 if self._continued is None else min(untouched, self._continued.kept.block_count)
        counts = BlockCounts(
            zero=tally.zero + untouched - kept,
            new=tally.new,
            deduplicated=tally.deduplicated,
            unchanged=kept,
        )
        return DiskBackup(
            map_root=BlobId(map_root),
            stats=DiskStats(
                capacity_bytes=plan.capacity_bytes,
                read_bytes=tally.read_bytes,
                changed_bytes=plan.changed_bytes,
                stored_bytes=tally.stored_bytes,
                blocks=counts,
                duration_s=tally.elapsed_s,
                stages=self._stages(),
            ),
        )
