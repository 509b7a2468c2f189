"""Keeps an Index equal to the index objects of a storage, by way of a cache on this machine where there
is one.
"""

from __future__ import annotations

import threading
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pipeline.crypto.keyring import Keyring
from pipeline.errors import IntegrityError, ObjectNotFoundError, StorageFullError
from pipeline.repository import layout
from pipeline.repository.entries import PackSegment
from pipeline.repository.format import BLOB_ENTRY, SealedKind
from pipeline.repository.index_cache import CacheState, IndexCache, Names, holds_id
from pipeline.repository.index_objects import read_index_object
from pipeline.repository.index_recent import RecentIndex, RecentPack
from pipeline.repository.index_run import CacheDamagedError
from pipeline.repository.index_view import Index
from pipeline.repository.layout import OBJECT_ID_BYTES
from pipeline.repository.sealed import unseal
from pipeline.storage.base import Storage

if TYPE_CHECKING:
    from pipeline.repository.index_build import Records

MAX_LISTINGS: Final = 20
BULK_BYTES: Final = 4 << 20
"""New index objects of more than this go straight into a run of the cache."""
RUN_RECORDS: Final = 1 << 19
"""A run is written when so many records are in memory while much is read: 16 MiB, and three times that to
sort and write it."""
RECENT_PLACES: Final = 1 << 16
RECENT_OBJECTS: Final = 256
"""More than this in memory is written to the cache, so that the next process need not read it again."""
MEMORY_PLACES: Final = 4 << 20
"""Without a cache that can be written, no more than this is read into memory: 140 MiB."""


