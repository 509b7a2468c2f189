from __future__ import annotations

from typing import Any

import pytest

from transports.base import DiskRef, TransportMode
from transports.errors import PermanentTransportError, TransientTransportError
from transports.network import NetworkOptions, open_reader
from transports.network.errors import HostRefusedError, refusal


@pytest.mark.parametrize(
    "wrong",
    [
        {"requests_in_flight": 0},
        {"requests_in_flight": 33},
        {"request_bytes": 1000},
        {"write_bytes": 0},
        {"buffer_bytes": -512},
        {"io_timeout_s": 0},
        {"connect_timeout_s": -1},
    ],
)
def test_options_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be"):
        NetworkOptions(**wrong)


def test_other_modes_are_refused() -> None:
    disk = DiskRef(
        vm_moref="vm-1",
        vm_name="db01",
        disk_key=2000,
        path="[ds] a/a.vmdk",
        capacity_bytes=512,
        datastore="ds",
    )
    nobody: Any = None
    with pytest.raises(PermanentTransportError, match="no network mode"):
        open_reader(nobody, disk, TransportMode.HOTADD)


@pytest.mark.parametrize(
    ("code", "text", "repeat", "error"),
    [
        (11, "NfcAioProcessOpenFileMsg: permission check failed for", False, PermanentTransportError),
        (11, "", True, PermanentTransportError),
        (
            3,
            "Thin/TBZ/Sparse disks cannot be opened in multiwriter mode",
            True,
            PermanentTransportError,
        ),
        (3, "DiskLib error 16392: Failed to lock the file", False, TransientTransportError),
        (5, "Failed to allocate the requested 2097152 bytes", False, TransientTransportError),
        (5, "", False, TransientTransportError),
        (1, "Input/output error", True, TransientTransportError),
        (4, "no such file", False, PermanentTransportError),
    ],
)
def test_refusals(code: int, text: str, repeat: bool, error: type[Exception]) -> None:
    translated = refusal(HostRefusedError(code, text), "open [ds] a/a.vmdk", repeat=repeat)
    assert type(translated) is error
    assert "open [ds] a/a.vmdk" in str(translated)
    assert text in str(translated)
