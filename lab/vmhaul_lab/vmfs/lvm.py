"""The logical volume below VMFS: a header on each LUN, and segments of 256 MiB that make the volume."""

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from vmhaul_lab.errors import LabError
from vmhaul_lab.vmfs import partition
from vmhaul_lab.vmfs.geometry import Geometry
from vmhaul_lab.vmfs.values import Lun, uuid_bytes

MAGIC = 0xC001D00D
HEADER_BYTES = 0x100000  # after the start of the partition
DATA_BYTES = 0x1100000  # first segment, after the start of the partition
SEGMENT_BYTES = 256 << 20

_SEGMENTS_PER_TABLE = 8192
_SEGMENT_ENTRY_BYTES = 128
_VOLUME_ENTRY_BYTES = 512
_STATE_NORMAL = 1
_VOLUME_NUMBER = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A LUN's part of the volume: segments `first` up to `first + count`."""

    lun: Lun
    index: int
    first: int
    count: int

    def offset_bytes(self, segment: int) -> int:
        """Where a segment of the volume lies in the LUN's image."""
        return partition.start_bytes(self.lun) + DATA_BYTES + (segment - self.first) * SEGMENT_BYTES


def members(luns: Sequence[Lun]) -> tuple[Member, ...]:
    """How the LUNs share the volume, in their order."""
    found: list[Member] = []
    first = 0
    for index, lun in enumerate(luns):
        count = (partition.length_bytes(lun) - DATA_BYTES) // SEGMENT_BYTES
        if not 0 < count <= _SEGMENTS_PER_TABLE:
            raise LabError(f"{lun.image}: a LUN of a VMFS volume has 300 MiB to 2 TiB")
        found.append(Member(lun=lun, index=index, first=first, count=count))
        first += count
    return tuple(found)


def header(
    geometry: Geometry, parts: Sequence[Member], index: int, lvm_uuid: str, made_us: int
) -> bytes:
    """What stands at HEADER_BYTES of LUN `index`: device, volume, names, table of segments."""
    own = parts[index]
    # Of the 1024 sectors that follow the device's own record, VMFS 5 gives 512 to volumes, VMFS 6 one; the
    # names of the LUNs are always the last 8 KiB, the map and the table of segments come after them.
    volume_at = geometry.unit_bytes
    names_at = volume_at + 1024 * _VOLUME_ENTRY_BYTES - 32 * 256
    map_at = names_at + 32 * 256
    map_bytes = max(geometry.unit_bytes, _SEGMENTS_PER_TABLE // 8)
    image = bytearray(map_at + map_bytes + own.count * _SEGMENT_ENTRY_BYTES)
    _device(image, geometry, own, made_us)
    _volume(image, volume_at, parts, own, lvm_uuid, made_us)
    if index == 0:
        for number, part in enumerate(parts):
            name = f"{part.lun.naa or part.lun.image.name}:1".encode()[:255]
            image[names_at + number * 256 : names_at + number * 256 + len(name)] = name
    for number in range(own.count):
        image[map_at + number // 8] |= 1 << number % 8
        segment = own.first + number
        struct.pack_into(
            "<BIIQQQI",
            image,
            map_at + map_bytes + number * _SEGMENT_ENTRY_BYTES,
            1,
            number,
            _VOLUME_NUMBER,
            DATA_BYTES + number * SEGMENT_BYTES,
            segment * SEGMENT_BYTES,
            SEGMENT_BYTES,
            1,
        )
    return bytes(image)


def _device(image: bytearray, geometry: Geometry, own: Member, made_us: int) -> None:
    struct.pack_into("<III", image, 0, MAGIC, geometry.lvm_major, 0)
    name = own.lun.naa.removeprefix("naa.").encode()[:44]
    # SCSI identity: type, length, LUN number, device type, level, vendor, model, revision, id.
    struct.pack_into(
        "<BBHBB8s16s4s44s",
        image,
        0x0C,
        1,
        len(name),
        own.index,
        0,
        6,
        b"LABARRAY",
        b"LUN             ",
        b"1   ",
        name,
    )
    # block length; bytes; volumes; segments; last segment; generation; data; identity; two times
    struct.pack_into(
        "<IQIIIQQ16sQQ",
        image,
        0x5A,
        512,
        partition.length_bytes(own.lun),
        1,
        own.count,
        own.count - 1,
        1,
        DATA_BYTES,
        _member_uuid(own),
        made_us,
        made_us,
    )
    struct.pack_into("<I", image, 0xBE, 1)
    if geometry.version >= 6:
        struct.pack_into("<II", image, 0xCA, geometry.unit_bytes, own.count)


def _member_uuid(own: Member) -> bytes:
    return (own.lun.naa or own.lun.image.name).encode()[-12:].rjust(12, b"\0") + own.index.to_bytes(
        4, "little"
    )


def _volume(
    image: bytearray, at: int, parts: Sequence[Member], own: Member, lvm_uuid: str, made_us: int
) -> None:
    total = sum(part.count for part in parts)
    struct.pack_into(
        "<QQI64s16sIQ",
        image,
        at,
        total * SEGMENT_BYTES,
        total + len(parts),
        _STATE_NORMAL,
        lvm_uuid.encode(),
        uuid_bytes(lvm_uuid),
        0,
        made_us,
    )
    struct.pack_into(
        "<IIQQQI",
        image,
        at + 0x70,
        _VOLUME_NUMBER,
        own.count,
        own.first,
        own.first + own.count - 1,
        made_us,
        len(parts),
    )
