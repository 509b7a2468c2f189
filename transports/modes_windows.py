"""The transport modes of a proxy on Windows: the network modes. The others say why they are not there."""

from __future__ import annotations

from typing import Final, NoReturn

from transports import network
from transports.base import DiskReader, DiskRef, DiskWriter, TransportMode
from transports.errors import TransportUnavailableError
from transports.mode_driver import Access, ModeDriver, ModeOptions, uses_vddk

_LINUX_ALONE: Final = {
    TransportMode.STORAGE_SNAPSHOT: "it reads by a direct mode, and those need Linux",
    TransportMode.DIRECT_SAN: "it reads LUNs as the Linux kernel shows them",
    TransportMode.DIRECT_NFS: "libnfs is called as Linux has it, and mounts are Linux's",
    TransportMode.HOTADD: "it finds the attached disk where the Linux kernel shows it",
}
_NO_VDDK: Final = (
    'VDDK is used by way of nbdkit, which needs Linux; set network_client = "native" in proxy.toml'
)


def _not_here(mode: TransportMode, why: str) -> ModeDriver:
    reason = f"this proxy runs Windows, and {mode} needs Linux: {why}"

    def refuse(access: Access, disk: DiskRef) -> NoReturn:
        del access
        raise TransportUnavailableError(f"{disk.path}: {reason}")

    return ModeDriver(mode=mode, missing=lambda _: reason, open_reader=refuse, open_writer=refuse)


def _network(mode: TransportMode) -> ModeDriver:
    """By vmhaul's own client alone."""

    def check(options: ModeOptions) -> None:
        if uses_vddk(options):
            raise TransportUnavailableError(_NO_VDDK)

    def open_reader(access: Access, disk: DiskRef) -> DiskReader:
        check(access.options)
        return network.open_reader(access.vsphere, disk, mode, access.options.network)

    def open_writer(access: Access, disk: DiskRef) -> DiskWriter:
        check(access.options)
        return network.open_writer(access.vsphere, disk, mode, access.options.network)

    return ModeDriver(
        mode=mode,
        missing=lambda options: _NO_VDDK if uses_vddk(options) else "",
        open_reader=open_reader,
        open_writer=open_writer,
    )


DRIVERS: Final = (
    *(_not_here(mode, why) for mode, why in _LINUX_ALONE.items()),
    _network(TransportMode.NBDSSL),
    _network(TransportMode.NBD),
)
"""Best first."""
