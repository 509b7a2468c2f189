"""Change tracking lies to the whole product: it is found out, mended, told, and begun anew."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from vmhaul_lab.images import DiskPlan
from vmhaul_lab.plan import VmPlan
from vmhaul_lab.site import LabSite
from vmhaul_lab.testing import labvc_binary

from tests.e2e import operator
from tests.e2e.platform import Platform, explain, platform
from tests.e2e.setup import assert_restores, connect, create_job, hashes, restored_hash

__all__ = ["labvc_binary"]
pytestmark = pytest.mark.lab

MIB = 1 << 20
BLOCKS = 24
VMS = (
    VmPlan(
        name="vm01",
        disks=(DiskPlan(label="disk0", capacity_bytes=BLOCKS * MIB, layout="raw", thin=False),),
    ),
)


@pytest.fixture
def site(tmp_path: Path, labvc_binary: Path) -> Iterator[LabSite]:
    with LabSite.quick(tmp_path / "site", VMS, binary=labvc_binary) as running:
        yield running


@pytest.fixture
def product(tmp_path: Path) -> Iterator[Platform]:
    with platform(tmp_path / "data") as running:
        yield running


def write(site: LabSite, *blocks: int, text: bytes) -> None:
    """The guest writes a little into each of these blocks."""
    disk = site.disk("vm01")
    for block in blocks:
        site.guest_write(disk, block * MIB + 4096, text * 128)


def disk_of(session: dict[str, Any]) -> dict[str, Any]:
    [task] = session["vms"][0]["tasks"]
    return dict(task)


def test_a_lie_is_found_out_mended_and_told(product: Platform, site: LabSite, tmp_path: Path) -> None:
    connect(product, site, tmp_path / "repo")
    # First nobody looks: the lie becomes a restore point that is not what was on the disk.
    create_job(product, "nightly", "--vm", "vm01", "--retries", "0", "--sample-blocks", "0")
    product.backup("nightly")
    write(site, *range(1, BLOCKS, 2), text=b"tuesday ")
    site.control.fault("cbt-lies", count=1)
    product.backup("nightly")
    [tuesday] = hashes(site, "vm01").values()
    assert restored_hash(product, "vm01@latest", 1, tmp_path / "wrong.raw") != tuesday

    # Then a sample is taken, of all there is: it sees what was missed the day before.
    product.run("job", "edit", "nightly", "--sample-blocks", str(BLOCKS))
    write(site, 2, text=b"wednesday ")
    wednesday = hashes(site, "vm01")
    session = product.backup("nightly", result="warning")
    task = disk_of(session)
    assert task["read_mode"] == "full-scan", explain(session)
    assert "that change tracking called unchanged had changed" in task["read_mode_reason"]
    assert "begins tracking anew" in session["vms"][0]["warnings"][0]
    assert_restores(product, "vm01@latest", "vm01", wednesday, tmp_path)

    # The point of Tuesday is named, the full before it is not.
    points = product.json("restore-point", "list", "--vm", "vm01")["items"]
    assert [bool(point["doubt"]) for point in points] == [False, True, False]
    shown = product.run("restore-point", "show", "vm01@2").stdout
    assert "in doubt: " in shown

    # The next run begins tracking anew, and the one after it trusts it again.
    write(site, 3, text=b"thursday ")
    thursday = hashes(site, "vm01")
    session = product.backup("nightly")
    assert "tracking was reset" in disk_of(session)["read_mode_reason"]
    assert_restores(product, "vm01@latest", "vm01", thursday, tmp_path)
    write(site, 4, text=b"friday ")
    friday = hashes(site, "vm01")
    task = disk_of(product.backup("nightly"))
    assert task["read_mode"] == "increment"
    assert_restores(product, "vm01@latest", "vm01", friday, tmp_path)
    assert operator.snapshot_names(site) == []
