"""Disks on VMFS volumes that the lab formats: read whole and equal, found, refused, told apart."""

from __future__ import annotations

import hashlib
import itertools
import os
import random
from dataclasses import replace
from pathlib import Path

import pytest
from vmhaul_lab.deltas import DeltaKind, write_delta
from vmhaul_lab.deltas import descriptor as delta_descriptor
from vmhaul_lab.guestview import GuestView
from vmhaul_lab.reflink import clone_file
from vmhaul_lab.vmfs import Allocation, FileSpec, Lun, Partitioning, VmfsVolume

from tests.support.deltas import descriptor, sesparse
from tests.support.san import MIB, NAME, San, naa, raw_disk, whole
from transports import direct_san
from transports.base import Ability, DatastoreRef, DiskRef, LunExtent
from transports.direct_file import DirectFile
from transports.direct_san import library
from transports.direct_san.blocks import file_runs
from transports.direct_san.volume import Part, Volume
from transports.errors import TransientTransportError, TransportError, TransportUnavailableError
from transports.machine import Machine
from transports.reached import Reached

SIZE = 40 * MIB


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return raw_disk(tmp_path_factory.mktemp("raw") / "raw", SIZE)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """More blocks than a descriptor has pointers: 320 (VMFS 6), 256 (VMFS 5)."""
    return raw_disk(tmp_path_factory.mktemp("raw") / "large", 340 * MIB, every=60)


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def read(machine: Machine, disk: DiskRef) -> bytes:
    reader = direct_san.open_reader(machine, disk, wait=never)
    try:
        return whole(reader)
    finally:
        reader.close()


def never(seconds: float) -> None:
    """Nothing comes by waiting in most tests, and they need not wait for that."""


