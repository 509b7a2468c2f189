"""The drivers of storage systems that exist, as one visible list."""

from __future__ import annotations

from typing import Final

from transports.storage_systems import flasharray, snapshot_directories
from transports.storage_systems.base import StorageDriver

_DRIVERS: Final = (snapshot_directories.DRIVER, flasharray.DRIVER)


def storage_drivers() -> dict[str, StorageDriver]:
    """By name."""
    return {driver.name: driver for driver in _DRIVERS}
