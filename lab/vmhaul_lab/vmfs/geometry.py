"""The numbers in which VMFS 5 and 6 differ, and the spelling of addresses.

Facts: `dissect.vmfs` (structures and address bits), vmfs-tools and vmfs6-tools (the same, and where they
look for the first file descriptors). An address is a type in its low three bits, then flags and numbers.
"""

from dataclasses import dataclass
from typing import Final

from vmhaul_lab.errors import LabError

FILE_BLOCK: Final = 1
SUB_BLOCK: Final = 2
POINTER_BLOCK: Final = 3
FILE_DESCRIPTOR: Final = 4
LARGE_FILE_BLOCK: Final = 7

# Where a file's bytes are ("zero level address"): a type of block that the descriptor points to, or these.
ZLA_DOUBLE_INDIRECT: Final = 0x10D0
ZLA_RESIDENT: Final = 0x10D1

BLOCKS_PER_LARGE_BLOCK: Final = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Geometry:
    """One version of VMFS. `unit_bytes` is the length of a lock and of a metadata record."""

    version: int
    fs_major: int
    fs_minor: int
    lvm_major: int
    unit_bytes: int
    sub_block_bytes: int
    descriptors_base_bytes: int  # where .fdc.sf begins on the volume
    heartbeat_bytes: int
    heartbeats: int
    data_offset: int  # in a file descriptor: bytes of a resident file
    resident_bytes: int
    pointers_offset: int  # in a file descriptor
    pointers: int
    pointer_bytes: int
    pointers_per_block: int

    @property
    def descriptor_bytes(self) -> int:
        """Length of a file descriptor."""
        return self.pointers_offset + self.pointers * self.pointer_bytes

    @property
    def pointer_code(self) -> str:
        """How `array` and `struct` call a pointer."""
        return "I" if self.pointer_bytes == 4 else "Q"

    @property
    def cluster_header_bytes(self) -> int:
        """A cluster's lock and its metadata."""
        return 2 * self.unit_bytes

    def file_block(self, block: int, *, to_be_zeroed: bool = False) -> int:
        """Address of a block of 1 MiB, counted from the start of the volume."""
        if self.version == 5:
            return FILE_BLOCK | (0x20 if to_be_zeroed else 0) | block << 6
        cluster, number = divmod(block, BLOCKS_PER_LARGE_BLOCK)
        return FILE_BLOCK | (0xFF << 7 if to_be_zeroed else 0) | cluster << 15 | number << 51

    def large_block(self, block: int) -> int:
        """Address of the large block that begins with file block `block`."""
        number, rest = divmod(block, BLOCKS_PER_LARGE_BLOCK)
        if self.version == 5 or rest:
            raise LabError(f"block {block} of a VMFS {self.version} volume begins no large file block")
        return LARGE_FILE_BLOCK | number << 15

    def sub_block(self, cluster: int, number: int) -> int:
        """Address of a sub-block."""
        return SUB_BLOCK | cluster << 6 | number << (28 if self.version == 5 else 56)

    def pointer_block(self, cluster: int, number: int) -> int:
        """Address of a pointer block; VMFS 6 keeps pointers in sub-blocks."""
        if self.version == 5:
            return POINTER_BLOCK | cluster << 6 | number << 28
        return self.sub_block(cluster, number)


def descriptor_address(cluster: int, number: int) -> int:
    """Address of a file descriptor, alike in both versions."""
    return FILE_DESCRIPTOR | cluster << 6 | number << 22


_VMFS5 = Geometry(
    version=5,
    fs_major=14,
    fs_minor=81,
    lvm_major=5,
    unit_bytes=512,
    sub_block_bytes=8 << 10,
    descriptors_base_bytes=4 << 20,
    heartbeat_bytes=512,
    heartbeats=2048,
    data_offset=1024,
    resident_bytes=1024,
    pointers_offset=1024,
    pointers=256,
    pointer_bytes=4,
    pointers_per_block=1024,
)
_VMFS6 = Geometry(
    version=6,
    fs_major=24,
    fs_minor=82,
    lvm_major=6,
    unit_bytes=4096,
    sub_block_bytes=64 << 10,
    descriptors_base_bytes=7 << 20,
    heartbeat_bytes=4096,
    heartbeats=1024,
    data_offset=4096 + 512,
    resident_bytes=4096 - 512,
    pointers_offset=8192 - 320 * 8,
    pointers=320,
    pointer_bytes=8,
    pointers_per_block=8192,
)


def geometry(version: int) -> Geometry:
    """The numbers of VMFS 5 or 6."""
    for known in (_VMFS5, _VMFS6):
        if known.version == version:
            return known
    raise LabError(f"VMFS {version} is not known; take 5 or 6")
