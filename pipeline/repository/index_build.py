"""Making runs of an index cache: from index objects, from what is in memory, from other runs. Memory is bounded
by the pieces that are worked on, whatever the size of the repository.

This module needs NumPy, which costs 25 MiB; it is imported where a run is made and not where one is read.
"""

from __future__ import annotations

import os
import zlib
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from pipeline.errors import IntegrityError
from pipeline.repository.format import (
    BLOB_ENTRY,
    BLOB_HEADER,
    BLOB_ID_BYTES,
    INDEX_SEGMENT,
    MAX_PACK_BYTES,
    Encoding,
)
from pipeline.repository.index_recent import RecentPack, edition_of
from pipeline.repository.index_record import FIELD_BITS
from pipeline.repository.index_run import (
    BUCKETS_AT,
    HEAD,
    HEAD_HASH_BYTES,
    MAGIC,
    PACK,
    PREFIX_BITS,
    UNIT,
    VERSION,
    Run,
    bucket_bits_for,
)
from transports import system

Array = NDArray[Any]
_KEY: Final = [("hi", ">u8"), ("lo", ">u8")]
RECORD: Final = np.dtype(
    [*_KEY, ("pack", "<u4"), ("offset", "<u4"), ("length", "<u4"), ("base", "<u4")]
)
PACK_ROW: Final = np.dtype([*_KEY, ("size", "<u4"), ("count", "<u4"), ("edition", "<u8")])
ENTRY: Final = np.dtype(
    [
        *_KEY,
        ("rest", "V16"),
        ("offset", "<u4"),
        ("length", "<u4"),
        ("raw_length", "<u4"),
        ("kind", "u1"),
        ("encoding", "u1"),
        ("reserved", "<u2"),
    ]
)
BASE: Final = np.dtype(f"V{UNIT}")
PIECE_RECORDS: Final = 1 << 17
"""So many are sorted and written at a time: 4 MiB, and some times that in between."""
GONE: Final = np.uint32(0xFFFFFFFF)


@dataclass(frozen=True, slots=True)
class Records:
    """Records with the base ids of those that are patches: `base` is 1 + position in `bases`."""

    rows: Array
    bases: Array

    def __len__(self) -> int:
        return len(self.rows)


def no_records() -> Records:
    return Records(np.empty(0, RECORD), np.empty(0, BASE))


def joined(parts: Sequence[Records]) -> Records:
    """All of them; pack numbers as they are."""
    if len(parts) == 1:
        return parts[0]
    if not parts:
        return no_records()
    # As plain bytes: joining structures would turn their big-endian keys round.
    rows = np.concatenate([part.rows.view(BASE) for part in parts]).view(RECORD)
    at = first = 0
    for part in parts:
        mine = rows[at : at + len(part)]
        mine["base"][mine["base"] > 0] += first
        at += len(part)
        first += len(part.bases)
    return Records(rows, np.concatenate([part.bases for part in parts]))


# ---- from index objects ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RawSegment:
    """What an index object says of one pack, not taken apart."""

    pack_id: bytes
    pack_size: int
    count: int
    at: int
    end: int
    edition: int


def raw_segments(payload: bytes, what: str) -> Iterator[RawSegment]:
    """As entries.parse_segments(), without a value for each blob."""
    view = memoryview(payload)
    at = 0
    while at < len(payload):
        if at + INDEX_SEGMENT.size > len(payload):
            raise IntegrityError(f"{what} is damaged: it ends in the middle of a segment")
        pack_id, size, count = INDEX_SEGMENT.unpack_from(payload, at)
        at += INDEX_SEGMENT.size
        end = at + count * BLOB_ENTRY.size
        if end > len(payload) or size > MAX_PACK_BYTES:
            raise IntegrityError(f"{what} is damaged: a segment that cannot be")
        encodings = payload[at + BLOB_ENTRY.size - 3 : end : BLOB_ENTRY.size]
        end += encodings.count(Encoding.PATCH) * BLOB_ID_BYTES
        if end > len(payload):
            raise IntegrityError(f"{what} is damaged: it ends before its base ids")
        yield RawSegment(pack_id, size, count, at, end, edition_of(pack_id, view[at:end]))
        at = end


def records_of(payload: bytes, segment: RawSegment, pack: int, what: str) -> Records:
    """Raises IntegrityError for entries that cannot be."""
    entries = np.frombuffer(payload, ENTRY, segment.count, segment.at)
    offset, length = entries["offset"].astype(np.uint64), entries["length"].astype(np.uint64)
    if (
        entries["reserved"].any()
        or (length < BLOB_HEADER.size).any()
        or (offset + length > segment.pack_size).any()
        or (entries["kind"] > 3).any()  # noqa: PLR2004 - two bits
        or (entries["encoding"] > 3).any()  # noqa: PLR2004 - two bits
    ):
        raise IntegrityError(f"{what} is damaged: an entry that cannot be")
    rows = np.zeros(segment.count, RECORD)
    rows["hi"], rows["lo"] = entries["hi"], entries["lo"]
    rows["pack"] = pack
    rows["offset"] = entries["offset"] | entries["kind"].astype(np.uint32) << FIELD_BITS
    rows["length"] = entries["length"] | entries["encoding"].astype(np.uint32) << FIELD_BITS
    patches = np.flatnonzero(entries["encoding"] == Encoding.PATCH)
    rows["base"][patches] = np.arange(1, len(patches) + 1)
    bases_at = segment.at + segment.count * BLOB_ENTRY.size
    return Records(rows, np.frombuffer(payload, BASE, len(patches), bases_at))


