"""HotAdd inside a real guest: Linux with VMware's SCSI driver, disks added and taken while it runs."""

import hashlib
import os
from pathlib import Path

import pytest
from vmhaul_lab.realguest import RealGuest

pytestmark = pytest.mark.lab

UUID = "4229a1b2-0c0d-11ee-be56-0242ac120002"
MIB = 1 << 20
CAPACITY_BYTES = 4 * MIB
NAME = "6000c29dead0beef"
"""The emulated disk has room for eight bytes of identity; a host gives sixteen."""


def test_a_disk_is_found_read_written_and_let_go(tmp_path: Path) -> None:
    named, nameless = tmp_path / "named.raw", tmp_path / "nameless.raw"
    for file in (named, nameless):
        file.write_bytes(os.urandom(CAPACITY_BYTES))
    presented = {
        "named": {"disk_uuid": NAME, "controller_bus": 0, "unit": 3},
        "nameless": {"controller_bus": 0, "unit": 9},
    }
    with RealGuest(tmp_path, "tests.integration.lab.hotadd_program", uuid=UUID) as guest:

        def order(path: str, *, write: bool = False) -> str:
            """Let the guest read or write a disk that it has to be given; what it answers."""
            assert guest.heard() == ("ready", None)
            guest.answer({"path": path, "capacity_bytes": CAPACITY_BYTES, "write": write})
            assert guest.heard() == ("present", {"path": path, "write": write})
            target = presented[path]
            unit = int(str(target["unit"]))
            guest.attach(
                path,
                tmp_path / f"{path}.raw",
                unit=unit,
                read_only=not write,
                wwn=str(target.get("disk_uuid", "")),
            )
            guest.answer(target)
            # The kernel has forgotten the disk before the server is asked to take it away.
            assert guest.heard() == ("withdraw", {"path": path, "devices": []})
            guest.detach(path)
            guest.answer(None)
            return "" if write else str(guest.heard()[1])

        assert guest.heard() == ("up", {"uuid": UUID, "missing": "", "devices": []})
        assert order("named") == hashlib.sha256(named.read_bytes()).hexdigest()
        assert order("nameless") == hashlib.sha256(nameless.read_bytes()).hexdigest()
        order("named", write=True)
        assert guest.heard() == ("ready", None)
        guest.answer(None)
        assert guest.heard() == ("end", [])
    assert named.read_bytes() == b"".join(bytes([piece + 1]) * MIB for piece in range(4))
