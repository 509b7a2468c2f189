"""Looking for damage. Nothing is repaired, nothing is written.

What is found is told in the words of who has to act: VM, disk, restore point, guest extent.
"""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Final

from pipeline.crypto.aead import Aead
from pipeline.crypto.keyring import Keyring
from pipeline.errors import (
    CancelledError,
    IntegrityError,
    ObjectNotFoundError,
    PermanentPipelineError,
)
from pipeline.model import DiskPoint
from pipeline.repository import layout
from pipeline.repository.blobs import BlobCodec, LoadBase
from pipeline.repository.catalogue import Catalogue, chain_problems, describe, is_forgotten
from pipeline.repository.damage import (
    BLOCKS_PER_DAMAGE,
    MAX_DAMAGES,
    Damage,
    DamagedBlob,
    DamagedPack,
    joined,
)
from pipeline.repository.format import (
    MAX_PATCH_DEPTH,
    NODE_ENTRIES_BITS,
    PACK_HEADER,
    PACK_TRAILER,
    BlobKind,
)
from pipeline.repository.index import (
    BlobEntry,
    IndexLoader,
    Location,
    PackSegment,
    read_index_object,
)
from pipeline.repository.maps import MapEntry, block_count_of, decode_node, ids_of, level_for
from pipeline.repository.marks import BlobBits
from pipeline.repository.packs import (
    check_pack_header,
    expected_footer_offset,
    iterate_pack,
    parse_footer,
    parse_trailer,
)
from pipeline.repository.points import StoredPoint
from pipeline.repository.reader import BlobReader
from pipeline.repository.sampling import confidence_of, window_of
from pipeline.storage.base import Buffer, Storage
from transports import system

READ_WINDOW_BYTES: Final = 8 << 20
MAX_EXTENTS_NAMED: Final = 10
MAX_LISTINGS: Final = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckReport:
    problems: tuple[str, ...]
    """Empty: sound, as far as was looked."""
    points: int
    packs: int
    blobs: int
    read_bytes: int
    """Of pack data that was decrypted and compared."""
    damage: tuple[Damage, ...] = ()
    """What restore points have lost, by guest extent."""
    damaged_blobs: tuple[DamagedBlob, ...] = ()
    damaged_packs: tuple[DamagedPack, ...] = ()
    confidence: str = ""
    """What a check of a sample would have found, and how surely; empty when nothing was read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckProgress:
    """How far a check is."""

    phase: str
    """`index`, `data` (bytes of packs) or `maps` (disks)."""
    done: int
    total: int


class _Findings:
    """What the threads of a check find."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.problems: list[str] = []
        self.gone_packs: dict[bytes, str] = {}
        """Missing, truncated, or unreadable as a whole; with what is wrong."""
        self.packs: list[DamagedPack] = []
        self.blobs: list[tuple[PackSegment, BlobEntry, str]] = []
        self.bad_places: set[tuple[bytes, int]] = set()
        self.read_bytes = 0

    def pack(self, pack_id: bytes, reason: str, *, is_gone: bool) -> None:
        with self._lock:
            self.problems.append(reason)
            if is_gone:
                self.gone_packs[pack_id] = reason
            if len(self.packs) < MAX_DAMAGES:
                self.packs.append(DamagedPack(pack_id=pack_id, reason=reason, is_gone=is_gone))

    def blob(self, segment: PackSegment, entry: BlobEntry, reason: str) -> None:
        with self._lock:
            self.bad_places.add((segment.pack_id, entry.offset))
            if len(self.blobs) < MAX_DAMAGES:
                bare = PackSegment(segment.pack_id, segment.pack_size, ())
                self.blobs.append((bare, entry, reason))

    def read(self, count: int) -> None:
        with self._lock:
            self.read_bytes += count

    def is_bad(self, place: Location) -> bool:
        return place.pack_id in self.gone_packs or (place.pack_id, place.offset) in self.bad_places


@dataclass(frozen=True, slots=True)
class _Lost:
    """Blocks of a disk that cannot be restored."""

    first: int
    end: int
    level: int
    blob_id: bytes
    why: str


