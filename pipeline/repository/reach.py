"""What restore points and work records reach, and whether it is all there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from pipeline.model import DiskPoint
from pipeline.repository.format import MAX_PATCH_DEPTH, NODE_ENTRIES_BITS, ZERO_ID
from pipeline.repository.index import Index
from pipeline.repository.maps import (
    LoadNode,
    MapEntry,
    block_count_of,
    decode_node,
    ids_of,
    level_for,
    open_node_ids,
    walk,
)
from pipeline.repository.work import WorkRecord


class IdCollection(Protocol):
    """What marking needs of a set of ids."""

    def add(self, blob_id: bytes, /) -> bool:
        """True when it was new."""


def id_at(load_node: LoadNode, root: bytes, block_count: int, *, level: int, first_block: int) -> bytes:
    """The id that a map has at one place of its tree; the zero id where it has nothing."""
    if block_count == 0 or level > level_for(block_count):
        return ZERO_ID
    node = root
    for above in range(level_for(block_count), level, -1):
        if node == ZERO_ID:
            return ZERO_ID
        position = (first_block >> (NODE_ENTRIES_BITS * above)) & ((1 << NODE_ENTRIES_BITS) - 1)
        entries = decode_node(load_node(node), above)
        node = entries[position * 32 : position * 32 + 32] or ZERO_ID
    return node


def missing_blobs(
    disk: DiskPoint,
    block_size_bytes: int,
    index: Index,
    load_node: LoadNode,
    known_roots: list[tuple[bytes, int]],
    packs: set[bytes],
) -> Iterator[bytes]:
    """Ids that the disk's map reaches and the index lacks; packs that it needs are added to `packs`.

    What is at the same place in a map of `known_roots` (root, number of blocks) needs no look. Nodes that
    are missing end the walk below them.
    """
    block_count = block_count_of(disk.capacity_bytes, block_size_bytes)
    missing: list[bytes] = []

    def is_new(entry: MapEntry) -> bool:
        for root, blocks in known_roots:
            if level_for(blocks) == level_for(block_count) and entry.blob_id == id_at(
                load_node, root, blocks, level=entry.level, first_block=entry.first_block
            ):
                return False
        return note(entry.blob_id)

    def note(blob_id: bytes, depth: int = 0) -> bool:
        location = index.find(blob_id)
        if location is None:
            missing.append(blob_id)
            return False
        packs.add(location.pack_id)
        # Of a patch the base is needed as well; it is no part of the map, so nobody else asks for it.
        if location.base_id and depth < MAX_PATCH_DEPTH:
            note(location.base_id, depth + 1)
        return True

    root = bytes.fromhex(disk.map_root)
    for entry in walk(load_node, root, block_count, enter=is_new):
        if entry.level < 0:
            note(entry.blob_id)
        yield from missing
        missing.clear()
    yield from missing


def mark_map(load_node: LoadNode, root: bytes, block_count: int, live: IdCollection) -> None:
    """Add everything that a map reaches. A subtree that is in the set already is not walked again:
    whoever added its node added what is below it.
    """
    for entry in walk(load_node, root, block_count, enter=lambda entry: live.add(entry.blob_id)):
        if entry.level < 0:
            live.add(entry.blob_id)


def mark_work(
    load_node: LoadNode, record: WorkRecord, block_size_bytes: int, live: IdCollection
) -> None:
    """Add everything that a work record reaches: its final map, or its open nodes and their base."""
    block_count = block_count_of(record.capacity_bytes, block_size_bytes)
    for root in (record.map_root, record.base_root):
        if root:
            mark_map(load_node, bytes.fromhex(root), block_count, live)
    for level, blob_id in open_node_ids(record.nodes):
        if level < 0:
            live.add(blob_id)
        elif live.add(blob_id):
            mark_subtree(load_node, blob_id, level, live)


def mark_subtree(load_node: LoadNode, node: bytes, level: int, live: IdCollection) -> None:
    """As mark_map, below a node that was added already."""
    for _, blob_id in ids_of(decode_node(load_node(node), level)):
        if live.add(blob_id) and level > 0:
            mark_subtree(load_node, blob_id, level - 1, live)
