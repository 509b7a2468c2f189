"""The transport modes that exist, as one visible list for each operating system."""

from __future__ import annotations

import sys
from collections.abc import Callable

from transports.base import DatastoreRef, DiskReader, DiskRef, DiskWriter, TransportMode
from transports.errors import TransportUnavailableError
from transports.mode_driver import Access, ModeDriver, ModeOptions, NothingPresented
from transports.reached import Reached

if sys.platform == "win32":
    from transports.modes_windows import DRIVERS
else:
    from transports.modes_linux import DRIVERS

__all__ = [
    "Access",
    "ModeDriver",
    "ModeOptions",
    "NothingPresented",
    "offered_modes",
    "open_reader",
    "open_writer",
    "probes",
    "transport_modes",
]


def transport_modes() -> dict[TransportMode, ModeDriver]:
    """Drivers by mode, best first."""
    return {driver.mode: driver for driver in DRIVERS}


def offered_modes(options: ModeOptions) -> dict[TransportMode, str]:
    """Every mode with what this machine lacks for it; empty: it is offered."""
    return {driver.mode: driver.missing(options) for driver in DRIVERS}


def probes() -> dict[TransportMode, Callable[[ModeOptions, DatastoreRef], Reached | None]]:
    """Of the modes that need a connection to datastores."""
    return {driver.mode: driver.probe for driver in DRIVERS if driver.probe is not None}


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
