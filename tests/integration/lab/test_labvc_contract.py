"""What the site's vCenter promises, asked with stock pyVmomi."""

import http.client
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pyVim.task import WaitForTask
from pyVmomi import vim, vmodl

from tests.integration.lab.vcenter import (
    MIB,
    PASSWORD,
    Session,
    Site,
    running,
    session,
    stranger,
    unchecked,
)

pytestmark = pytest.mark.lab

GRAIN = 64 << 10
CREATE_SNAPSHOT = "VirtualMachine.State.CreateSnapshot"


def _site(directory: Path) -> dict[str, Any]:
    image = directory / "image.raw"
    with image.open("wb") as file:
        file.truncate(64 * MIB)
        file.seek(MIB)
        file.write(os.urandom(256 << 10))
        file.seek(30 * MIB)
        file.write(b"x" * 100)
    return {
        "password": PASSWORD,
        "users": [{"name": "limited", "password": "few", "denied": [CREATE_SNAPSHOT]}],
        "cbt_page_bytes": 16 * MIB,
        "datacenters": [
            {
                "name": "Lab",
                "folders": ["Prod/Web"],
                "networks": ["Guests"],
                "clusters": [{"name": "C1", "hosts": ["esx1", "esx2"], "pools": ["Gold"]}],
                "datastores": [
                    {
                        "name": "vmfs1",
                        "type": "VMFS",
                        "path": str(directory / "vmfs1"),
                        "capacity_bytes": 100 << 30,
                    },
                    {
                        "name": "nfs1",
                        "type": "NFS",
                        "path": str(directory / "nfs1"),
                        "capacity_bytes": 100 << 30,
                    },
                ],
            }
        ],
        "vms": [
            {
                "name": "web",
                "folder": "Prod/Web",
                "pool": "Gold",
                "host": "esx1",
                "power": "on",
                "annotation": "the shop",
                "tags": ["tier:gold"],
                "firmware": "efi",
                "disks": [
                    {"image": str(image), "thin": True, "datastore": "vmfs1"},
                    {"capacity_bytes": 2 << 40, "thin": True, "controller": "nvme"},
                    {
                        "capacity_bytes": 16 * MIB,
                        "datastore": "nfs1",
                        "controller": "sata",
                        "mode": "independent_persistent",
                    },
                ],
            },
            {
                "name": "proxy",
                "host": "esx2",
                "power": "on",
                "disks": [{"capacity_bytes": MIB, "thin": True}],
            },
        ],
    }


@pytest.fixture
def site(labvc_binary: Path, tmp_path: Path) -> Iterator[Site]:
    with running(labvc_binary, tmp_path, _site(tmp_path)) as made:
        yield made


@pytest.fixture
def vc(site: Site) -> Iterator[Session]:
    with session(site) as made:
        yield made


def _track(vc: Session, vm: Any) -> None:
    vc.wait(vm.ReconfigVM_Task(vim.vm.ConfigSpec(changeTrackingEnabled=True)))


def test_inventory_shows_the_site(vc: Session) -> None:
    vm = vc.vm("web")
    config = vc.get(vm, "config")
    assert (config.version, config.firmware, config.annotation) == ("vmx-19", "efi", "the shop")
    assert vm.parent.name == "Web"
    assert vm.parent.parent.name == "Prod"
    assert vm.resourcePool.name == "Gold"
    assert vm.runtime.host.name == "esx1"
    assert vm.guest.toolsRunningStatus == "guestToolsRunning"
    assert [n.name for n in vm.network] == ["Guests"]
    assert sorted((d.key, d.deviceInfo.label, d.capacityInBytes) for d in vc.disks(vm)) == [
        (2000, "Hard disk 1", 64 * MIB),
        (16000, "Hard disk 3", 16 * MIB),
        (32000, "Hard disk 2", 2 << 40),
    ]
    assert vc.disk(vm).backing.uuid.upper().startswith("6000C29")
    stores = {ds.name: ds for ds in vc.all(vim.Datastore)}
    assert stores["vmfs1"].info.vmfs.extent[0].diskName.startswith("naa.")
    assert stores["nfs1"].info.nas.remoteHost == "127.0.0.1"
    assert stores["nfs1"].summary.type == "NFS"
    assert 0 < stores["vmfs1"].summary.freeSpace < stores["vmfs1"].summary.capacity


