"""What can be set about VDDK."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class NetworkClient(StrEnum):
    """What reads and writes disks in the network modes."""

    NATIVE = "native"
    VDDK = "vddk"

    @classmethod
    def _missing_(cls, value: object) -> None:
        raise ValueError(f"network_client must be one of {', '.join(cls)}, not {value!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class VddkOptions:
    client: NetworkClient = NetworkClient.NATIVE
    libdir: str = ""
    """Directory of the unpacked VDDK: it has lib64/ inside."""
    plugin: str = "vddk"
    """nbdkit's plugin by name, or the path of its file."""
    user: str = ""
    """Account of vCenter with which VDDK logs in."""
    password_file: str = ""
    """File with its password, for the proxy's user alone."""
    nbdkit: str = "nbdkit"
    requests_in_flight: int = 8
    request_bytes: int = 1 << 20
    open_timeout_s: float = 120.0
    """VDDK loads many libraries, and logs in, before it answers."""
    io_timeout_s: float = 120.0

    def __post_init__(self) -> None:
        if self.client is NetworkClient.VDDK:
            for name in ("libdir", "user", "password_file"):
                if not getattr(self, name):
                    raise ValueError(f"network_client = vddk needs vddk_{name}")
