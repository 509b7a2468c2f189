"""Immutability: what restore points need is kept by the storage itself, against everybody.

Packs, keys and the configuration are kept from the moment they are stored. When a restore point is
committed, everything that it needs is kept for at least `days` after the point was made, and only then the
point itself, for as long as all of that: so the retention of a point says how long its data are kept, and
nothing else has to remember it.

Cost: data are kept `GENERATION_S` longer than asked for. A new point builds on the one before it; while the
retention of that one reaches far enough, only the packs of what changed are touched. When it does not, once in a
generation, the whole map is walked and every pack that is short is extended.

The index is not kept: prune must be able to replace it, and it is made again from the packs (`Repository.rebuild_index`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from pipeline.errors import (
    IntegrityError,
    ObjectNotFoundError,
    ObjectRetainedError,
    PermanentPipelineError,
)
from pipeline.model import DiskPoint, RestorePoint
from pipeline.repository import layout
from pipeline.repository.index import (
    Index,
)
from pipeline.repository.maps import LoadNode, MapEntry, block_count_of, level_for, walk
from pipeline.repository.reach import id_at
from pipeline.storage.base import Buffer, ObjectWriter, Retention, Storage
from pipeline.storage.wrapper import StorageWrapper

DAY_S: Final = 86_400.0
MAX_DAYS: Final = 36_500
GENERATION_S: Final = 10 * DAY_S
AT_ONCE: Final = 8
"""Requests to the storage while many packs are extended."""
_KEPT: Final = (layout.PACKS, layout.KEYS, layout.EPOCHS)

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Immutability:
    """How long a repository keeps what its restore points need."""

    days: int

    def __post_init__(self) -> None:
        if not 1 <= self.days <= MAX_DAYS:
            raise ValueError(f"immutability of {self.days} days; give 1 to {MAX_DAYS}")

    def until_s(self, from_s: float) -> float:
        """The least: until when a point of that time is kept."""
        return from_s + self.days * DAY_S

    def generous_until_s(self, from_s: float) -> float:
        """What is set whenever something is set anyway."""
        return self.until_s(from_s) + GENERATION_S


def retention_of(storage: Storage) -> Retention:
    """Raises PermanentPipelineError for a storage that keeps nothing."""
    retention = storage.retention
    if retention is None:
        raise PermanentPipelineError(
            f"{storage.location} cannot keep objects immutable: a bucket must be made with object lock, and a "
            "directory needs the helper for immutable files on its machine"
        )
    return retention


class KeptStorage(StorageWrapper):
    """A storage whose new packs, keys and configuration are kept from the start."""

    def __init__(self, inner: Storage, immutability: Immutability, clock: Clock) -> None:
        super().__init__(inner)
        self._immutability = immutability
        self._clock = clock
        self._kept_by: Retention | None = None

    def keep_new(self, name: str) -> None:
        """Called when an object was stored."""
        if name.startswith(_KEPT) or name == layout.CONFIGURATION:
            if self._kept_by is None:
                self._kept_by = retention_of(self.inner)
            self._kept_by.keep(name, self._immutability.generous_until_s(self._clock()))

    def create(self, name: str) -> ObjectWriter:
        return _KeptWriter(self, name, self.inner.create(name))

    def put(self, name: str, data: Buffer) -> None:
        self.inner.put(name, data)
        self.keep_new(name)

    def replace(self, name: str, data: Buffer) -> None:
        self.inner.replace(name, data)
        self.keep_new(name)


class _KeptWriter:
    def __init__(self, storage: KeptStorage, name: str, inner: ObjectWriter) -> None:
        self._storage = storage
        self._name = name
        self._inner = inner

    def write(self, parts: Sequence[Buffer]) -> None:
        self._inner.write(parts)

    def commit(self) -> None:
        self._inner.commit()
        self._storage.keep_new(self._name)

    def abort(self) -> None:
        self._inner.abort()


def keeping(storage: Storage, days: int, clock: Clock) -> Storage:
    """The storage, wrapped where a repository is immutable for `days`; 0: it is not."""
    return KeptStorage(storage, Immutability(days=days), clock) if days else storage


# ---- at commit -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """What is needed to find out what a point needs."""

    storage: Storage
    index: Index
    load_node: LoadNode
    block_size_bytes: int


def keep_needed(
    needs: Needs,
    immutability: Immutability,
    point: RestorePoint,
    before: RestorePoint | None,
    now_s: float,
) -> float:
    """Keep all packs, keys and the configuration that the point needs; until when they are kept now.

    `before`: the point before it of the same VM, whose retention says how long its data are kept.
    """
    retention = retention_of(needs.storage)
    least_s = immutability.until_s(point.created_at.timestamp())
    base_until_s = retention.kept_until_s(layout.point_name(before.id)) if before is not None else 0.0
    base = before if base_until_s >= least_s else None
    until_s = base_until_s if base is not None else max(immutability.generous_until_s(now_s), least_s)
    packs = needed_packs(needs, point.disks, base.disks if base is not None else ())
    names = [layout.pack_name(pack_id) for pack_id in sorted(packs)]
    if base is None:
        names += [
            entry.name
            for prefix in (layout.KEYS, layout.EPOCHS)
            for entry in needs.storage.list(prefix)
        ]
        names.append(layout.CONFIGURATION)
    with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="keep") as threads:
        for _ in threads.map(lambda name: retention.keep(name, until_s), names):
            pass
    return until_s


def needed_packs(
    needs: Needs, disks: Iterable[DiskPoint], base_disks: Iterable[DiskPoint]
) -> set[bytes]:
    """Packs that hold what the maps of `disks` reach and those of `base_disks` do not."""
    packs: set[bytes] = set()
    known = {disk.disk_key: disk for disk in base_disks}
    for disk in disks:
        _add_packs(needs, disk, known.get(disk.disk_key), packs)
    return packs


def _add_packs(needs: Needs, disk: DiskPoint, base: DiskPoint | None, packs: set[bytes]) -> None:
    block_count = block_count_of(disk.capacity_bytes, needs.block_size_bytes)
    base_root, base_blocks = b"", 0
    if base is not None:
        base_blocks = block_count_of(base.capacity_bytes, needs.block_size_bytes)
        base_root = bytes.fromhex(base.map_root)

    def note(entry: MapEntry) -> bool:
        if base_root and level_for(base_blocks) == level_for(block_count):
            there = id_at(
                needs.load_node,
                base_root,
                base_blocks,
                level=entry.level,
                first_block=entry.first_block,
            )
            if there == entry.blob_id:
                return False
        _add_places(needs.index, entry.blob_id, packs)
        return True

    for entry in walk(needs.load_node, bytes.fromhex(disk.map_root), block_count, enter=note):
        if entry.level < 0:
            note(entry)


def _add_places(index: Index, blob_id: bytes, packs: set[bytes]) -> None:
    """The pack of a blob, and of the base that it is a patch of."""
    seen: set[bytes] = set()
    while blob_id and blob_id not in seen:
        seen.add(blob_id)
        location = index.find(blob_id)
        if location is None:
            raise IntegrityError(f"blob {blob_id.hex()} is needed and not in the index; run a check")
        packs.add(location.pack_id)
        blob_id = location.base_id


def refuse_kept(storage: Storage, point_ids: Iterable[str], now_s: float) -> None:
    """Raises ObjectRetainedError when one of the points may not be forgotten yet."""
    retention = storage.retention
    if retention is None:
        return
    for point_id in point_ids:
        until_s = kept_until_s(storage, point_id)
        if until_s > now_s:
            until = datetime.fromtimestamp(until_s, UTC)
            raise ObjectRetainedError(
                f"restore point {point_id} in {storage.location} is immutable until "
                f"{until:%Y-%m-%d %H:%M} UTC; it cannot be deleted before"
            )


def kept_until_s(storage: Storage, point_id: str) -> float:
    """Until when a point and all that it needs are kept; 0.0 when they are not, or it is not there."""
    retention = storage.retention
    if retention is None:
        return 0.0
    try:
        return retention.kept_until_s(layout.point_name(point_id))
    except ObjectNotFoundError:
        return 0.0
