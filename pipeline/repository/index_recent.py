"""The part of an index that is in memory: what was read or written since the cache was made, or
everything where there is none.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

from blake3 import blake3

from pipeline.repository.entries import Location, PackSegment, format_entries
from pipeline.repository.format import Encoding
from pipeline.repository.index_record import (
    FIELD_BITS,
    FIELD_MASK,
    KEY_BYTES,
    RECORD_BYTES,
    VALUE,
    pack_value,
)
from pipeline.repository.table import CompactTable


def edition_of(pack_id: bytes, entries: bytes | memoryview) -> int:
    """What a pack is said to hold, as a number: index objects that tell the same of it have the same.

    A repair takes a damaged place out of the index by telling less of a pack than before. Two editions
    that meet by accident (one in 10 million repositories of a million packs) would keep places alive that are
    not: a commit looks whether packs are there, a reader compares what it reads.
    """
    return int.from_bytes(blake3(pack_id + entries).digest(8), "little")


@dataclass(frozen=True, slots=True)
class RecentPack:
    pack_id: bytes
    size: int
    entry_count: int
    edition: int


class RecentIndex:
    """Blobs, packs, and which index object names which. Who shares it brings a lock."""

    def __init__(self) -> None:
        self.table = CompactTable(VALUE.size)
        self.further: dict[bytes, list[bytes]] = {}
        """Second and later places of a key."""
        self.packs: list[RecentPack] = []
        self._numbers: dict[int, int] = {}
        """Of packs, by edition."""
        self._by_id: dict[bytes, list[int]] = {}
        """Numbers of packs by id: one for each edition."""
        self.named: dict[bytes, list[int]] = {}
        """Editions by the id of the index object that names them, whether the pack is here or cached."""
        self.pinned: set[int] = set()
        """Editions that this process added without an index object's name."""
        self.elsewhere: dict[int, bytes] = {}
        """Pack ids by edition: named by an object that is in `named`, with their places in a run."""
        self.dead: set[int] = set()
        """Numbers of packs that no index object names any more."""
        self.bases = bytearray()
        """Ids of patches' bases, back to back."""
        self.places = 0
        """Of all packs, dead ones too."""

    def live_counts(self) -> dict[int, int]:
        """Places of each pack that is not dead, by edition."""
        return {p.edition: p.entry_count for n, p in enumerate(self.packs) if n not in self.dead}

    def add(self, segment: PackSegment, edition: int, *, is_cached: bool = False) -> None:
        """`is_cached`: a cache file has its blobs; only remember the name."""
        if edition in self._numbers:
            self.dead.discard(self._numbers[edition])
            return
        if is_cached:
            self.elsewhere[edition] = segment.pack_id
            return
        number = len(self.packs)
        self._numbers[edition] = number
        self.packs.append(RecentPack(segment.pack_id, segment.pack_size, len(segment.entries), edition))
        self._by_id.setdefault(segment.pack_id, []).append(number)
        self.dead.discard(number)
        self.places += len(segment.entries)
        for entry in segment.entries:
            base = 0
            if entry.encoding == Encoding.PATCH:
                self.bases += entry.base_id
                base = len(self.bases) // len(entry.base_id)
            value = pack_value(number, entry.offset, entry.kind, entry.length, entry.encoding, base)
            self._put(entry.blob_id, value)

    def name(self, object_id: bytes, edition: int) -> None:
        """An index object names a pack."""
        self.named.setdefault(object_id, []).append(edition)

    def number_of(self, edition: int) -> int:
        """-1 where a cache file has it."""
        return self._numbers.get(edition, -1)

    def lose(self, editions: Collection[int]) -> None:
        """The runs do not have these after all: whoever names them has to be read again."""
        for edition in editions:
            self.elsewhere.pop(edition, None)
        if editions:
            self.named = {
                object_id: named
                for object_id, named in self.named.items()
                if not any(edition in editions for edition in named)
            }

    def pin(self, edition: int) -> None:
        self.pinned.add(edition)

    def keep_alive(self, editions: Collection[int]) -> None:
        """All packs but these, and the pinned ones, are dead."""
        self.dead = {
            number
            for edition, number in self._numbers.items()
            if edition not in editions and edition not in self.pinned
        }

    def has(self, blob_id: bytes) -> bool:
        if self.dead:
            return bool(self.find_all(blob_id))
        return blob_id in self.table

    def find_all(self, blob_id: bytes) -> list[Location]:
        value = self.table.get(blob_id)
        if value is None:
            return []
        values = [value, *self.further.get(blob_id[:KEY_BYTES], ())]
        return [place for each in values if (place := self._place(each)) is not None]

    def is_superfluous(self, number: int, is_cached: Callable[[bytes, int], bool]) -> bool:
        """Dead, or in a run by now."""
        pack = self.packs[number]
        return number in self.dead or is_cached(pack.pack_id, pack.edition)

    def keep_pinned_of(self, other: RecentIndex) -> None:
        """Take over what another one has without a name: no index object would tell of it again."""
        numbers = {other.number_of(edition): edition for edition in other.pinned}
        for raw, value in other.places_of(set(numbers)):
            number, offset, length, base = VALUE.unpack(value)
            pack = other.packs[number]
            if pack.edition not in self._numbers:
                self._numbers[pack.edition] = len(self.packs)
                self._by_id.setdefault(pack.pack_id, []).append(len(self.packs))
                self.packs.append(pack)
                self.places += pack.entry_count
                self.pinned.add(pack.edition)
            if base:
                self.bases += other.bases[(base - 1) * 32 : base * 32]
                base = len(self.bases) // 32
            self._put(raw, VALUE.pack(self._numbers[pack.edition], offset, length, base))

    def places_of(self, numbers: Collection[int]) -> Iterator[tuple[bytes, bytes]]:
        """Keys and values of what is in these packs."""
        if not numbers:
            return
        raw = self.raw()
        for at in range(0, len(raw), RECORD_BYTES):
            value = raw[at + KEY_BYTES : at + RECORD_BYTES]
            if VALUE.unpack(value)[0] in numbers:
                yield raw[at : at + KEY_BYTES], value

    def raw(self) -> bytes:
        """Every record, also those in dead packs."""
        further = (key + value for key, values in self.further.items() for value in values)
        return self.table.raw() + b"".join(further)

    def settle(self) -> None:
        """Bring it to its smallest form."""
        self.table.settle()

    def sizes(self) -> dict[bytes, int]:
        return {p.pack_id: p.size for number, p in enumerate(self.packs) if number not in self.dead}

    def size_of(self, pack_id: bytes) -> int | None:
        for number in self._by_id.get(pack_id, ()):
            if number not in self.dead:
                return self.packs[number].size
        return None

    def _put(self, blob_id: bytes, value: bytes) -> None:
        if self.table.get(blob_id) is None:
            self.table.put(blob_id, value)
        else:
            self.further.setdefault(blob_id[:KEY_BYTES], []).append(value)

    def _place(self, value: bytes) -> Location | None:
        number, offset, length, base = VALUE.unpack(value)
        if number in self.dead:
            return None
        base_id = bytes(self.bases[(base - 1) * 32 : base * 32]) if base else b""
        return Location(
            self.packs[number].pack_id,
            offset & FIELD_MASK,
            length & FIELD_MASK,
            length >> FIELD_BITS,
            base_id,
        )


def edition_of_segment(segment: PackSegment) -> int:
    return edition_of(segment.pack_id, format_entries(segment.entries))
