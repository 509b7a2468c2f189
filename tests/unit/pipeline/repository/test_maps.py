from __future__ import annotations

import json
import random

import pytest
from blake3 import blake3

from pipeline.errors import IntegrityError
from pipeline.repository.format import NODE_ENTRIES, ZERO_ID
from pipeline.repository.maps import (
    MapBuilder,
    blocks,
    decode_node,
    encode_node,
    level_for,
    open_node_ids,
    walk,
)
from pipeline.repository.reach import id_at, mark_map
from pipeline.repository.table import IdSet


class Nodes:
    """A store of map nodes that counts."""

    def __init__(self) -> None:
        self.content: dict[bytes, bytes] = {}
        self.loads = 0

    def store(self, content: bytes) -> bytes:
        blob_id = blake3(content).digest()
        self.content[blob_id] = content
        return blob_id

    def load(self, blob_id: bytes) -> bytes:
        self.loads += 1
        return self.content[blob_id]

    def builder(self, base_root: bytes, block_count: int) -> MapBuilder:
        return MapBuilder(
            base_root=base_root,
            block_count=block_count,
            load_node=self.load,
            store_node=self.store,
        )

    def build(self, changes: dict[int, bytes], block_count: int, base: bytes = ZERO_ID) -> bytes:
        builder = self.builder(base, block_count)
        for block in sorted(changes):
            builder.set(block, changes[block])
        return builder.finish()


def name(number: int) -> bytes:
    return blake3(number.to_bytes(32, "big")).digest()


@pytest.mark.parametrize(
    ("count", "level"), [(0, 0), (1, 0), (1024, 0), (1025, 1), (1 << 20, 1), ((1 << 20) + 1, 2)]
)
def test_level_of_the_root(count: int, level: int) -> None:
    assert level_for(count) == level


@pytest.mark.parametrize("count", [1, 1000, 1024, 1025, 5000, 2_000_000])
def test_what_was_set_is_found(count: int) -> None:
    rng = random.Random(count)
    wanted = {rng.randrange(count): name(rng.getrandbits(60) + 1) for _ in range(200)}
    nodes = Nodes()
    root = nodes.build(wanted, count)
    assert dict(blocks(nodes.load, root, count)) == wanted
    assert [block for block, _ in blocks(nodes.load, root, count)] == sorted(wanted)
    for block in list(wanted)[:20]:
        assert id_at(nodes.load, root, count, level=-1, first_block=block) == wanted[block]


def test_an_empty_disk_has_the_zero_root_and_stores_nothing() -> None:
    nodes = Nodes()
    assert nodes.build({}, 1 << 21) == ZERO_ID
    assert nodes.build({5: ZERO_ID, 1 << 20: ZERO_ID}, 1 << 21) == ZERO_ID
    assert nodes.content == {}
    assert list(blocks(nodes.load, ZERO_ID, 1 << 21)) == []


def test_no_change_loads_and_stores_nothing() -> None:
    nodes = Nodes()
    root = nodes.build({n * 1000: name(n + 1) for n in range(2000)}, 1 << 21)
    stored = len(nodes.content)
    nodes.loads = 0
    assert nodes.build({}, 1 << 21, root) == root
    assert (nodes.loads, len(nodes.content)) == (0, stored)


def test_a_change_touches_one_path() -> None:
    nodes = Nodes()
    root = nodes.build({n * 1000: name(n + 1) for n in range(2000)}, 1 << 21)
    stored = len(nodes.content)
    nodes.loads = 0
    changed = nodes.build({1_000_001: name(77)}, 1 << 21, root)
    assert changed != root
    assert nodes.loads == 3
    assert len(nodes.content) == stored + 3
    assert nodes.build({1_000_001: ZERO_ID}, 1 << 21, changed) == root, "same content, same root"


def test_setting_the_same_again_changes_nothing() -> None:
    nodes = Nodes()
    wanted = {n: name(n + 1) for n in range(0, 5000, 7)}
    root = nodes.build(wanted, 5000)
    stored = len(nodes.content)
    assert nodes.build(wanted, 5000, root) == root
    assert len(nodes.content) == stored


