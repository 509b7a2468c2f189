"""Several storages as one: the extents of a scale-out repository.

**Packs** lie in one extent each: in the one with the most free space, of those that accept new data. A pack
is read where it is found; the place is remembered for a while.

**Everything else is small** and goes to every active extent: it is listed as the union of all that are
online, read from the first that has it, and deleted from all. The first active extent decides who was first
with a name. So whatever part of a mirrored write a crash leaves is either nothing or the whole object, and
`clean` brings the mirrors level again. Each active extent that is left tells what the repository holds.

States: `active` takes everything; `sealed` takes nothing new, and is read and pruned; `maintenance` is not
touched at all. What may lie in an extent in maintenance is answered with its name and not with "no such
object".
"""

from __future__ import annotations

import heapq
import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from time import monotonic
from typing import Final, TypeVar

from pipeline.errors import (
    ObjectExistsError,
    ObjectNotFoundError,
    PermanentPipelineError,
    StorageFullError,
    StorageMissingError,
    StoragePermissionError,
    StorageUnavailableError,
)
from pipeline.storage.base import (
    Buffer,
    ObjectWriter,
    Retention,
    Space,
    Storage,
    StoredObject,
    checked_name,
)
from pipeline.storage.wrapper import WholeObjectWriter

SCHEME: Final = "scale-out:"
PACKS: Final = "packs/"
MARKER: Final = "vmhaul-extent.json"
"""In each extent: which set it belongs to, and as which extent. So an empty directory below a mount that is
gone is not taken for the extent."""
SMALL_PREFIXES: Final = (
    "doomed/",
    "epochs/",
    "forgotten/",
    "index/",
    "keys/",
    "points/",
    "work/",
)
SINGLE_NAMES: Final = ("vmhaul-repository.json",)
REPLACED: Final = ("doomed/", "work/", *SINGLE_NAMES)
"""What may be replaced: having the name is not yet having the newest content."""
SPACE_AGE_S: Final = 30.0
"""So long an extent's free space is taken for known; what this process writes is counted meanwhile."""
REMEMBERED_PLACES: Final = 1 << 16
EXPECTED_PACK_BYTES: Final = 64 << 20
T = TypeVar("T")


class ExtentOfflineError(StorageMissingError):
    """What was asked for may lie in an extent that is in maintenance."""


@dataclass(slots=True)
class Extent:
    """An extent that is online."""

    name: str
    storage: Storage
    is_active: bool = True
    free_bytes: int = 0
    known_at_s: float = float("-inf")


