"""Last stage: blocks into the disk map, checkpoints. One thread, in the disk's order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from pipeline.crypto.aead import Aead
from pipeline.crypto.keyring import Keyring
from pipeline.planning import BackupPlan
from pipeline.repository.blobs import BlobCodec, node_id
from pipeline.repository.format import BlobKind
from pipeline.repository.index import Index
from pipeline.repository.maps import MapBuilder
from pipeline.repository.reader import BlobReader
from pipeline.repository.work import WorkRecord, WorkState, write_work
from pipeline.stages.encode import EncodedBlock, Outcome
from pipeline.stages.flow import Channel, Clock, Meter
from pipeline.stages.pack import PackStage
from pipeline.storage.base import Storage


@dataclass(slots=True)
class Tally:
    """Figures of a disk over all attempts; kept in the work record."""

    done_bytes: int = 0
    read_bytes: int = 0
    stored_bytes: int = 0
    zero: int = 0
    new: int = 0
    deduplicated: int = 0
    elapsed_s: float = 0.0

    @classmethod
    def of(cls, stats: dict[str, Any]) -> Tally:
        """From a work record. Figures of another release that are not known here are left out."""
        names = {field.name for field in fields(cls)}
        return cls(**{name: value for name, value in stats.items() if name in names})


class StoreStage:
    """Puts blocks into the disk's order, builds the map, writes checkpoints.

    The state in a checkpoint only refers to blobs that the index names: a checkpoint drains the packs
    first, and waits until no block refers to a blob that another block has yet to store. Workers go on
    meanwhile.
    """

    def __init__(
        self,
        *,
        storage: Storage,
        keyring: Keyring,
        algorithm: Aead,
        codec: BlobCodec,
        index: Index,
        plan: BackupPlan,
        work_id: str,
        begun_at_s: float,
        tally: Tally,
        packs: PackStage,
        source: Channel[EncodedBlock | None],
        workers: int,
        checkpoint_every_s: float,
        clock: Clock,
        busy: Meter,
        first_base: str = "",
        nodes: Mapping[bytes, bytes] | None = None,
    ) -> None:
        """`nodes`: of the plan's base, not stored yet; stored before anything else."""
        self._storage = storage
        self._keyring = keyring
        self._algorithm = algorithm
        self._codec = codec
        self._plan = plan
        self._work_id = work_id
        self._begun_at_s = begun_at_s
        self._tally = tally
        self._packs = packs
        self._source = source
        self._workers = workers
        self._checkpoint_every_s = checkpoint_every_s
        self._clock = clock
        self._busy = busy
        self._started_s = clock()
        self._elapsed_before_s = tally.elapsed_s
        self._stored_before_bytes = tally.stored_bytes
        self._checkpoint_s = clock()
        self._next_block = 0
        self._zero_runs = iter(plan.zero)
        self._zero_run: tuple[int, int] | None = next(self._zero_runs, None)
        self._awaited: set[bytes] = set()
        self._first_base = first_base
        self._nodes = nodes or {}
        self._stored_nodes = BlobReader(storage, keyring, index)
        self._builder = MapBuilder(
            base_root=bytes.fromhex(plan.base_root),
            block_count=plan.block_count,
            load_node=self._load_node,
            store_node=self._store_node,
        )
        self.is_complete = False
        self.map_root = ""

    def go_on(self, record: WorkRecord) -> None:
        """Continue from a checkpoint instead of from the beginning."""
        self._builder.go_on(record.nodes, record.next_block)
        self._next_block = record.next_block
        while self._zero_run is not None and self._zero_run[0] < record.next_block:
            end = self._zero_run[1]
            if end > record.next_block:
                self._zero_run = (record.next_block, end)
            else:
                self._zero_run = next(self._zero_runs, None)

    def run(self, planned_blocks: int) -> None:
        """Take everything the workers send. `planned_blocks`: how many there are when reading does not
        stop early.
        """
        try:
            for content in self._nodes.values():
                self._store_node(content)
            stored = 0
            for result in self._in_order():
                with self._busy:
                    self._note(result)
                    self._close_when_due()
                stored += 1
            if stored == planned_blocks:
                self._finish()
            else:
                self._stop_early()
        finally:
            self._packs.end()

    def _in_order(self) -> Iterator[EncodedBlock]:
        """Results in the disk's order. Only a few words for each block wait for an earlier one, however
        late that is. (Holding the reader back instead would lock up one that waits for its next request
        while an answer is due.)
        """
        waiting: dict[int, EncodedBlock] = {}
        following = 0
        working = self._workers
        while working:
            result = self._source.get()
            if result is None:
                working -= 1
                continue
            if result.outcome is Outcome.NEW:
                self._awaited.discard(result.blob_id)
            waiting[result.sequence] = result
            while following in waiting:
                yield waiting.pop(following)
                following += 1

    def _note(self, result: EncodedBlock) -> None:
        """Put a block into the map, and count it."""
        self._apply_zeros(result.block)
        self._builder.set(result.block, result.blob_id)
        self._next_block = result.block + 1
        tally = self._tally
        tally.done_bytes += result.length
        tally.read_bytes += result.length
        tally.stored_bytes = self._stored_before_bytes + self._packs.stored_bytes
        if result.outcome is Outcome.ZERO:
            tally.zero += 1
        elif result.outcome is Outcome.NEW:
            tally.new += 1
        else:
            tally.deduplicated += 1
            if result.outcome is Outcome.PENDING and not self._packs.holds(result.blob_id):
                self._awaited.add(result.blob_id)

    def _close_when_due(self) -> None:
        is_due = self._clock() - self._checkpoint_s >= self._checkpoint_every_s
        if is_due and not self._awaited:
            self._checkpoint()

    def _apply_zeros(self, before_block: int) -> None:
        """Blocks that are known to be zeros now, up to a block."""
        while self._zero_run is not None and self._zero_run[0] < before_block:
            self._builder.set_zeros(*self._zero_run)
            self._tally.zero += self._zero_run[1] - self._zero_run[0]
            self._zero_run = next(self._zero_runs, None)

    def _load_node(self, blob_id: bytes) -> bytes:
        content = self._nodes.get(blob_id)
        return self._stored_nodes.load_node(blob_id) if content is None else content

    def _store_node(self, content: bytes) -> bytes:
        blob_id = node_id(self._keyring, content)
        if not self._packs.holds(blob_id):
            self._packs.append(self._codec.encode(BlobKind.NODE, blob_id, content))
        return blob_id

    def _checkpoint(self) -> None:
        self._packs.drain()
        self._write_record(WorkState.PARTIAL)
        self._checkpoint_s = self._clock()

    def _finish(self) -> None:
        self._apply_zeros(self._plan.block_count)
        self.map_root = self._builder.finish().hex()
        self._packs.drain()
        self._write_record(WorkState.DONE)
        self.is_complete = True

    def _stop_early(self) -> None:
        """Reading ended before its time: keep what was read. A block may refer to a blob whose own block
        came after the gap and was dropped; then the last checkpoint has to do.
        """
        self._packs.drain()
        if not self._awaited:
            self._write_record(WorkState.PARTIAL)

    def _write_record(self, state: WorkState) -> None:
        tally = self._tally
        tally.stored_bytes = self._stored_before_bytes + self._packs.stored_bytes
        tally.elapsed_s = self._elapsed_before_s + self._clock() - self._started_s
        record = WorkRecord(
            state=state,
            begun_at_s=self._begun_at_s,
            capacity_bytes=self._plan.capacity_bytes,
            read_mode=self._plan.read_mode.value,
            base_root=self._plan.base_root,
            next_block=self._plan.block_count if state is WorkState.DONE else self._next_block,
            nodes=[] if state is WorkState.DONE else self._builder.state(),
            map_root=self.map_root,
            stats=asdict(tally),
            first_base=self._first_base,
        )
        write_work(self._storage, self._keyring, self._algorithm, self._work_id, record)
