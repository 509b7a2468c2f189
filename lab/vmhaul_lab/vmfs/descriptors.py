"""File descriptors (the inodes of VMFS), locks, heartbeats and the header of the file system."""

import array
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

from vmhaul_lab.vmfs.geometry import Geometry
from vmhaul_lab.vmfs.values import BLOCK_BYTES, uuid_bytes

FS_MAGIC = 0x2FABF15E
FS_HEADER_BYTES = 0x200000  # where the header lies on the volume
HEARTBEATS_BYTES = 0x300000  # and the heartbeats

_LOCK_TYPE_DESCRIPTOR = 0x10C00001
_HEARTBEAT_FREE = 0xABCDEF01
_DESCRIPTOR_SIGNATURE = 0x66646D64  # "dmdf" in memory


class Kind(IntEnum):
    """What a descriptor describes."""

    DIRECTORY = 2
    FILE = 3
    SYSTEM = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Descriptor:
    """The content of one file descriptor; `data` is either pointers or the bytes of a resident file."""

    address: int
    number: int
    kind: Kind
    size_bytes: int
    block_bytes: int
    zla: int
    data: bytes | Sequence[int]
    blocks: int = 0
    to_be_zeroed: int = 0
    pointer_blocks: int = 0
    large_blocks: int = 0
    links: int = 1
    mode: int = 0o100600
    parent: int = 0


def lock(kind: int, offset_bytes: int, made_us: int, length: int) -> bytes:
    """A free lock of a record that lies at `offset_bytes` of the volume, `length` bytes long."""
    # type, own place, heartbeat's place and generation, token, mode, owner, time
    return struct.pack("<IQQQQI16sQ", kind, offset_bytes, 0, 0, 1, 0, b"", made_us).ljust(length, b"\0")


def descriptor(geometry: Geometry, item: Descriptor, offset_bytes: int, made_us: int) -> bytes:
    """The bytes of a descriptor that lies at `offset_bytes` of the volume."""
    image = bytearray(geometry.descriptor_bytes)
    unit = geometry.unit_bytes
    image[:unit] = lock(_LOCK_TYPE_DESCRIPTOR, offset_bytes, made_us, unit)
    now_s = made_us // 1_000_000
    # address, generation, links, kind, flags, length, block length, blocks; three times, owner, group,
    # mode, kind of pointers, blocks to be zeroed
    struct.pack_into(
        "<IIIIIQQQIIIIIIII",
        image,
        unit,
        item.address,
        item.number + 1,
        item.links,
        item.kind,
        0,
        item.size_bytes,
        item.block_bytes,
        item.blocks,
        now_s,
        now_s,
        now_s,
        0,
        0,
        item.mode,
        item.zla,
        item.to_be_zeroed & 0xFFFFFFFF,
    )
    struct.pack_into("<I", image, unit + 0x5C, item.pointer_blocks)
    shift = item.block_bytes.bit_length() - 1
    struct.pack_into("<IIII", image, unit + 0x64, _DESCRIPTOR_SIGNATURE, 0, shift, item.parent)
    struct.pack_into("<B", image, unit + 0x89, shift)
    struct.pack_into("<I", image, unit + 0x8C, item.large_blocks)
    if isinstance(item.data, bytes):
        image[geometry.data_offset : geometry.data_offset + len(item.data)] = item.data
    else:
        packed = pack_pointers(geometry, item.data)
        image[geometry.pointers_offset : geometry.pointers_offset + len(packed)] = packed
    return bytes(image)


def pack_pointers(geometry: Geometry, pointers: Sequence[int]) -> bytes:
    """Pointers as they stand on disk."""
    values = array.array(geometry.pointer_code, pointers)
    return values.tobytes()


def heartbeats(geometry: Geometry) -> bytes:
    """The region in which hosts tell that they live: nobody does."""
    length = geometry.heartbeat_bytes
    return b"".join(
        struct.pack("<IQ", _HEARTBEAT_FREE, HEARTBEATS_BYTES + number * length).ljust(length, b"\0")
        for number in range(geometry.heartbeats)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class FileSystemHeader:
    """What the header of the file system says beside the geometry."""

    fs_uuid: str
    lvm_uuid: str
    label: str
    made_us: int
    cluster_group_bytes: int  # of .fdc.sf: where its clusters begin
    clusters_per_group: int
    pb2_offset_bytes: int  # the descriptor of .pb2.sf on the volume
    pb2_address: int

    def pack(self, geometry: Geometry) -> bytes:
        """The header's bytes."""
        image = bytearray(512)
        struct.pack_into("<IIB", image, 0, FS_MAGIC, geometry.fs_major, geometry.fs_minor)
        struct.pack_into(
            "<16sI128sIQII16s16s",
            image,
            0x09,
            uuid_bytes(self.fs_uuid),
            0,
            self.label.encode(),
            512,
            BLOCK_BYTES,
            self.made_us // 1_000_000,
            0,
            uuid_bytes(self.lvm_uuid),
            b"",
        )
        struct.pack_into(
            "<IIIIQI",
            image,
            0xD1,
            self.cluster_group_bytes,
            self.clusters_per_group,
            geometry.sub_block_bytes,
            0,
            self.pb2_offset_bytes,
            self.pb2_address,
        )
        struct.pack_into("<II", image, 0x130, 512, geometry.unit_bytes)
        if geometry.version >= 6:
            # large block = 512 blocks; bits of a block's number in its cluster; TBZ and journal granularity
            struct.pack_into("<H", image, 0x138, 9)
            struct.pack_into("<H", image, 0x13E, 13)
            struct.pack_into("<H", image, 0x140, 9)
            struct.pack_into("<II", image, 0x144, BLOCK_BYTES, geometry.sub_block_bytes)
        return bytes(image)
