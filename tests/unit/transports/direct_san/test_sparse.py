from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.deltas import UNMAPPED_GRAIN, ZERO_GRAIN, cowd, sesparse
from transports.direct_san.errors import DamagedMetadataError, NotForSanError
from transports.direct_san.runs import Kind, RunMap
from transports.direct_san.sparse import sparse_runs

DISK_BYTES = (16 << 20) * 2 + 4096 * 3
"""Two full grain tables of both forms at 4 KiB a grain, and a little."""
GRAINS = DISK_BYTES // 4096


def runs_of(kind: str, content: bytes, disk_bytes: int = DISK_BYTES) -> RunMap:
    def read(offset: int, length: int) -> bytes:
        if offset < 0 or offset + length > len(content):
            raise DamagedMetadataError(f"[{offset}, +{length}) of {len(content)} bytes")
        return content[offset : offset + length]

    return sparse_runs(kind, read, len(content), disk_bytes)


def grain(number: int) -> bytes:
    return f"grain {number} ".encode() * 200


def shown(runs: RunMap, content: bytes) -> dict[int, bytes | str]:
    """By grain: what it holds; what the parent shows is left out."""
    out: dict[int, bytes | str] = {}
    for start, length, kind, _, target in runs.rows():
        for at in range(0, length, 4096):
            number = (start + at) // 4096
            if kind is Kind.DATA:
                out[number] = content[target + at : target + at + 4096].rstrip(b"\0")
            elif kind is Kind.ZERO:
                out[number] = ZERO_GRAIN
    return out


NUMBERS = st.one_of(
    st.integers(0, GRAINS - 1), st.sampled_from([0, 1, 4095, 4096, 8191, 8192, GRAINS - 1])
)


@given(st.sets(NUMBERS, max_size=40))
def test_grains_of_vmfs_sparse(numbers: set[int]) -> None:
    grains = {number: grain(number) for number in numbers}
    content = cowd(DISK_BYTES, grains)
    assert shown(runs_of("VMFSSPARSE", content), content) == grains


@given(st.dictionaries(NUMBERS, st.sampled_from(["data", ZERO_GRAIN, UNMAPPED_GRAIN]), max_size=40))
def test_grains_of_se_sparse(kinds: dict[int, str]) -> None:
    grains = {number: grain(number) if kind == "data" else kind for number, kind in kinds.items()}
    content = sesparse(DISK_BYTES, grains)
    # What the guest gave up is zeros: the parent's old data must not come back.
    expected = {n: ZERO_GRAIN if data == UNMAPPED_GRAIN else data for n, data in grains.items()}
    assert shown(runs_of("SESPARSE", content), content) == expected


@pytest.mark.parametrize("make", [cowd, sesparse])
def test_an_empty_delta_shows_its_parent_everywhere(make: Callable[..., bytes]) -> None:
    kind = "VMFSSPARSE" if make is cowd else "SESPARSE"
    runs = runs_of(kind, make(DISK_BYTES, {}))
    assert [row[2] for row in runs.rows()] == [Kind.ABSENT]
    assert runs.size == DISK_BYTES


def test_vmfs_sparse_with_grains_of_one_sector() -> None:
    """What ESXi makes."""
    content = cowd(1 << 20, {3: b"three", 2047: b"last"}, grain_sectors=1)
    runs = runs_of("VMFSSPARSE", content, 1 << 20)
    data = [(start, length) for start, length, kind, _, _ in runs.rows() if kind is Kind.DATA]
    assert data == [(3 * 512, 512), (2047 * 512, 512)]


def test_the_last_grain_may_reach_beyond_the_disk() -> None:
    size = (1 << 20) + 512
    content = cowd(size, {256: b"tail"}, grain_sectors=8)
    assert runs_of("VMFSSPARSE", content, size).rows()[-1][:3] == (1 << 20, 512, Kind.DATA)