class ScaleOutStorage:
    """See the module's text."""

    def __init__(
        self,
        extents: Sequence[Extent],
        *,
        offline: Sequence[str] = (),
        clock: Callable[[], float] = monotonic,
    ) -> None:
        """`extents`: those that are online, in the order in which they are configured. `offline`: names of
        those in maintenance.
        """
        if not extents:
            raise StorageMissingError(
                f"every extent is in maintenance ({', '.join(offline)}); activate one of them"
            )
        # Active ones first: what is replaced in them may be older in one that is sealed.
        self.extents: Final = tuple(sorted(extents, key=lambda extent: not extent.is_active))
        self.offline: Final = tuple(offline)
        self._clock = clock
        self._lock = threading.Lock()
        self._places: OrderedDict[str, Extent] = OrderedDict()

    # ---- facts -----------------------------------------------------------------------------------

    @property
    def location(self) -> str:
        return SCHEME + json.dumps([extent.storage.location for extent in self.extents])

    @property
    def retention(self) -> Retention | None:
        """Only where every extent that is online has it."""
        if any(extent.storage.retention is None for extent in self.extents):
            return None
        return _ScaleOutRetention(self)

    def space(self) -> Space:
        """Free: of extents that accept new data. Total and used: of all that are online."""
        spaces = [(extent, extent.storage.space()) for extent in self.extents]
        for extent, space in spaces:
            self._note_space(extent, space.free_bytes)
        return Space(
            free_bytes=sum(space.free_bytes for extent, space in spaces if extent.is_active),
            total_bytes=sum(space.total_bytes for _, space in spaces),
            used_bytes=sum(space.used_bytes for _, space in spaces),
        )

    # ---- writing ---------------------------------------------------------------------------------

    def create(self, name: str) -> ObjectWriter:
        checked_name(name)
        if not is_pack(name):
            return WholeObjectWriter(self, name)
        self.refuse_taken(name)
        extent = self.roomiest()
        return _PackWriter(self, extent, name, extent.storage.create(name))

    def put(self, name: str, data: Buffer) -> None:
        checked_name(name)
        self.refuse_taken(name)
        if is_pack(name):
            extent = self.roomiest()
            extent.storage.put(name, data)
            self.placed(name, extent, len(data))
            return
        first, *mirrors = self._active()
        first.storage.put(name, data)
        for mirror in mirrors:
            mirror.storage.replace(name, data)

    def replace(self, name: str, data: Buffer) -> None:
        checked_name(name)
        if is_pack(name):
            self._home(name).storage.replace(name, data)
            return
        # The first first: it is the one that is read.
        for mirror in self._active():
            mirror.storage.replace(name, data)

    def delete(self, name: str) -> None:
        """From the last extent to the first: until it is gone everywhere it is there."""
        checked_name(name)
        for extent in reversed(self.extents):
            extent.storage.delete(name)
        with self._lock:
            self._places.pop(name, None)

    def clean(self, older_than_s: float) -> int:
        """Also brings the mirrors of small objects level."""
        freed_bytes = sum(extent.storage.clean(older_than_s) for extent in self.extents)
        for extent in self._active():
            for name in self.small_names():
                copy_small(self, extent.storage, name)
        return freed_bytes

    # ---- reading ---------------------------------------------------------------------------------

    def read(self, name: str) -> bytes:
        return self._found(name, lambda storage: storage.read(name))

    def read_range(self, name: str, offset: int, length: int) -> bytes:
        return self._found(name, lambda storage: storage.read_range(name, offset, length))

    def size_bytes(self, name: str) -> int:
        return self._found(name, lambda storage: storage.size_bytes(name))

    def list(self, prefix: str) -> Iterator[StoredObject]:
        merged = _merged([extent.storage.list(prefix) for extent in self.extents])
        return merged if prefix else (entry for entry in merged if entry.name != MARKER)

    def close(self) -> None:
        for extent in self.extents:
            extent.storage.close()

    # ---- for the parts below ---------------------------------------------------------------------

    def placed(self, name: str, extent: Extent, size_bytes: int) -> None:
        """Remember where a pack is, and that it takes space."""
        with self._lock:
            extent.free_bytes -= size_bytes
            self._remember(name, extent)

    def is_full(self, extent: Extent, error: StorageFullError) -> StorageUnavailableError | None:
        """What to raise instead when an extent ran full and another one has room: the next attempt goes
        there.
        """
        with self._lock:
            extent.free_bytes, extent.known_at_s = 0, self._clock()
        others = [other for other in self.extents if other.is_active and other is not extent]
        if any(self._free_bytes(other) > EXPECTED_PACK_BYTES for other in others):
            return StorageUnavailableError(
                f"extent {extent.name!r} is full ({error}); another attempt writes to one with more room"
            )
        return None

    def small_names(self) -> Iterator[str]:
        """Every object that is no pack, without a listing of the packs."""
        for name in SINGLE_NAMES:
            if any(holds(extent.storage, name) for extent in self.extents):
                yield name
        for prefix in SMALL_PREFIXES:
            yield from [entry.name for entry in self.list(prefix)]

    def holders(self, name: str) -> Sequence[Storage]:
        """Every extent that has the object. ObjectNotFoundError when there is none."""
        found = [extent.storage for extent in self.extents if holds(extent.storage, name)]
        if not found:
            raise self._nowhere(name)
        return found

    # ---- inside ----------------------------------------------------------------------------------

    def _active(self) -> Sequence[Extent]:
        active = [extent for extent in self.extents if extent.is_active]
        if not active:
            raise StorageFullError(
                f"no extent of {self.location} accepts new data; activate one or add another"
            )
        return active

    def refuse_taken(self, name: str) -> None:
        for extent in self.extents:
            if holds(extent.storage, name):
                raise ObjectExistsError(f"{name} exists already in extent {extent.name!r}")

    def _home(self, name: str) -> Extent:
        """Where a pack is, or else where it would go."""
        for extent in self._in_order(name):
            if holds(extent.storage, name):
                return extent
        return self.roomiest()

    def roomiest(self) -> Extent:
        """Where the next pack goes."""
        active = self._active()
        if len(active) == 1:
            return active[0]
        return max(active, key=self._free_bytes)

    def _free_bytes(self, extent: Extent) -> int:
        if self._clock() - extent.known_at_s > SPACE_AGE_S:
            self._note_space(extent, extent.storage.space().free_bytes)
        return extent.free_bytes

    def _note_space(self, extent: Extent, free_bytes: int) -> None:
        with self._lock:
            extent.free_bytes, extent.known_at_s = free_bytes, self._clock()

    def _found(self, name: str, call: Callable[[Storage], T]) -> T:
        checked_name(name)
        for extent in self._in_order(name):
            try:
                answer = call(extent.storage)
            except ObjectNotFoundError:
                continue
            if is_pack(name):
                with self._lock:
                    self._remember(name, extent)
            return answer
        raise self._nowhere(name)

    def _nowhere(self, name: str) -> PermanentPipelineError:
        if self.offline and is_pack(name):
            return ExtentOfflineError(
                f"{name} is in no extent that is online; it may be in {_named(self.offline)}, which is in "
                "maintenance: activate it first"
            )
        return ObjectNotFoundError(f"no {name} in any extent of {self.location}")

    def _in_order(self, name: str) -> Sequence[Extent]:
        """All extents, the one where the object was last seen first."""
        with self._lock:
            known = self._places.get(name)
        if known is None:
            return list(self.extents)
        return [known, *(extent for extent in self.extents if extent is not known)]

    def _remember(self, name: str, extent: Extent) -> None:
        self._places[name] = extent
        self._places.move_to_end(name)
        if len(self._places) > REMEMBERED_PLACES:
            self._places.popitem(last=False)