class IndexLoader:
    """One view of the index. `refresh()` and `follow()` by one thread at a time; the index by any."""

    def __init__(self, storage: Storage, keyring: Keyring, cache_directory: Path | None = None) -> None:
        """`cache_directory`: of this repository alone; None: everything in memory, for small ones."""
        self._storage = storage
        self._keyring = keyring
        self._cache_directory = cache_directory
        self._cache: IndexCache | None = None
        self._why_no_cache = ""
        self._unlisted: set[bytes] = set()
        """Objects that this process wrote and that no listing has shown yet."""
        self._lock = threading.RLock()
        self._skipped: frozenset[bytes] = frozenset()
        self.index = Index()
        self.index.on_damage(self._rebuild)

    def skip(self, names: Iterable[str]) -> None:
        """Leave these index objects out, because they are damaged. Before the first refresh()."""
        self._skipped = frozenset(layout.index_id_of(name) for name in names)

    def refresh(self) -> Index:
        """The index as it is now: only what is new is read. Packs that no index object names any more
        (prune took them out) are not found any more. Raises IntegrityError for a damaged index object,
        StorageFullError where neither the cache nor the memory can take a large index.
        """
        with self._lock:
            self._open_cache()
            for _ in range(MAX_LISTINGS):
                listing = _Listing(self._storage, self._skipped)
                try:
                    self._read_new(listing)
                    self._drop_gone(listing)
                    self._unburden(merge=True)
                    if any(self._new(listing)):
                        continue  # another process, with an older listing, took them out of the cache
                except ObjectNotFoundError:
                    continue  # prune replaced it between the listing and now; list again
                except CacheDamagedError:
                    self._discard()
                    continue
                self.index.settle()
                return self.index
        raise IntegrityError(
            f"index objects in {self._storage.location} vanish while they are read; "
            "is another prune running all the time?"
        )

    def follow(self) -> None:
        """See what others wrote since, cheaply: for a writer that wants to know every few seconds.

        One listing and the new objects. Leaves out what costs more (much that is new at once, merging) and
        passing trouble: a writer that does not see a blob stores it once more, nothing else.
        """
        with self._lock:
            listing = _Listing(self._storage, self._skipped)
            try:
                if sum(size for _, size in self._new(listing)) < BULK_BYTES:
                    self._read_new(listing)
                    self._drop_gone(listing)
                    self._unburden(merge=False)
            except (ObjectNotFoundError, CacheDamagedError):
                return

    def written(self, name: str, segments: Sequence[PackSegment] = ()) -> None:
        """An index object that this process wrote. With its `segments` they are added as well; without,
        who wrote it adds them, and they count as there as long as this process lives.
        """
        object_id = layout.index_id_of(name)
        self._unlisted.add(object_id)
        self.index.take(object_id, segments)

    def discard_cache(self) -> None:
        """Forget the cache of this machine; the next refresh() makes it again."""
        with self._lock:
            self._open_cache()
            self._discard()

    # ---- cache ---------------------------------------------------------------------------------

    def _open_cache(self) -> None:
        if self._cache_directory is None:
            return
        if self._cache is None and not self._why_no_cache:
            try:
                self._cache = IndexCache(self._cache_directory, self._keyring.repository_id)
            except OSError as error:
                self._why_no_cache = str(error)
                return
        if self._cache is not None and self._cache.adopt():
            self._adopt()

    def _adopt(self, *, recent: RecentIndex | None = None) -> None:
        if self._cache is not None:
            with self.index.held():
                self.index.adopt(self._cache.state, recent)

    def _give_up_cache(self, error: OSError) -> None:
        """Go on in memory: the disk of the cache is full or broken. What is open of it stays in use."""
        self._cache = None
        self._why_no_cache = str(error)

    def _rebuild(self, damaged: CacheState) -> None:
        """The cache turned out to be damaged in use: make it again from the index objects."""
        with self._lock:
            if self.index.uses(damaged):
                self._discard()
                self.refresh()

    def _discard(self) -> None:
        cache = self._cache
        if cache is not None:
            try:
                with cache.locked(wait=True):
                    cache.discard()
            except OSError as error:
                self._give_up_cache(error)
        self._start_anew()

    def _start_anew(self) -> None:
        with self.index.held():
            recent = RecentIndex()
            recent.keep_pinned_of(self.index.recent)
            self.index.adopt(CacheState(), recent)

    # ---- what is new ---------------------------------------------------------------------------

    def _new(self, listing: _Listing) -> list[tuple[bytes, int]]:
        """Ids and sizes of listed objects that nothing here knows."""
        with self.index.held():
            recent = self.index.recent.named
            return [each for each in listing.without(self._names) if each[0] not in recent]

    @property
    def _names(self) -> Names:
        return self.index.cached_names()

    def _read_new(self, listing: _Listing) -> None:
        for name in listing.foreign:
            read_index_object(self._storage, self._keyring, name)  # says what is wrong with it
        fresh = self._new(listing)
        size = sum(size for _, size in fresh)
        if size >= BULK_BYTES and self._cache is not None:
            try:
                self._build(self._cache, listing)
            except OSError as error:  # not of the storage: its errors are translated
                self._give_up_cache(error)
            fresh = self._new(listing)
            size = sum(size for _, size in fresh)
        if self._cache_directory is not None and size // BLOB_ENTRY.size > MEMORY_PLACES:
            raise StorageFullError(
                f"the index of {self._storage.location} needs a cache of about "
                f"{(size * 2) >> 20} MiB, and {self._cache_directory} cannot take it "
                f"({self._why_no_cache}); free space there and run again"
            )
        for object_id, _ in fresh:
            name = layout.index_name(object_id)
            self.index.take(object_id, read_index_object(self._storage, self._keyring, name))

    def _build(self, cache: IndexCache, listing: _Listing) -> None:
        """Read much that is new into runs of the cache, some of it at a time."""
        with cache.locked(wait=True):
            self._adopt()
            self._flush(cache)
            gathered = _Gathered(self.index)
            try:
                for object_id, _ in self._new(listing):
                    name = layout.index_name(object_id)
                    data = self._storage.read(name)
                    payload = unseal(self._keyring, SealedKind.INDEX, name, data)
                    gathered.add(object_id, payload, name)
                    if gathered.records >= RUN_RECORDS:
                        gathered.write(cache)
                        self._adopt()
            finally:
                # Also when an object vanished: what was read before need not be read again.
                gathered.write(cache)
                self._adopt()
            cache.merge()
            self._adopt()

    # ---- what is gone --------------------------------------------------------------------------

    def _drop_gone(self, listing: _Listing) -> None:
        self._unlisted = {each for each in self._unlisted if each not in listing}
        with self.index.held():
            recent = self.index.recent
            gone = [each for each in recent.named if each not in self._unlisted and each not in listing]
            for each in gone:
                del recent.named[each]
        if any(listing.lacks(self._names)):
            self._bury(listing)
        elif gone:
            self._count_dead()

    def _bury(self, listing: _Listing) -> None:
        """Index objects that the cache names are gone: note which packs are dead, there too."""
        cache = self._cache
        try:
            if cache is not None:
                with cache.locked(wait=False) as got:
                    if got:
                        cache.forget(lambda object_id: object_id in listing)
                        cache.set_alive(self._alive(cache.state.names))
                        self._adopt()
        except OSError as error:
            self._give_up_cache(error)
        self._count_dead(listing)

    def _count_dead(self, listing: _Listing | None = None) -> None:
        """Mark packs dead in this process's view."""
        alive = self._alive(self._names, listing)
        with self.index.held():
            self.index.recent.keep_alive(set(alive) if len(self.index.recent.packs) else ())
        if self.index.runs():
            self.index.bury(alive)

    def _alive(self, names: Names, listing: _Listing | None = None) -> array[int]:
        """Editions that some index object names."""
        alive = array("Q")
        for object_id, editions in names.each():
            if listing is None or object_id in listing:
                alive.extend(editions)
        with self.index.held():
            for named in self.index.recent.named.values():
                alive.extend(named)
            alive.extend(self.index.recent.pinned)
        return alive

    # ---- from memory to the cache --------------------------------------------------------------

    def _unburden(self, *, merge: bool) -> None:
        cache = self._cache
        if cache is None:
            return
        with self.index.held():
            recent = self.index.recent
            is_much = recent.places >= RECENT_PLACES or len(recent.named) >= RECENT_OBJECTS
        if not is_much and not merge:
            return
        try:
            with cache.locked(wait=False) as got:
                if got:
                    self._adopt()
                    if is_much:
                        self._flush(cache)
                    if merge:
                        cache.merge()
                        self._adopt()
        except OSError as error:
            self._give_up_cache(error)

    def _flush(self, cache: IndexCache) -> None:
        """What is in memory becomes a run. Nobody can look anything up for these milliseconds."""
        from pipeline.repository import index_build

        with self.index.held():
            recent = self.index.recent
            if recent.pinned or not recent.named:
                return
            packs = [
                pack if not recent.is_superfluous(number, self.index.has_pack) else _dropped(pack)
                for number, pack in enumerate(recent.packs)
            ]
            records = index_build.records_of_table(recent.raw(), bytes(recent.bases))
            cache.add_run(records, packs, recent.named)
            self.index.adopt(cache.state, RecentIndex())


