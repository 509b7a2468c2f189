from __future__ import annotations

from typing import Any, cast

import pytest

from transports import registry
from transports.base import DiskRef, TransportMode
from transports.errors import TransportUnavailableError

NETWORK = (TransportMode.NBDSSL, TransportMode.NBD)


def test_drivers_stand_under_their_modes_best_first() -> None:
    modes = registry.transport_modes()
    assert all(driver.mode is mode for mode, driver in modes.items())
    assert list(modes) == [mode for mode in TransportMode if mode in modes]


def test_a_mode_that_does_not_exist_is_for_another_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "transport_modes", dict)
    disk = DiskRef(
        vm_moref="vm-1",
        vm_name="db01",
        disk_key=2000,
        path="[ds] a/a.vmdk",
        capacity_bytes=512,
        datastore="ds",
    )
    nobody: Any = registry.Access(vsphere=cast("Any", None))
    for open_disk in (registry.open_reader, registry.open_writer):
        with pytest.raises(TransportUnavailableError, match="direct-san"):
            open_disk(nobody, disk, TransportMode.DIRECT_SAN)
