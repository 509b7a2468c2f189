"""Which blob is where. Built from the index objects of a repository, added to while writing."""

from __future__ import annotations

import threading
from array import array
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial

from pipeline.repository.entries import Location, PackSegment
from pipeline.repository.index_cache import CacheState, Names
from pipeline.repository.index_recent import RecentIndex, edition_of_segment
from pipeline.repository.index_record import FIELD_BITS, FIELD_MASK, KEY_BYTES, VALUE
from pipeline.repository.index_run import CacheDamagedError, Run


class Index:
    """All blobs that can be found: in the runs of a cache, and in memory what is newer. May be used by several
    threads; stays the same object while it is brought up to date.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._recent = RecentIndex()
        self._cached = CacheState()
        self._on_damage: Callable[[CacheState], None] | None = None

    def __contains__(self, blob_id: bytes) -> bool:
        with self._lock:
            if self._recent.has(blob_id):
                return True
            cached = self._cached
        try:
            return any(map(partial(_is_in, blob_id[:KEY_BYTES]), cached.runs, cached.dead))
        except (CacheDamagedError, OSError):
            return bool(self._in_runs(blob_id))

    def __len__(self) -> int:
        """Number of places; slow, for figures only."""
        with self._lock:
            counts = self._recent.live_counts()
            cached = self._cached
        for run, dead in zip(cached.runs, cached.dead, strict=True):
            for number in range(run.pack_count):
                if not (dead and dead[number]):
                    _, _, count, edition = run.pack(number)
                    counts[edition] = count
        return sum(counts.values())

    def find(self, blob_id: bytes) -> Location | None:
        """A place of the blob; where it has several, one that holds all of its content before a patch."""
        found = self.find_all(blob_id)
        return found[0] if found else None

    def find_all(self, blob_id: bytes) -> list[Location]:
        """Every place of the blob, patches last. A reader that finds one damaged takes the next."""
        with self._lock:
            found = self._recent.find_all(blob_id)
            cached = self._cached
        if cached.runs:
            found.extend(place for place in self._in_runs(blob_id) if place not in found)
        if len(found) > 1:
            found.sort(key=lambda location: location.is_patch)
        return found

    def add(self, segment: PackSegment) -> None:
        """Take over what this process itself made durable in a pack."""
        edition = edition_of_segment(segment)
        with self._lock:
            self._recent.add(segment, edition)
            self._recent.pin(edition)

    def settle(self) -> None:
        """Bring it to its smallest form after much was added."""
        with self._lock:
            self._recent.settle()

    def pack_sizes(self) -> dict[bytes, int]:
        """Every pack that the index names, with the size it should have."""
        with self._lock:
            sizes = self._recent.sizes()
            cached = self._cached
        for run, dead in zip(cached.runs, cached.dead, strict=True):
            for number in range(run.pack_count):
                if not (dead and dead[number]):
                    pack_id, size, _, _ = run.pack(number)
                    sizes[pack_id] = size
        return sizes

    def pack_size_of(self, pack_id: bytes) -> int | None:
        """The size that a pack should have; None when the index does not name it."""
        with self._lock:
            size = self._recent.size_of(pack_id)
            cached = self._cached
        for run, dead in zip(cached.runs, cached.dead, strict=True):
            if size is not None:
                break
            for number in run.numbers_of(pack_id):
                if not (dead and dead[number]):
                    size = run.pack(number)[1]
        return size

    def runs(self) -> tuple[Run, ...]:
        """The runs of the cache as they are now; they stay readable while this is kept."""
        return self._cached.runs

    def runs_and_dead(self) -> tuple[tuple[Run, ...], tuple[bytes, ...]]:
        """With them, for each run a byte for each of its packs (1: dead), or nothing."""
        cached = self._cached
        return cached.runs, cached.dead

    # ---- for the loader ------------------------------------------------------------------------

    @property
    def recent(self) -> RecentIndex:
        """What is in memory; under `held()` only."""
        return self._recent

    def held(self) -> threading.Lock:
        """The lock: nobody finds or adds anything while it is held."""
        return self._lock

    def take(self, object_id: bytes, segments: Iterable[PackSegment]) -> None:
        """Take over what an index object says."""
        told = [(segment, edition_of_segment(segment)) for segment in segments]
        with self._lock:
            self._recent.named.setdefault(object_id, [])
            for segment, edition in told:
                is_cached = self._revive(segment.pack_id, edition)
                self._recent.add(segment, edition, is_cached=is_cached)
                self._recent.name(object_id, edition)

    def adopt(self, state: CacheState, recent: RecentIndex | None = None) -> None:
        """Use these runs from now on, with `recent` (as it is, when None) beside them. Under held()."""
        if recent is not None:
            self._recent = recent
        self._cached = state
        lost = {
            edition
            for edition, pack_id in self._recent.elsewhere.items()
            if not self._revive(pack_id, edition)
        }
        self._recent.lose(lost)

    def bury(self, alive: array[int]) -> None:
        """In the runs all packs but these editions are dead."""
        import numpy as np

        from pipeline.repository.index_build import dead_flags

        with self._lock:
            dead = dead_flags(self._cached.runs, np.asarray(alive, np.uint64))
            self._cached = replace(self._cached, dead=tuple(dead))

    def has_pack(self, pack_id: bytes, edition: int) -> bool:
        """Whether a run has this edition of a pack, dead or not."""
        return any(
            run.pack(number)[3] == edition
            for run in self._cached.runs
            for number in run.numbers_of(pack_id)
        )

    def uses(self, state: CacheState) -> bool:
        """Whether these are still the runs that are looked into."""
        return self._cached.runs == state.runs

    def cached_names(self) -> Names:
        """Index objects that are in the runs."""
        return self._cached.names

    def on_damage(self, rebuild: Callable[[CacheState], None]) -> None:
        self._on_damage = rebuild

    # ---- inside --------------------------------------------------------------------------------

    def _in_runs(self, blob_id: bytes) -> list[Location]:
        cached = self._cached
        try:
            return _find_in(cached, blob_id)
        except (CacheDamagedError, OSError):
            if self._on_damage is None:
                raise
            self._on_damage(cached)
        with self._lock:
            found = self._recent.find_all(blob_id)
        return found + _find_in(self._cached, blob_id)

    def _revive(self, pack_id: bytes, edition: int) -> bool:
        """Whether a run has this pack; an index object names it again."""
        cached = self._cached
        for position, run in enumerate(cached.runs):
            for number in run.numbers_of(pack_id):
                if run.pack(number)[3] != edition:
                    continue
                flags = cached.dead[position]
                if flags and flags[number]:
                    flags = flags[:number] + b"\0" + flags[number + 1 :]
                    dead = (*cached.dead[:position], flags, *cached.dead[position + 1 :])
                    self._cached = replace(cached, dead=dead)
                return True
        return False


def _is_in(key: bytes, run: Run, dead: bytes) -> bool:
    values = run.first_of(key)[1]
    return bool(values) and (not dead or any(not dead[VALUE.unpack(v)[0]] for v in values))


def _find_in(cached: CacheState, blob_id: bytes) -> list[Location]:
    key = blob_id[:KEY_BYTES]
    found: list[Location] = []
    for run, dead in zip(cached.runs, cached.dead, strict=True):
        for value, base_id in run.find(key):
            number, offset, length, _ = VALUE.unpack(value)
            if dead and dead[number]:
                continue
            place = Location(
                run.pack_id(number),
                offset & FIELD_MASK,
                length & FIELD_MASK,
                length >> FIELD_BITS,
                base_id,
            )
            if place not in found:
                found.append(place)
    return found
