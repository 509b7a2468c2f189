"""LUNs that show a datastore: its folder's files as a VMFS volume, as ESXi hosts would have written it.

`labvc` keeps every disk file as a plain raw file that holds the whole disk. Here these files are *rendered*: the flat
file of a base disk lies on the LUN with its blocks shared with the raw file, a child becomes a true delta file with the
grains in which it differs from its parent. What a LUN shows is the state at the last rendering; *collecting* takes what
was written to the LUN since then (by a restore over SAN) back into the raw files.
"""

import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vmhaul_lab import deltas, reflink
from vmhaul_lab.deltas import DeltaKind
from vmhaul_lab.errors import LabError
from vmhaul_lab.vmfs import Allocation, FileSpec, Lun, Partitioning, PlacedFile, VmfsVolume

_DESCRIPTOR = b"# Disk DescriptorFile"
_DESCRIPTOR_BYTES = 64 << 10
_PARENT = re.compile(r'^parentFileNameHint="([^"]+)"', re.MULTILINE)
_EXTENT = re.compile(r'^RW (\d+) (\w+) "([^"]+)"', re.MULTILINE)
_GRAIN_BYTES = 64 << 10
# Nothing is written at that time, so whoever writes to an image shows in its times.
_RENDERED_NS = 1_000_000_000
_SETTLED_NS = 2_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class LunSpec:
    """One LUN: its image, size and identity."""

    image: str
    size_bytes: int
    naa: str
    partitioning: str = Partitioning.GPT


@dataclass(frozen=True, slots=True, kw_only=True)
class LunStoreSpec:
    """A datastore on LUNs. `folder` and `directory` lie on one file system that shares blocks."""

    name: str
    folder: str
    directory: str
    """Where images and what belongs to them are."""
    luns: tuple[LunSpec, ...]
    vmfs_uuid: str
    version: int = 6
    delta: str = ""
    """DeltaKind; SESPARSE when empty, as everywhere with VMFS 6."""
    zoned: tuple[str, ...] = ()
    """Guests that see the LUNs from the start."""

    @staticmethod
    def of(values: Mapping[str, Any]) -> "LunStoreSpec":
        """From what `dataclasses.asdict` made of it."""
        luns = tuple(LunSpec(**lun) for lun in values["luns"])
        return LunStoreSpec(**{**values, "luns": luns, "zoned": tuple(values["zoned"])})


@dataclass(slots=True)
class _Child:
    """The delta file that was made of a child, and what it was made from."""

    seen: tuple[object, ...]
    delta: Path


