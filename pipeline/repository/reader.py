"""Blobs out of packs."""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from pipeline.crypto.aead import Aead
from pipeline.crypto.keyring import Keyring
from pipeline.errors import IntegrityError, ObjectNotFoundError
from pipeline.repository import layout
from pipeline.repository.blobs import BlobCodec
from pipeline.repository.format import MAX_PATCH_DEPTH, BlobKind
from pipeline.repository.index import Index, Location
from pipeline.storage.base import Buffer, Storage

NODE_CACHE_ENTRIES: Final = 64  # 64 * 32 KiB = 2 MiB
COALESCE_GAP_BYTES: Final = 256 << 10
"""Reading so much for nothing is cheaper than another request."""
COALESCED_READ_BYTES: Final = 4 << 20
BASE_CACHE_BYTES: Final = 8 << 20
"""Of decoded blocks that patches were made of, for blocks that are loaded one at a time."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """One blob to fetch."""

    blob_id: bytes
    location: Location


@dataclass(frozen=True, slots=True)
class ReadRun:
    """Blobs of one pack that are fetched with one read, in order of offsets."""

    pack_id: bytes
    offset: int
    length: int
    wanted: tuple[Wanted, ...]


@dataclass(frozen=True, slots=True)
class Batch:
    """Blocks that are fetched and decoded together: those of one read; or patches and their bases."""

    wanted: tuple[Wanted, ...]
    """In the order in which they are best decoded."""
    runs: tuple[ReadRun, ...]

    @property
    def read_bytes(self) -> int:
        return sum(run.length for run in self.runs)


@dataclass(slots=True)
class Fetched:
    """The stored bytes of a batch. Used by one thread."""

    stored: dict[bytes, memoryview | IntegrityError]
    """The error is why there are none."""
    base_id: bytes = b""
    base: Buffer = b""
    """Of the last patch: the next one often has the same."""


class BlobReader:
    """Fetches and verifies blobs. May be used by several threads."""

    def __init__(
        self,
        storage: Storage,
        keyring: Keyring,
        index: Index,
        refresh: Callable[[], object] | None = None,
    ) -> None:
        """`refresh` brings `index` up to date. It is called when a pack is gone: what is read for long outlives
        packs whose blobs prune moved.
        """
        self._storage = storage
        self._keyring = keyring
        self._index = index
        self._refresh = refresh
        self._gone: set[bytes] = set()
        """Packs that the index was read again for."""
        self._codecs = threading.local()
        self._cache_lock = threading.Lock()
        self._nodes: OrderedDict[bytes, bytes] = OrderedDict()
        self._bases: OrderedDict[bytes, Buffer] = OrderedDict()
        self._bases_bytes = 0

    def locate(self, blob_id: bytes) -> Location:
        """Raises IntegrityError when the index does not know the blob."""
        location = self._index.find(blob_id)
        if location is None:
            raise IntegrityError(
                f"blob {blob_id.hex()} is missing from the index of {self._storage.location}; run a check"
            )
        return location

    def load_block(self, blob_id: bytes) -> Buffer:
        return self._load(BlobKind.BLOCK, blob_id)

    def load_node(self, blob_id: bytes) -> bytes:
        """Content of a map node; recently used ones come from memory."""
        with self._cache_lock:
            known = self._nodes.get(blob_id)
            if known is not None:
                self._nodes.move_to_end(blob_id)
                return known
        content = bytes(self._load(BlobKind.NODE, blob_id))
        with self._cache_lock:
            self._nodes[blob_id] = content
            while len(self._nodes) > NODE_CACHE_ENTRIES:
                self._nodes.popitem(last=False)
        return content

    def fetch_run(self, run: ReadRun) -> memoryview:
        """The stored bytes of a run, in one read."""
        return memoryview(self._read(run.pack_id, run.offset, run.length))

    def decode_from(self, run: ReadRun, data: memoryview, wanted: Wanted) -> Buffer:
        """Content of one block of a run that was fetched. Raises IntegrityError when it is damaged."""
        start = wanted.location.offset - run.offset
        stored = data[start : start + wanted.location.length]
        return self._decoded(BlobKind.BLOCK, wanted.blob_id, stored, 0)

    def plan(self, blob_ids: Iterable[bytes], max_bytes: int = COALESCED_READ_BYTES) -> list[Batch]:
        """How blocks are best fetched: in few large reads, patches together with their bases. A batch
        takes some `max_bytes` of memory. Raises IntegrityError for what the index does not know.
        """
        whole: list[Wanted] = []
        patches: list[tuple[Wanted, Wanted]] = []
        for blob_id in blob_ids:
            wanted = Wanted(blob_id, self.locate(blob_id))
            base_id = wanted.location.base_id
            if base_id:
                with naming_base(blob_id):
                    patches.append((Wanted(base_id, self.locate(base_id)), wanted))
            else:
                whole.append(wanted)
        batches = [Batch(run.wanted, (run,)) for run in plan_reads(whole, max_bytes)]
        batches.extend(_plan_patches(patches, max_bytes))
        return batches

    def fetch(self, batch: Batch) -> Fetched:
        """The stored bytes of a batch."""
        stored: dict[bytes, memoryview | IntegrityError] = {}
        for run in batch.runs:
            try:
                data = self.fetch_run(run)
            except IntegrityError as error:
                stored.update((wanted.blob_id, error) for wanted in run.wanted)
                continue
            for wanted in run.wanted:
                start = wanted.location.offset - run.offset
                stored[wanted.blob_id] = data[start : start + wanted.location.length]
        return Fetched(stored)

    def decode(self, fetched: Fetched, wanted: Wanted, out: memoryview) -> memoryview:
        """Content of one block of a batch that was fetched, in the beginning of `out`. A place that is
        damaged is passed over where the repository has another. Raises IntegrityError.
        """
        try:
            return self._decode_fetched(fetched, wanted, out)
        except IntegrityError as error:
            others = self._other_places(wanted)
            if not others:
                raise
            content = self._load_from(BlobKind.BLOCK, wanted.blob_id, others, 0, error)
            out[: len(content)] = content
            return out[: len(content)]

    def decode_stored(self, wanted: Wanted, stored: memoryview) -> Buffer:
        """Content of one block whose stored bytes were fetched; from another place where they are damaged.
        Raises IntegrityError.
        """
        try:
            return self._decoded(BlobKind.BLOCK, wanted.blob_id, stored, 0)
        except IntegrityError as error:
            others = self._other_places(wanted)
            return self._load_from(BlobKind.BLOCK, wanted.blob_id, others, 0, error)

    def _decode_fetched(self, fetched: Fetched, wanted: Wanted, out: memoryview) -> memoryview:

        def load_base(base_id: bytes) -> Buffer:
            if base_id != fetched.base_id:
                stored = fetched.stored.get(base_id)
                with naming_base(wanted.blob_id):
                    fetched.base = self._base_of(base_id, stored)
                fetched.base_id = base_id
            return fetched.base

        stored = fetched.stored[wanted.blob_id]
        if isinstance(stored, IntegrityError):
            raise stored
        return self._codec().decode_into(BlobKind.BLOCK, wanted.blob_id, stored, out, load_base)

    def load_base(self, base_id: bytes) -> Buffer:
        """Content of a block that a patch is a patch of; those used last come from memory."""
        return self._load_base(base_id, 1)

    def _base_of(self, base_id: bytes, stored: memoryview | IntegrityError | None) -> Buffer:
        """Content of a base that was fetched with its patch, or has to be read elsewhere."""
        if isinstance(stored, memoryview):
            with contextlib.suppress(IntegrityError):
                return self._decoded(BlobKind.BLOCK, base_id, stored, 1)
        return self._load_base(base_id, 1)

    def _other_places(self, wanted: Wanted) -> list[Location]:
        return [place for place in self._index.find_all(wanted.blob_id) if place != wanted.location]

    def _load(self, kind: BlobKind, blob_id: bytes, depth: int = 0) -> Buffer:
        places = [self.locate(blob_id)]
        places += self._other_places(Wanted(blob_id, places[0]))
        return self._load_from(kind, blob_id, places, depth, None)

    def _load_from(
        self,
        kind: BlobKind,
        blob_id: bytes,
        places: list[Location],
        depth: int,
        first_error: IntegrityError | None,
    ) -> Buffer:
        """From the first place that is sound; else the first error counts."""
        for place in self._each_place(blob_id, places):
            try:
                stored = self._read(place.pack_id, place.offset, place.length)
                return self._decoded(kind, blob_id, stored, depth)
            except IntegrityError as error:
                first_error = first_error or error
        raise first_error or IntegrityError(f"blob {blob_id.hex()} is nowhere; run a check")

    def _each_place(self, blob_id: bytes, places: list[Location]) -> Iterator[Location]:
        """These, then those that the index has besides, now that it was perhaps read again."""
        yield from places
        yield from (place for place in self._index.find_all(blob_id) if place not in places)

    def _decoded(self, kind: BlobKind, blob_id: bytes, stored: Buffer, depth: int) -> Buffer:
        """`depth`: how many patches lie between this blob and the one that was asked for."""

        def load_base(base_id: bytes) -> Buffer:
            with naming_base(blob_id):
                return self._load_base(base_id, depth + 1)

        return self._codec().decode(kind, blob_id, stored, load_base)

    def _load_base(self, base_id: bytes, depth: int) -> Buffer:
        if depth > MAX_PATCH_DEPTH:
            raise IntegrityError(f"more than {MAX_PATCH_DEPTH} patches build on one another")
        with self._cache_lock:
            known = self._bases.get(base_id)
            if known is not None:
                self._bases.move_to_end(base_id)
                return known
        content = self._load(BlobKind.BLOCK, base_id, depth)
        with self._cache_lock:
            if base_id not in self._bases:
                self._bases[base_id] = content
                self._bases_bytes += len(content)
            while self._bases_bytes > BASE_CACHE_BYTES:
                self._bases_bytes -= len(self._bases.popitem(last=False)[1])
        return content

    def _read(self, pack_id: bytes, offset: int, length: int) -> bytes:
        name = layout.pack_name(pack_id)
        try:
            return self._storage.read_range(name, offset, length)
        except ObjectNotFoundError as error:
            self._look_again(pack_id)
            raise IntegrityError(
                f"{name} is missing from {self._storage.location}; bring it back from a copy and run a check"
            ) from error

    def _look_again(self, pack_id: bytes) -> None:
        """Bring the index up to date, once for each pack that is gone."""
        with self._cache_lock:
            is_new = pack_id not in self._gone
            self._gone.add(pack_id)
        if is_new and self._refresh is not None:
            with contextlib.suppress(IntegrityError):  # then the pack that is gone is what counts
                self._refresh()

    def _codec(self) -> BlobCodec:
        codec: BlobCodec | None = getattr(self._codecs, "codec", None)
        if codec is None:
            # The algorithm is for writing only; what is read says itself what it uses.
            codec = self._codecs.codec = BlobCodec(self._keyring, Aead.XCHACHA20_POLY1305)
        return codec


@contextlib.contextmanager
def naming_base(blob_id: bytes) -> Iterator[None]:
    """An error with the base of a patch names the patch too."""
    try:
        yield
    except IntegrityError as error:
        raise IntegrityError(
            f"blob {blob_id.hex()} is a patch of a block that cannot be read: {error}"
        ) from error


def _plan_patches(patches: list[tuple[Wanted, Wanted]], max_bytes: int) -> Iterator[Batch]:
    """Bases lie in the order of the disk, and so do the patches of one backup: sorted by the places of
    their bases, both are read in few pieces.
    """
    group: list[tuple[Wanted, Wanted]] = []
    size = 0
    for pair in sorted(patches, key=lambda pair: (pair[0].location.pack_id, pair[0].location.offset)):
        pair_bytes = sum(wanted.location.length for wanted in pair)
        if group and size + pair_bytes > max_bytes:
            yield _patches_together(group, max_bytes)
            group, size = [], 0
        group.append(pair)
        size += pair_bytes
    if group:
        yield _patches_together(group, max_bytes)


def _patches_together(group: list[tuple[Wanted, Wanted]], max_bytes: int) -> Batch:
    different = {wanted.blob_id: wanted for pair in group for wanted in pair}
    runs = plan_reads(list(different.values()), max_bytes)
    return Batch(tuple(patch for _, patch in group), tuple(runs))


def plan_reads(wanted: list[Wanted], max_bytes: int = COALESCED_READ_BYTES) -> list[ReadRun]:
    """Few large reads for many blobs: by pack, in order of offsets, joined over small gaps."""
    runs: list[ReadRun] = []
    group: list[Wanted] = []
    for item in sorted(wanted, key=lambda item: (item.location.pack_id, item.location.offset)):
        if group and not _fits(group, item, max_bytes):
            runs.append(_run_of(group))
            group = []
        group.append(item)
    if group:
        runs.append(_run_of(group))
    return runs


def _fits(group: list[Wanted], item: Wanted, max_bytes: int) -> bool:
    first, last = group[0].location, group[-1].location
    return (
        item.location.pack_id == first.pack_id
        and item.location.offset - (last.offset + last.length) <= COALESCE_GAP_BYTES
        and item.location.offset + item.location.length - first.offset <= max_bytes
    )


def _run_of(group: list[Wanted]) -> ReadRun:
    first, last = group[0].location, group[-1].location
    return ReadRun(first.pack_id, first.offset, last.offset + last.length - first.offset, tuple(group))