def test_tracking_answers_with_real_differences(site: Site, vc: Session) -> None:
    vm = vc.vm("web")
    _track(vc, vm)
    first = vc.snapshot(vm)
    start = vc.disk(first).backing.changeId
    assert "/" in start
    assert vc.areas(vm, first, 2000, "*") == [(MIB, 256 << 10), (30 * MIB, GRAIN)]
    far = vm.QueryChangedDiskAreas(first, 32000, 1 << 40, "*")
    assert (far.length, list(far.changedArea or [])) == (16 * MIB, [])
    far_start = vc.disk(first, 32000).backing.changeId
    vc.wait(first.RemoveSnapshot_Task(False))
    site.write("web", 40 * MIB, b"y" * 70000)
    site.write("web", 30 * MIB, b"\0" * 100)
    site.write("web", 1 << 40, b"far", key=32000)
    second = vc.snapshot(vm)
    assert vc.areas(vm, second, 2000, start) == [(30 * MIB, GRAIN), (40 * MIB, 2 * GRAIN)]
    far = vm.QueryChangedDiskAreas(second, 32000, 1 << 40, far_start)
    assert [(a.start, a.length) for a in far.changedArea] == [(1 << 40, GRAIN)]
    # A page ends after cbt_page_bytes; the independent disk is not tracked.
    page = vm.QueryChangedDiskAreas(second, 2000, 0, start)
    assert (page.startOffset, page.length, list(page.changedArea or [])) == (0, 16 * MIB, [])
    fault = vc.attempt(lambda: vm.QueryChangedDiskAreas(second, 16000, 0, "*"))
    assert fault.invalidProperty == "deviceKey"


def test_tracking_refuses_what_it_cannot_know(site: Site, vc: Session) -> None:
    vm = vc.vm("web")

    def keys(change_id: str, snapshot: Any, offset: int = 0) -> Any:
        fault = vc.attempt(lambda: vm.QueryChangedDiskAreas(snapshot, 2000, offset, change_id))
        if isinstance(fault, vmodl.fault.InvalidArgument):
            return fault.invalidProperty
        assert isinstance(fault, vim.fault.FileFault)
        return [m.key for m in fault.faultMessage]

    untracked = vc.snapshot(vm)
    assert keys("*", untracked) == ["vim.hostd.vmsvc.cbt.noTrack"]
    _track(vc, vm)
    late = vc.snapshot(vm)
    assert keys("*", late) == ["vim.hostd.vmsvc.cbt.noEpoch"]
    vc.wait(vm.RemoveAllSnapshots_Task())
    first = vc.snapshot(vm)
    known = vc.disk(first).backing.changeId
    assert keys("junk", first) == "changeId"
    assert keys(known, first, 64 * MIB) == "startOffset"
    assert keys("52 aa/4", first) == ["vim.hostd.vmsvc.cbt.cannotGetChanges"]
    assert keys(vc.disk(vm).backing.changeId, first) == ["vim.hostd.vmsvc.cbt.cannotGetChanges"]
    vc.wait(first.RemoveSnapshot_Task(False))
    site.control("POST", "/vms/web/power-loss")
    second = vc.snapshot(vm)
    assert vc.disk(second).backing.changeId.split("/")[0] != known.split("/")[0]
    assert keys(known, second) == ["vim.hostd.vmsvc.cbt.cannotGetChanges"]
    before_growth = vc.disk(second).backing.changeId
    vc.wait(vm.RemoveAllSnapshots_Task())
    disk = vc.disk(vm)
    disk.capacityInBytes, disk.capacityInKB = 65 * MIB, 65 << 10
    change = vim.vm.device.VirtualDeviceSpec(operation="edit", device=disk)
    vc.wait(vm.ReconfigVM_Task(vim.vm.ConfigSpec(deviceChange=[change])))
    assert site.live("web").stat().st_size == 65 * MIB
    third = vc.snapshot(vm)
    assert keys(before_growth, third) == ["vim.hostd.vmsvc.cbt.cannotGetChanges"]


