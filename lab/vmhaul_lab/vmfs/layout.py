"""The system files of a volume: where each lies, how it is cut up, what its descriptor says."""

from collections.abc import Iterator
from dataclasses import dataclass

from vmhaul_lab.errors import LabError
from vmhaul_lab.vmfs import directories
from vmhaul_lab.vmfs.descriptors import Descriptor, Kind
from vmhaul_lab.vmfs.geometry import BLOCKS_PER_LARGE_BLOCK, FILE_BLOCK, Geometry, descriptor_address
from vmhaul_lab.vmfs.resources import FreeMap, Shape
from vmhaul_lab.vmfs.values import BLOCK_BYTES

DIRECTORY_MODE = 0o40755
FILES = 1024  # how many files and directories a volume may hold

# Second header in .fbb.sf of VMFS 6, the one of small blocks.
_CHILD_HEADER_BYTES = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class SystemFile:
    """One system file: the number of its descriptor, its first block and its length."""

    name: str
    number: int
    first_block: int
    size_bytes: int
    shape: Shape | None = None

    @property
    def blocks(self) -> int:
        return -(-self.size_bytes // BLOCK_BYTES)


class SystemFiles:
    """The system files of a volume with `blocks` file blocks, packed from its start."""

    def __init__(self, geometry: Geometry, blocks: int) -> None:
        self._geometry = geometry
        six = geometry.version >= 6
        self.fdc = Shape(
            name=".fdc.sf",
            lock_type=0x10C00005,
            piece_bytes=geometry.descriptor_bytes,
            pieces=FILES,
            pieces_per_cluster=64,
            clusters_per_group=4,
        )
        self.sbc = Shape(
            name=".sbc.sf",
            lock_type=0x10C00003,
            piece_bytes=geometry.sub_block_bytes,
            # VMFS 6 keeps pointer blocks here too: one for each 8 GiB of a file.
            pieces=2048 if six else 4096,
            pieces_per_cluster=32 if six else 16,
            clusters_per_group=16,
        )
        self.pbc = Shape(
            name=".pbc.sf",
            lock_type=0x10C00004,
            piece_bytes=geometry.pointers_per_block * geometry.pointer_bytes,
            pieces=0 if six else 2048,
            pieces_per_cluster=16,
            clusters_per_group=16,
        )
        self._pb2 = Shape(
            name=".pb2.sf",
            lock_type=0x10C00006,
            piece_bytes=geometry.pointers_per_block * geometry.pointer_bytes,
            pieces=0 if six else 16,
            pieces_per_cluster=16,
            clusters_per_group=1,
        )
        self._small = Shape(
            name=".fbb.sf",
            lock_type=0x10C00002,
            piece_bytes=0,
            pieces=blocks,
            pieces_per_cluster=BLOCKS_PER_LARGE_BLOCK,
            clusters_per_group=32,
        )
        self._large = Shape(
            name=".fbb.sf",
            lock_type=0x10C00007,
            piece_bytes=0,
            pieces=blocks // BLOCKS_PER_LARGE_BLOCK,
            pieces_per_cluster=16,
            clusters_per_group=1,
        )
        self._jbc = Shape(
            name=".jbc.sf",
            lock_type=0x10C00008,
            piece_bytes=64 << 10,
            pieces=16,
            pieces_per_cluster=16,
            clusters_per_group=1,
        )
        self._files: dict[str, SystemFile] = {}
        base = geometry.descriptors_base_bytes // BLOCK_BYTES
        self._files[".vh.sf"] = SystemFile(
            name=".vh.sf", number=5, first_block=0, size_bytes=geometry.descriptors_base_bytes
        )
        numbers = [(2, self.fdc), (1, self._small), (4, self.sbc), (3, self.pbc), (6, self._pb2)]
        if six:
            numbers.append((8, self._jbc))
        for number, shape in numbers:
            file = SystemFile(
                name=shape.name,
                number=number,
                first_block=base,
                size_bytes=shape.length_bytes(geometry),
                shape=shape,
            )
            self._files[shape.name] = file
            base += file.blocks
        if base > blocks or any(file.blocks > geometry.pointers for file in self._files.values()):
            raise LabError("the volume is too small or too large for its own system files")

    @property
    def pb2_number(self) -> int:
        return self._files[".pb2.sf"].number

    @property
    def fdc_file(self) -> SystemFile:
        return self._files[".fdc.sf"]

    @property
    def sbc_file(self) -> SystemFile:
        return self._files[".sbc.sf"]

    @property
    def pbc_file(self) -> SystemFile:
        return self._files[".pbc.sf"]

    @property
    def fbb_file(self) -> SystemFile:
        return self._files[".fbb.sf"]

    def regions(self) -> list[tuple[int, int]]:
        """(first block, count) of what the system files take."""
        return [(file.first_block, file.blocks) for file in self._files.values()]

    def numbers(self) -> list[int]:
        """Descriptors that are taken: the root's and all that systems files have in either version."""
        return list(range(11))

    def folders(self) -> list[tuple[str, int]]:
        """(path, number) of directories that belong to the system."""
        return [(".sdd.sf", 7)] if self._geometry.version >= 6 else []

    def entries(self) -> list[directories.Entry]:
        """What the root directory names first."""
        return [
            directories.Entry(
                name=file.name,
                address=descriptor_address(0, file.number),
                number=file.number,
                kind=Kind.SYSTEM,
            )
            for file in sorted(self._files.values(), key=lambda file: file.number)
        ]

    def descriptors(self) -> Iterator[Descriptor]:
        """What describes each system file."""
        for file in self._files.values():
            yield Descriptor(
                address=descriptor_address(0, file.number),
                number=file.number,
                kind=Kind.SYSTEM,
                size_bytes=file.size_bytes,
                block_bytes=BLOCK_BYTES,
                zla=FILE_BLOCK,
                data=[
                    self._geometry.file_block(block)
                    for block in range(file.first_block, file.first_block + file.blocks)
                ],
                blocks=file.blocks,
                parent=descriptor_address(0, 0),
            )

    def headers(self) -> Iterator[tuple[int, bytes]]:
        """(offset on the volume, bytes) of the resource files' headers."""
        for file in self._files.values():
            start = file.first_block * BLOCK_BYTES
            if file.shape is None:
                continue
            if file.shape is self._small and self._geometry.version >= 6:
                yield start, self._large.header(self._geometry, child_offset=_CHILD_HEADER_BYTES)
                yield start + _CHILD_HEADER_BYTES, self._small.header(self._geometry)
            else:
                yield start, file.shape.header(self._geometry)

    def clusters(self, file: SystemFile, free: FreeMap, made_us: int) -> Iterator[tuple[int, bytes]]:
        """(offset on the volume, bytes) of the headers of a file's clusters."""
        if file.shape is None:
            return
        start = file.first_block * BLOCK_BYTES
        for number in range(file.shape.clusters):
            at = start + file.shape.cluster_offset(self._geometry, number)
            yield at, file.shape.cluster(self._geometry, number, free, at, made_us)

    def sub_block_offset(self, piece: int) -> int:
        """Where a sub-block lies on the volume."""
        return self.sbc_file.first_block * BLOCK_BYTES + self.sbc.piece_offset(self._geometry, piece)

    def pointer_block_offset(self, piece: int) -> int:
        """Where a pointer block lies on the volume."""
        if self._geometry.version >= 6:
            return self.sub_block_offset(piece)
        return self.pbc_file.first_block * BLOCK_BYTES + self.pbc.piece_offset(self._geometry, piece)
