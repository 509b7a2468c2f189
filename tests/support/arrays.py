"""A disk array in memory behind the documented REST API, and a driver logged in to it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from vmhaul_lab.array_api import ArrayServer, ArrayState

from tests.support.certificates import Certificate, make_certificate
from transports import tls
from transports.storage_systems import flasharray
from transports.storage_systems.base import Exposed, StorageAccess, Volume
from transports.vsphere.model import Secret

API_TOKEN = "5f3c9a52-0000-4000-8000-a1b2c3d4e5f6"
HOST = "proxy1-host"
NAA = "naa.624a9370"


@dataclass
class MemoryBackend:
    """Contents of volumes and snapshots as bytes; what each host sees, by canonical name."""

    contents: dict[str, bytes] = field(default_factory=dict)
    seen: dict[tuple[str, str], str] = field(default_factory=dict)
    """(host, canonical name) -> volume."""

    def freeze(self, volume: str, snapshot: str) -> None:
        self.contents[snapshot] = self.contents.get(volume, b"")

    def forget(self, snapshot: str) -> None:
        del self.contents[snapshot]

    def clone(self, snapshot: str, volume: str, serial: str) -> None:
        self.contents[volume] = self.contents[snapshot]

    def remove(self, volume: str) -> None:
        del self.contents[volume]

    def connect(self, volume: str, host: str, serial: str) -> None:
        self.seen[host, NAA + serial.lower()] = volume

    def disconnect(self, volume: str, host: str) -> None:
        self.seen = {key: name for key, name in self.seen.items() if key[0] != host or name != volume}


@dataclass(frozen=True)
class RunningArray:
    server: ArrayServer
    backend: MemoryBackend
    certificate: Certificate

    @property
    def state(self) -> ArrayState:
        return self.server.state

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server.port}"

    @property
    def thumbprint(self) -> str:
        return tls.thumbprint_sha256(self.certificate.der)

    def access(self, token: str = API_TOKEN, thumbprint: str = "") -> StorageAccess:
        return StorageAccess(
            address=self.address,
            identity=thumbprint or self.thumbprint,
            secrets={"api_token": Secret(token)},
        )

    def write(self, volume: Volume, content: bytes) -> None:
        self.backend.contents[volume.id] = content

    def read(self, exposed: Exposed) -> bytes:
        return self.backend.contents[self.backend.seen[HOST, exposed.lun]]


@contextmanager
def running_array(tmp_path: Path, *, volumes: int = 2) -> Iterator[RunningArray]:
    backend = MemoryBackend()
    state = ArrayState(backend, API_TOKEN, hosts=[HOST, "esx1"])
    for number in range(1, volumes + 1):
        state.add_volume(f"vmfs{number}", 10 << 30)
        state.connections.add(("esx1", f"vmfs{number}"))
    certificate = make_certificate(tmp_path / "array.pem")
    with ArrayServer(state, context=certificate.server_context()) as server:
        yield RunningArray(server, backend, certificate)


def driver(array: RunningArray) -> flasharray.FlashArray:
    system = flasharray.DRIVER.connect(array.access())
    assert isinstance(system, flasharray.FlashArray)
    return system
