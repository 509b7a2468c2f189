"""Makes the small FAT16 file system of an EFI system partition, which no tool here may be there for."""

import struct

_SECTOR_BYTES = 512
_RESERVED_SECTORS = 4
_ROOT_ENTRIES = 512
_SECTORS_PER_CLUSTER = 4


def fat16(size_bytes: int, files: dict[str, bytes], *, serial: int) -> bytes:
    """The used head of a FAT16 volume of `size_bytes` with `files` (8.3 names) in its root.

    The rest of the volume is zeros. FAT16 wants 4,085 to 65,524 clusters: 9 to 128 MiB here.
    """
    sectors = size_bytes // _SECTOR_BYTES
    fat_sectors = -(-(sectors // _SECTORS_PER_CLUSTER + 2) * 2 // _SECTOR_BYTES)
    boot = bytearray(_SECTOR_BYTES)
    boot[0:3] = b"\xeb\x3c\x90"
    boot[3:11] = b"VMHAUL  "
    total16 = sectors if sectors < 0x10000 else 0
    struct.pack_into(
        "<HBHBHHBHHHII",
        boot,
        11,
        _SECTOR_BYTES,
        _SECTORS_PER_CLUSTER,
        _RESERVED_SECTORS,
        2,
        _ROOT_ENTRIES,
        total16,
        0xF8,
        fat_sectors,
        63,
        255,
        0,
        0 if total16 else sectors,
    )
    struct.pack_into(
        "<BBBI11s8s", boot, 36, 0x80, 0, 0x29, serial & 0xFFFFFFFF, b"EFI        ", b"FAT16   "
    )
    boot[510:512] = b"\x55\xaa"

    table = bytearray(fat_sectors * _SECTOR_BYTES)
    struct.pack_into("<HH", table, 0, 0xFFF8, 0xFFFF)
    root = bytearray(_ROOT_ENTRIES * 32)
    data = bytearray()
    cluster_bytes = _SECTORS_PER_CLUSTER * _SECTOR_BYTES
    cluster = 2
    for index, (name, body) in enumerate(files.items()):
        stem, _, extension = name.upper().partition(".")
        count = max(-(-len(body) // cluster_bytes), 1)
        entry = stem.ljust(8)[:8].encode() + extension.ljust(3)[:3].encode()
        # name, attributes, 14 bytes of times that nobody needs, first cluster, size
        struct.pack_into("<11sB14sHI", root, index * 32, entry, 0x20, bytes(14), cluster, len(body))
        for step in range(count):
            following = cluster + step + 1 if step + 1 < count else 0xFFFF
            struct.pack_into("<H", table, (cluster + step) * 2, following)
        data += body.ljust(count * cluster_bytes, b"\0")
        cluster += count
    reserved = bytes(boot) + bytes((_RESERVED_SECTORS - 1) * _SECTOR_BYTES)
    return reserved + bytes(table) * 2 + bytes(root) + bytes(data)