def is_pack(name: str) -> bool:
    """Whether an object lies in one extent only."""
    return name.startswith(PACKS)


def _merged(listings: Sequence[Iterator[StoredObject]]) -> Iterator[StoredObject]:
    """Ascending by name, each name once: as the first extent tells it that has it."""
    merged = heapq.merge(*listings, key=lambda entry: entry.name)
    for _, same in groupby(merged, key=lambda entry: entry.name):
        yield next(same)


def _named(names: Sequence[str]) -> str:
    return ("extent " if len(names) == 1 else "one of the extents ") + ", ".join(map(repr, names))


def holds(storage: Storage, name: str) -> bool:
    try:
        storage.size_bytes(name)
    except ObjectNotFoundError:
        return False
    return True


def copy_small(source: Storage, target: Storage, name: str) -> None:
    """Give `target` the object as `source` has it; nothing when it was deleted meanwhile."""
    is_replaced = name.startswith(REPLACED)
    if not is_replaced and holds(target, name):
        return
    try:
        data = source.read(name)
    except ObjectNotFoundError:
        return
    if not is_replaced or not holds(target, name) or target.read(name) != data:
        target.replace(name, data)


class _PackWriter:
    """A pack on its way into one extent."""

    def __init__(
        self, storage: ScaleOutStorage, extent: Extent, name: str, inner: ObjectWriter
    ) -> None:
        self._storage = storage
        self._extent = extent
        self._name = name
        self._inner = inner
        self._written_bytes = 0

    def write(self, parts: Sequence[Buffer]) -> None:
        with self._explained():
            self._inner.write(parts)
        self._written_bytes += sum(map(len, parts))

    def commit(self) -> None:
        self._storage.refuse_taken(self._name)
        with self._explained():
            self._inner.commit()
        self._storage.placed(self._name, self._extent, self._written_bytes)

    def abort(self) -> None:
        self._inner.abort()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except StorageFullError as error:
            passing = self._storage.is_full(self._extent, error)
            if passing is None:
                raise
            raise passing from error


class _ScaleOutRetention:
    """Every extent that has an object keeps it."""

    def __init__(self, storage: ScaleOutStorage) -> None:
        self._storage = storage

    def keep(self, name: str, until_s: float) -> None:
        for holder in self._storage.holders(checked_name(name)):
            _retention_of(holder).keep(name, until_s)

    def kept_until_s(self, name: str) -> float:
        """The shortest, where several have it."""
        holders = self._storage.holders(checked_name(name))
        return min(_retention_of(holder).kept_until_s(name) for holder in holders)


def _retention_of(storage: Storage) -> Retention:
    if storage.retention is None:
        raise StoragePermissionError(
            f"extent {storage.location} cannot keep objects; it has no retention"
        )
    return storage.retention