@pytest.mark.parametrize("seed", range(5))
def test_a_chain_of_changes_equals_the_map_built_at_once(seed: int) -> None:
    rng = random.Random(seed)
    count = rng.choice([700, 1500, 1_100_000])
    nodes = Nodes()
    state: dict[int, bytes] = {}
    root = ZERO_ID
    for _ in range(12):
        builder = nodes.builder(root, count)
        steps: list[tuple[int, int, bytes]] = []
        at = 0
        while at < count:
            at += rng.randrange(1, max(2, count // 8))
            end = min(count, at + rng.choice([1, 1, 3, 2000]))
            if at >= end:
                break
            if end - at > 1 or rng.random() < 0.2:
                steps.append((at, end, ZERO_ID))
            else:
                steps.append((at, end, name(rng.randrange(1, 50))))
            at = end
        for first, end, blob_id in steps:
            if rng.random() < 0.2:  # a checkpoint, and another process that goes on
                saved = json.loads(json.dumps(builder.state()))
                builder = nodes.builder(root, count)
                builder.go_on(saved, first)
            if blob_id == ZERO_ID:
                builder.set_zeros(first, end)
                for block in [b for b in state if first <= b < end]:
                    del state[block]
            else:
                builder.set(first, blob_id)
                state[first] = blob_id
        root = builder.finish()
        assert dict(blocks(nodes.load, root, count)) == state
        assert root == nodes.build(state, count)


def test_order_is_demanded() -> None:
    builder = Nodes().builder(ZERO_ID, 100)
    builder.set(5, name(1))
    for call in (
        lambda: builder.set(5, name(1)),
        lambda: builder.set(100, name(1)),
        lambda: builder.set_zeros(3, 7),
        lambda: builder.set_zeros(7, 101),
    ):
        with pytest.raises(ValueError, match="block"):
            call()
    builder.set_zeros(9, 9)


def test_a_state_names_what_it_needs() -> None:
    nodes = Nodes()
    builder = nodes.builder(ZERO_ID, 5000)
    for block in range(0, 2100, 2):
        builder.set(block, name(block + 1))
    named = list(open_node_ids(builder.state()))
    assert {blob_id for level, blob_id in named if level == 0} == set(nodes.content)
    assert sum(1 for level, _ in named if level == -1) == (2100 - 2048) // 2


def test_marking_covers_the_whole_map_once() -> None:
    nodes = Nodes()
    wanted = {n: name(n + 1) for n in range(0, 3000, 3)}
    root = nodes.build(wanted, 3000)
    live = IdSet()
    mark_map(nodes.load, root, 3000, live)
    assert len(live) == len({*wanted.values(), *nodes.content})
    nodes.loads = 0
    mark_map(nodes.load, root, 3000, live)
    assert nodes.loads == 0


def test_nodes_that_are_none_are_refused() -> None:
    good = encode_node(0, name(1) + ZERO_ID + name(2) + ZERO_ID)
    assert decode_node(good, 0) == name(1) + ZERO_ID + name(2)
    too_many = good[:6] + (NODE_ENTRIES + 1).to_bytes(2, "little") + name(1) * (NODE_ENTRIES + 1)
    for content in (
        b"",
        good[:-1],
        good + b"\0",
        b"X" + good[1:],
        good[:5] + b"\1" + good[6:],
        good[:6] + b"\0\0",
        good[:6] + b"\4\0" + good[8:] + ZERO_ID,
        too_many,
    ):
        with pytest.raises(IntegrityError):
            decode_node(content, 0)
    with pytest.raises(IntegrityError, match="level 1"):
        decode_node(good, 1)
    with pytest.raises(ValueError, match="0 entries"):
        encode_node(0, ZERO_ID * 3)


def test_a_map_that_is_larger_than_its_disk_is_refused() -> None:
    nodes = Nodes()
    root = nodes.build({50: name(1)}, 100)
    with pytest.raises(IntegrityError, match="beyond the disk"):
        list(walk(nodes.load, root, 50))
    with pytest.raises(IntegrityError, match="level"):
        list(walk(nodes.load, root, 5000))