class Checker:
    """One run. May run beside writers and beside a prune.

    Memory, with a cache of the index: one bit for each blob, some 200 bytes for each pack, and for each
    thread a window of a pack.
    """

    def __init__(
        self,
        *,
        storage: Storage,
        keyring: Keyring,
        catalogue: Catalogue,
        block_size_bytes: int,
        read_data: bool,
        sample_share: float,
        cancel: threading.Event | None,
        sample_start: float | None = None,
        make_loader: Callable[[Collection[str]], IndexLoader] | None = None,
        progress: Callable[[CheckProgress], None] | None = None,
        workers: int = 0,
    ) -> None:
        """`make_loader` gives a view of the index without the damaged objects that it is told. `workers`
        0: one for each core of this process.
        """
        self._storage = storage
        self._keyring = keyring
        self._catalogue = catalogue
        self._block_size_bytes = block_size_bytes
        self._read_data = read_data
        self._sample_share = sample_share
        self._sample_start = sample_start
        self._cancel = cancel
        self._make_loader = make_loader or self._loader_in_memory
        self._progress = progress or (lambda _progress: None)
        self._workers = workers or system.usable_cpus()
        self._codecs = threading.local()
        self._found = _Findings()
        self._confidence = ""
        self._damage: list[Damage] = []

    def run(self) -> CheckReport:
        """Raises CancelledError, and storage errors; damage is in the report."""
        damaged_objects = self._look_at_index_objects()
        self._found.problems.extend(damaged_objects.values())
        self._loader = self._make_loader(tuple(damaged_objects))
        self._index = self._loader.refresh()
        self._reader = BlobReader(self._storage, self._keyring, self._index, self._loader.refresh)
        self._sound = BlobBits(self._index)
        known = self._index.pack_sizes()
        # The packs are listed after the index was read: a pack is there before its index object.
        whole = self._whole_packs(known)
        if self._read_data:
            chosen = self._sampled(whole)
            self._confidence = confidence_of(len(chosen), len(known))
            self._read_packs(set(chosen), sum(known[pack_id] for pack_id in chosen), damaged_objects)
        damaged_blobs = tuple(self._damaged_blobs())
        self._found.problems.extend(self._catalogue.damaged.values())
        self._found.problems.extend(chain_problems(self._catalogue))
        self._check_maps()
        return CheckReport(
            problems=tuple(self._found.problems),
            points=len(self._catalogue.points),
            packs=len(known),
            blobs=len(self._index),
            read_bytes=self._found.read_bytes,
            damage=tuple(self._damage),
            damaged_blobs=damaged_blobs,
            damaged_packs=tuple(self._found.packs),
            confidence=self._confidence,
        )

    def _loader_in_memory(self, skipped: Collection[str]) -> IndexLoader:
        loader = IndexLoader(self._storage, self._keyring)
        loader.skip(skipped)
        return loader

    # ---- index ---------------------------------------------------------------------------------

    def _look_at_index_objects(self) -> dict[str, str]:
        """Read each, also those that a cache knows; what is wrong, by name."""
        damaged: dict[str, str] = {}
        for _ in self._index_objects(damaged):
            self._stop_if_cancelled()
        return damaged

    def _index_objects(self, damaged: dict[str, str]) -> Iterator[list[PackSegment]]:
        """What each index object says; `damaged` takes up those that cannot be read, and those in it are
        left out. Objects that a prune replaces meanwhile are met as what they were replaced by.
        """
        seen: set[str] = set()
        for _ in range(MAX_LISTINGS):
            is_whole = True
            names = [entry.name for entry in self._storage.list(layout.INDEX)]
            for name in names:
                if name in seen or name in damaged:
                    continue
                try:
                    segments = read_index_object(self._storage, self._keyring, name)
                except ObjectNotFoundError:
                    is_whole = False
                    continue
                except IntegrityError as error:
                    damaged[name] = str(error)
                    continue
                seen.add(name)
                self._progress(CheckProgress(phase="index", done=len(seen), total=len(names)))
                yield segments
            if is_whole:
                return

    # ---- packs ---------------------------------------------------------------------------------

    def _whole_packs(self, known: dict[bytes, int]) -> list[bytes]:
        """Packs that are there with the size that the index tells. What is not listed is asked for: it may be
        listed late, or in an extent that is in maintenance, of which nothing can be told (ExtentOfflineError).
        """
        missing = set(known)
        whole = []
        for entry in self._storage.list(layout.PACKS):
            pack_id = layout.pack_id_of(entry.name)
            if pack_id is None or pack_id not in missing:
                continue
            missing.discard(pack_id)
            if self._has_size(pack_id, known[pack_id], entry.size_bytes):
                whole.append(pack_id)
        if missing:
            self._look_again()
        for pack_id in sorted(missing):
            self._stop_if_cancelled()
            name = layout.pack_name(pack_id)
            try:
                size_bytes = self._storage.size_bytes(name)
            except ObjectNotFoundError:
                if self._index.pack_size_of(pack_id) is not None:
                    self._found.pack(pack_id, f"{name} is missing", is_gone=True)
                continue
            if self._has_size(pack_id, known[pack_id], size_bytes):
                whole.append(pack_id)
        return whole

    def _has_size(self, pack_id: bytes, wanted_bytes: int, size_bytes: int) -> bool:
        if size_bytes != wanted_bytes:
            wrong = f"has {size_bytes} bytes instead of {wanted_bytes}"
            self._found.pack(pack_id, f"{layout.pack_name(pack_id)} {wrong}", is_gone=True)
        return size_bytes == wanted_bytes

    def _sampled(self, pack_ids: list[bytes]) -> list[bytes]:
        if self._sample_share >= 1:
            return pack_ids
        if self._sample_start is not None:
            return window_of(pack_ids, self._sample_start, self._sample_share)
        count = min(len(pack_ids), max(1, round(len(pack_ids) * self._sample_share)))
        return random.SystemRandom().sample(pack_ids, count)

    def _read_packs(self, chosen: set[bytes], total_bytes: int, damaged: dict[str, str]) -> None:
        """All bytes of these packs, by several threads, so many packs at a time."""
        done_bytes = 0
        for size in self._checked_packs(self._chosen_segments(chosen, damaged)):
            self._stop_if_cancelled()
            done_bytes += size
            self._progress(CheckProgress(phase="data", done=done_bytes, total=total_bytes))

    def _chosen_segments(self, chosen: set[bytes], damaged: dict[str, str]) -> Iterator[PackSegment]:
        """Each chosen pack once. Read again rather than kept: the entries of a large repository fill the
        memory.
        """
        for segments in self._index_objects(dict(damaged)):
            for segment in segments:
                if segment.pack_id in chosen:
                    chosen.discard(segment.pack_id)
                    yield segment

    def _checked_packs(self, segments: Iterator[PackSegment]) -> Iterator[int]:
        """Bytes of packs as they are checked."""
        if self._workers == 1:
            for segment in segments:
                self._check_pack(segment)
                yield segment.pack_size
            return
        underway: dict[Future[None], int] = {}
        with ThreadPoolExecutor(self._workers, "check") as pool:
            try:
                for segment in segments:
                    while len(underway) >= 2 * self._workers:
                        yield self._reap(underway)
                    underway[pool.submit(self._check_pack, segment)] = segment.pack_size
                while underway:
                    yield self._reap(underway)
            finally:
                for future in underway:
                    future.cancel()

    def _reap(self, underway: dict[Future[None], int]) -> int:
        """Wait for some; raises what they raised."""
        done, _ = wait(underway, return_when=FIRST_COMPLETED)
        size = 0
        for future in done:
            size += underway.pop(future)
            future.result()
        return size

    def _check_pack(self, segment: PackSegment) -> None:
        """Every byte of a pack: header, blobs, footer, trailer."""
        name = layout.pack_name(segment.pack_id)
        try:
            header = self._storage.read_range(name, 0, PACK_HEADER.size)
            check_pack_header(self._keyring, segment.pack_id, header)
            trailer = self._storage.read_range(
                name, segment.pack_size - PACK_TRAILER.size, PACK_TRAILER.size
            )
            offset, length = parse_trailer(trailer, segment.pack_id, segment.pack_size)
            footer = self._storage.read_range(name, offset, length)
            said = parse_footer(self._keyring, segment.pack_id, segment.pack_size, footer)
            # A repair may have taken damaged places out of the index.
            if not set(segment.entries) <= set(said.entries) or expected_footer_offset(said) != offset:
                raise IntegrityError(f"{name}: index and footer of the pack differ")
        except (IntegrityError, PermanentPipelineError) as error:
            if isinstance(error, ObjectNotFoundError) and self._is_pruned(segment.pack_id):
                return
            # The blobs may still be sound; they are looked at one by one.
            self._found.pack(segment.pack_id, str(error), is_gone=False)
        self._check_blobs(segment)

    def _check_blobs(self, segment: PackSegment) -> None:
        try:
            for blob in iterate_pack(self._storage, segment, READ_WINDOW_BYTES):
                self._stop_if_cancelled()
                self._found.read(blob.entry.length)
                self._check_blob(segment, blob.entry, blob.stored)
        except (IntegrityError, ObjectNotFoundError) as error:
            if isinstance(error, ObjectNotFoundError) and self._is_pruned(segment.pack_id):
                return
            self._found.pack(segment.pack_id, str(error), is_gone=True)

    def _is_pruned(self, pack_id: bytes) -> bool:
        """Whether prune took a pack away while this run went on: no index object names it any more."""
        self._look_again()
        return self._index.pack_size_of(pack_id) is None

    def _look_again(self) -> None:
        with contextlib.suppress(IntegrityError):  # of what is new; the next check tells
            self._loader.refresh()

    def _check_blob(self, segment: PackSegment, entry: BlobEntry, stored: Buffer) -> None:
        codec = self._codec()
        try:
            content = codec.decode(BlobKind(entry.kind), entry.blob_id, stored, self._base_of(entry))
            if len(content) != entry.raw_length:
                raise IntegrityError(
                    f"blob {entry.blob_id.hex()} has another length than the index says"
                )
        except (IntegrityError, ValueError) as error:
            if entry.base_id and entry.base_id not in self._index:
                # Prune took the base away while this was written, and nothing needs it yet: a commit or the
                # next prune brings the base back. Where a restore point needs it, its map tells the loss.
                return
            self._found.blob(segment, entry, str(error))

    def _codec(self) -> BlobCodec:
        codec: BlobCodec | None = getattr(self._codecs, "codec", None)
        if codec is None:
            codec = self._codecs.codec = BlobCodec(self._keyring, Aead.XCHACHA20_POLY1305)
        return codec

    def _base_of(self, entry: BlobEntry) -> LoadBase:
        def load_base(base_id: bytes) -> Buffer:
            if base_id != entry.base_id:
                raise IntegrityError(
                    f"blob {entry.blob_id.hex()} is a patch of another block than the index says"
                )
            return self._reader.load_base(base_id)

        return load_base

    def _damaged_blobs(self) -> Iterator[DamagedBlob]:
        """Now that all is read: which of them have another place."""
        for segment, entry, reason in self._found.blobs:
            name = layout.pack_name(segment.pack_id)
            is_elsewhere = not self._wrong_with(entry.blob_id)
            mended = (
                "; another place holds it, so nothing is lost: run a repair" if is_elsewhere else ""
            )
            self._found.problems.append(f"{name}: {reason}{mended}")
            yield DamagedBlob(
                pack_id=segment.pack_id,
                blob_id=entry.blob_id,
                offset=entry.offset,
                length=entry.length,
                kind=entry.kind,
                reason=reason,
                is_elsewhere=is_elsewhere,
            )

    # ---- disk maps -----------------------------------------------------------------------------

    def _check_maps(self) -> None:
        points = self._catalogue.points.values()
        total = sum(len(stored.point.disks) for stored in points)
        done = 0
        for stored in points:
            for disk in stored.point.disks:
                self._stop_if_cancelled()
                self._progress(CheckProgress(phase="maps", done=done, total=total))
                self._check_disk(stored, disk)
                done += 1

    def _check_disk(self, stored: StoredPoint, disk: DiskPoint) -> None:
        """Walks the whole map; what is missing below a damaged node is one extent."""
        label = f"{describe(stored)}, {disk.label}"
        count = block_count_of(disk.capacity_bytes, self._block_size_bytes)
        root = bytes.fromhex(disk.map_root)
        lost: list[_Lost] = []
        if any(root):
            self._check_entry(MapEntry(level_for(count), 0, root), count, lost)
        if lost and self._is_forgotten(stored.point.id):
            return
        runs = joined([(each.first, each.end, each.why) for each in lost])
        for number, (first, end, why) in enumerate(runs):
            if number == MAX_EXTENTS_NAMED:
                self._found.problems.append(f"{label}: and more extents")
                break
            start_byte = first * self._block_size_bytes
            end_byte = min(end * self._block_size_bytes, disk.capacity_bytes)
            self._found.problems.append(
                f"{label}: guest extent {start_byte}-{end_byte} cannot be restored: {why}"
            )
        for group in _grouped(lost):
            if len(self._damage) < MAX_DAMAGES:
                self._damage.append(self._damage_of(stored, disk, group))

    def _is_forgotten(self, point_id: str) -> bool:
        """Whether a point went while this run went on; prune may have taken what it needed."""
        try:
            self._storage.size_bytes(layout.point_name(point_id))
        except ObjectNotFoundError:
            return True
        return is_forgotten(self._storage, self._keyring, point_id)

    def _damage_of(self, stored: StoredPoint, disk: DiskPoint, group: list[_Lost]) -> Damage:
        return Damage(
            point_id=stored.point.id,
            vm_name=stored.point.vm.name,
            vm_instance_uuid=stored.point.vm.instance_uuid,
            disk_key=disk.disk_key,
            disk_label=disk.label,
            start_bytes=group[0].first * self._block_size_bytes,
            end_bytes=min(group[-1].end * self._block_size_bytes, disk.capacity_bytes),
            level=group[0].level,
            blob_ids=tuple(each.blob_id for each in group),
            reason=group[0].why,
        )

    def _check_entry(self, entry: MapEntry, count: int, lost: list[_Lost]) -> bool:
        """Adds what cannot be restored to `lost`; True when there is nothing. Subtrees that were found
        sound once, in another point, are not walked again.
        """
        if entry.level >= 0 and entry.blob_id in self._sound:
            return True
        wrong = self._wrong_with(entry.blob_id)
        entries = b""
        if not wrong and entry.level >= 0:
            try:
                entries = decode_node(self._reader.load_node(entry.blob_id), entry.level)
            except IntegrityError as error:
                wrong = str(error)
        if wrong:
            covered = 1 << (NODE_ENTRIES_BITS * (entry.level + 1))
            end = min(count, entry.first_block + covered)
            lost.append(_Lost(entry.first_block, end, entry.level, entry.blob_id, wrong))
            return False
        is_sound = True
        for position, blob_id in ids_of(entries):
            first = entry.first_block + (position << (NODE_ENTRIES_BITS * entry.level))
            if first >= count:
                beyond = "its map reaches beyond the disk"
                lost.append(_Lost(entry.first_block, count, entry.level, entry.blob_id, beyond))
                return False
            is_sound &= self._check_entry(MapEntry(entry.level - 1, first, blob_id), count, lost)
        if is_sound and entry.level >= 0:
            self._sound.add(entry.blob_id)
        return is_sound

    def _wrong_with(self, blob_id: bytes, depth: int = 0) -> str:
        """Empty when one of its places is sound, as far as was looked."""
        places = self._index.find_all(blob_id)
        for place in places:
            if not self._found.is_bad(place) and not self._wrong_with_base(place, depth):
                return ""
        if not places:
            return f"blob {blob_id.hex()} is not in the index"
        first = places[0]
        if first.pack_id in self._found.gone_packs:
            return f"blob {blob_id.hex()} is in {layout.pack_name(first.pack_id)}, which is not whole"
        if self._found.is_bad(first):
            return f"blob {blob_id.hex()} is damaged"
        return f"blob {blob_id.hex()} is a patch, and {self._wrong_with_base(first, depth)}"

    def _wrong_with_base(self, place: Location, depth: int) -> str:
        if not place.base_id:
            return ""
        if depth >= MAX_PATCH_DEPTH:
            return f"more than {MAX_PATCH_DEPTH} patches build on one another"
        return self._wrong_with(place.base_id, depth + 1)

    def _stop_if_cancelled(self) -> None:
        if self._cancel is not None and self._cancel.is_set():
            raise CancelledError(f"check of {self._storage.location} was cancelled")


def _grouped(lost: list[_Lost]) -> Iterator[list[_Lost]]:
    """Lost blocks that follow each other together, so many at most; lost nodes each by itself."""
    group: list[_Lost] = []
    for each in lost:
        follows = (
            bool(group)
            and each.level < 0
            and group[-1].level < 0
            and group[-1].end == each.first
            and len(group) < BLOCKS_PER_DAMAGE
        )
        if group and not follows:
            yield group
            group = []
        group.append(each)
    if group:
        yield group
