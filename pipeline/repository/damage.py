"""What a check found, as values that a repair can act on. The sentences for people are in
`CheckReport.problems`; both tell the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

MAX_DAMAGES: Final = 10_000
"""So many of each kind are told of one by one; a repository with more is not repaired block by block."""
BLOCKS_PER_DAMAGE: Final = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Damage:
    """A run of guest blocks that a restore point has lost: no place holds them sound any more."""

    point_id: str
    vm_name: str
    vm_instance_uuid: str
    disk_key: int
    disk_label: str
    start_bytes: int
    end_bytes: int
    """Guest extent [start, end). At most BLOCKS_PER_DAMAGE blocks, except where a map node is lost."""
    level: int
    """-1: blocks, one id for each in ascending order; else the one id is that of a map node of this
    level, and which blocks lie below it is not known.
    """
    blob_ids: tuple[bytes, ...]
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DamagedBlob:
    """A place in a pack whose bytes are not the blob that the index names there."""

    pack_id: bytes
    blob_id: bytes
    offset: int
    length: int
    kind: int
    reason: str
    is_elsewhere: bool
    """Another place of the index holds it, sound as far as was looked: nothing is lost."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DamagedPack:
    """A pack that is missing, truncated, or whose header, footer or trailer is damaged."""

    pack_id: bytes
    reason: str
    is_gone: bool
    """Nothing can be read from it; False: its blobs are looked at one by one, and those that are
    damaged are named as such.
    """


def joined(lost: list[tuple[int, int, str]]) -> list[tuple[int, int, str]]:
    """Runs of blocks that follow each other, as one, with the first reason."""
    runs: list[tuple[int, int, str]] = []
    for first, end, why in lost:
        if runs and runs[-1][1] == first:
            runs[-1] = (runs[-1][0], end, runs[-1][2])
        else:
            runs.append((first, end, why))
    return runs