def records_of_table(raw: bytes, bases: bytes) -> Records:
    """What is in memory: its records are the same bytes."""
    return Records(np.frombuffer(raw, RECORD), np.frombuffer(bases, BASE))


# ---- buckets ---------------------------------------------------------------------------------------


def decoded(run: Run, first: int, end: int) -> tuple[Records, Array]:
    """The records of buckets [first, end), and the number of each one's unit in the run."""
    units = np.frombuffer(run.buckets(first, end), BASE)
    starts = np.asarray(run.starts[first:end], np.int64)
    counts = np.asarray(run.counts[first:end], np.int64)
    before = np.cumsum(counts) - counts
    origin = run.starts[first]
    start_of = np.repeat(starts - origin, counts)
    places = start_of + np.arange(len(start_of)) - np.repeat(before, counts)
    rows = units[places].view(RECORD).copy()
    patches = np.flatnonzero(rows["base"])
    bases = units[start_of[patches] + rows["base"][patches]]
    rows["base"][patches] = np.arange(1, len(patches) + 1)
    return Records(rows, bases), places + origin


class RunWriter:
    """Writes one run, bucket range after bucket range."""

    def __init__(self, path: Path, repository_id: bytes, records_at_most: int) -> None:
        self.bits = bucket_bits_for(records_at_most)
        self._path = path
        self._repository_id = repository_id
        self._file = os.fdopen(
            os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | system.OPEN_FLAGS, 0o600), "wb"
        )
        self._file.seek(BUCKETS_AT)
        self._units = self._records = 0
        self._starts, self._counts, self._sums = array("I"), array("I"), array("I")

    def write(self, records: Records, first: int, end: int) -> None:
        """All records of buckets [first, end); ranges come in order and leave nothing out."""
        records = _without_repeats(_sorted(records))
        rows = records.rows
        bucket = (rows["hi"].astype(np.uint64) >> np.uint64(PREFIX_BITS - self.bits)).astype(np.int64)
        bucket -= first
        counts = np.bincount(bucket, minlength=end - first)
        patches = np.flatnonzero(rows["base"])
        of_patch = bucket[patches]
        bases = np.bincount(of_patch, minlength=end - first)
        starts = np.cumsum(counts + bases) - (counts + bases)
        within = np.arange(len(patches)) - (np.cumsum(bases) - bases)[of_patch]
        units = np.empty(len(rows) + len(patches), BASE)
        units[(starts + counts)[of_patch] + within] = records.bases[rows["base"][patches] - 1]
        rows["base"][patches] = counts[of_patch] + within
        places = (starts - (np.cumsum(counts) - counts))[bucket] + np.arange(len(rows))
        units[places] = rows.view(BASE)
        data = memoryview(units.tobytes())
        self._file.write(data)
        ends = (starts + counts + bases) * UNIT
        for start, until in zip((starts * UNIT).tolist(), ends.tolist(), strict=True):
            self._sums.append(zlib.crc32(data[start:until]))
        self._starts.extend((starts + self._units).tolist())
        self._counts.extend(counts.tolist())
        self._units += len(units)
        self._records += len(rows)

    def close(self, packs: Array) -> None:
        """End the file and make it durable. `packs` as numbered by the records."""
        self._starts.append(self._units)
        hasher = blake3()
        tables_bytes = 0
        # One after the other: joined, they would be the largest thing in memory.
        for table in (_le(self._starts), _le(self._counts), _le(self._sums), packs):
            view = np.ascontiguousarray(table).view(np.uint8).data
            hasher.update(view)
            self._file.write(view)
            tables_bytes += len(view)
        head = HEAD.pack(
            MAGIC,
            VERSION,
            self.bits,
            len(packs),
            self._repository_id,
            self._units,
            self._records,
            tables_bytes,
            hasher.digest(),
        )
        self._file.seek(0)
        self._file.write(head + blake3(head).digest(HEAD_HASH_BYTES))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def abort(self) -> None:
        """MAY be called after close(), where it does nothing."""
        if not self._file.closed:
            self._file.close()
            self._path.unlink(missing_ok=True)


def _le(words: array[int]) -> Array:
    return np.asarray(words, "<u4")


def _sorted(records: Records) -> Records:
    order = np.argsort(records.rows["hi"].astype(np.uint64), kind="stable")
    return Records(records.rows[order], records.bases)