def test_snapshot_freezes_and_the_guest_keeps_its_file(site: Site, vc: Session) -> None:
    vm = vc.vm("web")
    with site.live("web").open("r+b") as guest:  # as a mounted guest holds it
        snapshot = vc.snapshot(vm)
        frozen = Path(site.disk("web")["snapshots"][0]["file"])
        guest.seek(5 * MIB)
        guest.write(b"while the backup runs")
        guest.flush()
        assert vc.disk(vm).backing.fileName.endswith("web-000001.vmdk")
        assert vc.disk(vm).backing.parent.fileName == vc.disk(snapshot).backing.fileName
        assert vc.disk(vm, 16000).backing.fileName == "[nfs1] web/web_2.vmdk"
        with frozen.open("rb") as file:
            file.seek(5 * MIB)
            assert file.read(21) == bytes(21)
        vc.wait(snapshot.RemoveSnapshot_Task(False))
        assert site.live("web") == frozen
        assert os.path.samestat(os.fstat(guest.fileno()), site.live("web").stat())
    assert vm.snapshot is None
    assert not list(frozen.parent.glob("*-0000*"))


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2), (1, 2, 0)])
def test_snapshots_go_in_any_order(site: Site, vc: Session, order: tuple[int, ...]) -> None:
    vm = vc.vm("web")
    snapshots = []
    for i in range(3):
        site.write("web", 0, b"state %d" % i)
        snapshots.append(vc.snapshot(vm, f"s{i}"))
    site.write("web", 0, b"live now")
    left = {0, 1, 2}
    for gone in order:
        vc.wait(snapshots[gone].RemoveSnapshot_Task(False))
        left.remove(gone)
        files = {s["name"]: Path(s["file"]) for s in site.disk("web")["snapshots"]}
        assert {name: file.read_bytes()[:7] for name, file in files.items()} == {
            f"s{i}": b"state %d" % i for i in left
        }
        assert site.live("web").read_bytes()[:8] == b"live now"
    assert vc.disk(vm).backing.fileName == "[vmfs1] web/web.vmdk"


def test_revert_brings_data_and_a_new_epoch(site: Site, vc: Session) -> None:
    vm = vc.vm("web")
    _track(vc, vm)
    site.write("web", 0, b"good")
    first = vc.snapshot(vm)
    known = vc.disk(first).backing.changeId
    site.write("web", 0, b"evil")
    vc.wait(first.RevertToSnapshot_Task())
    assert site.live("web").read_bytes()[:4] == b"good"
    assert vm.runtime.powerState == "poweredOff"
    second = vc.snapshot(vm)
    assert vc.disk(second).backing.changeId.split("/")[0] != known.split("/")[0]
    vc.wait(vm.RemoveAllSnapshots_Task())
    assert vc.disk(vm).backing.fileName == "[vmfs1] web/web.vmdk"
    assert site.live("web").read_bytes()[:4] == b"good"


def test_a_removal_that_sticks_needs_consolidation(site: Site, vc: Session) -> None:
    vm = vc.vm("web")
    site.fault("snapshot-stuck", count=1)
    vc.wait(vc.snapshot(vm).RemoveSnapshot_Task(False))
    assert vc.get(vm, "runtime.consolidationNeeded") is True
    assert vc.disk(vm).backing.fileName.endswith("-000001.vmdk")
    vc.wait(vm.ConsolidateVMDisks_Task())
    assert vc.get(vm, "runtime.consolidationNeeded") is False
    assert vc.disk(vm).backing.fileName == "[vmfs1] web/web.vmdk"


