"""Disk maps: trees of map nodes, section 7 of the format.

Reading asks for a function that loads a node by its id; building for one that stores a node. Neither
holds more of a map in memory than one path from the root to a block.
"""

from __future__ import annotations

import base64
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from pipeline.errors import IntegrityError
from pipeline.repository.format import (
    BLOB_ID_BYTES,
    MAP_NODE,
    NODE_BYTES_MAX,
    NODE_ENTRIES,
    NODE_ENTRIES_BITS,
    NODE_MAGIC,
    ZERO_ID,
)

LoadNode = Callable[[bytes], bytes]
"""Content of a map node by its id; raises IntegrityError when it is missing or damaged."""
StoreNode = Callable[[bytes], bytes]
"""Takes the content of a map node, returns its id."""

_EMPTY_ENTRIES: Final = bytes(NODE_BYTES_MAX)


def level_for(block_count: int) -> int:
    """Level of the root for a disk of so many blocks."""
    level = 0
    while block_count > 1 << (NODE_ENTRIES_BITS * (level + 1)):
        level += 1
    return level


def block_count_of(capacity_bytes: int, block_size_bytes: int) -> int:
    return -(-capacity_bytes // block_size_bytes)


def encode_node(level: int, entries: bytes | bytearray) -> bytes:
    """Content of a node. `entries` are ids back to back; empty ones at the end are left out. There must
    be one that is not.
    """
    count = len(entries) // BLOB_ID_BYTES
    while entries[(count - 1) * BLOB_ID_BYTES : count * BLOB_ID_BYTES] == ZERO_ID:
        count -= 1
    if not 1 <= count <= NODE_ENTRIES:
        raise ValueError(f"a map node of {count} entries")
    return MAP_NODE.pack(NODE_MAGIC, level, 0, count) + bytes(entries[: count * BLOB_ID_BYTES])


def decode_node(content: bytes, level: int) -> bytes:
    """Ids of a node, back to back. Raises IntegrityError when it is none of that level."""
    if len(content) < MAP_NODE.size:
        raise IntegrityError("a map node is too short; run a check of the repository")
    magic, its_level, reserved, count = MAP_NODE.unpack_from(content)
    entries = content[MAP_NODE.size :]
    if (
        magic != NODE_MAGIC
        or its_level != level
        or reserved
        or not 1 <= count <= NODE_ENTRIES
        or len(entries) != count * BLOB_ID_BYTES
        or entries[-BLOB_ID_BYTES:] == ZERO_ID
    ):
        raise IntegrityError(
            f"a map node of level {level} is not one; the disk's capacity or map root is wrong"
        )
    return entries


@dataclass(frozen=True, slots=True)
class MapEntry:
    """One id in a map, with the range of blocks that it stands for."""

    level: int
    """-1: a block; else the level of the node."""
    first_block: int
    blob_id: bytes


def ids_of(entries: bytes) -> Iterator[tuple[int, bytes]]:
    """Position and id of each entry that is not the zero id."""
    for position in range(len(entries) // BLOB_ID_BYTES):
        blob_id = entries[position * BLOB_ID_BYTES : (position + 1) * BLOB_ID_BYTES]
        if blob_id != ZERO_ID:
            yield position, blob_id


def walk(
    load_node: LoadNode,
    root: bytes,
    block_count: int,
    *,
    enter: Callable[[MapEntry], bool] = lambda _entry: True,
) -> Iterator[MapEntry]:
    """Every id that the map reaches, each node before what is below it, blocks ascending.

    `enter` is asked before a node is loaded and yielded; False leaves its whole subtree out. It may
    raise.
    """
    if root == ZERO_ID:
        return
    top = MapEntry(level_for(block_count), 0, root)
    if not enter(top):
        return
    yield top
    stack = [(top, ids_of(decode_node(load_node(root), top.level)))]
    while stack:
        node, remaining = stack[-1]
        following = next(remaining, None)
        if following is None:
            stack.pop()
            continue
        position, blob_id = following
        first_block = node.first_block + (position << (NODE_ENTRIES_BITS * node.level))
        entry = MapEntry(node.level - 1, first_block, blob_id)
        if first_block >= block_count:
            raise IntegrityError("a disk map reaches beyond the disk; its capacity or root is wrong")
        if entry.level < 0:
            yield entry
        elif enter(entry):
            yield entry
            stack.append((entry, ids_of(decode_node(load_node(blob_id), entry.level))))


def blocks(load_node: LoadNode, root: bytes, block_count: int) -> Iterator[tuple[int, bytes]]:
    """Number and id of every block that is not zeros, ascending."""
    for entry in walk(load_node, root, block_count):
        if entry.level < 0:
            yield entry.first_block, entry.blob_id


def differing_blocks(
    load_node: LoadNode, old: bytes, new: bytes, level: int, first_block: int = 0
) -> Iterator[tuple[int, bytes]]:
    """Number and new id (the zero id too) of every block that differs between two maps of one height,
    ascending. Subtrees with the same id are the same and are not loaded.
    """
    if old == new:
        return
    if level < 0:
        yield first_block, new
        return
    before, after = (
        decode_node(load_node(node), level) if node != ZERO_ID else b"" for node in (old, new)
    )
    for position in range(max(len(before), len(after)) // BLOB_ID_BYTES):
        at = position * BLOB_ID_BYTES
        yield from differing_blocks(
            load_node,
            before[at : at + BLOB_ID_BYTES] or ZERO_ID,
            after[at : at + BLOB_ID_BYTES] or ZERO_ID,
            level - 1,
            first_block + (position << (NODE_ENTRIES_BITS * level)),
        )


class MapLookup:
    """Single blocks of a map. May be used by several threads; quick for blocks that come in some order."""

    def __init__(self, load_node: LoadNode, root: bytes, block_count: int) -> None:
        self._load_node = load_node
        self._root = root
        self._top_level = level_for(block_count)
        self._lock = threading.Lock()
        self._leaf_number = -1
        self._leaf = b""

    def find(self, block: int) -> bytes:
        """Id of a block; the zero id for zeros. Raises IntegrityError."""
        number = _node_number(block, 0)
        with self._lock:
            if number != self._leaf_number:
                self._leaf = self._load_leaf(block)
                self._leaf_number = number
            return _entry_of(self._leaf, block)

    def _load_leaf(self, block: int) -> bytes:
        node_id = self._root
        for level in range(self._top_level, -1, -1):
            if node_id == ZERO_ID:
                return b""
            entries = decode_node(self._load_node(node_id), level)
            if level == 0:
                return entries
            node_id = _entry_of(entries, _node_number(block, level - 1))
        return b""


def _entry_of(entries: bytes, number: int) -> bytes:
    """The entry of a block or node in the node above it."""
    at = (number % NODE_ENTRIES) * BLOB_ID_BYTES
    return entries[at : at + BLOB_ID_BYTES] or ZERO_ID


@dataclass(slots=True)
class _OpenNode:
    """A node on the path from the root to where the builder is."""

    level: int
    number: int
    """Which node of its level, from 0."""
    base_id: bytes
    entries: bytearray
    """Always NODE_ENTRIES ids while it is open."""
    changed: bool = False


class MapBuilder:
    """Builds a map out of an earlier one, given changed blocks in ascending order.

    Nodes without a change keep their id and are not even loaded, so a build costs in proportion to what
    changed. `state()` between two set() calls can be stored; a builder made from it goes on.
    """

    def __init__(
        self, *, base_root: bytes, block_count: int, load_node: LoadNode, store_node: StoreNode
    ) -> None:
        self._block_count = block_count
        self._load_node = load_node
        self._store_node = store_node
        self._base_root = base_root
        self._top_level = level_for(block_count)
        self._path: list[_OpenNode] = []
        self._next_block = 0

    def set(self, block: int, blob_id: bytes) -> None:
        """This block now has this content. Blocks MUST come in ascending order."""
        if not self._next_block <= block < self._block_count:
            raise ValueError(f"block {block} is not after the one before, or outside of the disk")
        self._next_block = block + 1
        leaf = self._leaf_of(block)
        at = (block % NODE_ENTRIES) * BLOB_ID_BYTES
        if leaf.entries[at : at + BLOB_ID_BYTES] != blob_id:
            leaf.entries[at : at + BLOB_ID_BYTES] = blob_id
            leaf.changed = True

    def set_zeros(self, first_block: int, end_block: int) -> None:
        """These blocks, [first, end), are zeros now."""
        if first_block >= end_block:
            return
        if not (self._next_block <= first_block and end_block <= self._block_count):
            raise ValueError(f"blocks {first_block} to {end_block} are not after those before")
        if self._base_root == ZERO_ID and not self._path:
            self._next_block = end_block
            return
        block = first_block
        while block < end_block:
            leaf = self._leaf_of(block)
            end = min(end_block, (leaf.number + 1) * NODE_ENTRIES)
            start_at = (block % NODE_ENTRIES) * BLOB_ID_BYTES
            end_at = start_at + (end - block) * BLOB_ID_BYTES
            zeros = bytes(end_at - start_at)
            if leaf.entries[start_at:end_at] != zeros:
                leaf.entries[start_at:end_at] = zeros
                leaf.changed = True
            block = end
        self._next_block = end_block

    def finish(self) -> bytes:
        """Close every node and return the root. The builder is used up."""
        root = self._base_root
        while self._path:
            root = self._close_lowest()
        return root

    def state(self) -> list[dict[str, Any]]:
        """The open nodes from the top, as JSON values. Closed ones have been stored."""
        return [
            {
                "level": node.level,
                "number": node.number,
                "base": node.base_id.hex(),
                "changed": node.changed,
                "entries": base64.b64encode(node.entries).decode(),
            }
            for node in self._path
        ]

    def go_on(self, state: list[dict[str, Any]], next_block: int) -> None:
        """Take over a stored state; all blocks before `next_block` are in it. Raises IntegrityError for
        one of a disk of another size.
        """
        if next_block > self._block_count or (state and state[0]["level"] != self._top_level):
            raise IntegrityError("the state of a map is one of another disk")
        self._path = [
            _OpenNode(
                level=node["level"],
                number=node["number"],
                base_id=bytes.fromhex(node["base"]),
                entries=bytearray(base64.b64decode(node["entries"], validate=True)),
                changed=node["changed"],
            )
            for node in state
        ]
        self._next_block = next_block

    def _leaf_of(self, block: int) -> _OpenNode:
        """The open level 0 node of a block; opens and closes what lies between."""
        while self._path and self._path[-1].number != _node_number(block, self._path[-1].level):
            self._close_lowest()
        if not self._path:
            self._open(self._top_level, 0, self._base_root)
        while self._path[-1].level > 0:
            parent = self._path[-1]
            level = parent.level - 1
            number = _node_number(block, level)
            at = (number % NODE_ENTRIES) * BLOB_ID_BYTES
            self._open(level, number, bytes(parent.entries[at : at + BLOB_ID_BYTES]))
        return self._path[-1]

    def _open(self, level: int, number: int, base_id: bytes) -> None:
        entries = bytearray(_EMPTY_ENTRIES)
        if base_id != ZERO_ID:
            known = decode_node(self._load_node(base_id), level)
            entries[: len(known)] = known
        self._path.append(_OpenNode(level, number, base_id, entries))

    def _close_lowest(self) -> bytes:
        node = self._path.pop()
        node_id = node.base_id
        if node.changed:
            is_empty = node.entries == _EMPTY_ENTRIES
            node_id = ZERO_ID if is_empty else self._store_node(encode_node(node.level, node.entries))
        if self._path:
            parent = self._path[-1]
            at = (node.number % NODE_ENTRIES) * BLOB_ID_BYTES
            if parent.entries[at : at + BLOB_ID_BYTES] != node_id:
                parent.entries[at : at + BLOB_ID_BYTES] = node_id
                parent.changed = True
        return node_id


def _node_number(block: int, level: int) -> int:
    return block >> (NODE_ENTRIES_BITS * (level + 1))


def open_node_ids(state: list[dict[str, Any]]) -> Iterator[tuple[int, bytes]]:
    """Level of the child (-1: a block) and its id, for everything that the open nodes of a stored state
    name.
    """
    for node in state:
        for _, blob_id in ids_of(base64.b64decode(node["entries"], validate=True)):
            yield int(node["level"]) - 1, blob_id
