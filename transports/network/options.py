"""What can be set about the network modes."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class Compression(IntEnum):
    """What the host is asked to compress with; the values are those on the wire."""

    NONE = 0
    ZLIB = 1
    FASTLZ = 2  # decoded in Python here: slower than any network it would relieve
    SKIPZ = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkOptions:
    """Defaults fit ESXi 7 and 8. Host memory for one disk is buffer_bytes x buffer_count, and ESXi has
    48 to 96 MB for all of them.
    """

    compression: Compression = Compression.NONE
    requests_in_flight: int = 16
    request_bytes: int = 1 << 20
    """Largest read; some hosts answer no more than 1 MiB."""
    write_bytes: int = 4 << 20
    """Largest write under one operation number."""
    buffer_bytes: int = 2 << 20
    """Largest fragment; hosts refuse more than 2 MiB, and 64 KiB is tried when they refuse this."""
    buffer_count: int = 4
    query_allocated: bool = True
    """Ask the host which parts of a disk are allocated."""
    allocation_chunk_bytes: int = 64 << 10
    connect_timeout_s: float = 10.0
    io_timeout_s: float = 60.0
    preferred_networks: tuple[str, ...] = ()
    """Networks ("192.0.2.0/24") in which an address of the host is tried first, in their order."""
    legacy_tls: bool = False
    """Admit the SHA-1 signatures and short keys of ESXi before 7.0."""

    def __post_init__(self) -> None:
        if not 1 <= self.requests_in_flight <= 32:  # noqa: PLR2004 (hosts were seen to take 32)
            raise ValueError("requests_in_flight must be from 1 to 32")
        for name in ("request_bytes", "write_bytes", "buffer_bytes", "allocation_chunk_bytes"):
            value = getattr(self, name)
            if value <= 0 or value % 512:
                raise ValueError(f"{name} must be a positive multiple of 512, not {value}")
        if self.connect_timeout_s <= 0 or self.io_timeout_s <= 0:
            raise ValueError("time-outs must be positive")