def test_hot_added_disk_locks_the_removal(site: Site, vc: Session) -> None:
    web, proxy = vc.vm("web"), vc.vm("proxy")
    snapshot = vc.snapshot(web)
    backing = vim.vm.device.VirtualDisk.FlatVer2BackingInfo(
        fileName=vc.disk(snapshot).backing.fileName, diskMode="independent_nonpersistent"
    )
    disk = vim.vm.device.VirtualDisk(key=-1, controllerKey=1000, unitNumber=5, backing=backing)
    attach = vim.vm.device.VirtualDeviceSpec(operation="add", device=disk)
    vc.wait(proxy.ReconfigVM_Task(vim.vm.ConfigSpec(deviceChange=[attach])))
    assert vc.disk(proxy, 2005).capacityInBytes == 64 * MIB
    assert isinstance(vc.attempt(lambda: snapshot.RemoveSnapshot_Task(False)), vim.fault.FileLocked)
    assert vc.get(web, "runtime.consolidationNeeded") is True
    detach = vim.vm.device.VirtualDeviceSpec(operation="remove", device=vc.disk(proxy, 2005))
    vc.wait(proxy.ReconfigVM_Task(vim.vm.ConfigSpec(deviceChange=[detach])))
    vc.wait(web.ConsolidateVMDisks_Task())
    assert vc.disk(web).backing.fileName == "[vmfs1] web/web.vmdk"
    assert site.live("web").exists()


def test_device_changes_are_all_or_nothing(site: Site, vc: Session) -> None:
    vm = vc.vm("web")
    before = [(d.key, d.backing.fileName) for d in vc.disks(vm)]
    new = vim.vm.device.VirtualDisk(
        key=-1,
        controllerKey=1000,
        capacityInKB=1 << 10,
        backing=vim.vm.device.VirtualDisk.FlatVer2BackingInfo(
            fileName="[vmfs1]", diskMode="persistent", thinProvisioned=True
        ),
    )
    add = vim.vm.device.VirtualDeviceSpec(operation="add", fileOperation="create", device=new)
    shrunk = vc.disk(vm)
    shrunk.capacityInKB, shrunk.capacityInBytes = 1024, MIB
    shrink = vim.vm.device.VirtualDeviceSpec(operation="edit", device=shrunk)
    fault = vc.attempt(lambda: vm.ReconfigVM_Task(vim.vm.ConfigSpec(deviceChange=[add, shrink])))
    assert isinstance(fault, vim.fault.InvalidDeviceOperation)
    assert [(d.key, d.backing.fileName) for d in vc.disks(vm)] == before
    folder = site.live("web").parent
    files = sorted(p.name for p in folder.iterdir())
    vc.wait(vm.ReconfigVM_Task(vim.vm.ConfigSpec(deviceChange=[add])))
    assert site.live("web", 2001).stat().st_size == MIB
    destroy = vim.vm.device.VirtualDeviceSpec(
        operation="remove", fileOperation="destroy", device=vc.disk(vm, 2001)
    )
    vc.wait(vm.ReconfigVM_Task(vim.vm.ConfigSpec(deviceChange=[destroy])))
    assert sorted(p.name for p in folder.iterdir()) == files


