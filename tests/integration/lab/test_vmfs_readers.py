"""Two independent readers find in the lab's VMFS volumes what was put in, and nothing else."""

from __future__ import annotations

import hashlib
import random
import subprocess
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
from vmhaul_lab.errors import LabError
from vmhaul_lab.vmfs import Allocation, FileSpec, Lun, Partitioning, PlacedFile, VmfsVolume
from vmhaul_lab.vmfs.directories import name_hash

from tests.support.vmfs_readers import (
    MIB,
    DissectReader,
    ToolsReader,
    file_sha256,
    loop_over_partition,
)

VERSIONS = [5, 6]
GIB = 1024 * MIB
Raw = Callable[[str, int, list[tuple[int, int]]], Path]


@pytest.fixture
def raw(tmp_path: Path) -> Raw:
    """Makes a sparse file of a size with random bytes in some ranges."""

    def make(name: str, size_bytes: int, ranges: list[tuple[int, int]]) -> Path:
        path = tmp_path / name
        source = random.Random(name)
        with path.open("wb") as file:
            file.truncate(size_bytes)
            for offset, length in ranges:
                file.seek(offset)
                file.write(source.randbytes(length))
        return path

    return make


def lun(directory: Path, number: int = 0, *, size: int = GIB, part: str = "none") -> Lun:
    return Lun(
        image=directory / f"lun{number}.img",
        size_bytes=size,
        naa=f"naa.624a9370{number:024x}",
        partitioning=Partitioning(part),
    )


def digest(file: FileSpec) -> str:
    if isinstance(file.data, bytes):
        return hashlib.sha256(file.data).hexdigest()
    return file_sha256(file.data)


def some_files(raw: Raw) -> list[FileSpec]:
    """Every way in which a file may lie on a volume, of either version."""
    thin = raw("thin", 20 * MIB + 3584, [(0, MIB), (3 * MIB + 4096, 2 * MIB), (20 * MIB, 3584)])
    disk = raw("disk", 24 * MIB, [(5 * MIB, 70000), (23 * MIB, MIB)])
    late = raw("late", 6 * MIB, [(5 * MIB, 512)])
    wide = raw("wide", 322 * MIB, [(0, 4096), (300 * MIB - 512, MIB), (321 * MIB, MIB)])
    return [
        FileSpec(path="vm/vm.vmdk", data=b"# Disk DescriptorFile\nversion=1\n" * 20),
        FileSpec(path="vm/log", data=b"x" * 4000 + b"end"),
        FileSpec(path="vm/core", data=random.Random(1).randbytes(3 * MIB + 17)),
        FileSpec(path="vm/thin-flat.vmdk", data=thin),
        FileSpec(path="vm/lazy-flat.vmdk", data=disk, allocation=Allocation.LAZY),
        FileSpec(path="vm/eager-flat.vmdk", data=disk, allocation=Allocation.EAGER),
        FileSpec(
            path="vm/scattered-flat.vmdk",
            data=disk,
            allocation=Allocation.EAGER,
            fragment_blocks=3,
        ),
        FileSpec(path="vm/late-flat.vmdk", data=late),
        FileSpec(path="vm/wide-flat.vmdk", data=wide),
        FileSpec(path="vm/deep-flat.vmdk", data=thin, deep=True),
        FileSpec(path="a folder/in a folder/empty", data=b""),
        *(FileSpec(path=f"many/file{number}", data=b"%d" % number) for number in range(60)),
    ]


def names_of(files: list[FileSpec]) -> list[str]:
    found = {file.path for file in files}
    for file in files:
        parts = file.path.split("/")
        found |= {"/".join(parts[:depth]) + "/" for depth in range(1, len(parts))}
    return sorted(found)


