from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from pipeline.errors import ObjectNotFoundError, PermanentPipelineError
from pipeline.rawfile import RawFileReader, RawFileWriter
from transports.base import Ability, Extent, ReadRequest

SIZE = 8 << 20


def test_a_new_file_is_sparse_private_and_reads_as_zeros(tmp_path: Path) -> None:
    path = tmp_path / "disk.raw"
    writer = RawFileWriter.create(path, SIZE)
    writer.write_from(4 << 20, memoryview(b"x" * 4096))
    writer.flush()
    writer.close()
    writer.close()
    facts = path.stat()
    assert facts.st_size == SIZE == writer.size_bytes
    assert facts.st_blocks * 512 < 1 << 20
    assert stat.S_IMODE(facts.st_mode) == 0o600
    assert path.read_bytes() == bytes(4 << 20) + b"x" * 4096 + bytes((4 << 20) - 4096)


def test_an_existing_file_is_refused_unless_allowed(tmp_path: Path) -> None:
    path = tmp_path / "disk.raw"
    path.write_bytes(b"precious")
    with pytest.raises(PermanentPipelineError, match="exists already"):
        RawFileWriter.create(path, SIZE)
    assert path.read_bytes() == b"precious"
    RawFileWriter.create(path, 16, overwrite=True).close()
    assert path.read_bytes() == bytes(16)


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        PermanentPipelineError, match=r"no.disk\.raw cannot be made: its directory does not exist"
    ):
        RawFileWriter.create(tmp_path / "no" / "disk.raw", SIZE)


def test_writes_past_the_end_are_refused(tmp_path: Path) -> None:
    writer = RawFileWriter.create(tmp_path / "disk.raw", 1000)
    for offset, length in ((990, 11), (-1, 1)):
        with pytest.raises(ValueError, match="past the end"):
            writer.write_from(offset, memoryview(bytes(length)))
    writer.close()


def test_reading(tmp_path: Path) -> None:
    path = tmp_path / "disk.raw"
    content = bytes(range(256)) * 64
    path.write_bytes(content)
    reader = RawFileReader(path)
    buffer = bytearray(1000)
    reader.read_into(500, memoryview(buffer))
    assert buffer == content[500:1500]
    requests = [ReadRequest(n * 512, memoryview(bytearray(512))) for n in range(4)]
    assert {r.offset: bytes(r.buffer) for r in reader.read_many(requests)} == {
        n * 512: content[n * 512 : (n + 1) * 512] for n in range(4)
    }
    with pytest.raises(ValueError, match="past the end"):
        reader.read_into(len(content) - 10, memoryview(bytearray(11)))
    reader.close()
    reader.close()


def test_holes_are_not_allocated(tmp_path: Path) -> None:
    path = tmp_path / "disk.raw"
    writer = RawFileWriter.create(path, SIZE)
    for offset in (1 << 20, 5 << 20):
        writer.write_from(offset, memoryview(os.urandom(64 << 10)))
    writer.flush()
    writer.close()
    reader = RawFileReader(path)
    assert reader.capabilities.allocated_extents is Ability.NATIVE
    found = list(reader.allocated_extents(0, SIZE))
    assert sum(extent.length for extent in found) < 1 << 20
    for offset in (1 << 20, 5 << 20):
        assert any(e.offset <= offset and offset + (64 << 10) <= e.end for e in found)
    assert list(reader.allocated_extents(2 << 20, 1 << 20)) == []
    (clipped,) = reader.allocated_extents((1 << 20) + 4096, 8192)
    assert clipped == Extent(offset=(1 << 20) + 4096, length=8192)
    reader.close()


def test_a_file_that_shrinks_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "disk.raw"
    path.write_bytes(bytes(4096))
    reader = RawFileReader(path)
    os.truncate(path, 1000)
    with pytest.raises(Exception, match="shorter"):
        reader.read_into(0, memoryview(bytearray(4096)))
    reader.close()


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(ObjectNotFoundError, match=r"disk\.raw"):
        RawFileReader(tmp_path / "disk.raw")
