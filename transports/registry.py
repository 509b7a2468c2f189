"""The transport modes that exist, as one visible list."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from transports import network
from transports.base import DiskReader, DiskRef, DiskWriter, TransportMode
from transports.errors import TransportUnavailableError
from transports.network import NetworkOptions
from transports.vsphere.api import Vsphere


@dataclass(frozen=True, slots=True, kw_only=True)
class ModeOptions:
    """Settings of all modes; each mode looks at its own."""

    network: NetworkOptions = field(default_factory=NetworkOptions)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModeDriver:
    """How one mode opens disks. Both functions raise TransportUnavailableError when another mode may do."""

    mode: TransportMode
    open_reader: Callable[[Vsphere, DiskRef, ModeOptions], DiskReader]
    open_writer: Callable[[Vsphere, DiskRef, ModeOptions], DiskWriter]


def _network(mode: TransportMode) -> ModeDriver:
    return ModeDriver(
        mode=mode,
        open_reader=lambda vsphere, disk, options: network.open_reader(
            vsphere, disk, mode, options.network
        ),
        open_writer=lambda vsphere, disk, options: network.open_writer(
            vsphere, disk, mode, options.network
        ),
    )


_DRIVERS: Final = (_network(TransportMode.NBDSSL), _network(TransportMode.NBD))


def transport_modes() -> dict[TransportMode, ModeDriver]:
    """Drivers by mode, best first."""
    return {driver.mode: driver for driver in _DRIVERS}


def open_reader(
    vsphere: Vsphere, disk: DiskRef, mode: TransportMode, options: ModeOptions | None = None
) -> DiskReader:
    """Open `disk` for reading in `mode`. TransportUnavailableError for a mode that does not exist here."""
    return _driver(mode).open_reader(vsphere, disk, options or ModeOptions())


def open_writer(
    vsphere: Vsphere, disk: DiskRef, mode: TransportMode, options: ModeOptions | None = None
) -> DiskWriter:
    """Open `disk` for writing in `mode`. TransportUnavailableError for a mode that does not exist here."""
    return _driver(mode).open_writer(vsphere, disk, options or ModeOptions())


def _driver(mode: TransportMode) -> ModeDriver:
    driver = transport_modes().get(mode)
    if driver is None:
        raise TransportUnavailableError(f"this release has no transport mode {mode}; use nbdssl or nbd")
    return driver
