"""One repair: survey, bring back, take damaged packs out of the index.

In this order, so that dying at any point leaves a repository that is no worse than before:

1. what was lost is fetched and stored in new packs, each with its index object;
2. sound blobs of damaged packs are moved to new packs, with their index objects;
3. a doomed record names the damaged packs (without blobs: nothing must bring them back);
4. for each index object that names one, another without it is stored, then the old one deleted.

A doomed record is armed, and the packs deleted, by the next prune.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from pipeline.errors import CancelledError, IntegrityError, ObjectNotFoundError
from pipeline.model import DiskPoint, RestorePoint
from pipeline.repair.sources import PointSource, Rebuilder
from pipeline.repair.survey import SoundIndex, Survey, Surveyor, each_segment, sound_blobs
from pipeline.repository import layout
from pipeline.repository.blobs import BlobCodec
from pipeline.repository.damage import joined
from pipeline.repository.doomed import write_doomed
from pipeline.repository.entries import PackSegment
from pipeline.repository.epochs import refuse_newer_epochs
from pipeline.repository.format import NODE_ENTRIES_BITS, BlobKind
from pipeline.repository.index import (
    Index,
    IndexLoader,
    read_index_object,
    write_index_object,
)
from pipeline.repository.maps import MapEntry, block_count_of, decode_node, ids_of, level_for
from pipeline.repository.packs import PackWriter
from pipeline.repository.reader import BlobReader
from pipeline.repository.repository import Repository
from pipeline.repository.table import IdSet

COMPRESSION: Final = "balanced"
MAX_EXTENTS: Final = 10_000
"""Lost extents that are named one by one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LostExtent:
    """A guest extent of a restore point that no source could bring back."""

    point_id: str
    vm_name: str
    vm_instance_uuid: str
    disk_key: int
    disk_label: str
    start_bytes: int
    end_bytes: int
    reason: str

    def __str__(self) -> str:
        return (
            f"VM {self.vm_name}, restore point {self.point_id}, {self.disk_label}: guest extent "
            f"{self.start_bytes}-{self.end_bytes} cannot be restored: {self.reason}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RepairReport:
    damage: tuple[str, ...]
    """What was found, one sentence each; empty: the repository was sound."""
    damaged_packs: int
    damaged_blobs: int
    repaired_blobs: int
    """Brought back (with `dry_run`: that could be), compared with their ids."""
    repaired_from: dict[str, int]
    """How many of them from which source."""
    moved_blobs: int
    """Sound ones that were moved out of damaged packs."""
    stored_bytes: int
    lost: tuple[LostExtent, ...]
    problems: tuple[str, ...]
    """What a repair cannot mend: restore points and index objects that cannot be read."""
    read_bytes: int


def repair(
    repository: Repository,
    sources: Sequence[PointSource] = (),
    *,
    dry_run: bool = False,
    cancel: threading.Event | None = None,
    note: Callable[[str], None] = lambda _text: None,
) -> RepairReport:
    """Look at every byte, bring back what is lost, take damaged packs out of the index.

    Nobody may commit or prune meanwhile; writers may write. With `dry_run` nothing is written. `note` is
    told what is being done. Raises CancelledError, NewerEpochError with the keys of an earlier epoch, and
    storage errors; repeating is always right.
    """
    return _Repair(repository, sources, dry_run, cancel or threading.Event(), note).run()


@dataclass(frozen=True, slots=True)
class _Disk:
    """The disk whose map is being walked."""

    point: RestorePoint
    disk: DiskPoint
    block_count: int


class _Repair:
    def __init__(
        self,
        repository: Repository,
        sources: Sequence[PointSource],
        dry_run: bool,
        cancel: threading.Event,
        note: Callable[[str], None],
    ) -> None:
        self._repository = repository
        self._storage = repository.storage
        self._sources = sources
        self._dry_run = dry_run
        self._cancel = cancel
        self._note = note
        self._loader: IndexLoader = repository.index_loader()
        self._codec = BlobCodec(repository.keyring, repository.aead, COMPRESSION)
        self._rebuilder = Rebuilder(repository, cancel)
        self._packs = PackWriter(
            self._storage, repository.keyring, repository.aead, repository.pack_target_bytes
        )
        self._survey = Survey()
        self._index_damage: tuple[str, ...] = ()
        self._damaged_points: tuple[str, ...] = ()
        self._sound: Index = Index()
        self._sound_nodes = IdSet()
        self._brought = IdSet()
        """Blobs that were brought back in this run; their packs may not be closed yet."""
        self._nodes: dict[bytes, bytes] = {}
        self._repaired_from: Counter[str] = Counter()
        self._tried: set[tuple[str, str, MapEntry]] = set()
        self._moved_blobs = 0
        self._stored_bytes = 0
        self._lost: list[LostExtent] = []

    def run(self) -> RepairReport:
        refuse_newer_epochs(self._storage, self._repository.keyring)
        # Trusts nothing that was read before, so points() leaves out what is damaged now.
        self._damaged_points = self._repository.damaged_points()
        index = self._readable_index()
        self._note("reading every pack")
        self._survey = Surveyor(self._storage, self._repository.keyring, index, self._cancel).run()
        self._sound = SoundIndex(index, self._survey).as_index()
        self._reader = BlobReader(self._storage, self._repository.keyring, self._sound)
        try:
            self._note("walking the maps of all restore points")
            for point in self._repository.points():
                for disk in point.disks:
                    self._repair_disk(point, disk)
            self._close_pack()
            if not self._dry_run:
                self._move_sound_blobs()
                self._take_out_of_index()
        finally:
            self._packs.abort()
            for source in self._sources:
                source.close()
        return self._report()

    def _readable_index(self) -> Index:
        """The whole index; when an object of it is damaged, made anew from the packs first. A trial run
        takes what can be read.
        """
        try:
            return self._loader.refresh()
        except IntegrityError as error:
            self._index_damage = (f"{error}; its packs are named anew by their own footers",)
            if not self._dry_run:
                self._repository.rebuild_index()
                self._loader = self._repository.index_loader()
                return self._loader.refresh()
            index = Index()
            for segment in each_segment(self._storage, self._repository.keyring, []):
                index.add(segment)
            return index

    def _report(self) -> RepairReport:
        survey = self._survey
        problems = [*survey.bad_index_objects, *self._damaged_points]
        return RepairReport(
            damage=(*self._index_damage, *survey.bad_packs.values()),
            damaged_packs=len(survey.bad_packs),
            damaged_blobs=len(survey.bad_places),
            repaired_blobs=self._repaired_from.total(),
            repaired_from=dict(self._repaired_from),
            moved_blobs=self._moved_blobs,
            stored_bytes=self._stored_bytes,
            lost=tuple(self._lost[:MAX_EXTENTS]),
            problems=tuple(problems),
            read_bytes=survey.read_bytes,
        )

    # ---- 1: what is lost ---------------------------------------------------------------------------

    def _repair_disk(self, point: RestorePoint, disk: DiskPoint) -> None:
        size = self._repository.block_size_bytes
        where = _Disk(point, disk, block_count_of(disk.capacity_bytes, size))
        lost: list[tuple[int, int, str]] = []
        root = bytes.fromhex(disk.map_root)
        if any(root):
            self._visit(where, MapEntry(level_for(where.block_count), 0, root), lost)
        for first, end, why in joined(lost):
            self._lost.append(
                LostExtent(
                    point_id=point.id,
                    vm_name=point.vm.name,
                    vm_instance_uuid=point.vm.instance_uuid,
                    disk_key=disk.disk_key,
                    disk_label=disk.label,
                    start_bytes=first * size,
                    end_bytes=min(end * size, disk.capacity_bytes),
                    reason=why,
                )
            )

    def _visit(self, where: _Disk, entry: MapEntry, lost: list[tuple[int, int, str]]) -> bool:
        """Bring back this blob and what is below it; True when all of it is there now."""
        if self._cancel.is_set():
            raise CancelledError(
                f"repair of {self._storage.location} was cancelled; what was brought back so far stays"
            )
        if entry.level >= 0 and entry.blob_id in self._sound_nodes:
            return True
        if not self._is_there(entry.blob_id) and not self._bring_back(where, entry):
            covered = 1 << (NODE_ENTRIES_BITS * (entry.level + 1))
            end = min(where.block_count, entry.first_block + covered)
            lost.append((entry.first_block, end, self._why(entry)))
            return False
        if entry.level < 0:
            return True
        is_whole = True
        try:
            entries = decode_node(self._load_node(entry.blob_id), entry.level)
        except IntegrityError as error:
            lost.append((entry.first_block, where.block_count, str(error)))
            return False
        for position, blob_id in ids_of(entries):
            first = entry.first_block + (position << (NODE_ENTRIES_BITS * entry.level))
            is_whole &= self._visit(where, MapEntry(entry.level - 1, first, blob_id), lost)
        self._nodes.pop(entry.blob_id, None)
        if is_whole:
            self._sound_nodes.add(entry.blob_id)
        return is_whole

    def _is_there(self, blob_id: bytes) -> bool:
        return blob_id in self._brought or blob_id in self._sound

    def _load_node(self, node_id: bytes) -> bytes:
        """A node that was brought back is in no index yet; it is kept while its children are visited."""
        known = self._nodes.get(node_id)
        return known if known is not None else self._reader.load_node(node_id)

    def _why(self, entry: MapEntry) -> str:
        what = "block" if entry.level < 0 else "map node"
        tried = ", ".join(source.name for source in self._sources)
        return f"{what} {entry.blob_id.hex()} is lost" + (f", and {tried} has it not" if tried else "")

    def _bring_back(self, where: _Disk, entry: MapEntry) -> bool:
        for source in self._sources:
            for disk in source.disks_like(where.point, where.disk):
                attempt = (source.name, disk.map_root, entry)
                if attempt in self._tried:
                    continue  # for another point of ours that has lost the same
                self._tried.add(attempt)
                reader = source.reader(disk)
                content = (
                    self._rebuilder.block(reader, entry.first_block, entry.blob_id)
                    if entry.level < 0
                    else self._rebuilder.node(reader, entry.level, entry.first_block, entry.blob_id)
                )
                if content is not None:
                    self._store(entry, content)
                    self._repaired_from[source.name] += 1
                    return True
        return False

    def _store(self, entry: MapEntry, content: bytes) -> None:
        self._brought.add(entry.blob_id)
        kind = BlobKind.BLOCK if entry.level < 0 else BlobKind.NODE
        if kind is BlobKind.NODE:
            self._nodes[entry.blob_id] = content
        if self._dry_run:
            return
        blob = self._codec.encode(kind, entry.blob_id, content)
        self._codec.verify(blob, content)
        self._packs.append(blob)
        if self._packs.is_full:
            self._close_pack()

    def _close_pack(self) -> None:
        """Pack first, index object second: the index only names what is durable."""
        segment = self._packs.close()
        if segment is not None:
            write_index_object(
                self._storage, self._repository.keyring, self._repository.aead, [segment]
            )
            self._stored_bytes += segment.pack_size

    # ---- 2 to 4: damaged packs leave -----------------------------------------------------------------

    def _move_sound_blobs(self) -> None:
        for segment in self._bad_segments():
            self._note(f"saving what is sound of {layout.pack_name(segment.pack_id)}")
            for blob in sound_blobs(self._storage, segment, self._survey):
                if self._is_elsewhere(blob.entry.blob_id):
                    continue
                self._brought.add(blob.entry.blob_id)
                self._packs.append_stored(blob)
                self._moved_blobs += 1
                if self._packs.is_full:
                    self._close_pack()
        self._close_pack()

    def _bad_segments(self) -> Iterator[PackSegment]:
        for segment in each_segment(self._storage, self._repository.keyring, []):
            if segment.pack_id in self._survey.bad_packs:
                yield segment

    def _is_elsewhere(self, blob_id: bytes) -> bool:
        """Brought back or moved already, or sound in a pack that stays."""
        return blob_id in self._brought or any(
            place.pack_id not in self._survey.bad_packs for place in self._sound.find_all(blob_id)
        )

    def _take_out_of_index(self) -> None:
        bad = self._survey.bad_packs
        if not bad:
            return
        repository = self._repository
        doomed = [
            PackSegment(segment.pack_id, segment.pack_size, ()) for segment in self._bad_segments()
        ]
        write_doomed(self._storage, repository.keyring, repository.aead, doomed, None)
        for entry in list(self._storage.list(layout.INDEX)):
            try:
                segments = read_index_object(self._storage, repository.keyring, entry.name)
            except (IntegrityError, ObjectNotFoundError):
                continue
            staying = [segment for segment in segments if segment.pack_id not in bad]
            if len(staying) == len(segments):
                continue
            if staying:
                write_index_object(self._storage, repository.keyring, repository.aead, staying)
            self._storage.delete(entry.name)
