"""From the job to the bytes: a real sshd, real btrfs, the mode's own reader; vSphere alone is played."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from backup_server.db.tables import Task
from backup_server.services import storage_systems
from proxy_worker.contracts.codec import decode_order
from proxy_worker.contracts.messages import BackupDiskOrder
from tests.fakes.server import Rig
from tests.fakes.vsphere import FakeDisk
from tests.support.nfs_disks import image_with_holes, lay_down, mountinfo
from tests.support.storage_host import StorageHost, storage_host
from tests.support.storage_rig import begin, enrol, give_back, hand_out, nfs, present, withdraw
from transports import registry
from transports.base import DiskReader, Presented, TransportMode
from transports.direct_nfs import NfsClient, NfsOptions
from transports.errors import TransportUnavailableError
from transports.machine import Machine
from transports.registry import Access, ModeOptions
from transports.storage_systems.registry import storage_drivers

pytestmark = pytest.mark.lab
MODE = TransportMode.STORAGE_SNAPSHOT


@pytest.fixture
def filer(tmp_path: Path) -> Iterator[StorageHost]:
    with storage_host(tmp_path, trees=1) as filer:
        yield filer


@pytest.fixture
def real(rig: Rig, filer: StorageHost) -> Rig:
    """ds1 is an export of the file server, which the server reaches over SSH."""
    [tree] = filer.trees
    rig.vcenter.storage["ds1"] = nfs("ds1", str(tree), host="127.0.0.1")
    enrol(rig)
    rig.ctx.storage.drivers = storage_drivers()
    access = filer.access()
    storage_systems.add(
        rig.ctx,
        {
            "name": "filer1",
            "driver": "snapshot-directories",
            "address": access.address,
            "identity": storage_systems.probe(rig.ctx, "snapshot-directories", access.address)[
                "identity"
            ],
            "secrets": dict(access.secrets),
            "options": access.options,
            "proxies": [{"proxy": rig.default_proxy().name}],
        },
    )
    return rig


class Asking:
    """A proxy's presenter, without the wire."""

    def __init__(self, rig: Rig, task: Task) -> None:
        self._rig, self._task = rig, task

    def present(self, mode: TransportMode, *, write: bool) -> Presented:
        assert (mode, write) == (MODE, False)
        return present(self._rig, self._task)

    def withdraw(self, mode: TransportMode) -> None:
        withdraw(self._rig, self._task)


def opened(rig: Rig, task: Task, tree: Path, tmp_path: Path) -> DiskReader:
    """By the registry, with the export mounted where it is."""
    plain = str(tree).replace("\\", "\\134").replace(" ", "\\040")
    told = mountinfo(tmp_path / "mountinfo", Path(plain), f"127.0.0.1:{plain}", options="ro")
    options = ModeOptions(
        machine=Machine(mountinfo_path=str(told)), nfs=NfsOptions(client=NfsClient.MOUNT)
    )
    access = Access(
        vsphere=rig.ctx.vcenters.get(task.vcenter_id or ""),
        presenter=Asking(rig, task),
        options=options,
    )
    order = decode_order(task.kind, task.order)
    assert isinstance(order, BackupDiskOrder)
    return registry.open_reader(access, order.disk, MODE)


def read_all(reader: DiskReader) -> bytes:
    content = bytearray(reader.size_bytes)
    reader.read_into(0, memoryview(content))
    return bytes(content)


def test_what_is_read_is_what_the_vm_snapshot_froze(
    real: Rig, filer: StorageHost, tmp_path: Path
) -> None:
    [tree] = filer.trees
    image = image_with_holes()
    lay_down(tree, "db01", image)
    vm = real.vcenter.add_vm("db01", disks=0)
    vm.disks.append(
        FakeDisk(key=2000, label="Hard disk 1", path="[ds1] db01/db01.vmdk", capacity_bytes=len(image))
    )
    real.job(storage_snapshots=True)
    session_id, [task] = begin(real)
    assert vm.snapshots == []
    # The VM snapshot is gone, so the guest writes to the base again.
    with (tree / "db01" / "db01-flat.vmdk").open("r+b") as file:
        file.write(b"\xff" * 65536)
    hand_out(real, task)
    reader = opened(real, task, tree, tmp_path)
    try:
        assert reader.capabilities.mode is MODE
        assert read_all(reader) == image
    finally:
        reader.close()
    assert [one.kind for one in real.open_intents()] == ["storage-snapshot"]
    [made] = list((tree / ".snapshots").iterdir())
    assert made.name == real.open_intents()[0].mark
    give_back(real, task)
    session = real.drive(session_id)
    assert (session["result"], session["reason"]) == ("success", "")
    assert list((tree / ".snapshots").iterdir()) == []
    assert real.open_intents() == []


def test_a_snapshot_that_somebody_removed_is_another_mode_s_case(
    real: Rig, filer: StorageHost, tmp_path: Path
) -> None:
    [tree] = filer.trees
    image = image_with_holes()
    lay_down(tree, "db01", image)
    vm = real.vcenter.add_vm("db01", disks=0)
    vm.disks.append(
        FakeDisk(key=2000, label="Hard disk 1", path="[ds1] db01/db01.vmdk", capacity_bytes=len(image))
    )
    real.job(storage_snapshots=True)
    session_id, [task] = begin(real)
    filer.clear()
    hand_out(real, task)
    with pytest.raises(TransportUnavailableError):
        opened(real, task, tree, tmp_path)
    assert [one.kind for one in real.open_intents()] == ["storage-snapshot"]
    give_back(real, task)
    real.drive(session_id)
    assert real.open_intents() == []
