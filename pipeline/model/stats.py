"""Figures of one disk's way through the data mover. Bytes and seconds throughout."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class ReadMode(StrEnum):
    """What was read of a disk, and against what it was compared."""

    FULL = "full"  # no earlier point: all allocated blocks
    INCREMENT = "increment"  # only what changed block tracking named
    FULL_SCAN = "full-scan"  # everything read, stored as an increment by comparing hashes


class Bottleneck(StrEnum):
    """The stage that was busy most of the time."""

    SOURCE = "source"
    PROXY = "proxy"
    NETWORK = "network"
    TARGET = "target"


@dataclass(frozen=True, slots=True, kw_only=True)
class StageTimes:
    """Busy time of each stage as a share of the time it could have worked, 0 to 1."""

    source: float
    proxy: float
    network: float
    target: float

    @property
    def bottleneck(self) -> Bottleneck:
        shares = {
            Bottleneck.SOURCE: self.source,
            Bottleneck.PROXY: self.proxy,
            Bottleneck.NETWORK: self.network,
            Bottleneck.TARGET: self.target,
        }
        return max(shares, key=lambda stage: shares[stage])


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockCounts:
    zero: int
    """Blocks that held only zeros, whether read or known to be unallocated."""
    new: int
    deduplicated: int
    """Blocks whose content the repository had already."""
    unchanged: int
    """Blocks taken over from the previous map without reading."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskStats:
    capacity_bytes: int
    read_bytes: int
    """Bytes taken from the transport mode."""
    changed_bytes: int
    """Bytes that changed block tracking named; equals what had to be considered in other modes."""
    stored_bytes: int
    """Bytes added to the repository (packs, index, map)."""
    blocks: BlockCounts
    duration_s: float
    stages: StageTimes

    @property
    def throughput_bytes_per_s(self) -> float:
        return self.read_bytes / self.duration_s if self.duration_s > 0 else 0.0