def test_a_vm_is_restored_and_destroyed(site: Site, vc: Session) -> None:
    datacenter = vc.content.rootFolder.childEntity[0]
    pool = vc.vm("web").resourcePool
    controller = vim.vm.device.ParaVirtualSCSIController(key=-1000, busNumber=0, sharedBus="noSharing")
    nic = vim.vm.device.VirtualVmxnet3(
        key=-4000,
        macAddress="00:50:56:01:02:03",
        addressType="manual",
        backing=vim.vm.device.VirtualEthernetCard.NetworkBackingInfo(deviceName="Guests"),
    )
    add = [vim.vm.device.VirtualDeviceSpec(operation="add", device=d) for d in (controller, nic)]
    spec = vim.vm.ConfigSpec(
        name="restored",
        files=vim.vm.FileInfo(vmPathName="[vmfs1]"),
        memoryMB=512,
        numCPUs=2,
        guestId="debian11_64Guest",
        annotation="from a backup",
        extraConfig=[vim.option.OptionValue(key="vmhaul.mark", value="m1")],
        deviceChange=add,
    )
    vm = vc.wait(datacenter.vmFolder.CreateVM_Task(spec, pool, None))
    again = vc.attempt(lambda: datacenter.vmFolder.CreateVM_Task(spec, pool, None))
    assert isinstance(again, vim.fault.DuplicateName)
    config = vc.get(vm, "config")
    assert config.annotation == "from a backup"
    assert {o.key: o.value for o in config.extraConfig}["vmhaul.mark"] == "m1"
    assert [
        d.macAddress for d in config.hardware.device if isinstance(d, vim.vm.device.VirtualVmxnet3)
    ] == ["00:50:56:01:02:03"]
    disk = vim.vm.device.VirtualDisk(
        key=-1,
        controllerKey=1000,
        unitNumber=0,
        capacityInKB=8 << 10,
        backing=vim.vm.device.VirtualDisk.FlatVer2BackingInfo(
            fileName="[vmfs1]", diskMode="persistent", thinProvisioned=True
        ),
    )
    change = vim.vm.device.VirtualDeviceSpec(operation="add", fileOperation="create", device=disk)
    vc.wait(vm.ReconfigVM_Task(vim.vm.ConfigSpec(deviceChange=[change])))
    unmark = vim.vm.ConfigSpec(extraConfig=[vim.option.OptionValue(key="vmhaul.mark", value="")])
    vc.wait(vm.ReconfigVM_Task(unmark))
    assert "vmhaul.mark" not in {o.key for o in vc.get(vm, "config.extraConfig")}
    folder = site.live("restored").parent
    vc.wait(vm.PowerOnVM_Task())
    assert isinstance(vc.attempt(vm.Destroy_Task), vim.fault.InvalidPowerState)
    vc.wait(vm.PowerOffVM_Task())
    path = config.files.vmPathName
    vm.UnregisterVM()
    back = vc.wait(datacenter.vmFolder.RegisterVM_Task(path, "restored", False, pool, None))
    assert vc.disk(back).capacityInBytes == 8 * MIB
    vc.wait(back.Destroy_Task())
    assert not folder.exists()


def test_privileges_are_enforced_and_told(site: Site, vc: Session) -> None:
    with session(site, "limited", "few") as limited:
        vm = limited.vm("web")
        fault = limited.attempt(lambda: vm.CreateSnapshot_Task("s", "", False, False))
        assert isinstance(fault, vim.fault.NoPermission)
        assert fault.privilegeId == CREATE_SNAPSHOT
        manager = limited.content.authorizationManager
        key = limited.content.sessionManager.currentSession.key
        asked = [CREATE_SNAPSHOT, "VirtualMachine.State.RemoveSnapshot"]
        root = limited.content.rootFolder
        told = manager.HasPrivilegeOnEntities([root], key, asked)[0].privAvailability
        assert [(p.privId, p.isGranted) for p in told] == [(asked[0], False), (asked[1], True)]
        told = manager.HasUserPrivilegeOnEntities([root], "limited", asked)[0].privAvailability
        assert [p.isGranted for p in told] == [False, True]
        all_of_them = manager.FetchUserPrivilegeOnEntities([root], "limited")[0].privileges
        assert CREATE_SNAPSHOT not in all_of_them
        assert "VirtualMachine.State.RemoveSnapshot" in all_of_them
    with stranger(site) as content, pytest.raises(vim.fault.InvalidLogin):
        content.sessionManager.Login("limited", "wrong")