@pytest.mark.parametrize("luns", [1, 2])
@pytest.mark.parametrize("version", VERSIONS)
def test_both_readers_list_and_read_every_file(
    tmp_path: Path, raw: Raw, version: int, luns: int
) -> None:
    files = [file for file in some_files(raw) if luns == 1 or "wide" not in file.path]
    images = [lun(tmp_path, number) for number in range(luns)]
    volume = VmfsVolume.create(images, version=version, label="datastore1")
    volume.store(files)
    tools = ToolsReader([image.image for image in images], version)
    with DissectReader(images) as dissect:
        assert dissect.fs.label == "datastore1"
        assert dissect.fs.uuid == volume.fs_uuid
        assert dissect.volume.uuid == volume.lvm_uuid
        assert dissect.volume.device_names == [f"{image.naa}:1" for image in images]
        assert dissect.names() == tools.names() == names_of(files)
        for file in files:
            wanted = digest(file)
            assert dissect.sha256(file.path) == wanted, file.path
            if version == 5 and file.deep:
                # vmfs-tools takes the second level of pointers for data and says so.
                continue
            if version == 6 and file.allocation is Allocation.LAZY:
                assert outside_of_old_bytes_equal(tools.read(file.path), file, volume.files[file.path])
                continue
            assert tools.sha256(file.path) == wanted, file.path


def outside_of_old_bytes_equal(read: bytes, file: FileSpec, placed: PlacedFile) -> bool:
    """vmfs6-tools does not know which bits say "to be zeroed": it gives the old bytes away."""
    assert isinstance(file.data, Path)
    wanted = file.data.read_bytes()
    zeroed = [run for run in placed.runs if run.to_be_zeroed]
    assert zeroed
    for run in zeroed:
        start, end = run.file_offset_bytes, run.file_offset_bytes + run.length_bytes
        assert wanted[start:end] == bytes(end - start) != read[start:end]
        assert read[start:].startswith(b"old bytes of another file")
        read = read[:start] + bytes(end - start) + read[end:]
    return read == wanted


def test_vmfs5_volume_passes_the_checks_of_its_own_tools(tmp_path: Path, raw: Raw) -> None:
    files = [file for file in some_files(raw) if not file.deep]
    image = lun(tmp_path)
    volume = VmfsVolume.create([image], version=5)
    volume.store(files)
    volume.store(files[3:9])
    tools = ToolsReader([image.image], 5)
    assert b"Total errors: 0" in tools.run("check_vol_bitmaps")
    taken = sum(run.length_bytes for file in volume.files.values() for run in file.runs) // MIB
    # Blocks in use: the files', the root directory's and those of the system files.
    used = [
        line for line in tools.run("df").decode().splitlines() if line.startswith("Allocated blocks")
    ]
    assert [int(line.split()[-1]) for line in used] == [taken + 1 + volume.system_blocks]


@pytest.mark.parametrize("version", VERSIONS)
def test_what_stays_keeps_its_place_and_what_goes_gives_it_back(
    tmp_path: Path, raw: Raw, version: int
) -> None:
    image = lun(tmp_path)
    volume = VmfsVolume.create([image], version=version)
    kept = FileSpec(path="vm/kept-flat.vmdk", data=raw("kept", 8 * MIB, [(2 * MIB, 3 * MIB)]))
    gone = FileSpec(
        path="vm/gone-flat.vmdk", data=raw("gone", 300 * MIB, [(0, MIB)]), allocation=Allocation.EAGER
    )
    first = volume.store([gone, kept])[kept.path]
    free = volume.free_blocks
    assert volume.store([kept]) == {kept.path: first}
    assert volume.free_blocks == free + 300
    with DissectReader([image]) as reader:
        assert reader.names() == ["vm/", "vm/kept-flat.vmdk"]
    # A guest writes to a hole: the file keeps its blocks and gets one more.
    assert isinstance(kept.data, Path)
    with kept.data.open("r+b") as file:
        file.seek(6 * MIB + 100)
        file.write(b"fresh")
    second = volume.store([kept])[kept.path]
    assert second.runs[: len(first.runs)] == first.runs
    assert sum(run.length_bytes for run in second.runs) == 4 * MIB
    with DissectReader([image]) as reader:
        assert reader.sha256(kept.path) == digest(kept)
    for _ in range(40):  # nothing leaks
        volume.store([kept, gone, FileSpec(path="x/y", data=b"z" * 5000)])
        volume.store([kept])
    assert volume.free_blocks == free + 299