class _Gathered:
    """Records of index objects that are being read, until they are enough for a run."""

    def __init__(self, index: Index) -> None:
        self._index = index
        self._clear()

    def _clear(self) -> None:
        self._parts: list[Records] = []
        self._packs: list[RecentPack] = []
        self._editions: set[int] = set()
        self._named: dict[bytes, list[int]] = {}
        self.records = 0

    def add(self, object_id: bytes, payload: bytes, name: str) -> None:
        from pipeline.repository import index_build

        named = self._named.setdefault(object_id, [])
        for segment in index_build.raw_segments(payload, name):
            named.append(segment.edition)
            if segment.edition in self._editions or self._index.has_pack(
                segment.pack_id, segment.edition
            ):
                continue
            records = index_build.records_of(payload, segment, len(self._packs), name)
            self._editions.add(segment.edition)
            self._parts.append(records)
            self._packs.append(
                RecentPack(segment.pack_id, segment.pack_size, segment.count, segment.edition)
            )
            self.records += len(records)

    def write(self, cache: IndexCache) -> None:
        from pipeline.repository import index_build

        if self._named:
            cache.add_run(index_build.joined(self._parts), self._packs, self._named)
        self._clear()


class _Listing:
    """Ids and sizes of the index objects at one moment, 24 bytes each."""

    def __init__(self, storage: Storage, skipped: frozenset[bytes]) -> None:
        self._ids = bytearray()
        self._sizes = array("Q")
        self.foreign: list[str] = []
        for entry in storage.list(layout.INDEX):
            object_id = layout.index_id_of(entry.name)
            if object_id in skipped:
                continue
            if len(object_id) != OBJECT_ID_BYTES or layout.index_name(object_id) != entry.name:
                self.foreign.append(entry.name)
                continue
            self._ids += object_id
            self._sizes.append(entry.size_bytes)

    def __contains__(self, object_id: bytes) -> bool:
        return holds_id(self._ids, object_id)

    def __iter__(self) -> Iterator[bytes]:
        for at in range(0, len(self._ids), OBJECT_ID_BYTES):
            yield bytes(self._ids[at : at + OBJECT_ID_BYTES])

    def without(self, names: Names) -> Iterator[tuple[bytes, int]]:
        """What is listed and not in `names`. Both ascend, so they are walked side by side."""
        for number, object_id in _only_in_first(self, names.object_ids()):
            yield object_id, self._sizes[number]

    def lacks(self, names: Names) -> Iterator[bytes]:
        """What is in `names` and not listed."""
        for _, object_id in _only_in_first(names.object_ids(), self):
            yield object_id


def _only_in_first(first: Iterable[bytes], second: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    others = iter(second)
    other = next(others, None)
    for number, each in enumerate(first):
        while other is not None and other < each:
            other = next(others, None)
        if other != each:
            yield number, each


def _dropped(pack: RecentPack) -> RecentPack:
    return RecentPack(pack.pack_id, pack.size, 0, pack.edition)
