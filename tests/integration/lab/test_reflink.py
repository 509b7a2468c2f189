"""What was written since a clone is told from where the blocks are, without reading any."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from vmhaul_lab import reflink
from vmhaul_lab.errors import LabError
from vmhaul_lab.storage import SharedBlocks

pytestmark = pytest.mark.lab
MIB = 1 << 20
BLOCK = 4096
SIZE = 16 * MIB


@pytest.fixture(scope="module", params=["xfs", "btrfs"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    directory = tmp_path_factory.mktemp("reflink") / request.param
    with SharedBlocks(directory=directory, kind=request.param, size_bytes=1 << 30):
        yield directory


def test_changed_ranges_are_exactly_the_blocks_that_were_written(folder: Path) -> None:
    source = random.Random(7)
    file, clone = folder / "file", folder / "clone"
    with file.open("wb") as target:
        target.truncate(SIZE)
        for _ in range(10):
            target.seek(source.randrange(0, SIZE - MIB, BLOCK))
            target.write(source.randbytes(source.randrange(1, MIB)))
    for _ in range(4):
        assert reflink.clone_file(file, clone)
        assert reflink.changed_ranges(file, clone) == []
        written: set[int] = set()
        with file.open("r+b") as target:
            for _ in range(20):
                at, length = source.randrange(0, SIZE - MIB), source.randrange(1, 40_000)
                target.seek(at)
                target.write(source.randbytes(length))
                written |= set(range(at // BLOCK, (at + length - 1) // BLOCK + 1))
        found = {
            block
            for offset, length in reflink.changed_ranges(file, clone)
            for block in range(offset // BLOCK, (offset + length) // BLOCK)
        }
        assert found == written
        differing = _differing(file, clone)
        assert differing <= found


def _differing(left: Path, right: Path) -> set[int]:
    one, other = left.read_bytes(), right.read_bytes()
    return {
        at // BLOCK for at in range(0, SIZE, BLOCK) if one[at : at + BLOCK] != other[at : at + BLOCK]
    }


def test_a_range_is_put_with_its_holes_and_odd_ends(folder: Path) -> None:
    source, target = folder / "source", folder / "target"
    source.write_bytes(b"a" * (MIB + 700))
    with source.open("r+b") as file:
        file.truncate(3 * MIB)
    target.write_bytes(b"z" * (8 * MIB))
    with source.open("rb") as one, target.open("r+b") as other:
        reflink.put_range(one.fileno(), 0, 2 * MIB, other.fileno(), 4 * MIB)
        reflink.put_range(one.fileno(), 10, 100, other.fileno(), 7 * MIB + 1)
    wanted = bytearray(b"z" * (8 * MIB))
    wanted[4 * MIB : 6 * MIB] = (b"a" * (MIB + 700)).ljust(2 * MIB, b"\0")
    wanted[7 * MIB + 1 : 7 * MIB + 101] = b"a" * 100
    assert target.read_bytes() == wanted


def test_what_was_read_does_not_count_as_written(folder: Path) -> None:
    path = folder / "thick"
    with path.open("wb") as file:
        file.write(b"x" * BLOCK)
        file.truncate(MIB)
    path.read_bytes()
    assert reflink.written_ranges(path) == [(0, BLOCK)]


def test_a_file_system_that_is_still_in_use_is_detached_and_told(tmp_path: Path) -> None:
    storage = SharedBlocks(directory=tmp_path / "storage", size_bytes=1 << 30).mount()
    with (storage.directory / "open").open("wb"), pytest.raises(LabError, match="still in use"):
        storage.unmount()
    assert not storage.directory.is_mount()
    with pytest.raises(LabError, match="shares blocks"):
        SharedBlocks(directory=tmp_path / "other", kind="ext4").mount()


def test_elsewhere_data_is_copied(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 5000)
    reflink.clone_file(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == b"x" * 5000
