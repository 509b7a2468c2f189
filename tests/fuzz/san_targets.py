"""What direct SAN parses by itself: partition tables, descriptors, sparse deltas, the pointers of a file."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Final

from tests.fuzz.target import target
from tests.support.deltas import ZERO_GRAIN, cowd, descriptor, sesparse
from transports.direct_san.blocks import file_runs
from transports.direct_san.chain import resolve_disk
from transports.direct_san.errors import DamagedMetadataError, NotForSanError
from transports.direct_san.partitions import read_partitions
from transports.direct_san.runs import Kind, RunMap, make_map
from transports.direct_san.sparse import sparse_runs

DISK_BYTES: Final = 1 << 20
_ERRORS: Final = (DamagedMetadataError, NotForSanError)


def _reader(data: bytes) -> Callable[[int, int], bytes]:
    def read(offset: int, length: int) -> bytes:
        if offset < 0 or offset + length > len(data):
            raise DamagedMetadataError(f"[{offset}, +{length}) of {len(data)} bytes")
        return data[offset : offset + length]

    return read


def _check(runs: RunMap, size: int, room: int) -> None:
    """Whatever the input: a map without gaps whose data lies inside of the file."""
    end = 0
    for start, length, kind, _, place in runs.rows():
        assert start == end
        assert length > 0
        assert kind is not Kind.DATA or 0 <= place <= room - length
        end = start + length
    assert end == size


@target(_ERRORS, [cowd(DISK_BYTES, {0: b"a", 255: b"b"}), cowd(DISK_BYTES, {1: b"a"}, grain_sectors=1)])
def vmfs_sparse(data: bytes) -> None:
    _check(sparse_runs("VMFSSPARSE", _reader(data), len(data), DISK_BYTES), DISK_BYTES, len(data))


@target(_ERRORS, [sesparse(DISK_BYTES, {0: b"a", 7: ZERO_GRAIN, 255: b"b"})])
def se_sparse(data: bytes) -> None:
    _check(sparse_runs("SESPARSE", _reader(data), len(data), DISK_BYTES), DISK_BYTES, len(data))


@target(
    _ERRORS,
    [bytes(446) + bytes([0, 0, 0, 0, 0xFB, 0, 0, 0, 8, 0, 0, 0, 8, 0, 0, 0]) + bytes(48) + b"\x55\xaa"],
)
def partition_table(data: bytes) -> None:
    content = data.ljust(1 << 16, b"\0")
    for partition in read_partitions(_reader(content), len(content)):
        assert 0 <= partition.offset < partition.offset + partition.length <= len(content)


@target(
    _ERRORS,
    [
        descriptor((DISK_BYTES, "VMFS", "flat.vmdk")),
        descriptor((DISK_BYTES, "SESPARSE", "se.vmdk"), parent_cid="1", parent="../vm/base.vmdk"),
    ],
)
def disk_chain(data: bytes) -> None:
    """Of one descriptor with whatever it names: a flat file, a delta, a base, itself."""

    def find(path: str) -> SimpleNamespace:
        content = {
            "vm/a.vmdk": data,
            "vm/se.vmdk": sesparse(DISK_BYTES, {}),
            "vm/base.vmdk": descriptor((DISK_BYTES, "VMFS", "flat.vmdk"), cid="1"),
        }.get(path, bytes(0))
        size = DISK_BYTES if path == "vm/flat.vmdk" else len(content)
        runs = make_map(size, [0], [Kind.DATA], [0]) if size else make_map(0, (), ())
        return SimpleNamespace(size_bytes=size, runs=lambda: runs, read=_reader(content))

    found = resolve_disk(find, "vm/a.vmdk", frozenset({"ds"}))
    assert found.links[0] == "vm/a.vmdk"


@target(
    _ERRORS,
    [
        bytes([6, 20, 2]) + (1 | 5 << 15).to_bytes(8, "little") * 320,
        bytes([5, 20, 3]) + b"\x41\0\0\0" * 256,
    ],
)
def file_pointers(data: bytes) -> None:
    """A file descriptor's pointers, of both versions; pointer blocks repeat the same bytes."""
    version, shift, zla = data[:3].ljust(3, b"\0")
    width = 8 if version == 6 else 4
    count = 320 if version == 6 else 256
    table = (data[3:] or b"\0").ljust(count * width, data[3:4] or b"\0")
    pointers = [
        int.from_bytes(table[at : at + width], "little") for at in range(0, count * width, width)
    ]
    per_table = 64
    resources = SimpleNamespace(
        read=lambda _: (data[3:] or b"\0").ljust(per_table * width, b"\1"),
        SFB=SimpleNamespace(metadata=SimpleNamespace(resourcesPerCluster=512)),
    )
    fs = SimpleNamespace(
        is_vmfs6=version == 6,
        file_block_size=1 << 20,
        descriptor=SimpleNamespace(sfbToLfbShift=9),
        resources=resources,
        _ptr_block_num_ptrs=per_table,
        _fd_data_size=1024,
    )
    zlas = (1, 2, 3, 5, 0x10D0, 0x10D1, 9)
    fd = SimpleNamespace(
        size=(len(data) * 777_777) % (1 << 33),
        blocks=pointers,
        metadata=SimpleNamespace(
            zeroLevelAddrType=zlas[zla % len(zlas)], blockOffsetShift=shift, tbzGranularityShift=17
        ),
        is_rdm=lambda: False,
        _resolve_offset=lambda offset: (offset, 0),
    )
    runs = file_runs(fs, fd)
    _check(runs, fd.size, 1 << 62)
