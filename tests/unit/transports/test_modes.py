from __future__ import annotations

from typing import Any, cast

import pytest

from transports import registry, selection
from transports.base import DiskRef, TransportMode
from transports.errors import TransportUnavailableError
from transports.selection import judge_modes, usable_modes

ALL = tuple(TransportMode)
NETWORK = (TransportMode.NBDSSL, TransportMode.NBD)


def test_the_list_of_modes_is_that_of_the_drivers() -> None:
    assert tuple(registry.transport_modes()) == selection.EXISTING_MODES
    assert all(driver.mode is mode for mode, driver in registry.transport_modes().items())


@pytest.mark.parametrize(
    ("wanted", "offered", "usable"),
    [
        ((), NETWORK, (TransportMode.NBDSSL,)),
        (NETWORK, NETWORK, NETWORK),
        ((TransportMode.NBD, TransportMode.NBDSSL), NETWORK, NETWORK),
        ((TransportMode.NBD,), NETWORK, (TransportMode.NBD,)),
        ((TransportMode.NBD,), (TransportMode.NBDSSL,), ()),
        ((TransportMode.HOTADD,), ALL, ()),
        ((), (), ()),
    ],
)
def test_encrypted_by_default_and_clear_only_on_request(
    wanted: tuple[TransportMode, ...],
    offered: tuple[TransportMode, ...],
    usable: tuple[TransportMode, ...],
) -> None:
    assert usable_modes(wanted=wanted, offered=offered) == usable


def test_every_mode_has_a_verdict_with_a_reason() -> None:
    verdicts = judge_modes(wanted=(TransportMode.HOTADD, TransportMode.NBDSSL), offered=NETWORK)
    assert [verdict.mode for verdict in verdicts] == list(TransportMode)
    assert all(verdict.reason for verdict in verdicts)
    reasons = {verdict.mode: verdict.reason for verdict in verdicts}
    assert reasons[TransportMode.HOTADD] == "not part of this release"
    assert reasons[TransportMode.NBD] == "the job does not allow it"


def test_a_mode_that_does_not_exist_is_for_another_mode() -> None:
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
