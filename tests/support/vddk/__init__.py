"""VDDK for tests: nbdkit's real plugin, and a stand-in for VMware's library."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

from transports.base import DiskRef
from transports.vddk import NetworkClient, VddkOptions
from transports.vsphere.model import ServerAddress

PLUGIN = Path(__file__).parents[3] / ".venv" / "nbdkit-vddk" / "nbdkit-vddk-plugin.so"
PASSWORD = "correct horse battery staple"
SERVER = ServerAddress(host="vc.lab", port=443, thumbprint_sha1="AA:BB:CC")


class OneServer:
    """The part of vCenter that opening a disk through VDDK asks."""

    def server_address(self) -> ServerAddress:
        return SERVER


@dataclass(frozen=True, kw_only=True)
class StandIn:
    """An unpacked VDDK, with one disk."""

    libdir: Path

    @property
    def disk(self) -> Path:
        return self.libdir / "disk.raw"

    def options(self, **given: object) -> VddkOptions:
        values = {
            "client": NetworkClient.VDDK,
            "libdir": str(self.libdir),
            "plugin": str(PLUGIN),
            "user": "backup@lab",
            "password_file": str(self.libdir / "proxy-password"),
            "requests_in_flight": 4,
            "request_bytes": 256 << 10,
        }
        return VddkOptions(**(values | given))  # type: ignore[arg-type]

    def calls(self) -> list[str]:
        return (self.libdir / "calls").read_text().splitlines()

    def ref(self, capacity_bytes: int, *, snapshot: str | None = "snapshot-7") -> DiskRef:
        return DiskRef(
            vm_moref="vm-42",
            vm_name="db",
            disk_key=2000,
            path="[ds 1] db/db.vmdk",
            capacity_bytes=capacity_bytes,
            datastore="ds 1",
            snapshot_moref=snapshot,
        )


def build(directory: Path) -> Path:
    """The library; once for many stand-ins."""
    library = directory / "libvixDiskLib.so.8"
    source = Path(__file__).with_name("standin.c")
    subprocess.run(["gcc", "-shared", "-fPIC", "-w", "-o", library, source], check=True)
    return library


def unpack(library: Path, libdir: Path, image: bytes) -> StandIn:
    (libdir / "lib64").mkdir(parents=True)
    (libdir / "lib64" / library.name).symlink_to(library)
    (libdir / "password").write_text(PASSWORD)
    secret = libdir / "proxy-password"
    secret.touch(mode=0o600)
    secret.write_text(PASSWORD)
    made = StandIn(libdir=libdir)
    made.disk.write_bytes(image)
    return made
