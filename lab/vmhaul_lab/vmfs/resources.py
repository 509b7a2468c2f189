"""Resource files: pools of equal pieces (file descriptors, sub-blocks, pointer blocks, file blocks).

A resource file has a header, then groups of clusters: the headers of a group's clusters first, then their
pieces. A cluster's header is a lock and a record with a bitmap in which a set bit means free.
"""

import struct
from dataclasses import dataclass, field

from vmhaul_lab.errors import LabError
from vmhaul_lab.vmfs.descriptors import lock
from vmhaul_lab.vmfs.geometry import Geometry

_FILE_SIGNATURE = 0x72666D64
_CLUSTER_SIGNATURE = 0x72636D64
_CLUSTER_RECORD = struct.Struct("<IIII")


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """How a resource file is cut up."""

    name: str
    lock_type: int
    piece_bytes: int  # 0: the pieces lie elsewhere, the file only counts them
    pieces: int
    pieces_per_cluster: int
    clusters_per_group: int
    header_bytes: int = 64 << 10

    @property
    def clusters(self) -> int:
        """Clusters that hold anything."""
        return -(-self.pieces // self.pieces_per_cluster)

    def group_bytes(self, geometry: Geometry) -> int:
        """Length of one group."""
        cluster = self.pieces_per_cluster * self.piece_bytes
        return self.clusters_per_group * (geometry.cluster_header_bytes + cluster)

    def length_bytes(self, geometry: Geometry) -> int:
        """Length of the whole file."""
        groups = -(-self.clusters // self.clusters_per_group)
        return self.header_bytes + groups * self.group_bytes(geometry)

    def split(self, piece: int) -> tuple[int, int]:
        """Cluster and number in it."""
        return divmod(piece, self.pieces_per_cluster)

    def cluster_offset(self, geometry: Geometry, cluster: int) -> int:
        """Where a cluster's header lies in the file."""
        group, place = divmod(cluster, self.clusters_per_group)
        at = self.header_bytes + group * self.group_bytes(geometry)
        return at + place * geometry.cluster_header_bytes

    def piece_offset(self, geometry: Geometry, piece: int) -> int:
        """Where a piece lies in the file."""
        cluster, number = self.split(piece)
        group, place = divmod(cluster, self.clusters_per_group)
        at = self.header_bytes + group * self.group_bytes(geometry)
        at += self.clusters_per_group * geometry.cluster_header_bytes
        return at + (place * self.pieces_per_cluster + number) * self.piece_bytes

    def header(self, geometry: Geometry, *, child_offset: int = 0) -> bytes:
        """The file's header; `child_offset`: where a second header stands in the same file."""
        image = bytearray(512)
        struct.pack_into(
            "<IIIIIIIIII",
            image,
            0,
            self.pieces_per_cluster,
            self.clusters_per_group,
            self.header_bytes,
            self.piece_bytes,
            self.group_bytes(geometry),
            self.pieces & 0xFFFFFFFF,
            -(-self.clusters // self.clusters_per_group),
            self.pieces >> 32,
            _FILE_SIGNATURE,
            geometry.version,
        )
        struct.pack_into("<II", image, 0x30, 1, child_offset)
        return bytes(image)

    def cluster(
        self, geometry: Geometry, cluster: int, free: "FreeMap", at: int, made_us: int
    ) -> bytes:
        """A cluster's header, for the place `at` of the volume."""
        unit = geometry.unit_bytes
        first = cluster * self.pieces_per_cluster
        total = min(self.pieces - first, self.pieces_per_cluster)
        bits = free.bits(first, total)
        record = bytearray(unit)
        if geometry.version == 5:
            # The index of the first free piece, as its readers understand the fourth field.
            low = (bits & -bits).bit_length() - 1 if bits else 0
            _CLUSTER_RECORD.pack_into(record, 0, cluster, total, bits.bit_count(), low)
            length = -(-self.pieces_per_cluster // 8)
            record[16 : 16 + length] = bits.to_bytes(length, "little")
        else:
            # The rest of this record, its bitmap included, is known to no public source.
            struct.pack_into(
                "<IIQHH", record, 16, _CLUSTER_SIGNATURE, 0, cluster, total, bits.bit_count()
            )
        return lock(self.lock_type, at, made_us, unit) + bytes(record)


@dataclass(slots=True)
class FreeMap:
    """Which pieces of a pool are taken."""

    what: str
    pieces: int
    taken: bytearray = field(init=False)
    _next: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self.taken = bytearray(self.pieces)

    def take(self, piece: int) -> int:
        """Take a named piece."""
        if self.taken[piece]:
            raise LabError(f"{self.what} {piece} is taken twice")
        self.taken[piece] = 1
        return piece

    def one(self) -> int:
        """Take the lowest free piece."""
        return self.run(1)[0]

    def run(self, count: int, *, align: int = 1, after: int = 0) -> range:
        """Take `count` neighbours; as many as there are in one place when there is no such place."""
        at = after
        best = range(0)
        while True:
            at = self.taken.find(0, at)
            if at < 0:
                break
            at = -(-at // align) * align
            end = self.taken.find(1, at, at + count)
            end = min(at + count, self.pieces) if end < 0 else end
            if end - at > len(best):
                best = range(at, end)
            if len(best) == count or at >= self.pieces:
                break
            at = max(end, at + 1)
        if not best and after:
            return self.run(count, align=align)
        if not best or (align > 1 and len(best) < count):
            raise LabError(f"no {self.what} is free any more: make the volume larger")
        for piece in best:
            self.taken[piece] = 1
        return best

    def give(self, pieces: list[int]) -> None:
        """Give pieces back."""
        for piece in pieces:
            self.taken[piece] = 0

    def bits(self, first: int, count: int) -> int:
        """A number with a set bit for each free piece of a stretch."""
        part = self.taken[first : first + count]
        if not any(part):
            return (1 << count) - 1
        return sum(1 << place for place, taken in enumerate(part) if not taken)
