"""A VMFS volume on LUN images: made once, then told what files to hold, as often as wished.

What stays between two calls of `store` keeps its blocks and its descriptor, as on a real volume, so that
whoever reads one file is not disturbed by a change of another. Data is written before the pointers to it.
"""

import os
import random
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from vmhaul_lab import reflink
from vmhaul_lab.errors import LabError
from vmhaul_lab.vmfs import directories, lvm, partition
from vmhaul_lab.vmfs import geometry as facts
from vmhaul_lab.vmfs.descriptors import (
    FS_HEADER_BYTES,
    HEARTBEATS_BYTES,
    Descriptor,
    FileSystemHeader,
    Kind,
    descriptor,
    heartbeats,
    pack_pointers,
)
from vmhaul_lab.vmfs.geometry import BLOCKS_PER_LARGE_BLOCK, Geometry, descriptor_address
from vmhaul_lab.vmfs.layout import DIRECTORY_MODE, SystemFiles
from vmhaul_lab.vmfs.resources import FreeMap
from vmhaul_lab.vmfs.values import (
    BLOCK_BYTES,
    Allocation,
    FileSpec,
    Lun,
    PlacedFile,
    Placement,
    new_vmfs_uuid,
)

_HOLE = -1
# What stands in a block that is to be zeroed: a reader that gives it away is wrong.
_OLD_BYTES = b"old bytes of another file that nobody may see again\n" * 80
# A file that changed so shortly before it was taken may have changed once more without a newer time.
_SETTLED_NS = 2_000_000_000


@dataclass(slots=True)
class _Node:
    """A directory or file that the volume holds now."""

    path: str
    piece: int  # of .fdc.sf
    kind: Kind
    sub_blocks: list[int] = field(default_factory=list)
    pointer_blocks: list[int] = field(default_factory=list)
    blocks: list[int] = field(default_factory=list)
    to_be_zeroed: set[int] = field(default_factory=set)  # indices in `blocks`
    large: set[int] = field(default_factory=set)  # indices / 512
    seen: tuple[int, int, int, int] | None = None  # what the data was when it was taken


