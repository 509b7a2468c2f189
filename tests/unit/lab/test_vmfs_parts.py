"""The pure parts of the VMFS formatter against dissect's own understanding of them, and against models."""

from __future__ import annotations

import random

import pytest
from dissect.vmfs import address as dissect_address
from dissect.vmfs.descriptor import _dir_name_hash
from dissect.vmfs.util import vmfs_uuid
from hypothesis import given
from hypothesis import strategies as st
from vmhaul_lab.errors import LabError
from vmhaul_lab.vmfs import FileSpec
from vmhaul_lab.vmfs.directories import name_hash
from vmhaul_lab.vmfs.geometry import descriptor_address, geometry
from vmhaul_lab.vmfs.resources import FreeMap, Shape
from vmhaul_lab.vmfs.values import new_vmfs_uuid, uuid_bytes

NAMES = st.text(
    st.characters(exclude_characters="/\0", exclude_categories=("Cs",)), min_size=1, max_size=120
).filter(lambda name: len(name.encode()) <= 127)


@given(name=NAMES, root=st.booleans())
def test_names_hash_to_the_same_places(name: str, root: bool) -> None:
    assert name_hash(name, root=root) == _dir_name_hash(name, in_root=root)


@pytest.mark.parametrize("name", [".fbb.sf", ".sdd.sf", ".dfd.sf"])
def test_system_files_have_places_of_their_own_in_the_root(name: str) -> None:
    assert name_hash(name, root=True) == _dir_name_hash(name, in_root=True)
    assert name_hash(name, root=False) == _dir_name_hash(name) != name_hash(name, root=True)


@given(block=st.integers(0, (1 << 26) - 1), zeroed=st.booleans())
def test_file_blocks_are_addressed_as_readers_parse_them(block: int, zeroed: bool) -> None:
    five = dissect_address.FileBlockAddr(geometry(5).file_block(block, to_be_zeroed=zeroed))
    assert (five.type, five.block, bool(five.tbz), five.cow) == (1, block, zeroed, 0)
    six = dissect_address.SmallFileBlockAddr(geometry(6).file_block(block, to_be_zeroed=zeroed))
    assert (six.type, six.cluster * 512 + six.resource, bool(six.tbz), six.cow) == (1, block, zeroed, 0)


@given(cluster=st.integers(0, 255), number=st.integers(0, 15))
def test_pieces_are_addressed_as_readers_parse_them(cluster: int, number: int) -> None:
    found = dissect_address
    pairs = [
        (found.SubBlockAddr, geometry(5).sub_block(cluster, number)),
        (found.SubBlockAddr64, geometry(6).sub_block(cluster, number)),
        (found.PointerBlockAddr, geometry(5).pointer_block(cluster, number)),
        (found.SubBlockAddr64, geometry(6).pointer_block(cluster, number)),
        (found.FileDescriptorAddr, descriptor_address(cluster, number)),
    ]
    for kind, address in pairs:
        assert kind.parse(address) == (cluster, number)
        assert found.address_type(address) == kind.__type__.value


def test_large_blocks_begin_at_512_blocks_of_vmfs_6() -> None:
    assert dissect_address.LargeFileBlockAddr.parse(geometry(6).large_block(1024)) == 2
    for version, block in ((6, 100), (5, 512)):
        with pytest.raises(LabError):
            geometry(version).large_block(block)
    with pytest.raises(LabError, match="5 or 6"):
        geometry(4)


@given(seed=st.integers())
def test_uuids_are_spelled_as_readers_spell_them(seed: int) -> None:
    made = new_vmfs_uuid()
    assert vmfs_uuid(uuid_bytes(made)) == made
    with pytest.raises(LabError):
        uuid_bytes(made[:-1] if seed % 2 else made.replace("-", ""))


@given(seed=st.integers(0, 1 << 32))
def test_a_free_map_gives_what_is_free_and_takes_it_back(seed: int) -> None:
    source = random.Random(seed)
    pieces = source.randrange(1, 200)
    free = FreeMap("block", pieces)
    held: list[list[int]] = []
    for _ in range(60):
        if held and source.random() < 0.4:
            free.give(held.pop(source.randrange(len(held))))
            continue
        count = source.randrange(1, 12)
        taken = {piece for run in held for piece in run}
        try:
            run = list(free.run(count, after=source.randrange(pieces)))
        except LabError:
            assert len(taken) == pieces
            continue
        assert 0 < len(run) <= count
        assert run == list(range(run[0], run[0] + len(run)))
        assert not taken & set(run)
        assert run[-1] < pieces
        held.append(run)
    taken = {piece for run in held for piece in run}
    assert {piece for piece in range(pieces) if free.taken[piece]} == taken
    bits = free.bits(0, pieces)
    assert {piece for piece in range(pieces) if not bits >> piece & 1} == taken


@given(pieces=st.integers(1, 3000), per_cluster=st.integers(1, 64), per_group=st.integers(1, 9))
def test_pieces_and_headers_of_a_resource_file_do_not_overlap(
    pieces: int, per_cluster: int, per_group: int
) -> None:
    plan = geometry(5)
    shape = Shape(
        name=".x.sf",
        lock_type=0,
        piece_bytes=2048,
        pieces=pieces,
        pieces_per_cluster=per_cluster,
        clusters_per_group=per_group,
    )
    spans = [(0, shape.header_bytes)]
    spans += [
        (shape.cluster_offset(plan, cluster), plan.cluster_header_bytes)
        for cluster in range(shape.clusters)
    ]
    spans += [(shape.piece_offset(plan, piece), shape.piece_bytes) for piece in range(pieces)]
    spans.sort()
    ends = [offset + length for offset, length in spans]
    assert all(end <= start for end, (start, _) in zip(ends, spans[1:], strict=False))
    assert ends[-1] <= shape.length_bytes(plan)


@pytest.mark.parametrize("path", ["", "/a", "a//b", "a/../b", "x" * 128, "é" * 64])
def test_paths_that_no_volume_holds_are_refused(path: str) -> None:
    with pytest.raises(LabError):
        FileSpec(path=path, data=b"")
