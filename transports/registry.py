"""The transport modes that exist, as one visible list."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from transports import direct_nfs, direct_san, hotadd, network, storage_snapshot, vddk
from transports.base import (
    DatastoreRef,
    DiskReader,
    DiskRef,
    DiskWriter,
    Presented,
    Presenter,
    TransportMode,
)
from transports.direct_nfs import NfsOptions
from transports.errors import TransportUnavailableError
from transports.machine import Machine
from transports.network import NetworkOptions
from transports.reached import Reached
from transports.vddk import NetworkClient, VddkOptions
from transports.vsphere.api import Vsphere


class NothingPresented:
    """The presenter of who has no backup server to ask."""

    def present(self, mode: TransportMode, *, write: bool) -> Presented:
        raise TransportUnavailableError(
            f"{mode} {'writes' if write else 'reads'} what the backup server presents, and there is none"
        )

    def withdraw(self, mode: TransportMode) -> None:
        """Nothing was."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModeOptions:
    """Settings of all modes on this proxy; each mode looks at its own."""

    network: NetworkOptions = field(default_factory=NetworkOptions)
    machine: Machine = field(default_factory=Machine)
    nfs: NfsOptions = field(default_factory=NfsOptions)
    vddk: VddkOptions = field(default_factory=VddkOptions)


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """By what means a disk may be opened."""

    vsphere: Vsphere
    presenter: Presenter = field(default_factory=NothingPresented)
    options: ModeOptions = field(default_factory=ModeOptions)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModeDriver:
    """How one mode opens disks. Both functions raise TransportUnavailableError when another mode may do."""

    mode: TransportMode
    missing: Callable[[ModeOptions], str]
    """What this machine lacks for the mode, for people; empty: it can be offered."""
    open_reader: Callable[[Access, DiskRef], DiskReader]
    open_writer: Callable[[Access, DiskRef], DiskWriter]
    probe: Callable[[ModeOptions, DatastoreRef], Reached | None] | None = None
    """Whether this machine reaches a datastore in the mode; its answer None: not of the mode's kind. No probe:
    the mode needs no connection to datastores."""


def _network(mode: TransportMode) -> ModeDriver:
    """By vmhaul's own client, or by the VDDK that the proxy's settings name."""

    def open_reader(access: Access, disk: DiskRef) -> DiskReader:
        options = access.options
        if _uses_vddk(options):
            return vddk.open_reader(access.vsphere, disk, mode, options.vddk)
        return network.open_reader(access.vsphere, disk, mode, options.network)

    def open_writer(access: Access, disk: DiskRef) -> DiskWriter:
        options = access.options
        if _uses_vddk(options):
            return vddk.open_writer(access.vsphere, disk, mode, options.vddk)
        return network.open_writer(access.vsphere, disk, mode, options.network)

    return ModeDriver(
        mode=mode,
        missing=lambda options: vddk.vddk_missing(options.vddk) if _uses_vddk(options) else "",
        open_reader=open_reader,
        open_writer=open_writer,
    )


def _uses_vddk(options: ModeOptions) -> bool:
    return options.vddk.client is NetworkClient.VDDK


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


_DRIVERS: Final = (
    _storage_snapshot((_direct_san(), _direct_nfs())),
    _direct_san(),
    _direct_nfs(),
    _hotadd(),
    _network(TransportMode.NBDSSL),
    _network(TransportMode.NBD),
)


def transport_modes() -> dict[TransportMode, ModeDriver]:
    """Drivers by mode, best first."""
    return {driver.mode: driver for driver in _DRIVERS}


def offered_modes(options: ModeOptions) -> dict[TransportMode, str]:
    """Every mode with what this machine lacks for it; empty: it is offered."""
    return {driver.mode: driver.missing(options) for driver in _DRIVERS}


def probes() -> dict[TransportMode, Callable[[ModeOptions, DatastoreRef], Reached | None]]:
    """Of the modes that need a connection to datastores."""
    return {driver.mode: driver.probe for driver in _DRIVERS if driver.probe is not None}


def open_reader(access: Access, disk: DiskRef, mode: TransportMode) -> DiskReader:
    """Open `disk` for reading in `mode`. TransportUnavailableError for a mode that does not exist here."""
    return _driver(mode).open_reader(access, disk)


def open_writer(access: Access, disk: DiskRef, mode: TransportMode) -> DiskWriter:
    """Open `disk` for writing in `mode`. TransportUnavailableError for a mode that does not exist here."""
    return _driver(mode).open_writer(access, disk)


def _driver(mode: TransportMode) -> ModeDriver:
    driver = transport_modes().get(mode)
    if driver is None:
        raise TransportUnavailableError(f"this release has no transport mode {mode}; use nbdssl or nbd")
    return driver
