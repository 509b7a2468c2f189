"""The transport modes of a proxy on Linux: all that there are."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Final

from transports import direct_nfs, direct_san, hotadd, network, storage_snapshot, vddk
from transports.base import DiskReader, DiskRef, DiskWriter, TransportMode
from transports.mode_driver import Access, ModeDriver, uses_vddk

assert sys.platform != "win32"


def _network(mode: TransportMode) -> ModeDriver:
    """By vmhaul's own client, or by the VDDK that the proxy's settings name."""

    def open_reader(access: Access, disk: DiskRef) -> DiskReader:
        options = access.options
        if uses_vddk(options):
            return vddk.open_reader(access.vsphere, disk, mode, options.vddk)
        return network.open_reader(access.vsphere, disk, mode, options.network)

    def open_writer(access: Access, disk: DiskRef) -> DiskWriter:
        options = access.options
        if uses_vddk(options):
            return vddk.open_writer(access.vsphere, disk, mode, options.vddk)
        return network.open_writer(access.vsphere, disk, mode, options.network)

    return ModeDriver(
        mode=mode,
        missing=lambda options: vddk.vddk_missing(options.vddk) if uses_vddk(options) else "",
        open_reader=open_reader,
        open_writer=open_writer,
    )


def _direct_san() -> ModeDriver:
    return ModeDriver(
        mode=TransportMode.DIRECT_SAN,
        missing=lambda options: direct_san.missing(options.machine),
        open_reader=lambda access, disk: direct_san.open_reader(access.options.machine, disk),
        open_writer=lambda access, disk: direct_san.open_writer(access.options.machine, disk),
        probe=lambda options, datastore: direct_san.probe(options.machine, datastore),
    )


def _hotadd() -> ModeDriver:
    return ModeDriver(
        mode=TransportMode.HOTADD,
        missing=lambda options: hotadd.missing(options.machine),
        open_reader=lambda access, disk: hotadd.open_reader(
            access.presenter, access.options.machine, disk
        ),
        open_writer=lambda access, disk: hotadd.open_writer(
            access.presenter, access.options.machine, disk
        ),
    )


def _direct_nfs() -> ModeDriver:
    return ModeDriver(
        mode=TransportMode.DIRECT_NFS,
        missing=lambda options: direct_nfs.missing(options.nfs, options.machine),
        open_reader=lambda access, disk: direct_nfs.open_reader(
            access.options.nfs, access.options.machine, disk
        ),
        open_writer=lambda access, disk: direct_nfs.open_writer(
            access.options.nfs, access.options.machine, disk
        ),
        probe=lambda options, datastore: direct_nfs.probe(options.nfs, options.machine, datastore),
    )


def _storage_snapshot(direct: Sequence[ModeDriver]) -> ModeDriver:
    """`direct`: the modes by which a clone is read."""
    readers = {driver.mode: driver for driver in direct}
    return ModeDriver(
        mode=TransportMode.STORAGE_SNAPSHOT,
        missing=lambda options: storage_snapshot.missing(
            {mode: driver.missing(options) for mode, driver in readers.items()}
        ),
        open_reader=lambda access, disk: storage_snapshot.open_reader(
            access.presenter,
            access.options.machine,
            disk,
            lambda presented: readers[presented.mode].open_reader(access, presented.disk),
        ),
        open_writer=lambda _, disk: storage_snapshot.open_writer(disk),
    )


DRIVERS: Final = (
    _storage_snapshot((_direct_san(), _direct_nfs())),
    _direct_san(),
    _direct_nfs(),
    _hotadd(),
    _network(TransportMode.NBDSSL),
    _network(TransportMode.NBD),
)
"""Best first."""