def _without_repeats(records: Records) -> Records:
    """A place that was told twice, once. Equal keys are next to each other, and few."""
    rows = records.rows
    twins = np.flatnonzero(rows["hi"][1:] == rows["hi"][:-1])
    if not len(twins):
        return records
    drop = []
    seen: set[bytes] = set()
    for number in sorted({*twins.tolist(), *(twins + 1).tolist()}):
        place = rows[number : number + 1].tobytes()[: UNIT - 4]
        if place in seen:
            drop.append(number)
        seen.add(place)
    return Records(np.delete(rows, drop), records.bases)


# ---- whole runs ------------------------------------------------------------------------------------


def pack_rows(packs: Sequence[RecentPack]) -> Array:
    return np.frombuffer(
        b"".join(PACK.pack(p.pack_id, p.size, p.entry_count, p.edition) for p in packs), PACK_ROW
    )


def numbered(packs: Array, keep: Array) -> tuple[Array, Array]:
    """Packs in the order of a run, each edition once, and the new number of each old one (GONE where
    `keep` is false).
    """
    kept = np.flatnonzero(keep)
    order = kept[np.lexsort((packs["edition"][kept], packs["lo"][kept], packs["hi"][kept]))]
    ordered = packs[order]
    is_first = np.ones(len(ordered), bool)
    is_first[1:] = (ordered["edition"][1:] != ordered["edition"][:-1]) | (
        ordered["hi"][1:] != ordered["hi"][:-1]
    )
    numbers = np.full(len(packs), GONE, np.uint32)
    numbers[order] = np.cumsum(is_first) - 1
    return ordered if is_first.all() else ordered[is_first], numbers


def renumbered(records: Records, numbers: Array) -> Records:
    """With new numbers of packs; without what is in packs that have none."""
    rows = records.rows.copy()
    rows["pack"] = numbers[rows["pack"]] if len(numbers) else rows["pack"]
    return Records(rows[rows["pack"] != GONE], records.bases)


def write_run(path: Path, repository_id: bytes, records: Records, packs: Array, keep: Array) -> None:
    """A run of records that are in memory. `keep`: which packs."""
    rows, numbers = numbered(packs, keep)
    records = _sorted(renumbered(records, numbers))
    writer = RunWriter(path, repository_id, len(records))
    try:
        hi = records.rows["hi"].astype(np.uint64)
        for first, end in ranges(len(records), writer.bits):
            low, high = (
                np.searchsorted(hi, np.uint64(edge << (PREFIX_BITS - writer.bits)))
                if edge < 1 << writer.bits
                else len(hi)
                for edge in (first, end)
            )
            writer.write(Records(records.rows[low:high], records.bases), first, end)
        writer.close(rows)
    finally:
        writer.abort()


def merge_runs(path: Path, repository_id: bytes, runs: Sequence[Run], dead: Sequence[bytes]) -> None:
    """One run of several, without what is in dead packs (`dead`: a byte for each pack of a run, or empty)."""
    packs = np.frombuffer(b"".join(run.packs for run in runs), PACK_ROW)
    keep = np.concatenate(
        [
            np.frombuffer(flags, np.uint8) == 0 if flags else np.ones(run.pack_count, bool)
            for run, flags in zip(runs, dead, strict=True)
        ]
    )
    rows, numbers = numbered(packs, keep)
    del packs, keep
    firsts = np.cumsum([0, *(run.pack_count for run in runs)])
    total = sum(run.records for run in runs)
    writer = RunWriter(path, repository_id, total)
    try:
        for first, end in ranges(total, writer.bits):
            parts = [
                renumbered(
                    _range_of(run, first, end, writer.bits),
                    numbers[firsts[number] : firsts[number + 1]],
                )
                for number, run in enumerate(runs)
            ]
            writer.write(joined(parts), first, end)
        writer.close(rows)
    finally:
        writer.abort()


def ranges(records: int, bits: int) -> Iterator[tuple[int, int]]:
    """Ranges of buckets with about PIECE_RECORDS each."""
    pieces = 1
    while pieces < 1 << bits and records > PIECE_RECORDS * pieces:
        pieces *= 2
    step = (1 << bits) // pieces
    for first in range(0, 1 << bits, step):
        yield first, first + step


def _range_of(run: Run, first: int, end: int, bits: int) -> Records:
    """Records of a run that belong into buckets [first, end) of another one with `bits`."""
    shift = PREFIX_BITS - bits
    low, high = first << shift, (end << shift) - 1
    own_shift = PREFIX_BITS - run.bits
    records, _ = decoded(run, low >> own_shift, (high >> own_shift) + 1)
    if run.bits >= bits:
        return records
    hi = records.rows["hi"].astype(np.uint64)
    inside = (hi >= np.uint64(low)) & (hi <= np.uint64(high))
    return Records(records.rows[inside], records.bases)


# ---- liveness --------------------------------------------------------------------------------------


def dead_flags(runs: Sequence[Run], alive: Array) -> list[bytes]:
    """For each run a byte for each pack: 1 where nothing in `alive` (editions) names it. Empty bytes
    where all are alive.
    """
    flags = []
    for run in runs:
        editions = np.frombuffer(run.packs, PACK_ROW)["edition"]
        dead = ~np.isin(editions, alive)
        flags.append(dead.astype(np.uint8).tobytes() if dead.any() else b"")
    return flags
