"""Freeing what no restore point needs. Mark, then sweep in two steps; section 11 of the format has the
order, and why.

Memory, with a cache of the index: one bit for each blob, some 100 bytes for each pack, and the index object
that is being looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field, replace
from typing import Final

from pipeline.crypto.aead import Aead
from pipeline.crypto.keyring import FIRST_EPOCH, Keyring
from pipeline.errors import (
    IntegrityError,
    NewerEpochError,
    ObjectNotFoundError,
    ObjectRetainedError,
    StorageUnavailableError,
)
from pipeline.model import DiskPoint
from pipeline.repository import layout
from pipeline.repository.catalogue import Catalogue
from pipeline.repository.doomed import (
    DoomedRecord,
    arm_doomed,
    bring_back,
    is_whole,
    read_doomed,
    write_doomed,
)
from pipeline.repository.epochs import epoch_numbers
from pipeline.repository.format import Encoding
from pipeline.repository.index import (
    BlobEntry,
    Index,
    IndexLoader,
    Location,
    PackSegment,
    read_index_object,
    write_index_object,
)
from pipeline.repository.index_run import CacheDamagedError
from pipeline.repository.maps import block_count_of
from pipeline.repository.marks import Needed
from pipeline.repository.packs import PackWriter, iterate_pack
from pipeline.repository.prune_watch import PruneWatch
from pipeline.repository.reach import mark_map, mark_work, missing_blobs
from pipeline.repository.reader import BlobReader
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
    retained_packs: int = 0
    """Useless, or of little use, and kept by the storage: immutable until a time that is still to come."""


@dataclass(slots=True)
class _Plan:
    there: set[bytes] = field(default_factory=set)
    """Packs that the storage has."""
    young: set[bytes] = field(default_factory=set)
    """Packs whose writer may not have put their blobs into a work record yet: left alone."""
    go: set[bytes] = field(default_factory=set)
    """Packs to doom."""
    small_objects: int = 0
    """Index objects that are less than half full."""

    def chosen(self, places: list[Location]) -> Location:
        """Of several places of a blob the one that counts: there, whole, not in the way of a writer."""
        if len(places) == 1:
            return places[0]
        return min(
            places,
            key=lambda p: (
                p.pack_id not in self.there,
                p.is_patch,
                p.pack_id not in self.young,
                p.pack_id,
                p.offset,
            ),
        )

    def counts_here(self, entry: BlobEntry, pack_id: bytes, places: list[Location]) -> bool:
        """Whether this place of a blob is the one that counts."""
        if not places:
            return True  # the index lost it since: stay on the safe side
        place = self.chosen(places)
        return (place.pack_id, place.offset) == (pack_id, entry.offset)

    def is_moving(self, entry: BlobEntry, pack_id: bytes, places: list[Location]) -> bool:
        """Whether a needed blob of a pack that goes must be stored again from this place of it."""
        if not self.counts_here(entry, pack_id, places):
            return False
        if not places:
            return True
        place = self.chosen(places)
        return not any(
            other.pack_id in self.there
            and other.pack_id not in self.go
            and other.is_patch == place.is_patch
            for other in places
        )


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
        loader: IndexLoader,
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
        self._loader = loader
        self._wait = wait
        self._watch = PruneWatch(storage, catalogue, clock)
        self._written: set[str] = set()
        """Index objects and doomed records of this run."""
        self._named: set[bytes] = set()
        """Packs that the index named when this run began, or that this run put into it. A listing need not
        show yet what was written a moment ago."""
        self._made: dict[bytes, PackSegment] = {}
        """Packs that this run wrote."""
        self._retained: set[bytes] = set()
        self._removed_packs = 0
        self._removed_bytes = 0
        self._rewritten_bytes = 0

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
        try:
            index_names = [entry.name for entry in self._storage.list(layout.INDEX)]
            needed = self._mark_with_doomed(works)
            self._execute(self._plan(index_names, needed), index_names, needed)
            self._arm()
            self._sweep_doomed(needed, works)
            # A needed blob that no listed index object names: one is missing, or is not listed yet. Then
            # what looks like an orphan may be the pack that it names.
            if not needed.unknown:
                self._sweep_orphans()
        except CacheDamagedError:
            self._loader.discard_cache()
            raise
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
            retained_packs=len(self._retained),
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
            except IntegrityError as error:
                if isinstance(error, NewerEpochError) and self._has_newer_epoch():
                    raise  # of a writer with a later data key than ours: what it needs is unknown
                record = None  # a damaged record helps nobody: the attempt begins anew
            if record is not None and (
                work_id in self._keep_work_ids or self._is_young(record.begun_at_s)
            ):
                kept.append(record)
            elif work_id not in self._keep_work_ids:
                delete_work(self._storage, work_id)
        return kept

    def _mark_with_doomed(self, works: list[WorkRecord]) -> Needed:
        """As _mark. A restore point that was committed beside an earlier prune which did not see it yet
        (listings may be late) gets its packs back first.
        """
        try:
            return self._mark(self._loader.refresh(), works)
        except IntegrityError:
            if not self._bring_back():
                raise
            return self._mark(self._loader.index, works)

    def _bring_back(self) -> bool:
        came_back = False
        for stored in self._catalogue.points.values():
            for disk in stored.point.disks:
                while missing := self._missing(disk, self._loader.index):
                    if not bring_back(
                        self._storage,
                        self._keyring,
                        self._algorithm,
                        self._loader,
                        missing,
                        self._now_s,
                    ):
                        break
                    came_back = True
        return came_back

    def _missing(self, disk: DiskPoint, index: Index) -> set[bytes]:
        load_node = BlobReader(self._storage, self._keyring, index).load_node
        return set(missing_blobs(disk, self._block_size_bytes, index, load_node, [], set()))

    def _has_newer_epoch(self) -> bool:
        return max(epoch_numbers(self._storage), default=FIRST_EPOCH) > self._keyring.epoch

    def _mark(self, index: Index, works: list[WorkRecord]) -> Needed:
        live = Needed(index)
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

    def _plan(self, index_names: list[str], live: Needed) -> _Plan:
        """Which packs go, decided without writing anything."""
        plan = _Plan()
        for entry in self._storage.list(layout.PACKS):
            pack_id = layout.pack_id_of(entry.name)
            if pack_id is not None:
                plan.there.add(pack_id)
                if self._is_young(entry.modified_at_s):
                    plan.young.add(pack_id)
        for name in index_names:
            segments = self._read_index(name)
            entries = sum(len(segment.entries) for segment in segments)
            plan.small_objects += entries < ENTRIES_PER_INDEX_OBJECT // 2
            for segment in segments:
                if segment.pack_id not in self._named:
                    self._named.add(segment.pack_id)
                    if self._may_go(segment, plan, live) and not self._is_retained(segment.pack_id):
                        plan.go.add(segment.pack_id)
                    else:
                        _keep_bases(segment, live)
        return plan

    def _may_go(self, segment: PackSegment, plan: _Plan, live: Needed) -> bool:
        if segment.pack_id in plan.young:
            return False
        index = self._loader.index
        needed_bytes = blob_bytes = 0
        # Of the blobs, not of the pack: header and footer of a small pack outweigh a small blob, and
        # rewriting that would make the same pack again, in every prune.
        for entry in segment.entries:
            blob_bytes += entry.length
            if entry.blob_id in live and plan.counts_here(
                entry, segment.pack_id, index.find_all(entry.blob_id)
            ):
                needed_bytes += entry.length
        if needed_bytes and segment.pack_id not in plan.there:
            return False  # nothing could be moved; a check tells of it
        return not needed_bytes or needed_bytes < blob_bytes * REWRITE_BELOW_SHARE

    def _is_retained(self, pack_id: bytes) -> bool:
        """The storage keeps it: taking it out of the index would win nothing."""
        retention = self._storage.retention
        if retention is None:
            return False
        try:
            until_s = retention.kept_until_s(layout.pack_name(pack_id))
        except ObjectNotFoundError:
            return False
        if until_s > self._now_s:
            self._retained.add(pack_id)
        return until_s > self._now_s

    def _execute(self, plan: _Plan, index_names: list[str], live: Needed) -> None:
        """New packs, new index objects and doomed records; only then the old index objects go. Before either it looks
        whether what it found is so still.
        """
        is_merging = plan.small_objects > SPARE_INDEX_OBJECTS
        if not plan.go and not is_merging:
            return
        replaced: list[str] = []
        stay = _Batch(lambda segments: self._write_stay(segments, replaced))
        doom = _Batch(self._write_unarmed)
        packs = PackWriter(self._storage, self._keyring, self._algorithm, self._pack_target_bytes)
        seen: set[bytes] = set()
        try:
            for name in index_names:
                segments = self._read_index(name)
                entries = sum(len(segment.entries) for segment in segments)
                is_small = is_merging and entries < ENTRIES_PER_INDEX_OBJECT // 2
                if not is_small and plan.go.isdisjoint(s.pack_id for s in segments):
                    continue  # nobody has to read again what stays as it is
                replaced.append(name)
                for segment in segments:
                    if segment.pack_id not in plan.go:
                        stay.add(segment)
                    elif segment.pack_id not in seen:
                        seen.add(segment.pack_id)
                        self._move_live(segment, plan, live, packs, stay)
                        doom.add(segment)
            if (last := packs.close()) is not None:
                self._add_made(last, stay)
        finally:
            packs.abort()
        stay.flush()
        doom.flush()
        self._await_listed(replaced)
        # Now that the index names them nobody takes them for orphans any more.
        self._watch.refuse_lost(self._made.values())
        self._watch.refuse_gone(replaced, self._written)
        self._watch.refuse_new_points()
        for name in replaced:
            self._watch.refuse_new_points_again()
            self._storage.delete(name)

    def _add_made(self, segment: PackSegment, stay: _Batch) -> None:
        self._made[segment.pack_id] = segment
        stay.add(segment)

    def _write_stay(self, segments: list[PackSegment], replaced: Collection[str]) -> None:
        """`replaced`: the index objects that were read for it."""
        self._watch.refuse_new_points()
        self._watch.refuse_gone(replaced)
        self._watch.refuse_lost(s for s in segments if s.pack_id in self._made)
        self._write_index(segments)

    def _move_live(
        self, segment: PackSegment, plan: _Plan, live: Needed, packs: PackWriter, stay: _Batch
    ) -> None:
        index = self._loader.index
        moving = tuple(
            entry
            for entry in segment.entries
            if entry.blob_id in live
            and plan.is_moving(entry, segment.pack_id, index.find_all(entry.blob_id))
        )
        part = PackSegment(segment.pack_id, segment.pack_size, moving)
        for blob in iterate_pack(self._storage, part, READ_WINDOW_BYTES):
            packs.append_stored(blob)
            self._rewritten_bytes += blob.entry.length
            if packs.is_full and (full := packs.close()) is not None:
                self._add_made(full, stay)

    def _read_index(self, name: str) -> list[PackSegment]:
        try:
            return read_index_object(self._storage, self._keyring, name)
        except ObjectNotFoundError as error:
            raise IntegrityError(
                f"{name} vanished: another prune of {self._storage.location} is running; stop one"
            ) from error

    def _write_index(self, segments: list[PackSegment]) -> None:
        self._named.update(segment.pack_id for segment in segments)
        self._written.add(write_index_object(self._storage, self._keyring, self._algorithm, segments))

    def _write_unarmed(self, segments: list[PackSegment]) -> None:
        self._written.add(write_doomed(self._storage, self._keyring, self._algorithm, segments, None))

    def _await_listed(self, replaced: Collection[str]) -> None:
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
            self._watch.refuse_gone(replaced)  # or another prune took what is waited for
            self._wait(pause_s)
            waited_s += pause_s
            pause_s = min(pause_s * 2, LONGEST_LISTING_PAUSE_S)

    # ---- deleting ------------------------------------------------------------------------------

    def _arm(self) -> None:
        """Start the clock of doomed packs that the index does not name any more: only now can no new
        writer find them. Packs that it does name (a prune died in between) are not doomed.

        A young record with a pack that the index names waits for a later prune: a listing that is late may
        still show the old index object, and a pack that left its record would be taken for an orphan.
        """
        index = self._loader.refresh()
        for record in read_doomed(self._storage, self._keyring):
            if record.doomed_at_s is not None:
                continue
            gone = [s for s in record.segments if index.pack_size_of(s.pack_id) is None]
            if len(gone) < len(record.segments) and self._is_young(record.stored_at_s):
                continue
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

    def _sweep_doomed(self, live: Needed, works: list[WorkRecord]) -> None:
        """Delete packs that were doomed long enough ago, before every writer that is kept began. The clocks of
        writers may be ahead, and the index that they read late, by less than the age given.
        """
        oldest_writer_s = min((record.begun_at_s for record in works), default=float("inf"))
        oldest_writer_s -= self._min_age_s
        index = self._loader.refresh()
        last_doomed_s = _last_doomed(read_doomed(self._storage, self._keyring))
        for record in read_doomed(self._storage, self._keyring):
            doomed_at_s = record.doomed_at_s
            out = [s for s in record.segments if index.pack_size_of(s.pack_id) is None]
            needed = [s for s in out if _is_needed(s, live, index) and is_whole(self._storage, s)]
            if needed:
                self._write_index(needed)
                if doomed_at_s is not None:
                    # Not deleted before every listing shows the index object just written.
                    self._start_clock(record)
                continue
            if doomed_at_s is None or self._is_young(doomed_at_s) or doomed_at_s >= oldest_writer_s:
                continue
            # A pack may have come back and been doomed again: what was written meanwhile counts on it.
            left = [
                segment
                for segment in out
                if last_doomed_s[segment.pack_id] <= doomed_at_s
                and not self._delete_pack(segment.pack_id, segment.pack_size)
            ]
            if left:
                arm_doomed(
                    self._storage, self._keyring, self._algorithm, record.name, left, doomed_at_s
                )
            else:
                self._storage.delete(record.name)

    def _sweep_orphans(self) -> None:
        """Packs that nothing names: their writer died before the index object, or prune did."""
        index = self._loader.refresh()
        doomed = {
            segment.pack_id
            for record in read_doomed(self._storage, self._keyring)
            for segment in record.segments
        }
        orphans = []
        for entry in self._storage.list(layout.PACKS):
            pack_id = layout.pack_id_of(entry.name)
            if (
                pack_id is not None
                and not self._is_young(entry.modified_at_s)
                and pack_id not in self._named
                and pack_id not in doomed
                and index.pack_size_of(pack_id) is None
            ):
                orphans.append((pack_id, entry.size_bytes))
        for pack_id, size_bytes in orphans:
            self._delete_pack(pack_id, size_bytes)

    def _delete_pack(self, pack_id: bytes, size_bytes: int) -> bool:
        """False when the storage keeps it."""
        try:
            self._storage.delete(layout.pack_name(pack_id))
        except ObjectRetainedError:
            self._retained.add(pack_id)
            return False
        self._removed_packs += 1
        self._removed_bytes += size_bytes
        return True

    def _is_young(self, time_s: float) -> bool:
        return time_s > self._now_s - self._min_age_s


def _keep_bases(segment: PackSegment, live: Needed) -> None:
    """What patches of a pack that stays build on is needed, also where the patch is not: a writer may find
    the patch in the index at any moment and count on it.
    """
    for entry in segment.entries:
        if entry.encoding == Encoding.PATCH:
            live.add(entry.base_id)


def _last_doomed(records: Iterable[DoomedRecord]) -> dict[bytes, float]:
    """When each pack was doomed for the last time; infinity where that record is not armed."""
    last_doomed_s: dict[bytes, float] = {}
    for record in records:
        doomed_at_s = float("inf") if record.doomed_at_s is None else record.doomed_at_s
        for segment in record.segments:
            last_doomed_s[segment.pack_id] = max(doomed_at_s, last_doomed_s.get(segment.pack_id, 0.0))
    return last_doomed_s


def _is_needed(segment: PackSegment, live: Needed, index: Index) -> bool:
    return any(entry.blob_id in live and entry.blob_id not in index for entry in segment.entries)