@pytest.mark.parametrize("version", VERSIONS)
def test_a_directory_may_have_many_names_and_names_that_collide(tmp_path: Path, version: int) -> None:
    files = [FileSpec(path=f"d/{number:04d}.vmsd", data=b"") for number in range(400)]
    places = {name_hash(file.path.rpartition("/")[2], root=False)[1] for file in files}
    assert len(places) < len(files)
    image = lun(tmp_path)
    VmfsVolume.create([image], version=version).store(files)
    with DissectReader([image]) as reader:
        assert reader.names() == names_of(files)
    assert ToolsReader([image.image], version).names() == names_of(files)


def test_a_disk_of_terabytes_needs_pointer_blocks_of_two_levels(tmp_path: Path, raw: Raw) -> None:
    marks = [0, 9 * GIB, 1024 * GIB + 512, 3000 * GIB]
    huge = raw("huge", 3001 * GIB, [(mark, 512) for mark in marks])
    image = lun(tmp_path)
    volume = VmfsVolume.create([image], version=6)
    placed = volume.store([FileSpec(path="vm/huge-flat.vmdk", data=huge)])["vm/huge-flat.vmdk"]
    assert [run.file_offset_bytes for run in placed.runs] == [mark // MIB * MIB for mark in marks]
    with DissectReader([image]) as reader, huge.open("rb") as file:
        assert reader.fs.get(placed.path).zla.name == "POINTER_BLOCK_DOUBLE"
        for mark in (*marks, 2000 * GIB):
            file.seek(mark)
            assert reader.read(placed.path, mark, 4096) == file.read(4096)


def test_large_file_blocks_hold_512_mib_each(tmp_path: Path, raw: Raw) -> None:
    disk = raw("large", 514 * MIB, [(0, MIB), (511 * MIB, 2 * MIB)])
    image = lun(tmp_path, size=4 * GIB)
    spec = FileSpec(
        path="vm/large-flat.vmdk", data=disk, allocation=Allocation.EAGER, large_blocks=True
    )
    VmfsVolume.create([image], version=6).store([spec])
    with DissectReader([image]) as reader:
        assert reader.fs.get(spec.path).metadata.numLFB == 1
        assert reader.sha256(spec.path) == digest(spec)
    assert ToolsReader([image.image], 6).sha256(spec.path) == digest(spec)
    with pytest.raises(LabError, match="VMFS 5"):
        VmfsVolume.create([image], version=5).store([spec])


@pytest.mark.lab
@pytest.mark.parametrize("part", ["gpt", "mbr"])
@pytest.mark.parametrize("version", VERSIONS)
def test_luns_have_the_partition_that_readers_look_for(
    tmp_path: Path, raw: Raw, version: int, part: str
) -> None:
    files = [FileSpec(path="vm/disk-flat.vmdk", data=raw("disk", 9 * MIB, [(4 * MIB, 2 * MIB)]))]
    images = [lun(tmp_path, number, part=part) for number in range(2)]
    VmfsVolume.create(images, version=version).store(files)
    with DissectReader(images) as reader, ExitStack() as devices:
        assert reader.sha256(files[0].path) == digest(files[0])
        for image in images:
            said = subprocess.run(
                ["/usr/sbin/sgdisk", "--verify", "--print", image.image],
                capture_output=True,
                text=True,
                check=True,
                timeout=60,
            ).stdout
            assert "FB00" in said
            assert part == "mbr" or "No problems found" in said
        parts = [devices.enter_context(loop_over_partition(image)) for image in images]
        assert ToolsReader(parts, version).sha256(files[0].path) == digest(files[0])


def test_what_does_not_fit_is_refused(tmp_path: Path, raw: Raw) -> None:
    image = lun(tmp_path)
    volume = VmfsVolume.create([image], version=6)
    disk = raw("disk", 2 * GIB, [])
    with pytest.raises(LabError, match="make the volume larger"):
        volume.store([FileSpec(path="vm/x", data=disk, allocation=Allocation.EAGER)])
    with pytest.raises(LabError, match="at once"):
        volume.store([FileSpec(path="vm", data=b""), FileSpec(path="vm/x", data=b"")])
    with pytest.raises(LabError, match="no path"):
        FileSpec(path="../x", data=b"")
    with pytest.raises(LabError, match="300 MiB"):
        VmfsVolume.create([lun(tmp_path, 1, size=100 * MIB)])
