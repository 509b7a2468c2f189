"""LUNs show a datastore as VMFS, through snapshots, guests' writes and restores over SAN."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from vmhaul_lab import cli
from vmhaul_lab.lablun import LabLuns
from vmhaul_lab.plan import LunPlan, VmPlan
from vmhaul_lab.site import LabSite

from tests.support.disks import disk_ref, unwaited
from tests.support.lab_san import (
    CAPACITY,
    MIB,
    PROXY,
    digest_by_san,
    frozen_disks,
    lun_reader,
    machine,
    san_site,
    storage_of,
    vm_plan,
    with_storage,
)
from tests.support.vmfs_readers import file_sha256
from transports import direct_san
from transports.errors import TransportUnavailableError

pytestmark = pytest.mark.lab


@pytest.mark.parametrize(
    ("version", "luns"),
    [(6, (LunPlan(),)), (5, (LunPlan(size_bytes=600 * MIB, delta="VMFSSPARSE"), LunPlan()))],
)
def test_a_lun_shows_each_disk_of_a_snapshot_and_nothing_of_what_follows(
    tmp_path: Path, labvc_binary: Path, version: int, luns: tuple[LunPlan, ...]
) -> None:
    with san_site(tmp_path, labvc_binary, [vm_plan("vm01")], luns=luns, version=version) as (
        site,
        shown,
        client,
    ):
        storage = storage_of(client)
        assert [extent.lun for extent in storage.extents] == shown.naas
        assert storage.vmfs_uuid == shown.vmfs_uuid
        with lun_reader(shown) as reader:
            assert reader.fs.uuid == shown.vmfs_uuid
            assert reader.fs.major_version == (24 if version == 6 else 14)
        runs = [shown.runs(f"vm01/vm01{number}-flat.vmdk") for number in ("", "_1", "_2")]
        mapped = [sum(run[3] for run in found) for found in runs]
        zeroed = [any(run[4] for run in found) for found in runs]
        assert mapped[0] < CAPACITY == mapped[1] == mapped[2]
        assert zeroed == [False, True, False]

        live = [file_sha256(disk.live_file) for disk in site.disks("vm01")]
        vm, first, disks = frozen_disks(client, "vm01")
        for disk in site.disks("vm01"):
            site.guest_write(disk, 3 * MIB + 512, b"after the first snapshot" * 1000)
        assert [digest_by_san(site, disk) for disk in disks] == live

        # The next snapshot freezes deltas: what is read of them is the whole chain.
        second_live = [file_sha256(disk.live_file) for disk in site.disks("vm01")]
        assert second_live != live
        _, second, deltas = frozen_disks(client, "vm01")
        assert all(disk.is_delta for disk in deltas)
        for disk in site.disks("vm01"):
            site.guest_write(disk, 7 * MIB, bytes(4096) + b"after the second")
        assert [digest_by_san(site, disk) for disk in deltas] == second_live
        assert [digest_by_san(site, disk) for disk in disks] == live
        assert qemu_digest(shown, "vm01/vm01-000001.vmdk", tmp_path) == second_live[0]

        now = [file_sha256(disk.live_file) for disk in site.disks("vm01")]
        client.remove_snapshot(vm, second)
        client.remove_snapshot(vm, first)
        with lun_reader(shown) as reader:
            assert not [name for name in reader.names() if "00000" in name]
            assert [reader.sha256(f"vm01/vm01{number}-flat.vmdk") for number in ("", "_1", "_2")] == now
        assert shown.stray_writes() == []


def qemu_digest(luns: LabLuns, descriptor: str, directory: Path) -> str:
    """A disk of the LUN with its chain, as qemu reads it from copies of its files."""
    folder = directory / "copies"
    folder.mkdir()
    prefix, _, name = descriptor.rpartition("/")
    with lun_reader(luns) as reader:
        for path in reader.names():
            if path.startswith(prefix) and path.endswith(".vmdk"):
                (folder / path.rpartition("/")[2]).write_bytes(reader.read(path))
    out = directory / "out.raw"
    subprocess.run(
        ["qemu-img", "convert", "-f", "vmdk", "-O", "raw", folder / name, out], check=True, timeout=120
    )
    return file_sha256(out)


def test_what_is_written_to_a_lun_reaches_the_disk(tmp_path: Path, labvc_binary: Path) -> None:
    with san_site(tmp_path, labvc_binary, [vm_plan("vm01", power="off")]) as (site, shown, client):
        (vm,) = [vm for vm in client.inventory().vms if vm.name == "vm01"]
        refs = [with_storage(disk_ref(vm, disk), storage_of(client)) for disk in vm.disks]
        before = [disk.live_file.read_bytes() for disk in site.disks("vm01")]
        new = bytearray(hashlib.shake_256(b"restored").digest(CAPACITY))
        new[2 * MIB : 4 * MIB] = bytes(2 * MIB)
        writer = direct_san.open_writer(machine(site), refs[2], wait=unwaited)
        for at in range(0, CAPACITY, MIB):
            writer.write_from(at, memoryview(new)[at : at + MIB])
        writer.flush()
        writer.close()
        assert site.disks("vm01")[2].live_file.read_bytes() == before[2]
        # vCenter changes something on the datastore: what the LUN has is taken first.
        client.power_on(vm.moref)
        after = [disk.live_file.read_bytes() for disk in site.disks("vm01")]
        assert after == [before[0], before[1], bytes(new)]
        assert shown.collect() == 0
        assert shown.stray_writes() == []
        for ref in refs[:2]:
            with pytest.raises(TransportUnavailableError):
                direct_san.open_writer(machine(site), ref, wait=unwaited)


def test_a_write_under_a_snapshot_shows_in_the_child_where_that_has_nothing_of_its_own(
    tmp_path: Path, labvc_binary: Path
) -> None:
    with san_site(tmp_path, labvc_binary, [vm_plan("vm01")]) as (site, shown, client):
        vm, snapshot, _ = frozen_disks(client, "vm01")
        child = site.disk("vm01", 3)
        site.guest_write(child, 5 * MIB, b"of the child")
        base = child.snapshots[0].file
        assert base is not None
        lun, place = place_of(shown, "vm01/vm01_2-flat.vmdk", 5 * MIB)
        own = site.guest_read(child, 5 * MIB, 65536)
        write_device(site, lun, place, b"N" * 131072)
        assert shown.collect() == 131072
        assert base.read_bytes()[5 * MIB : 5 * MIB + 131072] == b"N" * 131072
        assert site.guest_read(child, 5 * MIB, 131072) == own + b"N" * 65536
        client.remove_snapshot(vm, snapshot)
        assert site.guest_read(site.disk("vm01", 3), 5 * MIB, 131072) == own + b"N" * 65536


def place_of(luns: LabLuns, path: str, offset: int) -> tuple[int, int]:
    for start, lun, place, length, _ in luns.runs(path):
        if start <= offset < start + length:
            return lun, place + offset - start
    raise AssertionError(f"{path} has no block at {offset}")


def write_device(site: LabSite, lun: int, offset: int, data: bytes) -> None:
    """Write to a LUN as a proxy does: through its device."""
    naa = site.luns("san").naas[lun]
    (name,) = [item["name"] for item in site.proxy(PROXY).devices() if item["wwid"] == naa]
    with (site.proxy(PROXY).dev_path / name).open("r+b") as device:
        device.seek(offset)
        device.write(data)
        device.flush()
        os.fsync(device.fileno())


def test_writes_where_no_disk_is_are_told(tmp_path: Path, labvc_binary: Path) -> None:
    with san_site(tmp_path, labvc_binary, [vm_plan("vm01")]) as (site, shown, _):
        write_device(site, 0, 8 << 30, b"x" * 4096)
        shown.collect()
        assert shown.stray_writes() == [(0, 8 << 30, 4096)]


def test_zoning_decides_who_sees_a_lun(tmp_path: Path, labvc_binary: Path) -> None:
    with san_site(tmp_path, labvc_binary, [vm_plan("vm01")]) as (site, shown, _):
        (naa,) = shown.naas

        def seen() -> bool:
            return naa in {item["wwid"] for item in site.proxy(PROXY).devices()}

        assert seen()
        shown.unzone(PROXY)
        assert not seen()
        shown.zone(PROXY)
        assert seen()


def test_vms_of_one_datastore_change_at_the_same_time(tmp_path: Path, labvc_binary: Path) -> None:
    names = [f"vm{number:02d}" for number in range(1, 5)]
    plans = [VmPlan(name=name, disks=vm_plan(name).disks[:1]) for name in names]
    with san_site(tmp_path, labvc_binary, plans) as (site, shown, client):
        live = {name: file_sha256(site.disk(name).live_file) for name in names}
        start = threading.Barrier(len(names))

        def back_up(name: str) -> list[str]:
            start.wait(60)
            found = []
            for _ in range(3):
                vm, snapshot, disks = frozen_disks(client, name)
                found.append(digest_by_san(site, disks[0]))
                client.remove_snapshot(vm, snapshot)
            return found

        with ThreadPoolExecutor(len(names)) as pool:
            read = dict(zip(names, pool.map(back_up, names), strict=True))
        assert read == {name: [live[name]] * 3 for name in names}
        assert shown.stray_writes() == []


def test_everything_is_given_back(tmp_path: Path, labvc_binary: Path) -> None:
    with san_site(tmp_path, labvc_binary, [vm_plan("vm01")]):
        assert str(tmp_path) in Path("/proc/self/mounts").read_text()
    assert str(tmp_path) not in Path("/proc/self/mounts").read_text()
    listed = subprocess.run(["losetup", "--list"], capture_output=True, text=True, check=True)
    assert str(tmp_path) not in listed.stdout


_KILLED = """
import os, signal, sys
from pathlib import Path
from tests.support.lab_san import san_site, vm_plan
with san_site(Path(sys.argv[1]), Path(sys.argv[2]), [vm_plan("vm01")]):
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_site_leaves_no_mount(tmp_path: Path, labvc_binary: Path) -> None:
    words = [sys.executable, "-c", _KILLED, tmp_path, labvc_binary]
    done = subprocess.run(words, check=False, timeout=120, cwd=Path(__file__).parents[3])
    assert done.returncode == -signal.SIGKILL
    pause = threading.Event()
    for _ in range(600):
        if str(tmp_path) not in Path("/proc/self/mounts").read_text():
            return
        pause.wait(0.1)
    raise AssertionError("the file system of the killed site is still mounted")


_DETACHED = """
import os, sys
from pathlib import Path
from vmhaul_lab.plan import DatastorePlan, LunPlan, SitePlan
from vmhaul_lab.proxies import ProxyPlan
from vmhaul_lab.site import LabSite
from tests.support.lab_san import PROXY, vm_plan
stores = (DatastorePlan(name="san", luns=(LunPlan(),)),)
plan = SitePlan(vms=(vm_plan("vm01"),), datastores=stores, proxies=(ProxyPlan(name=PROXY),))
site = LabSite(Path(sys.argv[1]), plan, binary=Path(sys.argv[2]), detached=True)
site.start()
site.leave()
os._exit(0)
"""


def test_down_takes_a_site_away_that_went_on_alone(tmp_path: Path, labvc_binary: Path) -> None:
    words = [sys.executable, "-c", _DETACHED, tmp_path / "site", labvc_binary]
    subprocess.run(words, check=True, timeout=120, cwd=Path(__file__).parents[3])
    assert str(tmp_path) in Path("/proc/self/mounts").read_text()
    assert cli.main(["down", "--dir", str(tmp_path / "site")]) == 0
    assert str(tmp_path) not in Path("/proc/self/mounts").read_text()
