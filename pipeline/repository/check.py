"""Looking for damage. Nothing is repaired, nothing is written.

What is found is told in the words of who has to act: VM, disk, restore point, guest extent.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
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
from pipeline.repository.catalogue import Catalogue, chain_problems, describe
from pipeline.repository.damage import Damage, DamagedBlob, DamagedPack
from pipeline.repository.format import NODE_ENTRIES_BITS, PACK_HEADER, PACK_TRAILER, BlobKind
from pipeline.repository.index import BlobEntry, Index, PackSegment, read_index_object
from pipeline.repository.maps import MapEntry, block_count_of, decode_node, ids_of, level_for
from pipeline.repository.packs import (
    check_pack_header,
    expected_footer_offset,
    iterate_pack,
    parse_footer,
    parse_trailer,
)
from pipeline.repository.reader import BlobReader
from pipeline.repository.table import IdSet
from pipeline.storage.base import Buffer, Storage

READ_WINDOW_BYTES: Final = 8 << 20
MAX_EXTENTS_NAMED: Final = 10


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


@dataclass(slots=True)
class _Findings:
    problems: list[str] = field(default_factory=list)
    bad_packs: set[bytes] = field(default_factory=set)
    """Missing, truncated, or unreadable as a whole."""
    bad_blobs: IdSet = field(default_factory=IdSet)
    blobs: int = 0
    read_bytes: int = 0


class Checker:
    """One run. May run beside writers; beside a prune it may name packs that prune just removed."""

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
    ) -> None:
        self._storage = storage
        self._keyring = keyring
        self._catalogue = catalogue
        self._block_size_bytes = block_size_bytes
        self._read_data = read_data
        self._sample_share = sample_share
        self._cancel = cancel
        self._index = Index()
        self._found = _Findings()
        self._reader = BlobReader(storage, keyring, self._index)
        self._sound = IdSet()

    def run(self) -> CheckReport:
        """Raises CancelledError, and storage errors; damage is in the report."""
        known: dict[bytes, int] = {}
        for segment in self._segments(self._found.problems):
            known[segment.pack_id] = segment.pack_size
            self._index.add(segment)
            self._found.blobs += len(segment.entries)
        # The packs are listed after the index was read: a pack is there before its index object.
        sizes = {entry.name: entry.size_bytes for entry in self._storage.list(layout.PACKS)}
        whole = [pack_id for pack_id, size in known.items() if self._is_whole(pack_id, size, sizes)]
        if self._read_data:
            chosen = set(self._sampled(whole))
            # Read again rather than kept: the entries of a large repository fill the memory.
            for segment in self._segments([]):
                if segment.pack_id in chosen:
                    self._check_pack(segment)
        self._found.problems.extend(self._catalogue.damaged.values())
        self._found.problems.extend(chain_problems(self._catalogue))
        for stored in self._catalogue.points.values():
            for disk in stored.point.disks:
                self._stop_if_cancelled()
                self._check_disk(f"{describe(stored)}, {disk.label}", disk)
        return CheckReport(
            problems=tuple(self._found.problems),
            points=len(self._catalogue.points),
            packs=len(known),
            blobs=self._found.blobs,
            read_bytes=self._found.read_bytes,
        )

    # ---- index and packs -----------------------------------------------------------------------

    def _segments(self, problems: list[str]) -> Iterator[PackSegment]:
        """The first segment of each pack, reading one index object at a time."""
        seen: set[bytes] = set()
        for entry in self._storage.list(layout.INDEX):
            try:
                segments = read_index_object(self._storage, self._keyring, entry.name)
            except ObjectNotFoundError:
                continue
            except IntegrityError as error:
                problems.append(str(error))
                continue
            for segment in segments:
                if segment.pack_id not in seen:
                    seen.add(segment.pack_id)
                    yield segment

    def _is_whole(self, pack_id: bytes, pack_size: int, sizes: dict[str, int]) -> bool:
        name = layout.pack_name(pack_id)
        size = sizes.get(name)
        if size == pack_size:
            return True
        wrong = "is missing" if size is None else f"has {size} bytes instead of {pack_size}"
        self._found.problems.append(f"{name} {wrong}")
        self._found.bad_packs.add(pack_id)
        return False

    def _sampled(self, pack_ids: list[bytes]) -> list[bytes]:
        if self._sample_share >= 1:
            return pack_ids
        count = min(len(pack_ids), max(1, round(len(pack_ids) * self._sample_share)))
        return random.SystemRandom().sample(pack_ids, count)

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
            if said.entries != segment.entries or expected_footer_offset(segment) != offset:
                raise IntegrityError(f"{name}: index and footer of the pack differ")
        except (IntegrityError, PermanentPipelineError) as error:
            # The blobs may still be sound; they are looked at one by one.
            self._found.problems.append(str(error))
        self._check_blobs(segment)

    def _check_blobs(self, segment: PackSegment) -> None:
        codec = BlobCodec(self._keyring, Aead.XCHACHA20_POLY1305)
        name = layout.pack_name(segment.pack_id)
        try:
            for blob in iterate_pack(self._storage, segment, READ_WINDOW_BYTES):
                self._stop_if_cancelled()
                self._found.read_bytes += blob.entry.length
                self._check_blob(codec, blob.entry, blob.stored, name)
        except (IntegrityError, ObjectNotFoundError) as error:
            self._found.problems.append(str(error))
            self._found.bad_packs.add(segment.pack_id)

    def _check_blob(
        self, codec: BlobCodec, entry: BlobEntry, stored: bytes | bytearray | memoryview, name: str
    ) -> None:
        try:
            content = codec.decode(BlobKind(entry.kind), entry.blob_id, stored, self._base_of(entry))
            if len(content) != entry.raw_length:
                raise IntegrityError(
                    f"blob {entry.blob_id.hex()} has another length than the index says"
                )
        except (IntegrityError, ValueError) as error:
            self._found.problems.append(f"{name}: {error}")
            self._found.bad_blobs.add(entry.blob_id)

    def _base_of(self, entry: BlobEntry) -> LoadBase:
        def load_base(base_id: bytes) -> Buffer:
            if base_id != entry.base_id:
                raise IntegrityError(
                    f"blob {entry.blob_id.hex()} is a patch of another block than the index says"
                )
            return self._reader.load_base(base_id)

        return load_base

    # ---- disk maps -----------------------------------------------------------------------------

    def _check_disk(self, label: str, disk: DiskPoint) -> None:
        """Walks the whole map; what is missing below a damaged node is one extent."""
        count = block_count_of(disk.capacity_bytes, self._block_size_bytes)
        root = bytes.fromhex(disk.map_root)
        lost: list[tuple[int, int, str]] = []
        if any(root):
            self._check_entry(MapEntry(level_for(count), 0, root), count, lost)
        for number, (first, end, why) in enumerate(joined(lost)):
            if number == MAX_EXTENTS_NAMED:
                self._found.problems.append(f"{label}: and more extents")
                break
            start_byte = first * self._block_size_bytes
            end_byte = min(end * self._block_size_bytes, disk.capacity_bytes)
            self._found.problems.append(
                f"{label}: guest extent {start_byte}-{end_byte} cannot be restored: {why}"
            )

    def _check_entry(self, entry: MapEntry, count: int, lost: list[tuple[int, int, str]]) -> bool:
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
            lost.append((entry.first_block, min(count, entry.first_block + covered), wrong))
            return False
        is_sound = True
        for position, blob_id in ids_of(entries):
            first = entry.first_block + (position << (NODE_ENTRIES_BITS * entry.level))
            if first >= count:
                lost.append((entry.first_block, count, "its map reaches beyond the disk"))
                return False
            is_sound &= self._check_entry(MapEntry(entry.level - 1, first, blob_id), count, lost)
        if is_sound and entry.level >= 0:
            self._sound.add(entry.blob_id)
        return is_sound

    def _wrong_with(self, blob_id: bytes) -> str:
        place = self._index.find(blob_id)
        if place is None:
            return f"blob {blob_id.hex()} is not in the index"
        if place.pack_id in self._found.bad_packs:
            return f"blob {blob_id.hex()} is in {layout.pack_name(place.pack_id)}, which is not whole"
        if blob_id in self._found.bad_blobs:
            return f"blob {blob_id.hex()} is damaged"
        return ""

    def _stop_if_cancelled(self) -> None:
        if self._cancel is not None and self._cancel.is_set():
            raise CancelledError(f"check of {self._storage.location} was cancelled")


def joined(lost: list[tuple[int, int, str]]) -> list[tuple[int, int, str]]:
    """Runs of blocks that follow each other, as one, with the first reason."""
    runs: list[tuple[int, int, str]] = []
    for first, end, why in lost:
        if runs and runs[-1][1] == first:
            runs[-1] = (runs[-1][0], end, runs[-1][2])
        else:
            runs.append((first, end, why))
    return runs
