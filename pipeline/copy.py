"""Copying restore points from one repository to another.

A copy is a backup whose source is a disk map instead of a virtual disk. What differs between the map that
was copied last and the one to copy now plays the part of change tracking, so the target's own data mover
does everything else: its keys, its compression, its block size, its deduplication, its checkpoints.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Final

from pipeline.errors import IntegrityError
from pipeline.map_reader import MapDiskReader, stored_extents
from pipeline.mover import DiskBackup, MoverOptions, backup_disk
from pipeline.planning import BackupPlan, plan_backup
from pipeline.progress import MoverProgress
from pipeline.repository.format import ZERO_ID
from pipeline.repository.maps import block_count_of, differing_blocks, level_for
from pipeline.repository.repository import Repository
from pipeline.stages.flow import Clock
from transports.base import Extent

WINDOW_BYTES: Final = 16 << 20
"""What is read from the source ahead of the target's encoders."""
REASON_BASE_GONE: Final = "the restore point that was copied last is no longer readable in the source"


def plan_copy(
    *,
    source: Repository,
    target_block_size_bytes: int,
    map_root: str,
    capacity_bytes: int,
    base_map_root: str = "",
    base_capacity_bytes: int = 0,
    copied_map_root: str = "",
) -> BackupPlan:
    """What of a disk has to be read from the source.

    `base_map_root` is the map, in the source, of the point that was copied last, and `copied_map_root`
    that of its copy; both empty when there is none. Raises IntegrityError where `map_root` itself cannot
    be read.
    """
    changes = None
    reason = ""
    if base_map_root and copied_map_root and base_capacity_bytes == capacity_bytes:
        changes = _Changes(source, base_map_root, map_root, capacity_bytes)
        if not changes.are_readable():
            changes, reason = None, REASON_BASE_GONE
    allocated: Iterator[Extent] | None
    if changes is None:
        allocated = stored_extents(source, map_root, capacity_bytes)
    elif target_block_size_bytes <= source.block_size_bytes:
        allocated = changes.extents(only_stored=True)
    else:
        allocated = None  # a large block is zeros only when all small ones in it are: the mover looks
    return plan_backup(
        capacity_bytes=capacity_bytes,
        block_size_bytes=target_block_size_bytes,
        previous_map_root=copied_map_root if base_map_root else "",
        previous_capacity_bytes=base_capacity_bytes,
        changed=None if changes is None else changes.extents(),
        allocated=allocated,
        full_read_reason=reason,
    )


def copy_disk(
    *,
    source: Repository,
    target: Repository,
    plan: BackupPlan,
    map_root: str,
    compression: str,
    work_id: str,
    cancel: threading.Event,
    progress: Callable[[MoverProgress], None],
    clock: Clock,
    options: MoverOptions | None = None,
) -> DiskBackup:
    """Copy one disk as planned by plan_copy(); what is new in the target is stored, all else is known.

    Resumes as backup_disk() does, and raises what that raises; IntegrityError where a block of the source
    is damaged. Memory: that of a backup, WINDOW_BYTES and a few blocks of the source.
    """
    reader = MapDiskReader(
        source,
        map_root,
        plan.capacity_bytes,
        request_bytes=plan.block_size_bytes,
        window_bytes=WINDOW_BYTES,
    )
    try:
        return backup_disk(
            repository=target,
            reader=reader,
            plan=plan,
            compression=compression,
            work_id=work_id,
            cancel=cancel,
            progress=progress,
            clock=clock,
            options=options or MoverOptions(),
        )
    finally:
        reader.close()


class _Changes:
    """What differs between two maps of one disk. Walked anew for each question: a list of a large disk's
    changes would not be bounded.
    """

    def __init__(self, source: Repository, old_root: str, new_root: str, capacity_bytes: int) -> None:
        self._load_node = source.reader().load_node
        self._old = bytes.fromhex(old_root)
        self._new = bytes.fromhex(new_root)
        self._block_size = source.block_size_bytes
        self._block_count = block_count_of(capacity_bytes, source.block_size_bytes)
        self._capacity_bytes = capacity_bytes

    def are_readable(self) -> bool:
        """False when nodes are missing: those of the old map may have been pruned. (Damage of the new
        one shows again, as an error, when the whole of it is walked.)
        """
        try:
            for _ in self._blocks():
                pass
        except IntegrityError:
            return False
        return True

    def extents(self, *, only_stored: bool = False) -> Iterator[Extent]:
        """Changed ranges of the disk; with `only_stored` those that are not zeros now."""
        size = self._block_size
        for block, blob_id in self._blocks():
            if not only_stored or blob_id != ZERO_ID:
                offset = block * size
                yield Extent(offset=offset, length=min(size, self._capacity_bytes - offset))

    def _blocks(self) -> Iterator[tuple[int, bytes]]:
        level = level_for(self._block_count)
        return differing_blocks(self._load_node, self._old, self._new, level)
