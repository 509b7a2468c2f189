"""What goes into a volume and where it came to lie, as values."""

import secrets
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from vmhaul_lab.errors import LabError

BLOCK_BYTES = 1 << 20


class Allocation(StrEnum):
    """How a disk file's blocks are mapped, in ESXi's words."""

    THIN = "thin"  # only where there is data
    LAZY = "lazy"  # everywhere; where there is no data the block is to be zeroed and holds old bytes
    EAGER = "eager"  # everywhere


class Partitioning(StrEnum):
    """What stands before the volume on a LUN."""

    GPT = "gpt"
    MBR = "mbr"  # as on LUNs that were formatted by ESX 4 and upgraded
    NONE = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class Lun:
    """One LUN image: its file (made when missing, sparse), size and identity."""

    image: Path
    size_bytes: int
    naa: str = ""
    partitioning: Partitioning = Partitioning.GPT


@dataclass(frozen=True, slots=True, kw_only=True)
class FileSpec:
    """A file to hold: `path` below the root with `/`, the bytes from memory or from a raw file.

    `fragment_blocks`: runs of at most so many blocks, scattered. `large_blocks` (VMFS 6): whole 512 MiB of
    an eager file in large file blocks. `deep`: double indirect pointers whatever the size.
    """

    path: str
    data: bytes | Path
    allocation: Allocation = Allocation.THIN
    fragment_blocks: int = 0
    large_blocks: bool = False
    deep: bool = False

    def __post_init__(self) -> None:
        if not self.path or any(part in {"", ".", ".."} for part in self.path.split("/")):
            raise LabError(f"{self.path!r} is no path of a file below a volume's root")
        if any(len(part.encode()) > 127 for part in self.path.split("/")):
            raise LabError(f"a name in {self.path} is longer than the 127 bytes that VMFS allows")

    @property
    def size_bytes(self) -> int:
        """Length of the file as readers see it."""
        return len(self.data) if isinstance(self.data, bytes) else self.data.stat().st_size


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """A run of a file on a LUN: `lun` counts from 0, `offset_bytes` is in the LUN's image."""

    file_offset_bytes: int
    lun: int
    offset_bytes: int
    length_bytes: int
    to_be_zeroed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacedFile:
    """A file of the volume and its runs in the order of its bytes; what no run covers is a hole.

    A file small enough to lie in metadata has no runs.
    """

    path: str
    size_bytes: int
    allocation: Allocation
    runs: tuple[Placement, ...]


def new_vmfs_uuid() -> str:
    """A volume's identity in vCenter's spelling, e.g. '5f3b2c1a-8d7e6f50-1c2d-0050569a0001'."""
    mac = b"\x00\x50\x56" + secrets.token_bytes(3)
    return f"{secrets.token_hex(4)}-{secrets.token_hex(4)}-{secrets.token_hex(2)}-{mac.hex()}"


def uuid_bytes(text: str) -> bytes:
    """The 16 bytes that stand for a VMFS identity on disk: two words and a short (little endian), a MAC."""
    words = text.split("-")
    if [len(word) for word in words] != [8, 8, 4, 12]:
        raise LabError(f"{text!r} is no VMFS uuid; it looks like 5f3b2c1a-8d7e6f50-1c2d-0050569a0001")
    low, high, short = (int(word, 16) for word in words[:3])
    return (
        low.to_bytes(4, "little")
        + high.to_bytes(4, "little")
        + short.to_bytes(2, "little")
        + bytes.fromhex(words[3])
    )
