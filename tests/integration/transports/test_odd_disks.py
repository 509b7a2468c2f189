"""Disks that end in the middle of a block, a chunk or a page: to the repository and back, bit for bit."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from vmhaul_lab.images import DiskPlan
from vmhaul_lab.plan import VmPlan
from vmhaul_lab.site import LabSite
from vmhaul_lab.testing import labvc_binary

from pipeline.mover import MoverOptions
from pipeline.storage.local import LocalStorage
from pipeline.testing.builders import Workbench
from tests.support.disks import disk_ref, open_reader, unwaited
from transports.base import DiskRef, Extent, TransportMode
from transports.network import NetworkOptions
from transports.registry import ModeOptions
from transports.vsphere.api import Vsphere
from transports.vsphere.model import SnapshotInfo, VmInfo
from transports.wrappers import ReconnectingReader

__all__ = ["labvc_binary"]
pytestmark = pytest.mark.lab

KIB, MIB = 1 << 10, 1 << 20
SIZES = (512, 64 * KIB - 512, 64 * KIB, MIB + 3 * 512, 2 * MIB + 64 * KIB + 512, 3 * MIB)
SMALL = ModeOptions(
    network=NetworkOptions(request_bytes=64 * KIB, requests_in_flight=4, io_timeout_s=15)
)


@pytest.fixture
def site(tmp_path: Path, labvc_binary: Path) -> Iterator[LabSite]:
    disks = tuple(
        DiskPlan(label=f"d{size}", capacity_bytes=size, layout="empty", thin=number % 2 == 0)
        for number, size in enumerate(SIZES)
    )
    plans = (VmPlan(name="odd", power="on", disks=disks),)
    with LabSite.quick(tmp_path / "site", plans, binary=labvc_binary, cbt_page_bytes=MIB) as site:
        yield site


def freeze(vsphere: Vsphere, name: str) -> tuple[VmInfo, SnapshotInfo]:
    [vm] = vsphere.inventory().vms
    return vm, vsphere.create_snapshot(vm.moref, name=name, description="", quiesce=False)


def reader_of(vsphere: Vsphere, disk: DiskRef) -> ReconnectingReader:
    return ReconnectingReader(lambda: open_reader(vsphere, disk, TransportMode.NBD, SMALL), 8, unwaited)


def test_full_and_increment_of_disks_of_every_size(
    vsphere: Vsphere, site: LabSite, tmp_path: Path
) -> None:
    bench = Workbench(
        LocalStorage(tmp_path / "repository", create=True), time.time, block_size_bytes=64 * KIB
    )
    chance = random.Random(5)
    [vm] = vsphere.inventory().vms
    vsphere.enable_change_tracking(vm.moref)
    roots: dict[int, str] = {}
    ids: dict[int, str] = {}
    for turn in range(3):
        for number, size in enumerate(SIZES, 1):
            live = site.disk("odd", number)
            # The last sector and some in the middle; what is never written stays a hole.
            for at in {size - 512, chance.randrange(0, size, 512)}:
                site.guest_write(live, at, chance.randbytes(512))
        vm, snapshot = freeze(vsphere, f"turn {turn}")
        site.control.fault("nfc-cut", 2, after_bytes=100 * KIB)
        for number, info in enumerate(sorted(snapshot.disks, key=lambda d: d.key), 1):
            disk = disk_ref(vm, info, snapshot)
            reader = reader_of(vsphere, disk)
            changed: list[Extent] | None = None
            allocated: list[Extent] | None = None
            if info.key in roots:
                changed = vsphere.changed_areas(vm.moref, snapshot.moref, info.key, ids[info.key])
            else:
                allocated = list(reader.allocated_extents(0, reader.size_bytes))
            plan = bench.plan(
                info.capacity_bytes,
                previous=roots.get(info.key, ""),
                changed=changed,
                allocated=allocated,
            )
            done = bench.backup(reader, plan=plan, options=MoverOptions(workers=2, verify_every=1))
            reader.close()
            roots[info.key], ids[info.key] = done.map_root, info.change_id
            expected = site.disk("odd", number).live_file.read_bytes()
            for fill in (0, 255):
                assert bench.restored(done.map_root, info.capacity_bytes, fill=fill) == expected
        site.control.clear_faults()
        vsphere.remove_snapshot(vm.moref, snapshot.moref)


def test_two_attempts_at_once_and_a_third_that_goes_on(
    vsphere: Vsphere, site: LabSite, tmp_path: Path
) -> None:
    """An attempt that lost its lease writes the same work record as the one that follows it."""
    bench = Workbench(
        LocalStorage(tmp_path / "repository", create=True), time.time, block_size_bytes=4096
    )
    number = len(SIZES)
    site.guest_write(site.disk("odd", number), 0, random.Random(6).randbytes(SIZES[-1]))
    vm, snapshot = freeze(vsphere, "frozen")
    info = max(snapshot.disks, key=lambda disk: disk.key)
    disk = disk_ref(vm, info, snapshot)
    site.control.fault("nfc-delay", 1_000_000, delay_s=0.02)
    cancels = [threading.Event(), threading.Event()]
    options = MoverOptions(workers=1, checkpoint_every_s=0.02)

    def attempt(cancel: threading.Event) -> None:
        reader = reader_of(vsphere, disk)
        try:
            bench.on(LocalStorage(tmp_path / "repository")).backup(
                reader, work_id="task", cancel=cancel, options=options
            )
        except Exception:  # noqa: BLE001 - cancelled, in the middle
            return
        finally:
            reader.close()

    threads = [threading.Thread(target=attempt, args=(cancel,)) for cancel in cancels]
    for thread in threads:
        thread.start()
        time.sleep(0.15)
    for cancel in cancels:
        time.sleep(0.15)
        cancel.set()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    site.control.clear_faults()
    reader = reader_of(vsphere, disk)
    done = bench.on(LocalStorage(tmp_path / "repository")).backup(
        reader, work_id="task", options=options
    )
    reader.close()
    expected = site.disk("odd", number).live_file.read_bytes()
    assert bench.restored(done.map_root, info.capacity_bytes) == expected
    assert bench.problems() == ()
    vsphere.remove_snapshot(vm.moref, snapshot.moref)
