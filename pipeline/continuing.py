"""Going on from the work that an earlier backup of the same disk left, at another moment of the disk.

The earlier work read a part of the disk, from its beginning up to some block, at moment 1. At moment 2 change
tracking names what changed since. The map of the earlier work, closed where it stopped, is the base of a new
plan that reads

- of the part that was read: what changed since moment 1,
- of the rest: what it would read anyway.

Nothing of this asks how the two moments came about; the caller vouches that the changes are complete, that it
is the same disk, and that the earlier work read one moment only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from pipeline.errors import IntegrityError
from pipeline.model import ReadMode
from pipeline.planning import ZERO_ROOT, BackupPlan, BlockRanges, blocks_of, bytes_of
from pipeline.repository import Repository
from pipeline.repository.blobs import node_id
from pipeline.repository.index import Index
from pipeline.repository.maps import MapBuilder, open_node_ids
from pipeline.repository.work import WorkRecord, WorkState, read_work
from transports.base import Extent


@dataclass(frozen=True, slots=True, kw_only=True)
class Continuation:
    """A plan that rests on earlier work."""

    plan: BackupPlan
    """What is still to be read; its base is the map of the earlier work."""
    first_base: str
    """The base of the plan without the earlier work."""
    nodes: Mapping[bytes, bytes]
    """Map nodes of the plan's base by id. They are not stored yet: whoever uses the plan stores them."""
    kept: BlockRanges
    """Blocks that are taken over unread."""

    @property
    def kept_bytes(self) -> int:
        return bytes_of(self.kept, self.plan.capacity_bytes, self.plan.block_size_bytes)


def go_on_from(
    *, repository: Repository, plan: BackupPlan, work_id: str, changed: Iterable[Extent]
) -> Continuation | None:
    """The plan that goes on from that work; None when there is nothing in it that would help: it is gone,
    damaged, of another size, was read in another way or on another base, or a prune took what it names.

    `plan`: without the earlier work. `changed`: since the moment that the work read. Answers the same for the
    same work, so another attempt finds its own record good. Raises storage errors.
    """
    try:
        record = read_work(repository.storage, repository.keyring, work_id)
    except IntegrityError:
        return None
    if record is None or record.state is WorkState.BEGUN or not _is_of(record, plan):
        return None
    index = repository.index_loader().refresh()
    if not is_backed(record, index):
        return None
    try:
        root, nodes = _closed(repository, record, plan)
    except IntegrityError:
        return None  # a node that it needs is damaged: everything is read again
    if root != bytes.fromhex(ZERO_ROOT) and root not in nodes and root not in index:
        return None
    return _planned(plan, record, root, nodes, changed)


def is_backed(record: WorkRecord, index: Index) -> bool:
    """Everything the record's open nodes name is in the index, and what patches among it are made of:
    nobody pruned it meanwhile.
    """
    for _, blob_id in open_node_ids(record.nodes):
        location = index.find(blob_id)
        if location is None or (location.base_id and location.base_id not in index):
            return False
    return True


def _is_of(record: WorkRecord, plan: BackupPlan) -> bool:
    """Whether the work was at a disk of that size, in the same way, on the same base."""
    return (record.capacity_bytes, record.read_mode, record.first_base or record.base_root) == (
        plan.capacity_bytes,
        plan.read_mode.value,
        plan.base_root,
    )


def _closed(
    repository: Repository, record: WorkRecord, plan: BackupPlan
) -> tuple[bytes, dict[bytes, bytes]]:
    """Root of the record's map as far as it came, and the nodes that only the record holds."""
    if record.state is WorkState.DONE:
        return bytes.fromhex(record.map_root), {}
    nodes: dict[bytes, bytes] = {}

    def keep(content: bytes) -> bytes:
        blob_id = node_id(repository.keyring, content)
        nodes[blob_id] = content
        return blob_id

    builder = MapBuilder(
        base_root=bytes.fromhex(record.base_root),
        block_count=plan.block_count,
        load_node=repository.reader().load_node,
        store_node=keep,
    )
    builder.go_on(record.nodes, record.next_block)
    return builder.finish(), nodes


def _planned(
    plan: BackupPlan,
    record: WorkRecord,
    root: bytes,
    nodes: dict[bytes, bytes],
    changed: Iterable[Extent],
) -> Continuation | None:
    done = plan.block_count if record.state is WorkState.DONE else record.next_block
    before = BlockRanges([(0, done)])
    after = BlockRanges([(done, plan.block_count)])
    touched = blocks_of(changed, plan.capacity_bytes, plan.block_size_bytes).intersection(before)
    read = BlockRanges([*touched, *plan.read.intersection(after)])
    zero = plan.zero.intersection(after)
    if plan.read_mode is not ReadMode.INCREMENT and record.first_base:
        # Behind its end the map of a work that went on itself has what the first one had read there; what is
        # not allocated now is zeros.
        zero = after.difference(read)
    kept = before.difference(touched)
    if not kept.block_count:
        return None
    considered = BlockRanges([*read, *zero]) if plan.read_mode is ReadMode.INCREMENT else read
    return Continuation(
        plan=replace(
            plan,
            base_root=root.hex(),
            read=read,
            zero=zero,
            changed_bytes=bytes_of(considered, plan.capacity_bytes, plan.block_size_bytes),
        ),
        first_base=plan.base_root,
        nodes=nodes,
        kept=kept,
    )