DATA = {0: grain(0), 4097: grain(4097)}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"not" + cowd(DISK_BYTES, DATA)[3:], "does not begin"),
        (cowd(DISK_BYTES, DATA)[:10], "of 10 bytes"),
        (cowd(DISK_BYTES, DATA)[:-4096], "beyond the end"),
        (cowd(DISK_BYTES, DATA, sectors=7), "its descriptor says"),
        (cowd(DISK_BYTES, DATA, directory_sector=1 << 30), "bytes"),
        (cowd(DISK_BYTES, DATA, entries=1), "directory has 1 entries"),
        (cowd(DISK_BYTES, DATA, entries=1 << 31), "directory has"),
    ],
)
def test_damaged_vmfs_sparse_is_told_so(content: bytes, says: str) -> None:
    with pytest.raises(DamagedMetadataError, match=says):
        runs_of("VMFSSPARSE", content)


def test_grains_of_an_odd_number_of_sectors_are_damage() -> None:
    content = bytearray(cowd(DISK_BYTES, DATA))
    content[16:20] = (3).to_bytes(4, "little")
    with pytest.raises(DamagedMetadataError, match="grains have 3 sectors"):
        runs_of("VMFSSPARSE", bytes(content))


def test_a_grain_in_the_header_is_damage() -> None:
    content = bytearray(cowd(DISK_BYTES, DATA))
    table = int.from_bytes(content[4 * 512 : 4 * 512 + 4], "little") * 512
    content[table : table + 4] = bytes(4)
    assert 0 not in shown(runs_of("VMFSSPARSE", bytes(content)), bytes(content))
    content[table] = 1
    with pytest.raises(DamagedMetadataError, match="header"):
        runs_of("VMFSSPARSE", bytes(content))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (bytes(4096), "does not begin"),
        (sesparse(DISK_BYTES, DATA)[:-4096], "beyond the end"),
        (sesparse(DISK_BYTES, DATA, sectors=7), "its descriptor says"),
        (sesparse(DISK_BYTES, DATA, grain_sectors=0), "grains have 0 sectors"),
        (sesparse(DISK_BYTES, DATA, table_sectors=0), "tables have 0 sectors"),
        (sesparse(DISK_BYTES, DATA, directory_sectors=0), "directory has 0 sectors"),
        (sesparse(DISK_BYTES, DATA, tables_sectors=64), "not among its tables"),
        (sesparse(DISK_BYTES, DATA, volatile_magic=1), "volatile header"),
        (sesparse(DISK_BYTES, DATA, replay=1), "journal"),
        (sesparse(DISK_BYTES, DATA, tables_sector=1 << 40), "bytes"),
        (sesparse(DISK_BYTES, DATA, grains_sector=1 << 40), "begin beyond the end"),
        (sesparse(DISK_BYTES, DATA, grains_sector=(1 << 64) - 1), "begin beyond the end"),
        (sesparse(DISK_BYTES, DATA, volatile_sector=(1 << 64) - 1), "bytes"),
    ],
)
def test_damaged_se_sparse_is_told_so(content: bytes, says: str) -> None:
    with pytest.raises(DamagedMetadataError, match=says):
        runs_of("SESPARSE", content)


@pytest.mark.parametrize("entry", [0x0000000000000005, 0x4000000000000000, 0x3FFFFFFFFFFFFFFF])
def test_a_grain_of_no_known_type_is_damage(entry: int) -> None:
    content = bytearray(sesparse(DISK_BYTES, DATA))
    table = 9 * 512
    content[table : table + 8] = entry.to_bytes(8, "little")
    with pytest.raises(DamagedMetadataError, match=r"no known type|beyond"):
        runs_of("SESPARSE", bytes(content))


def test_a_directory_entry_of_no_known_type_is_damage() -> None:
    content = bytearray(sesparse(DISK_BYTES, DATA))
    content[8 * 512 + 7] = 0x20
    with pytest.raises(DamagedMetadataError, match="directory has an entry"):
        runs_of("SESPARSE", bytes(content))


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        ("VMFSSPARSE", cowd(DISK_BYTES, DATA, version=2)),
        ("SESPARSE", sesparse(DISK_BYTES, DATA, version=3)),
        ("SESPARSE", sesparse(DISK_BYTES, DATA, flags=1)),
    ],
)
def test_another_version_is_for_another_mode(kind: str, content: bytes) -> None:
    with pytest.raises(NotForSanError, match="version"):
        runs_of(kind, content)