class VmfsVolume:
    """One volume. `create` formats; `store` makes it hold exactly the given files."""

    def __init__(
        self,
        luns: Sequence[Lun],
        *,
        version: int,
        label: str,
        fs_uuid: str,
        lvm_uuid: str,
        made_us: int,
    ) -> None:
        self.luns = tuple(luns)
        self.label = label
        self.fs_uuid = fs_uuid
        self.lvm_uuid = lvm_uuid
        self.files: Mapping[str, PlacedFile] = {}
        self._geometry: Geometry = facts.geometry(version)
        self._members = lvm.members(self.luns)
        self._made_us = made_us
        blocks = sum(part.count for part in self._members) * lvm.SEGMENT_BYTES // BLOCK_BYTES
        self._system = SystemFiles(self._geometry, blocks)
        self._blocks = FreeMap("file block", blocks)
        self._descriptors = FreeMap("file descriptor", self._system.fdc.pieces)
        self._subs = FreeMap("sub-block", self._system.sbc.pieces)
        self._pointers = (
            FreeMap("pointer block", self._system.pbc.pieces) if version == 5 else self._subs
        )
        self._nodes: dict[str, _Node] = {}
        self._images: list[int] = []

    @classmethod
    def create(
        cls,
        luns: Sequence[Lun],
        *,
        version: int = 6,
        label: str = "lab",
        fs_uuid: str = "",
        made_us: int | None = None,
    ) -> Self:
        """Format the LUNs (their images are made anew) as one empty volume."""
        fs_uuid = fs_uuid or new_vmfs_uuid()
        low, _, rest = fs_uuid.partition("-")
        # The logical volume below has an identity of its own, made a moment before.
        lvm_uuid = f"{(int(low, 16) - 1) & 0xFFFFFFFF:08x}-{rest}"
        volume = cls(
            luns,
            version=version,
            label=label,
            fs_uuid=fs_uuid,
            lvm_uuid=lvm_uuid,
            made_us=time.time_ns() // 1000 if made_us is None else made_us,
        )
        volume._format()
        volume.store(())
        return volume

    @property
    def version(self) -> int:
        """5 or 6."""
        return self._geometry.version

    @property
    def free_blocks(self) -> int:
        """File blocks that nothing uses."""
        return self._blocks.taken.count(0)

    @property
    def system_blocks(self) -> int:
        """File blocks of the system files."""
        return sum(count for _, count in self._system.regions())

    def _format(self) -> None:
        for part in self._members:
            part.lun.image.parent.mkdir(parents=True, exist_ok=True)
            with part.lun.image.open("wb") as file:
                file.truncate(part.lun.size_bytes)
                partition.write(part.lun, file)
                file.seek(partition.start_bytes(part.lun) + lvm.HEADER_BYTES)
                file.write(
                    lvm.header(self._geometry, self._members, part.index, self.lvm_uuid, self._made_us)
                )
        for first, count in self._system.regions():
            for block in range(first, first + count):
                self._blocks.take(block)
        for number in self._system.numbers():
            self._descriptors.take(number)
        self._nodes[""] = _Node(path="", piece=0, kind=Kind.DIRECTORY)
        for path, number in self._system.folders():
            self._nodes[path] = _Node(path=path, piece=number, kind=Kind.SYSTEM)
        self._open()
        try:
            header = FileSystemHeader(
                fs_uuid=self.fs_uuid,
                lvm_uuid=self.lvm_uuid,
                label=self.label,
                made_us=self._made_us,
                cluster_group_bytes=self._system.fdc.header_bytes,
                clusters_per_group=self._system.fdc.clusters_per_group,
                pb2_offset_bytes=self._descriptor_offset(self._system.pb2_number),
                pb2_address=self._address(self._system.pb2_number),
            )
            self._write(FS_HEADER_BYTES, header.pack(self._geometry))
            self._write(HEARTBEATS_BYTES, heartbeats(self._geometry))
            for offset, data in self._system.headers():
                self._write(offset, data)
            for item in self._system.descriptors():
                self._write_descriptor(item)
        finally:
            self._close()

    # ---- what the volume holds

    def store(self, files: Iterable[FileSpec]) -> Mapping[str, PlacedFile]:
        """Hold these files and no others; where they lie now, by path.

        Data that lies in a raw file is shared with it where the file system can, else copied; a raw file
        that has not changed since the last call is not taken again. Not for two threads at a time.
        """
        wanted = {file.path: file for file in files}
        folders = {
            "/".join(path.split("/")[:depth]) for path in wanted for depth in range(path.count("/") + 1)
        }
        if clash := folders & wanted.keys():
            raise LabError(f"{min(clash)} is a file and a directory at once")
        kept = wanted.keys() | folders | {""} | {path for path, _ in self._system.folders()}
        self._open()
        try:
            for path in self._nodes.keys() - kept:
                self._drop(path)
            for path in sorted(folders - self._nodes.keys()):
                self._add(path, Kind.DIRECTORY)
            for path in wanted.keys() - self._nodes.keys():
                self._add(path, Kind.FILE)
            self.files = {path: self._store_file(wanted[path]) for path in sorted(wanted)}
            for path in sorted(folders | {""} | {name for name, _ in self._system.folders()}):
                self._store_directory(path)
            self._write_maps()
        finally:
            self._close()
        return self.files

    def _add(self, path: str, kind: Kind) -> None:
        self._nodes[path] = _Node(path=path, piece=self._descriptors.one(), kind=kind)

    def _drop(self, path: str) -> None:
        node = self._nodes.pop(path)
        self._release(node)
        self._descriptors.give([node.piece])
        self._write(self._descriptor_offset(node.piece), bytes(self._geometry.descriptor_bytes))

    def _release(self, node: _Node) -> None:
        self._blocks.give([block for block in node.blocks if block != _HOLE])
        self._subs.give(node.sub_blocks)
        self._pointers.give(node.pointer_blocks)
        node.blocks = []
        node.sub_blocks, node.pointer_blocks = [], []
        node.to_be_zeroed, node.large, node.seen = set(), set(), None

    def _store_file(self, file: FileSpec) -> PlacedFile:
        node = self._nodes[file.path]
        size = file.size_bytes
        if isinstance(file.data, bytes) and size <= self._geometry.sub_block_bytes and not file.deep:
            self._store_small(node, file.data)
            runs: tuple[Placement, ...] = ()
        else:
            self._map(node, file, size)
            runs = self._placements(node)
            self._take_data(node, file, runs)
            self._write_pointers(node, file, size)
        return PlacedFile(path=file.path, size_bytes=size, allocation=file.allocation, runs=runs)

    def _store_small(self, node: _Node, data: bytes) -> None:
        self._release(node)
        geometry = self._geometry
        resident = len(data) <= geometry.resident_bytes
        content: bytes | Sequence[int] = data
        if not resident:
            content = self._write_sub_blocks(node, data)
        self._write_descriptor(
            Descriptor(
                address=self._address(node.piece),
                number=node.piece,
                kind=node.kind,
                size_bytes=len(data),
                block_bytes=geometry.sub_block_bytes,
                zla=facts.ZLA_RESIDENT if resident else facts.SUB_BLOCK,
                data=content,
                blocks=0 if resident else 1,
                parent=self._address(self._nodes[node.path.rpartition("/")[0]].piece),
            )
        )

    def _write_sub_blocks(self, node: _Node, data: bytes) -> list[int]:
        """Put data into as many sub-blocks as it needs; their addresses."""
        step = self._geometry.sub_block_bytes
        count = max(1, -(-len(data) // step))
        while len(node.sub_blocks) < count:
            node.sub_blocks.append(self._subs.one())
        self._subs.give(node.sub_blocks[count:])
        del node.sub_blocks[count:]
        if count > self._geometry.pointers:
            raise LabError(f"/{node.path} is too large for sub-blocks: give it fewer names")
        for number, piece in enumerate(node.sub_blocks):
            part = data[number * step : (number + 1) * step].ljust(step, b"\0")
            self._write(self._system.sub_block_offset(piece), part)
        return [self._geometry.sub_block(*self._system.sbc.split(piece)) for piece in node.sub_blocks]

    # ---- blocks of large files

    def _map(self, node: _Node, file: FileSpec, size: int) -> None:
        """Give the file the blocks that it needs beside those that it has."""
        count = -(-size // BLOCK_BYTES)
        if len(node.blocks) > count or node.sub_blocks:
            self._release(node)
        node.blocks.extend([_HOLE] * (count - len(node.blocks)))
        filled = _blocks_with_data(file, count)
        if file.large_blocks and file.allocation is Allocation.EAGER:
            self._map_large(node, count)
        wanted = filled if file.allocation is Allocation.THIN else range(count)
        missing = [index for index in wanted if node.blocks[index] == _HOLE]
        scatter = random.Random(file.path) if file.fragment_blocks else None
        at = 0
        while at < len(missing):
            neighbours = 1
            while (
                at + neighbours < len(missing) and missing[at + neighbours] == missing[at] + neighbours
            ):
                neighbours += 1
            most = min(neighbours, file.fragment_blocks or neighbours)
            after = scatter.randrange(self._blocks.pieces) if scatter else 0
            for block in (found := self._blocks.run(most, after=after)):
                node.blocks[missing[at]] = block
                if file.allocation is Allocation.LAZY:
                    node.to_be_zeroed.add(missing[at])
                    self._write(block * BLOCK_BYTES, _OLD_BYTES)
                at += 1
            if not found:
                raise LabError(f"no block is free for /{file.path}")
        node.to_be_zeroed.difference_update(filled)

    def _map_large(self, node: _Node, count: int) -> None:
        if self._geometry.version == 5:
            raise LabError(f"/{node.path}: VMFS 5 has no large file blocks")
        for group in range(count // BLOCKS_PER_LARGE_BLOCK):
            first = group * BLOCKS_PER_LARGE_BLOCK
            if node.blocks[first] != _HOLE:
                continue
            found = self._blocks.run(BLOCKS_PER_LARGE_BLOCK, align=BLOCKS_PER_LARGE_BLOCK)
            node.blocks[first : first + BLOCKS_PER_LARGE_BLOCK] = found
            node.large.add(group)

    def _placements(self, node: _Node) -> tuple[Placement, ...]:
        runs: list[Placement] = []
        blocks_per_segment = lvm.SEGMENT_BYTES // BLOCK_BYTES
        for index, block in enumerate(node.blocks):
            if block == _HOLE:
                continue
            segment, number = divmod(block, blocks_per_segment)
            part = self._member(segment)
            run = Placement(
                file_offset_bytes=index * BLOCK_BYTES,
                lun=part.index,
                offset_bytes=part.offset_bytes(segment) + number * BLOCK_BYTES,
                length_bytes=BLOCK_BYTES,
                to_be_zeroed=index in node.to_be_zeroed,
            )
            if runs and _adjoin(runs[-1], run):
                run = Placement(
                    file_offset_bytes=runs[-1].file_offset_bytes,
                    lun=run.lun,
                    offset_bytes=runs[-1].offset_bytes,
                    length_bytes=runs[-1].length_bytes + BLOCK_BYTES,
                    to_be_zeroed=run.to_be_zeroed,
                )
                runs.pop()
            runs.append(run)
        return tuple(runs)

    def _take_data(self, node: _Node, file: FileSpec, runs: Iterable[Placement]) -> None:
        if isinstance(file.data, bytes):
            for run in runs:
                start = run.file_offset_bytes
                part = file.data[start : start + run.length_bytes]
                os.pwrite(self._images[run.lun], part, run.offset_bytes)
            return
        with file.data.open("rb") as source:
            stat = os.fstat(source.fileno())
            seen = (stat.st_dev, stat.st_ino, stat.st_mtime_ns, stat.st_size)
            if node.seen == seen:
                return
            for run in runs:
                length = min(run.length_bytes, stat.st_size - run.file_offset_bytes)
                if length > 0 and not run.to_be_zeroed:
                    reflink.put_range(
                        source.fileno(),
                        run.file_offset_bytes,
                        length,
                        self._images[run.lun],
                        run.offset_bytes,
                    )
            settled = time.time_ns() - stat.st_mtime_ns > _SETTLED_NS
            node.seen = seen if settled else None

    def _write_pointers(self, node: _Node, file: FileSpec, size: int) -> None:
        geometry = self._geometry
        pointers = self._pointers_to_blocks(node)
        per_block = geometry.pointers_per_block
        zla = facts.FILE_BLOCK
        written = 0
        deep = file.deep or len(pointers) > geometry.pointers * per_block
        # One reader of VMFS 6 takes the first hole among a descriptor's own pointers for their end.
        holes = geometry.version >= 6 and 0 in pointers
        if deep or holes or len(pointers) > geometry.pointers:
            pools = _Pool(list(node.pointer_blocks))
            node.pointer_blocks = []
            pointers = self._write_level(node, pools, pointers, keep_empty=deep)
            zla = facts.POINTER_BLOCK
            if deep:
                pointers = self._write_level(node, pools, pointers, keep_empty=True)
                zla = facts.ZLA_DOUBLE_INDIRECT
            self._pointers.give(pools.left)
            written = len(node.pointer_blocks)
        self._write_descriptor(
            Descriptor(
                address=self._address(node.piece),
                number=node.piece,
                kind=node.kind,
                size_bytes=size,
                block_bytes=BLOCK_BYTES,
                zla=zla,
                data=pointers,
                blocks=sum(1 for block in node.blocks if block != _HOLE),
                to_be_zeroed=len(node.to_be_zeroed),
                pointer_blocks=written,
                large_blocks=len(node.large),
                parent=self._address(self._nodes[node.path.rpartition("/")[0]].piece),
            )
        )

    def _pointers_to_blocks(self, node: _Node) -> list[int]:
        geometry = self._geometry
        pointers = [0] * len(node.blocks)
        for index, block in enumerate(node.blocks):
            group = index // BLOCKS_PER_LARGE_BLOCK
            if block == _HOLE:
                continue
            if group in node.large:
                # Every one of its 512 places names the large block.
                pointers[index] = geometry.large_block(node.blocks[group * BLOCKS_PER_LARGE_BLOCK])
            else:
                pointers[index] = geometry.file_block(block, to_be_zeroed=index in node.to_be_zeroed)
        return pointers

    def _write_level(
        self, node: _Node, pool: "_Pool", pointers: Sequence[int], *, keep_empty: bool
    ) -> list[int]:
        """Put pointers into pointer blocks; the pointers to these."""
        step = self._geometry.pointers_per_block
        shape = self._system.sbc if self._geometry.version >= 6 else self._system.pbc
        above: list[int] = []
        for start in range(0, len(pointers), step):
            part = pointers[start : start + step]
            if not keep_empty and not any(part):
                above.append(0)
                continue
            piece = pool.left.pop(0) if pool.left else self._pointers.one()
            node.pointer_blocks.append(piece)
            packed = pack_pointers(self._geometry, part)
            whole = packed.ljust(step * self._geometry.pointer_bytes, b"\0")
            self._write(self._system.pointer_block_offset(piece), whole)
            above.append(self._geometry.pointer_block(*shape.split(piece)))
        return above

    # ---- directories and maps

    def _store_directory(self, path: str) -> None:
        node = self._nodes[path]
        parent = self._nodes[path.rpartition("/")[0]]
        entries = [
            directories.Entry(
                name=child.path.rpartition("/")[2],
                address=self._address(child.piece),
                number=child.piece,
                kind=child.kind,
            )
            for child in sorted(self._nodes.values(), key=lambda child: child.piece)
            if child.path and child.path.rpartition("/")[0] == path
        ]
        if not path:
            entries = [*self._system.entries(), *entries]
        own, above = (
            directories.Entry(
                name="", address=self._address(item.piece), number=item.piece, kind=Kind.DIRECTORY
            )
            for item in (node, parent)
        )
        if self._geometry.version == 5:
            data = directories.pack5(entries, own, above)
        else:
            data = directories.pack6(entries, own, above, root=not path)
        block_bytes, zla = self._geometry.sub_block_bytes, facts.SUB_BLOCK
        if path:
            pointers = self._write_sub_blocks(node, data)
        else:
            # Readers open the root before they know of sub-blocks.
            block_bytes, zla = BLOCK_BYTES, facts.FILE_BLOCK
            pointers = self._write_root(node, data)
        folders = sum(1 for entry in entries if entry.kind is Kind.DIRECTORY)
        self._write_descriptor(
            Descriptor(
                address=own.address,
                number=node.piece,
                kind=node.kind,
                size_bytes=len(data),
                block_bytes=block_bytes,
                zla=zla,
                data=pointers,
                blocks=len(pointers),
                links=2 + folders,
                mode=DIRECTORY_MODE,
                parent=above.address,
            )
        )

    def _write_root(self, node: _Node, data: bytes) -> list[int]:
        if len(data) > BLOCK_BYTES:
            raise LabError("the root directory has too many names for one block")
        if not node.blocks:
            node.blocks = list(self._blocks.run(1))
        self._write(node.blocks[0] * BLOCK_BYTES, data)
        return [self._geometry.file_block(node.blocks[0])]

    def _write_maps(self) -> None:
        pairs = [
            (self._system.fdc_file, self._descriptors),
            (self._system.sbc_file, self._subs),
            (self._system.fbb_file, self._blocks),
        ]
        if self._geometry.version == 5:
            pairs.append((self._system.pbc_file, self._pointers))
        for file, free in pairs:
            for offset, data in self._system.clusters(file, free, self._made_us):
                self._write(offset, data)

    # ---- bytes

    def _address(self, piece: int) -> int:
        return descriptor_address(*self._system.fdc.split(piece))

    def _descriptor_offset(self, piece: int) -> int:
        return self._geometry.descriptors_base_bytes + self._system.fdc.piece_offset(
            self._geometry, piece
        )

    def _write_descriptor(self, item: Descriptor) -> None:
        offset = self._descriptor_offset(item.number)
        self._write(offset, descriptor(self._geometry, item, offset, self._made_us))

    def _member(self, segment: int) -> lvm.Member:
        for part in self._members:
            if part.first <= segment < part.first + part.count:
                return part
        raise LabError(f"segment {segment} lies behind the volume's end")

    def _write(self, offset: int, data: bytes) -> None:
        """Write at an offset of the volume."""
        while data:
            segment, inside = divmod(offset, lvm.SEGMENT_BYTES)
            part = self._member(segment)
            piece = data[: lvm.SEGMENT_BYTES - inside]
            os.pwrite(self._images[part.index], piece, part.offset_bytes(segment) + inside)
            offset, data = offset + len(piece), data[len(piece) :]

    def _open(self) -> None:
        self._images = [os.open(lun.image, os.O_RDWR) for lun in self.luns]

    def _close(self) -> None:
        for image in self._images:
            os.close(image)
        self._images = []


@dataclass(slots=True)
class _Pool:
    """Pointer blocks that a file has and that are used again."""

    left: list[int]


def _adjoin(left: Placement, right: Placement) -> bool:
    return (
        left.lun == right.lun
        and left.to_be_zeroed == right.to_be_zeroed
        and left.file_offset_bytes + left.length_bytes == right.file_offset_bytes
        and left.offset_bytes + left.length_bytes == right.offset_bytes
    )


def _blocks_with_data(file: FileSpec, count: int) -> list[int]:
    """Indices of the blocks in which a file has anything but a hole."""
    if isinstance(file.data, bytes):
        return list(range(count))
    return _data_blocks(file.data)


def _data_blocks(path: Path) -> list[int]:
    found: dict[int, None] = {}
    size = path.stat().st_size
    for offset, length in reflink.written_ranges(path):
        for index in range(offset // BLOCK_BYTES, -(-min(offset + length, size) // BLOCK_BYTES)):
            found[index] = None
    return list(found)
