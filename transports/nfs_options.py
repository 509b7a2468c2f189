"""What can be set about direct access over NFS."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class NfsClient(StrEnum):
    """What speaks NFS."""

    @classmethod
    def _missing_(cls, value: object) -> None:
        raise ValueError(f"nfs_client must be one of {', '.join(cls)}, not {value!r}")

    AUTO = "auto"
    """The library where it is installed, else a mount. A mount whose server is gone may hang in the kernel, where
    nothing can end it; the library's time-outs are ours."""
    LIBRARY = "library"
    MOUNT = "mount"


@dataclass(frozen=True, slots=True, kw_only=True)
class NfsOptions:
    client: NfsClient = NfsClient.AUTO
    connections: int = 8
    """To the server, for one disk, each with one request in flight; opened as they are needed."""
    request_bytes: int = 1 << 20
    """Servers cut larger requests down."""
    connect_timeout_s: float = 10.0
    io_timeout_s: float = 30.0

    def __post_init__(self) -> None:
        if not 1 <= self.connections <= 64:  # noqa: PLR2004 (servers have so many threads for one client)
            raise ValueError("nfs_connections must be from 1 to 64")
        if self.request_bytes <= 0 or self.request_bytes % 512:
            raise ValueError("request_bytes must be a positive multiple of 512")
        if self.connect_timeout_s <= 0 or self.io_timeout_s <= 0:
            raise ValueError("time-outs must be positive")