def test_clone_ticket_serves_once(site: Site, vc: Session) -> None:
    ticket = vc.content.sessionManager.AcquireCloneTicket()
    with stranger(site) as content:
        content.sessionManager.CloneSession(ticket)
        assert content.rootFolder.childEntity[0].name == "Lab"
        content.sessionManager.Logout()
    with stranger(site) as content, pytest.raises(vim.fault.InvalidLogin):
        content.sessionManager.CloneSession(ticket)
    assert vc.content.rootFolder.childEntity[0].name == "Lab"


def test_sessions_end(site: Site, vc: Session) -> None:
    assert site.control("POST", "/sessions/drop")["dropped"] == 1
    fault = vc.attempt(lambda: vc.vm("web"))
    assert isinstance(fault, vim.fault.NotAuthenticated)


def test_datastore_files_need_a_session(site: Site, vc: Session) -> None:
    connection = http.client.HTTPSConnection(site.ready["vcenter"], context=unchecked(), timeout=20)
    path = "/folder/web/web.nvram?dcPath=Lab&dsName=vmfs1"
    cookie = {"Cookie": vc.si._stub.cookie.split(";")[0]}

    def ask(method: str, headers: dict[str, str], body: bytes | None = None) -> tuple[int, bytes]:
        connection.request(method, path, body=body, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read()

    assert ask("GET", {})[0] == 401
    assert ask("PUT", cookie, b"variables")[0] == 200
    assert ask("GET", cookie) == (200, b"variables")
    connection.close()


def test_faults_of_calls_and_tasks(site: Site, vc: Session) -> None:
    vm = vc.vm("web")
    at_once = site.fault("soap-fault", method="CreateSnapshot_Task", fault="TaskInProgress", count=1)
    fault = vc.attempt(lambda: vm.CreateSnapshot_Task("s", "", False, True))
    assert isinstance(fault, vim.fault.TaskInProgress)
    later = site.fault(
        "soap-fault",
        method="CreateSnapshot_Task",
        fault="ApplicationQuiesceFault",
        as_task_error=True,
        count=1,
    )
    fault = vc.attempt(lambda: vm.CreateSnapshot_Task("s", "", False, True))
    assert isinstance(fault, vim.fault.ApplicationQuiesceFault)
    assert (site.fired(at_once), site.fired(later)) == (1, 1)
    _track(vc, vm)
    snapshot = vc.snapshot(vm)
    site.fault("cbt-fault", fault_key="vim.hostd.vmsvc.cbt.cannotGetChanges", count=1)
    fault = vc.attempt(lambda: vm.QueryChangedDiskAreas(snapshot, 2000, 0, "*"))
    assert [m.key for m in fault.faultMessage] == ["vim.hostd.vmsvc.cbt.cannotGetChanges"]
    site.fault("cbt-gap", count=1)
    assert vm.QueryChangedDiskAreas(snapshot, 2000, 0, "*").startOffset == GRAIN
    assert site.control("GET", "/stats")["soap_calls"]["QueryChangedDiskAreas"] == 2


def test_stock_wait_for_task_reads_every_task(vc: Session) -> None:
    vm = vc.vm("web")
    task = vm.CreateSnapshotEx_Task(
        "s", "", False, vim.vm.WindowsQuiesceSpec(vssBackupContext="ctx_auto")
    )
    assert WaitForTask(task, vc.si) == "success"
    assert task.info.entity == vm
    assert task.info.descriptionId == "VirtualMachine.createSnapshotEx"
    assert vm.snapshot.rootSnapshotList[0].quiesced
    WaitForTask(vm.snapshot.currentSnapshot.RemoveSnapshot_Task(False), vc.si)
    WaitForTask(vm.PowerOffVM_Task(), vc.si)
    WaitForTask(vm.Rename_Task("web2"), vc.si)
    assert vm.name == "web2"
