"""Delta files are what two independent readers take them for: dissect.hypervisor and qemu's vmdk driver."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest
from vmhaul_lab import deltas, sparse
from vmhaul_lab.deltas import DeltaKind
from vmhaul_lab.errors import LabError

MIB = 1 << 20
KINDS = list(DeltaKind)
WHOLE = 35 * MIB + 65536  # no whole number of tables
ODD = WHOLE + 1536  # nor of grains of 4 KiB; dissect cannot read to the end of such a disk


def base_disk(directory: Path, size: int = WHOLE) -> Path:
    path = directory / "disk-flat.vmdk"
    source = random.Random(1)
    with path.open("wb") as file:
        file.truncate(size)
        for at in (0, 15 * MIB, 16 * MIB, 33 * MIB, size - 4096):
            file.seek(at)
            file.write(source.randbytes(4096))
    text = deltas.descriptor(path.name, size, None, cid="fffffffe", thin=True)
    (directory / "disk.vmdk").write_text(text)
    return path


def written(parent: Path, target: Path, seed: int) -> list[tuple[int, int]]:
    """A later state of a disk: random bytes and zeros here and there; what was written."""
    sparse.copy(parent, target)
    size = target.stat().st_size
    source = random.Random(seed)
    changed = []
    with target.open("r+b") as file:
        for number in range(30):
            at = source.randrange(0, size // 512) * 512
            data = (
                bytes(8192) if number % 5 == 0 else source.randbytes(source.choice([512, 4096, 70000]))
            )
            data = data[: size - at]
            file.seek(at)
            file.write(data)
            changed.append((at, len(data)))
        for at, length in ((15 * MIB, 4096), (size - 512, 512)):  # zeros over the parent's data
            file.seek(at)
            file.write(bytes(length))
            changed.append((at, length))
    return changed


def make_delta(
    directory: Path, name: str, disk: Path, changed: list[tuple[int, int]], kind: DeltaKind, parent: str
) -> Path:
    extent = directory / f"{name}{kind.suffix}"
    deltas.write_delta(extent, disk, changed, kind)
    path = directory / f"{name}.vmdk"
    path.write_text(
        deltas.descriptor(
            extent.name, disk.stat().st_size, kind, cid="fffffffe", parent_cid="fffffffe", parent=parent
        )
    )
    return path


def qemu_bytes(descriptor: Path, directory: Path) -> bytes:
    """The disk as qemu reads it, its parents included."""
    out = directory / "out.raw"
    subprocess.run(
        ["qemu-img", "convert", "-f", "vmdk", "-O", "raw", descriptor, out], check=True, timeout=120
    )
    return out.read_bytes()


def dissect_bytes(descriptor: Path) -> bytes:
    """The same as dissect reads it, in a process of its own, as it never closes what it opens."""
    code = "import pathlib, sys; from dissect.hypervisor.disk.vmdk import VMDK; sys.stdout.buffer.write(VMDK(pathlib.Path(sys.argv[1])).read())"
    done = subprocess.run(
        [sys.executable, "-c", code, descriptor], check=True, capture_output=True, timeout=120
    )
    return done.stdout


@pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)
@pytest.mark.parametrize("size", [WHOLE, ODD])
@pytest.mark.parametrize("kind", KINDS)
def test_two_readers_see_the_disk_through_a_chain_of_deltas(
    tmp_path: Path, kind: DeltaKind, size: int
) -> None:
    base = base_disk(tmp_path, size)
    first, second = tmp_path / "first.raw", tmp_path / "second.raw"
    changed = written(base, first, 2)
    one = make_delta(tmp_path, "disk-000001", first, changed, kind, "disk.vmdk")
    changed = written(first, second, 3)
    two = make_delta(tmp_path, "disk-000002", second, changed, kind, one.name)
    assert first.read_bytes() not in {base.read_bytes(), second.read_bytes()}
    for descriptor, disk in ((one, first), (two, second)):
        assert size == ODD or dissect_bytes(descriptor) == disk.read_bytes()
        assert qemu_bytes(descriptor, tmp_path) == disk.read_bytes()


@pytest.mark.parametrize("kind", KINDS)
def test_a_delta_holds_what_changed_and_no_more(tmp_path: Path, kind: DeltaKind) -> None:
    base = base_disk(tmp_path)
    deltas.write_delta(tmp_path / "empty", base, [], kind)
    empty = (tmp_path / "empty").stat().st_size
    deltas.write_delta(tmp_path / "some", base, [(15 * MIB, 600), (15 * MIB + 100, 10)], kind)
    some = (tmp_path / "some").stat().st_size
    grains = -(-600 // kind.grain_bytes)
    tables = 4096 * 4 if kind is DeltaKind.VMFS_SPARSE else 0  # SESPARSE has room for all tables
    assert some - empty == grains * kind.grain_bytes + tables


def test_a_file_that_is_no_disk_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"x" * 513)
    with pytest.raises(LabError, match="sectors"):
        deltas.write_delta(tmp_path / "y", tmp_path / "x", [])
    assert not (tmp_path / "y").exists()
