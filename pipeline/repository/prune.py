"""Freeing what no restore point needs. Mark, then sweep in two steps; section 11 of the format has the
order, and why.

Memory: the ids that are live, 16 bytes each, and the index segment that is being looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Final

from pipeline.crypto.aead import Aead
from pipeline.crypto.keyring import Keyring
from pipeline.errors import (
    IntegrityError,
    NewerEpochError,
    ObjectNotFoundError,
    StorageUnavailableError,
)
from pipeline.model import DiskPoint
from pipeline.repository import layout
from pipeline.repository.catalogue import Catalogue
from pipeline.repository.doomed import DoomedRecord, arm_doomed, bring_back, read_doomed, write_doomed
from pipeline.repository.index import (
    Index,
    IndexLoader,
    PackSegment,
    read_index_object,
    write_index_object,
)
from pipeline.repository.maps import block_count_of
from pipeline.repository.packs import PackWriter, iterate_pack
from pipeline.repository.reach import mark_map, mark_work, missing_blobs
from pipeline.repository.reader import BlobReader
from pipeline.repository.table import IdSet
from pipeline.repository.work import WorkRecord, delete_work, read_work, work_ids
from pipeline.storage.base import Storage

REWRITE_BELOW_SHARE: Final = 0.5
"""A pack with less than this share of live bytes is rewritten: at worst the repository then holds twice
what is live, and at worst one byte is written for each byte freed."""
ENTRIES_PER_INDEX_OBJECT: Final = 50_000  # 2.4 MB before compression
SPARE_INDEX_OBJECTS: Final = 8
"""So many small index objects beyond the fewest possible are left alone: merging costs more."""
FIRST_LISTING_PAUSE_S: Final = 1.0
LONGEST_LISTING_PAUSE_S: Final = 30.0
READ_WINDOW_BYTES: Final = 8 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneReport:
    removed_packs: int
    removed_bytes: int
    """Freed now. Packs found useless in this run are freed by a later one."""
    rewritten_bytes: int
    kept_packs: int
    doomed_packs: int
    """Out of the index, waiting to be old enough."""


@dataclass(slots=True)
class _Plan:
    go: set[bytes] = field(default_factory=set)
    """Packs to doom."""
    placed: IdSet = field(default_factory=IdSet)
    """Live blobs that are in a pack that stays, or were moved to one."""
    staying_entries: int = 0


class _Batch:
    """Gathers segments into objects of a good size."""

    def __init__(self, write: Callable[[list[PackSegment]], None]) -> None:
        self._write = write
        self._segments: list[PackSegment] = []
        self._entries = 0

    def add(self, segment: PackSegment) -> None:
        self._segments.append(segment)
        self._entries += len(segment.entries)
        if self._entries >= ENTRIES_PER_INDEX_OBJECT:
            self.flush()

    def flush(self) -> None:
        segments, self._segments, self._entries = self._segments, [], 0
        if segments:
            self._write(segments)


class Pruner:
    """One run. Nobody may commit restore points meanwhile; writers may write."""

    def __init__(
        self,
        *,
        storage: Storage,
        keyring: Keyring,
        algorithm: Aead,
        catalogue: Catalogue,
        block_size_bytes: int,
        keep_work_ids: Collection[str],
        min_age_s: float,
        clock: Callable[[], float],
        pack_target_bytes: int,
        wait: Callable[[float], object],
    ) -> None:
        self._storage = storage
        self._keyring = keyring
        self._algorithm = algorithm
        self._catalogue = catalogue
        self._block_size_bytes = block_size_bytes
        self._keep_work_ids = frozenset(keep_work_ids)
        self._min_age_s = min_age_s
        self._clock = clock
        self._now_s = clock()
        self._pack_target_bytes = pack_target_bytes
        self._removed_packs = 0
        self._removed_bytes = 0
        self._rewritten_bytes = 0
        self._wait = wait
        self._written: set[str] = set()
        """Index objects and doomed records of this run."""
        self._named: set[bytes] = set()
        """Packs that the index named when this run began, or that this run put into it. A listing need not
        show yet what was written a moment ago."""

    def run(self) -> PruneReport:
        """Raises IntegrityError, before anything is deleted, when it cannot tell what is needed."""
        if self._catalogue.damaged:
            first = next(iter(self._catalogue.damaged.values()))
            raise IntegrityError(
                f"not pruning {self._storage.location}: what damaged restore points need is unknown "
                f"({first}); repair or forget them first"
            )
        self._finish_forgetting()
        works = self._kept_works()
        index_names = [entry.name for entry in self._storage.list(layout.INDEX)]
        loader = IndexLoader(self._storage, self._keyring)
        live = self._mark_with_doomed(loader, works)
        plan = self._plan(index_names, live)
        self._execute(plan, index_names, live)
        self._arm()
        self._sweep_doomed(live, works)
        # A live blob that no listed index object names: one is missing, or is not listed yet. Then what
        # looks like an orphan may be the pack that it names.
        if len(plan.placed) == len(live):
            self._sweep_orphans(loader)
        self._removed_bytes += self._storage.clean(self._now_s - self._min_age_s)
        doomed = {
            s.pack_id for record in read_doomed(self._storage, self._keyring) for s in record.segments
        }
        return PruneReport(
            removed_packs=self._removed_packs,
            removed_bytes=self._removed_bytes,
            rewritten_bytes=self._rewritten_bytes,
            kept_packs=sum(1 for _ in self._storage.list(layout.PACKS)) - len(doomed),
            doomed_packs=len(doomed),
        )

    # ---- marking -----------------------------------------------------------------------------

    def _finish_forgetting(self) -> None:
        for point_id in self._catalogue.left_over:
            self._storage.delete(layout.point_name(point_id))
        needed = {stored.predecessor for stored in self._catalogue.points.values()}
        for point_id in self._catalogue.forgotten:
            if point_id not in needed:
                self._storage.delete(layout.forgotten_name(point_id))

    def _kept_works(self) -> list[WorkRecord]:
        """Records of works that go on; those that nobody keeps are deleted once they are old."""
        kept = []
        for work_id in work_ids(self._storage):
            try:
                record = read_work(self._storage, self._keyring, work_id)
            except NewerEpochError:
                raise  # of a writer that has a later data key than this prune: what it needs is unknown
            except IntegrityError:
                record = None  # a damaged record helps nobody: the attempt begins anew
            if record is not None and (
                work_id in self._keep_work_ids or self._is_young(record.begun_at_s)
            ):
                kept.append(record)
            elif work_id not in self._keep_work_ids:
                delete_work(self._storage, work_id)
        return kept

    def _mark_with_doomed(self, loader: IndexLoader, works: list[WorkRecord]) -> IdSet:
        """As _mark. A restore point that was committed beside an earlier prune which did not see it yet
        (listings may be late) gets its packs back first.
        """
        try:
            return self._mark(loader.refresh(), works)
        except IntegrityError:
            if not self._bring_back(loader):
                raise
            return self._mark(loader.index, works)

    def _bring_back(self, loader: IndexLoader) -> bool:
        came_back = False
        for stored in self._catalogue.points.values():
            for disk in stored.point.disks:
                while missing := self._missing(disk, loader.index):
                    if not bring_back(
                        self._storage, self._keyring, self._algorithm, loader, missing, self._now_s
                    ):
                        break
                    came_back = True
        return came_back

    def _missing(self, disk: DiskPoint, index: Index) -> set[bytes]:
        load_node = BlobReader(self._storage, self._keyring, index).load_node
        return set(missing_blobs(disk, self._block_size_bytes, index, load_node, [], set()))

    def _mark(self, index: Index, works: list[WorkRecord]) -> IdSet:
        live = IdSet()
        load_node = BlobReader(self._storage, self._keyring, index).load_node
        for stored in self._catalogue.points.values():
            for disk in stored.point.disks:
                count = block_count_of(disk.capacity_bytes, self._block_size_bytes)
                try:
                    mark_map(load_node, bytes.fromhex(disk.map_root), count, live)
                except IntegrityError as error:
                    raise IntegrityError(
                        f"not pruning {self._storage.location}: restore point {stored.point.id} of VM "
                        f"{stored.point.vm.name} is damaged ({error}); repair or forget it first"
                    ) from error
        # After the points: a work whose base is gone marks a part only, and fails when it is committed.
        for record in works:
            try:
                mark_work(load_node, record, self._block_size_bytes, live)
            except IntegrityError:
                continue
        return live

    # ---- what stays, moves, goes ---------------------------------------------------------------

    def _plan(self, index_names: list[str], live: IdSet) -> _Plan:
        """Which packs go, decided without writing anything."""
        plan = _Plan()
        written_at_s = {entry.name: entry.modified_at_s for entry in self._storage.list(layout.PACKS)}
        for segment in self._each_pack_once(index_names):
            needed = [e for e in segment.entries if e.blob_id in live and e.blob_id not in plan.placed]
            needed_bytes = sum(entry.length for entry in needed)
            self._named.add(segment.pack_id)
            # Of the blobs, not of the pack: header and footer of a small pack outweigh a small blob, and
            # rewriting that would make the same pack again, in every prune.
            blob_bytes = sum(entry.length for entry in segment.entries)
            # A young pack may be one whose blobs its writer has not put into a work record yet.
            is_young = self._is_young(written_at_s.get(layout.pack_name(segment.pack_id), 0.0))
            if is_young or (needed and needed_bytes >= blob_bytes * REWRITE_BELOW_SHARE):
                for entry in needed:
                    plan.placed.add(entry.blob_id)
                plan.staying_entries += len(segment.entries)
            else:
                plan.go.add(segment.pack_id)
        return plan

    def _execute(self, plan: _Plan, index_names: list[str], live: IdSet) -> None:
        """New packs, new index objects and doomed records; only then the old index objects go."""
        wanted_objects = 1 + plan.staying_entries // ENTRIES_PER_INDEX_OBJECT
        if not plan.go and len(index_names) <= wanted_objects + SPARE_INDEX_OBJECTS:
            return
        stay = _Batch(self._write_index)
        doom = _Batch(self._write_unarmed)
        packs = PackWriter(self._storage, self._keyring, self._algorithm, self._pack_target_bytes)
        try:
            for segment in self._each_pack_once(index_names):
                if segment.pack_id not in plan.go:
                    stay.add(segment)
                    continue
                self._move_live(segment, plan, live, packs, stay)
                doom.add(segment)
            if (last := packs.close()) is not None:
                stay.add(last)
        finally:
            packs.abort()
        stay.flush()
        doom.flush()
        self._await_listed()
        for name in index_names:
            self._storage.delete(name)

    def _move_live(
        self, segment: PackSegment, plan: _Plan, live: IdSet, packs: PackWriter, stay: _Batch
    ) -> None:
        moving = tuple(e for e in segment.entries if e.blob_id in live and e.blob_id not in plan.placed)
        part = PackSegment(segment.pack_id, segment.pack_size, moving)
        for blob in iterate_pack(self._storage, part, READ_WINDOW_BYTES):
            plan.placed.add(blob.entry.blob_id)
            packs.append_stored(blob)
            self._rewritten_bytes += blob.entry.length
            if packs.is_full and (full := packs.close()) is not None:
                stay.add(full)

    def _each_pack_once(self, index_names: list[str]) -> Iterator[PackSegment]:
        seen: set[bytes] = set()
        for name in index_names:
            try:
                segments = read_index_object(self._storage, self._keyring, name)
            except ObjectNotFoundError as error:
                raise IntegrityError(
                    f"{name} vanished: another prune of {self._storage.location} is running; stop one"
                ) from error
            for segment in segments:
                if segment.pack_id not in seen:
                    seen.add(segment.pack_id)
                    yield segment

    def _write_index(self, segments: list[PackSegment]) -> None:
        self._named.update(segment.pack_id for segment in segments)
        self._written.add(write_index_object(self._storage, self._keyring, self._algorithm, segments))

    def _write_unarmed(self, segments: list[PackSegment]) -> None:
        self._written.add(write_doomed(self._storage, self._keyring, self._algorithm, segments, None))

    def _await_listed(self) -> None:
        """Until listings show what this run wrote. Were the old index objects deleted before that, the next
        prune would take packs for orphans that only a new one names.
        """
        waited_s, pause_s = 0.0, FIRST_LISTING_PAUSE_S
        while not self._written <= {
            entry.name
            for prefix in (layout.INDEX, layout.DOOMED)
            for entry in self._storage.list(prefix)
        }:
            if waited_s >= max(self._min_age_s, FIRST_LISTING_PAUSE_S):
                raise StorageUnavailableError(
                    f"{self._storage.location} does not list what was written {waited_s:.0f} s ago; "
                    "nothing was deleted, prune again later"
                )
            self._wait(pause_s)
            waited_s += pause_s
            pause_s = min(pause_s * 2, LONGEST_LISTING_PAUSE_S)

    # ---- deleting ------------------------------------------------------------------------------

    def _arm(self) -> None:
        """Start the clock of doomed packs that the index does not name any more: only now can no new
        writer find them. Packs that it does name (a prune died in between) are not doomed.
        """
        indexed = IndexLoader(self._storage, self._keyring).refresh().pack_sizes()
        for record in read_doomed(self._storage, self._keyring):
            if record.doomed_at_s is not None:
                continue
            gone = [segment for segment in record.segments if segment.pack_id not in indexed]
            if gone:
                self._start_clock(replace(record, segments=tuple(gone)))
            else:
                self._storage.delete(record.name)

    def _start_clock(self, record: DoomedRecord) -> None:
        arm_doomed(
            self._storage,
            self._keyring,
            self._algorithm,
            record.name,
            record.segments,
            self._clock(),
        )

    def _sweep_doomed(self, live: IdSet, works: list[WorkRecord]) -> None:
        """Delete packs that were doomed long enough ago, before every writer that is kept began."""
        oldest_writer_s = min((record.begun_at_s for record in works), default=float("inf"))
        index = IndexLoader(self._storage, self._keyring).refresh()
        indexed = index.pack_sizes()
        records = read_doomed(self._storage, self._keyring)
        last_doomed_s = _last_doomed(records)
        for record in records:
            doomed_at_s = record.doomed_at_s
            needed = [
                s for s in record.segments if s.pack_id not in indexed and _is_needed(s, live, index)
            ]
            if needed:
                self._write_index(needed)
                if doomed_at_s is not None:
                    # Not deleted before every listing shows the index object just written.
                    self._start_clock(record)
                continue
            if doomed_at_s is None or self._is_young(doomed_at_s) or doomed_at_s >= oldest_writer_s:
                continue
            for segment in record.segments:
                # A pack may have come back and been doomed again: what was written meanwhile counts on it.
                was_doomed_again = last_doomed_s[segment.pack_id] > doomed_at_s
                if segment.pack_id not in indexed and not was_doomed_again:
                    self._delete_pack(segment.pack_id, segment.pack_size)
            self._storage.delete(record.name)

    def _sweep_orphans(self, loader: IndexLoader) -> None:
        """Packs that nothing names: their writer died before the index object, or prune did."""
        known = self._named | loader.refresh().pack_sizes().keys()
        for record in read_doomed(self._storage, self._keyring):
            known.update(segment.pack_id for segment in record.segments)
        for entry in list(self._storage.list(layout.PACKS)):
            pack_id = layout.pack_id_of(entry.name)
            if pack_id is not None and pack_id not in known and not self._is_young(entry.modified_at_s):
                self._delete_pack(pack_id, entry.size_bytes)

    def _delete_pack(self, pack_id: bytes, size_bytes: int) -> None:
        self._storage.delete(layout.pack_name(pack_id))
        self._removed_packs += 1
        self._removed_bytes += size_bytes

    def _is_young(self, time_s: float) -> bool:
        return time_s > self._now_s - self._min_age_s


def _last_doomed(records: Iterable[DoomedRecord]) -> dict[bytes, float]:
    """When each pack was doomed for the last time; infinity where that record is not armed."""
    last_doomed_s: dict[bytes, float] = {}
    for record in records:
        doomed_at_s = float("inf") if record.doomed_at_s is None else record.doomed_at_s
        for segment in record.segments:
            last_doomed_s[segment.pack_id] = max(doomed_at_s, last_doomed_s.get(segment.pack_id, 0.0))
    return last_doomed_s


def _is_needed(segment: PackSegment, live: IdSet, index: Index) -> bool:
    return any(entry.blob_id in live and entry.blob_id not in index for entry in segment.entries)