@dataclass(slots=True)
class LunStore:
    """A datastore on LUNs. Not for two threads at a time."""

    spec: LunStoreSpec
    volume: VmfsVolume = field(init=False)
    stray: list[tuple[int, int, int]] = field(init=False, default_factory=list)
    """(LUN, offset, length) of what was written outside of all files."""
    _allocations: dict[str, Allocation] = field(init=False, default_factory=dict)
    _children: dict[str, _Child] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        luns = [
            Lun(
                image=Path(lun.image),
                size_bytes=lun.size_bytes,
                naa=lun.naa,
                partitioning=Partitioning(lun.partitioning),
            )
            for lun in self.spec.luns
        ]
        self.volume = VmfsVolume.create(
            luns, version=self.spec.version, label=self.spec.name, fs_uuid=self.spec.vmfs_uuid
        )
        (Path(self.spec.directory) / "deltas").mkdir(parents=True, exist_ok=True)
        self._keep_images()

    # ---- from the folder to the LUNs

    def allocate(self, disks: Sequence[Mapping[str, Any]]) -> None:
        """Take notice of how the disks of a VM are allocated: {file, thin, eager} of each base file."""
        for disk in disks:
            kind = Allocation.THIN if disk["thin"] else Allocation.LAZY
            self._allocations[str(disk["file"])] = Allocation.EAGER if disk["eager"] else kind

    def render(self) -> None:
        """Let the LUNs show the folder as it is now."""
        self.volume.store(self._files())
        self._keep_images()

    def _files(self) -> Iterator[FileSpec]:
        root = Path(self.spec.folder)
        for path in sorted(root.rglob("*")):
            name = path.relative_to(root).as_posix()
            if path.name.startswith(".") or path.name.endswith((".frozen", "-flat.vmdk")):
                continue
            if not path.is_file():
                continue
            content = path.read_bytes() if path.stat().st_size <= _DESCRIPTOR_BYTES else path
            if isinstance(content, bytes) and content.startswith(_DESCRIPTOR):
                yield from self._disk(path, name, content.decode())
            else:
                yield FileSpec(path=name, data=content, allocation=Allocation.EAGER)

    def _disk(self, path: Path, name: str, text: str) -> Iterator[FileSpec]:
        """A disk's descriptor and its extent."""
        flat = _flat(path)
        if not flat.exists():  # a raw device mapping
            yield FileSpec(path=name, data=text.encode())
            return
        parent = _PARENT.search(text)
        above = _flat(path.with_name(parent[1])) if parent else None
        if above is None or not above.exists():
            allocation = self._allocations.get(str(flat), Allocation.THIN)
            yield FileSpec(path=name, data=text.encode())
            yield FileSpec(path=f"{name[:-5]}-flat.vmdk", data=flat, allocation=allocation)
            return
        kind = DeltaKind(self.spec.delta or DeltaKind.SE_SPARSE)
        extent = f"{path.name[:-5]}{kind.suffix}"
        text = _EXTENT.sub(lambda line: f'RW {line[1]} {kind.value} "{extent}"', text)
        text = text.replace('createType="seSparse"', f'createType="{kind.create_type}"')
        yield FileSpec(path=name, data=text.encode())
        delta = self._delta(name, flat, above, kind)
        yield FileSpec(path=f"{name.rpartition('/')[0]}/{extent}", data=delta)

    def _delta(self, name: str, flat: Path, above: Path, kind: DeltaKind) -> Path:
        seen = (*_state(flat), *_state(above))
        known = self._children.get(name)
        if known is not None and known.seen == seen:
            return known.delta
        target = Path(self.spec.directory) / "deltas" / name.replace("/", "%")
        deltas.write_delta(target, flat, reflink.changed_ranges(flat, above), kind)
        self._children[name] = _Child(seen, target)
        return target

    def _keep_images(self) -> None:
        for lun in self.volume.luns:
            # A thing that shares no blocks would be copied here at each change: better to say so.
            if not reflink.clone_file(lun.image, _kept(lun)):
                raise LabError(f"{lun.image}: its file system shares no blocks; take XFS or btrfs")
            os.utime(lun.image, ns=(_RENDERED_NS, _RENDERED_NS))

    # ---- from the LUNs to the folder

    def collect(self) -> int:
        """Take what was written to the LUNs since the last rendering into the files; how many bytes that was.

        A child that was equal to its parent where the parent was written to still is after that.
        """
        taken = 0
        for number, lun in enumerate(self.volume.luns):
            if lun.image.stat().st_mtime_ns == _RENDERED_NS:
                continue
            # Of one moment: what is written from here on gives the image a newer time, and is for the next one.
            os.utime(lun.image, ns=(_RENDERED_NS, _RENDERED_NS))
            moment = lun.image.with_name(lun.image.name + ".moment")
            reflink.clone_file(lun.image, moment)
            with moment.open("rb") as image:
                for offset, length in reflink.changed_ranges(moment, _kept(lun)):
                    taken += self._take(number, image.fileno(), offset, length)
            moment.replace(_kept(lun))
        return taken

    def _take(self, number: int, image: int, offset: int, length: int) -> int:
        taken = 0
        for path, start, place, part in self._parts(number, offset, length):
            raw = Path(self.spec.folder) / path
            if not path.endswith("-flat.vmdk"):
                self.stray.append((number, place, part))
                continue
            followers = [
                child
                for child in self._descendants(raw)
                if _same_range(raw, child, start, min(part, raw.stat().st_size - start))
            ]
            for file in (raw, *followers):
                with file.open("r+b") as target:
                    size = os.fstat(target.fileno()).st_size
                    reflink.put_range(image, place, min(part, size - start), target.fileno(), start)
            taken += part
        return taken

    def _parts(self, number: int, offset: int, length: int) -> Iterator[tuple[str, int, int, int]]:
        """(file, offset in it, offset in the image, length) of what of a range belongs to files, in grains."""
        belongs = 0
        for file in self.volume.files.values():
            for start, place, part in _overlaps(file, number, offset, length):
                belongs += part
                for at in range(0, part, _GRAIN_BYTES):
                    piece = min(_GRAIN_BYTES, part - at)
                    yield file.path, start + at, place + at, piece
        if belongs < length:
            self.stray.append((number, offset, length - belongs))

    def _descendants(self, flat: Path) -> Iterator[Path]:
        """The files of children, grandchildren and so on of a disk file."""
        for path in flat.parent.glob("*.vmdk"):
            if path.stat().st_size > _DESCRIPTOR_BYTES:
                continue
            parent = _PARENT.search(path.read_text(errors="replace"))
            if parent and _flat(path.with_name(parent[1])) == flat and _flat(path).exists():
                yield _flat(path)
                yield from self._descendants(_flat(path))


def _overlaps(
    file: PlacedFile, number: int, offset: int, length: int
) -> Iterator[tuple[int, int, int]]:
    for run in file.runs:
        start = max(offset, run.offset_bytes)
        stop = min(offset + length, run.offset_bytes + run.length_bytes)
        if run.lun == number and start < stop:
            yield run.file_offset_bytes + start - run.offset_bytes, start, stop - start


def _same_range(left: Path, right: Path, offset: int, length: int) -> bool:
    with left.open("rb") as one, right.open("rb") as other:
        return os.pread(one.fileno(), length, offset) == os.pread(other.fileno(), length, offset)


def _flat(descriptor: Path) -> Path:
    return descriptor.with_name(f"{descriptor.name[:-5]}-flat.vmdk")


def _kept(lun: Lun) -> Path:
    return lun.image.with_name(lun.image.name + ".rendered")


def _state(path: Path) -> tuple[object, ...]:
    stat = path.stat()
    # What was written a moment ago may be written again without a newer time: such a state equals no other.
    young = time.time_ns() - stat.st_mtime_ns < _SETTLED_NS
    return stat.st_ino, stat.st_mtime_ns, stat.st_size, object() if young else None
