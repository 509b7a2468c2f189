"""What a block of an increment may be a patch of: the block that was in its place before."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Final

from pipeline.errors import IntegrityError
from pipeline.planning import BackupPlan
from pipeline.repository.format import ZERO_ID
from pipeline.repository.index import Index, Location
from pipeline.repository.maps import MapLookup
from pipeline.repository.reader import BlobReader, Wanted, plan_reads
from pipeline.stages.flow import Flow
from pipeline.storage.base import Buffer

AHEAD_BYTES: Final = 8 << 20
"""Stored bytes of bases that wait for their blocks: hides the way to a distant storage."""
AHEAD_BLOCKS: Final = 64
"""Blocks whose bases are looked up and fetched together."""


@dataclass(frozen=True, slots=True)
class Base:
    """A stored block with its content."""

    blob_id: bytes
    content: Buffer
    stored_length: int


@dataclass(frozen=True, slots=True)
class _Stored:
    wanted: Wanted
    stored: memoryview


class Bases:
    """Bases of one disk. load() and pass_over() may be used by several threads.

    A base is never a patch: where the predecessor is one, its own base is taken. A base that cannot be
    read is no error here: the new block is stored whole, and a check tells of the damage.

    One thread reads ahead. Nobody waits for it but for a read that is under way: a block that comes before
    its base was read has its thread read it.
    """

    def __init__(
        self, *, flow: Flow, reader: BlobReader, index: Index, plan: BackupPlan, first_block: int
    ) -> None:
        self._flow = flow
        self._reader = reader
        self._index = index
        self._plan = plan
        self._first_block = first_block
        self._map = MapLookup(reader.load_node, bytes.fromhex(plan.base_root), plan.block_count)
        self._changed = threading.Condition()
        """Guards all below."""
        self._ready: dict[int, _Stored] = {}
        self._ready_bytes = 0
        self._under_way: frozenset[int] = frozenset()
        self._early: set[int] = set()
        """Blocks that came before reading ahead came to them."""
        self._passed = first_block - 1
        """Reading ahead is done with all blocks up to this one."""
        self._is_over = False
        flow.wake_on_failure(self._changed)

    def load(self, block: int, blob_id: bytes) -> Base | None:
        """The base for a block that is to be stored; None where there is none. Raises storage errors."""
        found = self._taken(block)
        if blob_id in self._index:
            return None  # as a patch that lost its base: another patch would not be preferred to it
        try:
            if found is not None:
                content = self._reader.decode_stored(found.wanted, found.stored)
                return Base(found.wanted.blob_id, content, found.wanted.location.length)
            wanted = self._find(block)
            if wanted is None:
                return None
            content = self._reader.load_block(wanted.blob_id)
            return Base(wanted.blob_id, content, wanted.location.length)
        except IntegrityError:
            return None

    def pass_over(self, block: int) -> None:
        """This block needs no base."""
        self._taken(block)

    def end(self) -> None:
        """Nobody will ask any more."""
        with self._changed:
            self._is_over = True
            self._changed.notify_all()

    def run(self) -> None:
        """The reading thread; ends after end(), or when everything was read."""
        blocks = self._planned()
        while window := list(islice(blocks, AHEAD_BLOCKS)):
            places: dict[bytes, list[int]] = {}
            wanted = []
            for block in window:
                found = None if self._came_early(block) else self._found(block)
                if found is not None:
                    if found.blob_id not in places:
                        wanted.append(found)
                    places.setdefault(found.blob_id, []).append(block)
            for run in plan_reads(wanted):
                blocks_of_run = frozenset(
                    block for each in run.wanted for block in places[each.blob_id]
                )
                if not self._begin(blocks_of_run):
                    return
                stored: dict[int, _Stored] = {}
                try:
                    data = self._reader.fetch_run(run)
                    for each in run.wanted:
                        start = each.location.offset - run.offset
                        part = data[start : start + each.location.length]
                        stored.update((block, _Stored(each, part)) for block in places[each.blob_id])
                except IntegrityError:
                    stored.clear()  # who needs one of them looks for another place, or does without
                finally:
                    self._ended(stored)
            self._pass(window[-1])

    def _planned(self) -> Iterator[int]:
        for first, end in self._plan.read:
            yield from range(max(first, self._first_block), end)

    def _came_early(self, block: int) -> bool:
        with self._changed:
            came = block in self._early
            self._early.discard(block)
            return came

    def _pass(self, block: int) -> None:
        with self._changed:
            self._passed = block
            self._early = {each for each in self._early if each > block}

    def _begin(self, blocks: frozenset[int]) -> bool:
        """Wait for room; False when nobody asks any more."""
        with self._changed:
            while self._ready_bytes >= AHEAD_BYTES and not self._is_over:
                self._flow.raise_if_stopped()
                self._changed.wait()
            self._flow.raise_if_stopped()
            self._under_way = blocks
            return not self._is_over

    def _ended(self, stored: dict[int, _Stored]) -> None:
        with self._changed:
            self._under_way = frozenset()
            for block, each in stored.items():
                if block in self._early:
                    self._early.discard(block)
                else:
                    self._ready[block] = each
                    self._ready_bytes += each.wanted.location.length
            self._changed.notify_all()

    def _taken(self, block: int) -> _Stored | None:
        """What was read ahead for a block; it is forgotten."""
        with self._changed:
            while block in self._under_way:
                self._flow.raise_if_stopped()
                self._changed.wait()
            found = self._ready.pop(block, None)
            if found is None:
                if block > self._passed:
                    self._early.add(block)
            else:
                self._ready_bytes -= found.wanted.location.length
                self._changed.notify_all()
            return found

    def _found(self, block: int) -> Wanted | None:
        try:
            return self._find(block)
        except IntegrityError:
            return None

    def _find(self, block: int) -> Wanted | None:
        """Id and place of the base."""
        blob_id = self._map.find(block)
        location: Location | None = None if blob_id == ZERO_ID else self._index.find(blob_id)
        if location is not None and location.base_id:
            blob_id = location.base_id
            location = self._index.find(blob_id)
        if location is None or location.base_id:
            return None
        return Wanted(blob_id, location)