# ---- reading --------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [5, 6])
@pytest.mark.parametrize("allocation", list(Allocation))
def test_a_disk_reads_as_it_is(version: int, allocation: Allocation, raw: Path, tmp_path: Path) -> None:
    san = San(tmp_path, version=version, luns=2)
    disk = san.add_disk(raw, allocation=allocation, fragment_blocks=3)
    reader = direct_san.open_reader(san.machine, disk)
    content = whole(reader)
    allocated = list(reader.allocated_extents(0, SIZE))
    native = reader.capabilities.allocated_extents is Ability.NATIVE
    reader.close()
    assert digest(content) == digest(raw.read_bytes())
    assert native == (allocation is not Allocation.EAGER)
    # What is left out is what the file system knows to be zeros: whole blocks of it.
    blocks = sum(extent.length for extent in allocated) // MIB
    with_data = {at // MIB for at in range(0, SIZE, 512) if any(content[at : at + 512])}
    assert blocks == (SIZE // MIB if allocation is Allocation.EAGER else len(with_data))


@pytest.mark.parametrize("version", [5, 6])
@pytest.mark.parametrize("deep", [False, True])
def test_a_disk_with_pointer_blocks_reads_as_it_is(
    version: int, deep: bool, large: Path, tmp_path: Path
) -> None:
    san = San(tmp_path, version=version)
    content = read(san.machine, san.add_disk(large, deep=deep))
    assert digest(content) == digest(large.read_bytes())


def test_a_disk_in_large_blocks_reads_as_it_is(tmp_path: Path) -> None:
    """Blocks of 512 MiB, and small ones behind them."""
    size = 514 * MIB
    path = raw_disk(tmp_path / "raw", size, every=100)
    san = San(tmp_path)
    disk = san.add_disk(path, allocation=Allocation.EAGER, large_blocks=True)
    reader = direct_san.open_reader(san.machine, disk)
    with path.open("rb") as file:
        for at in range(0, size, 2 * MIB):
            buffer = bytearray(2 * MIB)
            reader.read_into(at, memoryview(buffer))
            assert buffer == file.read(2 * MIB)
    reader.close()


@pytest.mark.parametrize("partitioning", [Partitioning.MBR, Partitioning.NONE])
def test_volumes_of_older_hosts_are_read_too(
    partitioning: Partitioning, raw: Path, tmp_path: Path
) -> None:
    san = San(tmp_path, version=5)
    lun = Lun(image=tmp_path / "old.img", size_bytes=2 << 30, naa=naa(9), partitioning=partitioning)
    san.volume = VmfsVolume.create([lun], version=5, label=NAME)
    san.show(0, lun.image, wwid=lun.naa)
    number = 0 if partitioning is Partitioning.NONE else 1
    disk = san.add_disk(raw)
    storage = replace(san.storage, extents=(LunExtent(lun=lun.naa, partition=number),))
    assert read(san.machine, replace(disk, storage=storage)) == raw.read_bytes()


def test_files_that_do_not_say_how_offsets_are_shifted(raw: Path, tmp_path: Path) -> None:
    """As on volumes that VMFS 3 had made, which stay so when they are upgraded."""
    san = San(tmp_path, version=5)
    disk = san.add_disk(raw, fragment_blocks=1)
    file = DirectFile(str(san.lun_files[0].image))
    volume = Volume([Part(file=file, offset=MIB, length=file.size_bytes - 2 * MIB)])
    (_, _, _, lun_offset), *_ = volume.map_rows()
    places = [
        lun_offset + volume.fs.get(path).lock_info.addr.offset + volume.fs._fd_meta_offset + 0x89
        for path in ("/", "/vm", "/vm/a.vmdk", "/vm/a-flat.vmdk")
    ]
    file.close()
    with san.lun_files[0].image.open("r+b") as image:
        for place in places:
            image.seek(place)
            assert image.read(1) != b"\0"
            image.seek(place)
            image.write(b"\0")
    assert read(san.machine, disk) == raw.read_bytes()


def delta(name: str, grains: dict[int, bytes]) -> list[FileSpec]:
    """A small one over a.vmdk."""
    text = descriptor(
        (SIZE, "SESPARSE", f"{name}-se.vmdk"), cid="1", parent_cid="0000aaaa", parent="a.vmdk"
    )
    return [
        FileSpec(path=f"vm/{name}.vmdk", data=text),
        FileSpec(path=f"vm/{name}-se.vmdk", data=sesparse(SIZE, grains)),
    ]


@pytest.mark.parametrize("version", [5, 6])
@pytest.mark.parametrize("kinds", list(itertools.product(DeltaKind, repeat=2)))
def test_a_chain_of_deltas_reads_as_one_disk(
    version: int, kinds: tuple[DeltaKind, DeltaKind], raw: Path, tmp_path: Path
) -> None:
    """Deltas as the lab writes them, which dissect and qemu read alike."""
    chosen = random.Random(version)
    san = San(tmp_path, version=version)
    san.add_disk(raw)
    now = tmp_path / "now"
    clone_file(raw, now)
    name, cid = "a", "0000aaaa"
    for number, kind in enumerate(kinds, 1):
        changed = [(chosen.randrange(0, SIZE - 4096, 512), 512) for _ in range(60)]
        changed.append((2 * MIB * number + 512, MIB))
        with now.open("r+b") as file:
            for at, length in changed:
                file.seek(at)
                file.write(chosen.choice([bytes, chosen.randbytes])(length))
        child = f"a-{number:06}"
        write_delta(tmp_path / child, now, changed, kind)
        text = delta_descriptor(
            child + kind.suffix,
            SIZE,
            kind,
            cid=f"0000000{number}",
            parent_cid=cid,
            parent=f"{name}.vmdk",
        )
        san.store(
            [
                FileSpec(path=f"vm/{child}.vmdk", data=text.encode()),
                FileSpec(path=f"vm/{child}{kind.suffix}", data=tmp_path / child, fragment_blocks=1),
            ]
        )
        name, cid = child, f"0000000{number}"
    reader = direct_san.open_reader(san.machine, san.disk(f"vm/{name}.vmdk", SIZE))
    content = whole(reader)
    listed = list(reader.allocated_extents(0, SIZE))
    assert reader.capabilities.whole_chain
    reader.close()
    assert digest(content) == digest(now.read_bytes())
    seen = 0
    for extent in listed:
        assert not any(content[seen : extent.offset])
        seen = extent.end
    assert sum(extent.length for extent in listed) < SIZE


@pytest.mark.lab
def test_what_changed_on_the_lun_is_seen_by_the_next_who_opens(raw: Path, tmp_path: Path) -> None:
    """Also through loop devices, which keep pages as LUNs do."""
    san = San(tmp_path)
    first = san.add_disk(raw)
    with GuestView(tmp_path / "guest", uuid="564d1111-2222-3333-4444-555555555555") as view:
        view.add_lun(san.lun_files[0].image, wwid=naa(0))
        machine = Machine(sys_path=str(tmp_path / "guest/sys"), dev_path=str(tmp_path / "guest/dev"))
        assert read(machine, first) == raw.read_bytes()
        other = raw_disk(tmp_path / "other", SIZE, seed=2, every=3)
        second = san.add_disk(other, "vm/b.vmdk")
        assert read(machine, second) == other.read_bytes()
        assert direct_san.probe(machine, san.storage) == Reached(readable=True, writable=True)


def test_both_ways_to_a_files_bytes_agree(raw: Path, tmp_path: Path) -> None:
    """The library resolves offset by offset; the map is made of whole pointer blocks."""
    for version in (5, 6):
        root = tmp_path / str(version)
        root.mkdir()
        san = San(root, version=version)
        for number, allocation in enumerate(Allocation):
            san.add_disk(raw, f"vm/{number}.vmdk", allocation=allocation, fragment_blocks=2)
        file = DirectFile(str(san.lun_files[0].image))
        volume = Volume([Part(file=file, offset=MIB, length=file.size_bytes - 2 * MIB)])
        for number, _ in enumerate(Allocation):
            found = volume.fs.get(f"/vm/{number}-flat.vmdk")
            runs = file_runs(volume.fs, found)
            for start, length, kind, _, target in runs.rows():
                for at in range(0, length, MIB):
                    place, zeros = found._resolve_offset(start + at)
                    assert bool(zeros) == (kind.name == "ZERO")
                    assert zeros or place == target + at
        file.close()


# ---- writing --------------------------------------------------------------------------------------


def test_a_restored_disk_is_written_in_place(raw: Path, tmp_path: Path) -> None:
    san = San(tmp_path, luns=2)
    with (tmp_path / "new").open("wb") as file:
        file.truncate(SIZE)
    disk = san.add_disk(tmp_path / "new", allocation=Allocation.EAGER, fragment_blocks=4)
    other = san.add_disk(raw, "vm/b.vmdk")
    metadata = [_metadata(lun.image) for lun in san.lun_files]
    writer = direct_san.open_writer(san.machine, disk)
    assert writer.capabilities.reads_as_zero_when_new
    content = raw.read_bytes()
    for at in range(0, SIZE, 4 * MIB):
        if any(content[at : at + 4 * MIB]):
            writer.write_from(at, memoryview(content)[at : at + 4 * MIB])
    writer.flush()
    writer.close()
    assert read(san.machine, disk) == content
    assert read(san.machine, other) == content
    assert [_metadata(lun.image) for lun in san.lun_files] == metadata


def _metadata(image: Path) -> str:
    """Of a LUN: its table and the system files, which come first."""
    with image.open("rb") as file:
        return digest(file.read(24 * MIB))


@pytest.mark.parametrize("allocation", [Allocation.THIN, Allocation.LAZY])
def test_a_disk_that_would_have_to_grow_is_not_written(
    allocation: Allocation, raw: Path, tmp_path: Path
) -> None:
    san = San(tmp_path)
    disk = san.add_disk(raw, allocation=allocation)
    with pytest.raises(TransportUnavailableError, match="never allocates"):
        direct_san.open_writer(san.machine, disk)


def test_a_disk_with_a_snapshot_is_not_written(raw: Path, tmp_path: Path) -> None:
    san = San(tmp_path)
    san.add_disk(raw, allocation=Allocation.EAGER)
    san.store(delta("a-1", {}))
    with pytest.raises(TransportUnavailableError, match="stands on a snapshot"):
        direct_san.open_writer(san.machine, san.disk("vm/a-1.vmdk", SIZE))


def test_a_lun_that_is_read_only_is_not_written(raw: Path, tmp_path: Path) -> None:
    san = San(tmp_path)
    disk = san.add_disk(raw, allocation=Allocation.EAGER)
    (san.tree.sys / "block/sda/ro").write_text("1\n")
    with pytest.raises(TransportUnavailableError, match="sda is read-only"):
        direct_san.open_writer(san.machine, disk)
    found = direct_san.probe(san.machine, san.storage)
    assert found is not None
    assert (found.readable, found.writable) == (True, False)
    assert "read-only" in found.reason


# ---- finding LUNs ---------------------------------------------------------------------------------


def refused(machine: Machine, disk: DiskRef) -> str:
    with pytest.raises(TransportUnavailableError) as caught:
        direct_san.open_reader(machine, disk, wait=never)
    assert disk.storage is not None
    found = direct_san.probe(machine, disk.storage, wait=never)
    assert found is None or not found.readable
    return str(caught.value)


def test_a_lun_that_is_not_zoned_here(raw: Path, tmp_path: Path) -> None:
    san = San(tmp_path, luns=2, seen=1)
    text = refused(san.machine, san.add_disk(raw))
    assert naa(1) in text
    assert "zone" in text
    assert "never initialise" in text


def test_a_lun_that_appears_after_a_scan(raw: Path, tmp_path: Path) -> None:
    san = San(tmp_path, luns=2, seen=1)
    disk = san.add_disk(raw)
    host = san.tree.add_host(2)
    waits: list[float] = []

    def appear(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 2:
            assert (host / "scan").read_text() == "- - -\n"
            san.show(1)

    reader = direct_san.open_reader(san.machine, disk, wait=appear)
    assert whole(reader) == raw.read_bytes()
    reader.close()
    assert len(waits) == 2


def test_a_multipath_device_is_taken_before_its_paths(raw: Path, tmp_path: Path) -> None:
    san = San(tmp_path, seen=0)
    disk = san.add_disk(raw)
    for path in ("sda", "sdb"):
        san.tree.add_disk(path, wwid=naa(0), size_bytes=2 << 30, address=f"2:0:0:{path == 'sdb'}")
    san.tree.add_multipath(
        "dm-3", "mpath-3" + naa(0).removeprefix("naa."), ["sda", "sdb"], size_bytes=2 << 30
    )
    (san.tree.dev / "dm-3").symlink_to(san.lun_files[0].image)
    # The paths have no nodes at all: whoever opened one of them would fail.
    assert read(san.machine, disk) == raw.read_bytes()


def test_a_lun_with_another_volume(raw: Path, tmp_path: Path) -> None:
    san = San(tmp_path)
    disk = san.add_disk(raw)
    storage = replace(san.storage, vmfs_uuid="11111111-22222222-3333-444444444444")
    assert "not 11111111-22222222" in refused(san.machine, replace(disk, storage=storage))


@pytest.mark.parametrize(
    ("offset", "data", "says"),
    [
        (0, bytes(1 << 20), "no VMFS partition 1"),
        (1024, b"\x01" * 16, "checksum"),
        (2 * MIB, b"\0" * 4096, "has no VMFS on partition 1"),
    ],
)
def test_a_lun_that_something_else_was_done_to(
    offset: int, data: bytes, says: str, raw: Path, tmp_path: Path
) -> None:
    san = San(tmp_path)
    disk = san.add_disk(raw)
    with san.lun_files[0].image.open("r+b") as file:
        file.seek(offset)
        file.write(data)
    assert says in refused(san.machine, disk)


def test_a_clone_is_found_by_what_is_inside(raw: Path, tmp_path: Path) -> None:
    san = San(tmp_path, luns=2, seen=0)
    disk = san.add_disk(raw)
    for number in (0, 1):
        clone = tmp_path / f"clone{number}.img"
        clone_file(san.lun_files[number].image, clone)
        san.show(number, clone, wwid=naa(100 + number))
    # Disks of all kinds beside it: none of them may be in the way.
    (tmp_path / "other.img").write_bytes(os.urandom(2 * MIB))
    san.show(0, tmp_path / "other.img", wwid=naa(50))
    san.tree.add_disk("sdz", wwid=naa(51), address="3:0:0:0")
    san.tree.add_disk("loop0", san.lun_files[0].image)
    storage = replace(san.storage, extents=())
    assert read(san.machine, replace(disk, storage=storage)) == raw.read_bytes()
    assert naa(0) in refused(san.machine, disk)


def test_a_clone_beside_its_original_is_told_by_its_name_only(raw: Path, tmp_path: Path) -> None:
    san = San(tmp_path)
    disk = san.add_disk(raw)
    clone_file(san.lun_files[0].image, tmp_path / "clone.img")
    san.show(0, tmp_path / "clone.img", wwid=naa(100))
    assert "2 copies" in refused(san.machine, replace(disk, storage=replace(san.storage, extents=())))
    named = replace(san.storage, extents=(LunExtent(lun=naa(100), partition=1),))
    san.lun_files[0].image.unlink()
    assert read(san.machine, replace(disk, storage=named)) == raw.read_bytes()


def test_a_volume_that_is_nowhere(raw: Path, tmp_path: Path) -> None:
    san = San(tmp_path, seen=0)
    disk = san.add_disk(raw)
    inside = replace(disk, storage=replace(san.storage, extents=()))
    assert "no disk of this machine holds" in refused(san.machine, inside)
    nothing = replace(disk, storage=replace(san.storage, extents=(), vmfs_uuid=""))
    assert "names neither" in refused(san.machine, nothing)


def test_half_a_volume_is_none(raw: Path, tmp_path: Path) -> None:
    san = San(tmp_path, luns=2, seen=1)
    disk = san.add_disk(raw)
    assert "no disk of this machine" in refused(
        san.machine, replace(disk, storage=replace(san.storage, extents=()))
    )


# ---- what is for another mode ---------------------------------------------------------------------


def test_other_storage_is_for_other_modes(raw: Path, tmp_path: Path) -> None:
    san = San(tmp_path)
    disk = san.add_disk(raw)
    with pytest.raises(TransportUnavailableError, match="nobody said"):
        direct_san.open_reader(san.machine, replace(disk, storage=None))
    nfs = DatastoreRef(name="nfs1", kind="NFS", nfs_hosts=("nas",), nfs_path="/vol")
    assert "NFS datastore" in refused(san.machine, replace(disk, storage=nfs))
    assert direct_san.probe(san.machine, nfs) is None
    vsan = DatastoreRef(name="v", kind="vsan")
    assert "vsan datastore" in refused(san.machine, replace(disk, storage=vsan))


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("vm/gone.vmdk", "has no gone.vmdk there"),
        ("gone/a.vmdk", "has no gone there"),
        ("vm/a.vmdk/x.vmdk", "no such directory"),
    ],
)
def test_a_disk_that_is_not_there(path: str, says: str, raw: Path, tmp_path: Path) -> None:
    san = San(tmp_path)
    san.add_disk(raw)
    with pytest.raises(TransportUnavailableError, match=says):
        direct_san.open_reader(san.machine, san.disk(path, SIZE))


def _mark_partly(image: Path, granularity_shift: int) -> None:
    """Leave four of the eight bits "to be zeroed" at one block of vm/a-flat.vmdk."""
    file = DirectFile(str(image))
    volume = Volume([Part(file=file, offset=MIB, length=file.size_bytes - 2 * MIB)])
    found = volume.fs.get("/vm/a-flat.vmdk")
    (_, _, _, lun_offset), *_ = volume.map_rows()
    descriptor_at = lun_offset + found.lock_info.addr.offset
    pointers = [int(block) for block in found.blocks]
    number = next(n for n, pointer in enumerate(pointers) if pointer >> 7 & 0xFF == 0xFF)
    pointer = pointers[number] & ~(0xFF << 7) | 0x0F << 7
    offset_of_shift = volume.fs._fd_meta_offset + 0x6C
    pointers_at = volume.fs._fd_data_addrs_offset
    file.close()
    with image.open("r+b") as raw_image:
        raw_image.seek(descriptor_at + offset_of_shift)
        raw_image.write(granularity_shift.to_bytes(4, "little"))
        raw_image.seek(descriptor_at + pointers_at + number * 8)
        raw_image.write(pointer.to_bytes(8, "little"))


def test_blocks_of_which_a_part_is_to_be_zeroed(raw: Path, tmp_path: Path) -> None:
    """VMFS 6 has eight bits for it. Which part which bit means was never seen: another mode reads this disk."""
    san = San(tmp_path)
    disk = san.add_disk(raw, allocation=Allocation.LAZY)
    _mark_partly(san.lun_files[0].image, 17)
    with pytest.raises(TransportUnavailableError, match="still to be zeroed"):
        direct_san.open_reader(san.machine, disk)


def test_a_bit_that_stands_for_the_whole_block(raw: Path, tmp_path: Path) -> None:
    san = San(tmp_path)
    disk = san.add_disk(raw, allocation=Allocation.LAZY)
    _mark_partly(san.lun_files[0].image, 20)
    assert read(san.machine, disk) == raw.read_bytes()


def test_without_the_library_the_mode_is_not_offered(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    san = San(tmp_path)
    disk = san.add_disk(raw)
    assert direct_san.missing(san.machine) == ""
    monkeypatch.setattr(library, "_PACKAGE", "dissect.no_such_package")
    assert "extra `san`" in direct_san.missing(san.machine)
    assert "dissect.vmfs is not installed" in refused(san.machine, disk)
    monkeypatch.setattr(library, "_PACKAGE", "no_such_parent.at_all")
    assert "extra `san`" in direct_san.missing(san.machine)


def test_a_machine_that_shows_no_devices(tmp_path: Path) -> None:
    assert "shows no block devices" in direct_san.missing(Machine(sys_path=str(tmp_path)))


# ---- metadata that makes no sense -----------------------------------------------------------------


def test_metadata_that_makes_no_sense_is_read_again(raw: Path, tmp_path: Path) -> None:
    san = San(tmp_path)
    disk = san.add_disk(raw)
    resized = replace(disk, capacity_bytes=SIZE + MIB)
    waits: list[float] = []
    with pytest.raises(TransientTransportError, match="makes no sense"):
        direct_san.open_reader(san.machine, resized, wait=waits.append)
    assert waits == [1.0]

    def grow(seconds: float) -> None:
        grown = tmp_path / "grown"
        clone_file(raw, grown)
        with grown.open("r+b") as file:
            file.truncate(SIZE + MIB)
        san.add_disk(grown)

    reader = direct_san.open_reader(san.machine, resized, wait=grow)
    assert whole(reader) == raw.read_bytes() + bytes(MIB)
    reader.close()


@pytest.fixture(scope="module")
def damageable(tmp_path_factory: pytest.TempPathFactory, raw: Path) -> list[San]:
    sans = []
    for version in (5, 6):
        root = tmp_path_factory.mktemp(f"damage{version}")
        san = San(root, version=version)
        san.add_disk(raw, deep=True)
        san.store(delta("a-1", {7: b"x"}))
        sans.append(san)
    return sans


@pytest.mark.parametrize("seed", range(40))
def test_damage_is_told_as_an_error_of_transport(damageable: list[San], seed: int) -> None:
    """Any byte of metadata may be anything. (VMFS has no checksums: not all damage can be seen.)"""
    chosen = random.Random(seed)
    san = damageable[seed % 2]
    image = san.lun_files[0].image
    pages = _pages_with_metadata(image)
    before: list[tuple[int, bytes]] = []
    with image.open("r+b") as file:
        for _ in range(chosen.choice([1, 1, 4, 40])):
            at = chosen.choice(pages) + chosen.randrange(4096)
            file.seek(at)
            before.append((at, file.read(1)))
            file.seek(at)
            file.write(bytes([chosen.choice([0, 1, 0x7F, 0x80, 0xFF, chosen.randrange(256)])]))
    try:
        try:
            reader = direct_san.open_reader(san.machine, san.disk("vm/a-1.vmdk", SIZE), wait=never)
        except TransportError:
            return
        try:
            buffer = bytearray(MIB)
            for at in range(0, SIZE, MIB):
                reader.read_into(at, memoryview(buffer))
        except TransportError:
            return
        finally:
            reader.close()
    finally:
        with image.open("r+b") as file:
            for at, byte in reversed(before):
                file.seek(at)
                file.write(byte)


def _pages_with_metadata(image: Path) -> list[int]:
    """Pages that hold anything, of the beginning of a LUN."""
    with image.open("rb") as file:
        content = file.read(16 * MIB)
    return [at for at in range(0, len(content), 4096) if any(content[at : at + 4096])]
