"""A VMFS datastore on LUNs that a machine sees, as small as tests need it."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from vmhaul_lab.vmfs import Allocation, FileSpec, Lun, VmfsVolume

from tests.support.deltas import descriptor
from tests.support.sysfs import SysTree
from transports.base import DatastoreRef, DiskReader, DiskRef, LunExtent
from transports.machine import Machine

MIB = 1 << 20
LUN_BYTES = 2 << 30
NAME = "ds1"


def naa(number: int) -> str:
    return f"naa.600a0b80{number:024x}"


@dataclass
class San:
    """`nodes` are regular files: what is about real devices says so."""

    root: Path
    version: int = 6
    luns: int = 1
    seen: int = -1
    """How many of the LUNs the machine sees; -1: all."""
    volume: VmfsVolume = field(init=False)
    tree: SysTree = field(init=False)
    files: dict[str, FileSpec] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.lun_files = [
            Lun(image=self.root / f"lun{number}.img", size_bytes=LUN_BYTES, naa=naa(number))
            for number in range(self.luns)
        ]
        self.volume = VmfsVolume.create(self.lun_files, version=self.version, label=NAME)
        self.tree = SysTree(self.root / "machine")
        for number in range(self.luns if self.seen < 0 else self.seen):
            self.show(number)

    @property
    def machine(self) -> Machine:
        return self.tree.machine

    def show(self, number: int, image: Path | None = None, *, name: str = "", wwid: str = "") -> None:
        """Let the machine see a LUN, or another image by another name."""
        disks = sum(1 for _ in (self.tree.sys / "block").iterdir())
        self.tree.add_disk(
            name or f"sd{chr(ord('a') + disks)}",
            image or self.lun_files[number].image,
            wwid=wwid or naa(number),
            address=f"2:0:0:{disks}",
        )

    @property
    def storage(self) -> DatastoreRef:
        """As vSphere tells it."""
        return DatastoreRef(
            name=NAME,
            kind="VMFS",
            vmfs_uuid=self.volume.fs_uuid,
            vmfs_version="6.82" if self.version == 6 else "5.82",
            extents=tuple(LunExtent(lun=lun.naa, partition=1) for lun in self.lun_files),
        )

    def store(self, files: Iterable[FileSpec]) -> None:
        """Hold these files beside those from before."""
        self.files |= {file.path: file for file in files}
        self.volume.store(self.files.values())

    def add_disk(self, content: Path, path: str = "vm/a.vmdk", **spec: object) -> DiskRef:
        """A flat disk with that content. `spec`: of its FileSpec."""
        size = content.stat().st_size
        flat = path.removesuffix(".vmdk") + "-flat.vmdk"
        allocation = spec.pop("allocation", Allocation.THIN)
        assert isinstance(allocation, Allocation)
        self.store(
            [
                FileSpec(path=path, data=descriptor((size, "VMFS", flat.rpartition("/")[2]))),
                FileSpec(path=flat, data=content, allocation=allocation, **spec),  # type: ignore[arg-type]
            ]
        )
        return self.disk(path, size)

    def disk(self, path: str, size: int, storage: DatastoreRef | None = None) -> DiskRef:
        return DiskRef(
            vm_moref="vm-7",
            vm_name="db01",
            disk_key=2000,
            path=f"[{NAME}] {path}",
            capacity_bytes=size,
            datastore=NAME,
            snapshot_moref="snapshot-9",
            storage=storage or self.storage,
        )


def raw_disk(path: Path, size: int, *, seed: int = 1, every: int = 7) -> Path:
    """A sparse file with data in some of its MiB, beginning and ending anywhere inside of them."""
    chosen = random.Random(seed)
    with path.open("wb") as file:
        file.truncate(size)
        for start in range(0, size - MIB, every * MIB):
            at = start + chosen.randrange(0, MIB, 512)
            file.seek(at)
            file.write(chosen.randbytes(chosen.randrange(512, min(2 * MIB, size - at), 512)))
    return path


def whole(reader: DiskReader) -> bytes:
    buffer = bytearray(reader.size_bytes)
    reader.read_into(0, memoryview(buffer))
    return bytes(buffer)
