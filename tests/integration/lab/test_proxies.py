"""Proxy VMs of the site: what vCenter attaches appears as a block device, under the rules of a host."""

import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pyVmomi import vim
from vmhaul_lab import cli
from vmhaul_lab.errors import LabError
from vmhaul_lab.guestview import Appearance, naa_of_uuid
from vmhaul_lab.loops import loops_under
from vmhaul_lab.proxies import LabProxy, ProxyPlan
from vmhaul_lab.site import LabSite

from tests.integration.lab.vcenter import Session, lab_session, wait_until

pytestmark = pytest.mark.lab

READING = "independent_nonpersistent"
WRITING = "independent_persistent"


@pytest.fixture
def site(tmp_path: Path, labvc_binary: Path) -> Iterator[LabSite]:
    proxies = (ProxyPlan(name="proxy1"), ProxyPlan(name="proxy2", host="esx2.lab", swapped=True))
    with LabSite.quick(tmp_path / "site", 2, binary=labvc_binary, proxies=proxies) as made:
        yield made
    assert loops_under(tmp_path) == []


@pytest.fixture
def vc(site: LabSite) -> Iterator[Session]:
    with lab_session(site) as made:
        yield made


def adding(
    path: str, *, mode: str = READING, controller: int = 1000, unit: int | None = None, key: int = -1
) -> Any:
    """The change that attaches an existing file."""
    disk = vim.vm.device.VirtualDisk(
        key=key,
        controllerKey=controller,
        unitNumber=unit,
        backing=vim.vm.device.VirtualDisk.FlatVer2BackingInfo(fileName=path, diskMode=mode),
    )
    return vim.vm.device.VirtualDeviceSpec(operation="add", device=disk)


def controller(bus: int, key: int = -100) -> Any:
    made = vim.vm.device.ParaVirtualSCSIController(key=key, busNumber=bus, sharedBus="noSharing")
    return vim.vm.device.VirtualDeviceSpec(operation="add", device=made)


def removing(disk: Any, *, destroy: bool = False) -> Any:
    change = vim.vm.device.VirtualDeviceSpec(operation="remove", device=disk)
    if destroy:
        change.fileOperation = "destroy"
    return change


def change(vm: Any, *changes: Any) -> Any:
    return vm.ReconfigVM_Task(vim.vm.ConfigSpec(deviceChange=list(changes)))


def shown(proxy: LabProxy) -> list[str]:
    return sorted(path.name for path in (proxy.sys_path / "block").iterdir())


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def attribute(proxy: LabProxy, name: str, attribute: str) -> str:
    return (proxy.sys_path / "block" / name / attribute).read_text().strip()


def test_disks_of_a_snapshot_appear_together_and_vanish(site: LabSite, vc: Session) -> None:
    proxy = site.proxy("proxy1")
    machine, guest = vc.vm("proxy1"), vc.vm("vm01")
    before = [site.live_sha256(disk) for disk in site.disks("vm01")]
    snapshot = vc.snapshot(guest)
    frozen = vc.disks(snapshot)
    for disk in site.disks("vm01"):
        site.guest_write(disk, 0, b"behind the snapshot")
    assert shown(proxy) == ["sda"]

    vc.wait(
        change(machine, *(adding(disk.backing.fileName, key=-1 - n) for n, disk in enumerate(frozen)))
    )

    assert shown(proxy) == ["sda", "sdb", "sdc"]
    for name, disk, wanted in zip(("sdb", "sdc"), frozen, before, strict=True):
        assert sha256(proxy.dev_path / name) == wanted
        assert int(attribute(proxy, name, "size")) * 512 == disk.capacityInBytes
        assert attribute(proxy, name, "device/wwid") == naa_of_uuid(disk.backing.uuid)
        page = (proxy.sys_path / "block" / name / "device" / "vpd_pg83").read_bytes()
        assert page[8:].hex() == disk.backing.uuid.replace("-", "").lower()
        major, _, minor = attribute(proxy, name, "dev").partition(":")
        assert (proxy.dev_path / name).stat().st_rdev == os.makedev(int(major), int(minor))
        with (proxy.dev_path / name).open("r+b", buffering=0) as device, pytest.raises(PermissionError):
            device.write(bytes(512))
    attached = [disk for disk in vc.disks(machine) if disk.key > 2000]
    assert [disk.backing.uuid for disk in attached] == [disk.backing.uuid for disk in frozen]
    link = (proxy.sys_path / "block" / "sdb" / "device").resolve().name
    assert link == f"2:0:{attached[0].unitNumber}:0"

    vc.wait(change(machine, *map(removing, attached)))
    assert shown(proxy) == ["sda"]
    assert not (proxy.dev_path / "sdb").exists()
    vc.wait(snapshot.RemoveSnapshot_Task(False))
    assert all(disk.base_file.exists() for disk in site.disks("vm01"))


def test_what_a_restore_writes_is_in_the_file(site: LabSite, vc: Session) -> None:
    proxy, machine, guest = site.proxy("proxy1"), vc.vm("proxy1"), vc.vm("vm01")
    target = site.disk("vm01")
    locked = vc.attempt(lambda: change(machine, adding(target.live_path, mode=WRITING)))
    assert isinstance(locked, vim.fault.FileLocked)
    vc.wait(guest.PowerOffVM_Task())
    vc.wait(change(machine, adding(target.live_path, mode=WRITING)))
    (attached,) = (disk for disk in vc.disks(machine) if disk.key > 2000)
    with (proxy.dev_path / "sdb").open("r+b") as device:
        device.seek(4096)
        device.write(b"restored")
    assert isinstance(vc.attempt(guest.PowerOnVM_Task), vim.fault.FileLocked)
    other = vc.attempt(lambda: change(vc.vm("proxy2"), adding(target.live_path)))
    assert isinstance(other, vim.fault.FileLocked)
    vc.wait(change(machine, removing(attached)))
    assert site.guest_read(target, 4096, 8) == b"restored"
    vc.wait(guest.PowerOnVM_Task())


def test_a_snapshot_of_an_attached_disk_stays_locked(site: LabSite, vc: Session) -> None:
    machine, guest = vc.vm("proxy1"), vc.vm("vm01")
    snapshot = vc.snapshot(guest)
    path = vc.disk(snapshot).backing.fileName
    # Two may read a frozen file, but nobody may write to it.
    vc.wait(change(machine, adding(path)))
    vc.wait(change(vc.vm("proxy2"), adding(path)))
    writer = vc.attempt(lambda: change(vc.vm("vm02"), adding(path, mode=WRITING)))
    assert isinstance(writer, vim.fault.FileLocked)
    assert isinstance(vc.attempt(lambda: snapshot.RemoveSnapshot_Task(False)), vim.fault.FileLocked)
    assert vc.get(guest, "runtime.consolidationNeeded") is True
    for name in ("proxy1", "proxy2"):
        (attached,) = (disk for disk in vc.disks(vc.vm(name)) if disk.key > 2000)
        vc.wait(change(vc.vm(name), removing(attached)))
    vc.wait(guest.ConsolidateVMDisks_Task())
    assert vc.get(guest, "runtime.consolidationNeeded") is False


def test_destroy_deletes_what_was_only_attached(site: LabSite, vc: Session) -> None:
    machine, guest = vc.vm("proxy1"), vc.vm("vm01")
    snapshot = vc.snapshot(guest)
    vc.wait(change(machine, adding(vc.disk(snapshot).backing.fileName)))
    (attached,) = (disk for disk in vc.disks(machine) if disk.key > 2000)
    file = site.disk("vm01").snapshots[0].file
    assert file is not None
    assert file.exists()
    vc.wait(change(machine, removing(attached, destroy=True)))
    assert not file.exists()


def test_slots_fill_up_over_four_controllers(site: LabSite, vc: Session) -> None:
    """Hardware 19 has 64 disks on a paravirtual controller, of which unit 7 is none."""
    proxy, machine = site.proxy("proxy1"), vc.vm("proxy1")
    snapshot = vc.snapshot(vc.vm("vm01"))
    path, other = (disk.backing.fileName for disk in vc.disks(snapshot))
    reserved = vc.attempt(lambda: change(machine, adding(path, unit=7)))
    assert isinstance(reserved, vim.fault.InvalidDeviceSpec)
    taken = vc.attempt(lambda: change(machine, adding(path, unit=0)))
    assert isinstance(taken, vim.fault.InvalidDeviceSpec)
    vc.wait(change(machine, adding(path, unit=64)))
    assert (proxy.sys_path / "block" / "sdb" / "device").resolve().name == "2:0:64:0"
    beyond = vc.attempt(lambda: change(machine, adding(other, unit=65)))
    assert isinstance(beyond, vim.fault.InvalidDeviceSpec)
    # A controller and a disk on it in one go; the guest counts hosts in its own way.
    vc.wait(change(machine, controller(2, -100), adding(other, controller=-100, unit=3)))
    assert (proxy.sys_path / "block" / "sdc" / "device").resolve().name == "3:0:3:0"
    assert isinstance(vc.attempt(lambda: change(machine, controller(4))), vim.fault.InvalidDeviceSpec)
    assert isinstance(vc.attempt(lambda: change(machine, controller(2))), vim.fault.InvalidDeviceSpec)


def test_a_host_tells_how_many_disks_a_controller_takes(site: LabSite, vc: Session) -> None:
    browser = vc.get(vc.vm("proxy1"), "environmentBrowser")

    def limit(version: str) -> dict[str, int]:
        options = browser.QueryConfigOption(version, None).hardwareOptions.virtualDeviceOption
        kinds = (vim.vm.device.VirtualSCSIControllerOption,)
        return {
            option.type.__name__.rpartition(".")[2]: option.numSCSIDisks.max
            for option in options
            if isinstance(option, kinds)
        }

    assert limit("vmx-19")["ParaVirtualSCSIController"] == 64
    assert limit("vmx-13")["ParaVirtualSCSIController"] == 15
    assert limit("vmx-19")["VirtualLsiLogicController"] == 15


def test_a_change_is_made_whole_or_not_at_all(site: LabSite, vc: Session) -> None:
    proxy, machine = site.proxy("proxy1"), vc.vm("proxy1")
    good = vc.disk(vc.snapshot(vc.vm("vm01"))).backing.fileName
    datastore = good.partition("]")[0] + "]"
    for bad, fault in (
        (adding(f"{datastore} vm01/nothing.vmdk"), vim.fault.FileNotFound),
        (adding("[elsewhere] vm01/vm01.vmdk"), vim.fault.InvalidDatastorePath),
        (adding(f"{datastore} vm01/vm01.vmx"), vim.fault.InvalidDeviceSpec),
        (adding(good, mode="undoable"), vim.fault.InvalidDeviceSpec),
        (adding(good, controller=200), vim.fault.InvalidPowerState),
        (adding(good, controller=1003), vim.fault.InvalidDeviceSpec),
    ):
        assert isinstance(vc.attempt(lambda bad=bad: change(machine, adding(good), bad)), fault), bad
        assert shown(proxy) == ["sda"]
        assert len(vc.disks(machine)) == 1


def test_the_guest_lets_a_disk_go_and_scans(site: LabSite, vc: Session) -> None:
    proxy, machine = site.proxy("proxy1"), vc.vm("proxy1")
    path = vc.disk(vc.snapshot(vc.vm("vm01"))).backing.fileName
    proxy.set_appearance(Appearance.AFTER_SCAN)
    vc.wait(change(machine, adding(path)))
    assert shown(proxy) == ["sda"]
    scan = proxy.sys_path / "class" / "scsi_host" / "host2" / "scan"
    scan.write_text("- - -\n")
    vc.wait_until(lambda: shown(proxy) == ["sda", "sdb"])
    (proxy.sys_path / "block" / "sdb" / "device" / "delete").write_text("1\n")
    vc.wait_until(lambda: shown(proxy) == ["sda"])
    assert len(proxy.devices()) == 2
    scan.write_text("- - -\n")
    vc.wait_until(lambda: shown(proxy) == ["sda", "sdb"])
    proxy.set_appearance(Appearance.NEVER)
    vc.wait(change(machine, removing(vc.disks(machine)[1])))
    vc.wait(change(machine, adding(path)))
    scan.write_text("- - -\n")
    vc.wait_until(lambda: not scan.read_text())
    assert shown(proxy) == ["sda"]


def test_the_guest_knows_which_vm_it_is(site: LabSite, vc: Session) -> None:
    told = {}
    for name in ("proxy1", "proxy2"):
        proxy = site.proxy(name)
        assert vc.get(vc.vm(name), "config.uuid") == proxy.uuid
        told[name] = (proxy.sys_path / "class" / "dmi" / "id" / "product_uuid").read_text().strip()
    assert told["proxy1"] == site.proxy("proxy1").uuid
    assert told["proxy2"] != site.proxy("proxy2").uuid
    assert told["proxy2"][19:] == site.proxy("proxy2").uuid[19:]
    with pytest.raises(LabError, match="proxy3"):
        site.proxy("proxy3")


def test_status_says_how_a_proxy_becomes_the_one_in_the_vm(
    site: LabSite, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["status", "--dir", str(site.directory)]) == 0
    said = capsys.readouterr().out
    for name in ("proxy1", "proxy2"):
        assert f'sys_path = "{site.proxy(name).sys_path}"' in said


def test_power_takes_all_disks_along(site: LabSite, vc: Session) -> None:
    proxy, machine = site.proxy("proxy1"), vc.vm("proxy1")
    vc.wait(machine.PowerOffVM_Task())
    assert shown(proxy) == []
    vc.wait(machine.PowerOnVM_Task())
    assert shown(proxy) == ["sda"]
    # A snapshot of the proxy itself gives its file another name, not another device.
    vc.wait(vc.snapshot(machine).RemoveSnapshot_Task(False))
    snapshot = vc.snapshot(vc.vm("vm01"))
    loop = proxy.devices()[0]["loop"]
    vc.wait(change(machine, adding(vc.disk(snapshot).backing.fileName)))
    assert proxy.devices()[0]["loop"] == loop


def test_luns_are_zoned_to_one_proxy(site: LabSite, tmp_path: Path) -> None:
    lun = tmp_path / "lun.img"
    lun.write_bytes(os.urandom(1 << 20))
    proxy = site.proxy("proxy1")
    proxy.add_lun(lun, wwid="naa.600140500000000000000000000000a1")
    assert shown(proxy) == ["sda", "sdb"]
    assert shown(site.proxy("proxy2")) == ["sda"]
    assert sha256(proxy.dev_path / "sdb") == sha256(lun)
    proxy.remove_lun(wwid="naa.600140500000000000000000000000a1")
    assert shown(proxy) == ["sda"]


def test_a_killed_site_leaves_no_device(tmp_path: Path, labvc_binary: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from vmhaul_lab.site import LabSite\n"
        "site = LabSite.quick(Path(sys.argv[1]), 1, proxies=['proxy1']); site.start()\n"
        "print(*site.pids, flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, tmp_path / "site"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "VMHAUL_LABVC": str(labvc_binary)},
    )
    assert process.stdin is not None
    assert process.stdout is not None
    with process.stdin, process.stdout:
        pids = [int(word) for word in process.stdout.readline().split()]
        assert len(loops_under(tmp_path)) == 1
        process.kill()
        process.wait()
        # Standard input of the site's programs closes with their parent.
        assert all(_ends(pid) for pid in pids)
    _wait_without_loops(tmp_path)


def test_killed_hardware_leaves_no_device(tmp_path: Path, labvc_binary: Path) -> None:
    with LabSite.quick(tmp_path / "site", 1, binary=labvc_binary, proxies=["proxy1"]) as site:
        assert len(loops_under(tmp_path)) == 1
        os.kill(site.pids[0], signal.SIGKILL)
        _wait_without_loops(tmp_path)


def test_what_the_hardware_cannot_do_does_not_happen(tmp_path: Path, labvc_binary: Path) -> None:
    with (
        LabSite.quick(tmp_path / "site", 1, binary=labvc_binary, proxies=["proxy1"]) as site,
        lab_session(site) as vc,
    ):
        machine = vc.vm("proxy1")
        path = vc.disk(vc.snapshot(vc.vm("vm01"))).backing.fileName
        os.kill(site.pids[0], signal.SIGKILL)
        assert isinstance(
            vc.attempt(lambda: change(machine, adding(path))), vim.fault.GenericVmConfigFault
        )
        assert len(vc.disks(machine)) == 1


def test_down_frees_what_a_killed_site_left(tmp_path: Path, labvc_binary: Path) -> None:
    """labvc alone was killed: what it had beside it is found by the site's own record, and ended."""
    directory = tmp_path / "site"
    script = (
        "import os, sys; from pathlib import Path; from vmhaul_lab.plan import SitePlan, quick_vms\n"
        "from vmhaul_lab.proxies import ProxyPlan; from vmhaul_lab.site import LabSite\n"
        "plan = SitePlan(vms=quick_vms(1), proxies=(ProxyPlan(name='proxy1'),))\n"
        "site = LabSite(Path(sys.argv[1]), plan, detached=True); site.start()\n"
        "print(*site.pids, flush=True); os._exit(0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, directory],
        stdout=subprocess.PIPE,
        env={**os.environ, "VMHAUL_LABVC": str(labvc_binary)},
        check=True,
    )
    hardware, labvc = (int(word) for word in done.stdout.split())
    try:
        os.kill(labvc, signal.SIGKILL)
        assert len(loops_under(tmp_path)) == 1
        assert cli.main(["down", "--dir", str(directory)]) == 0
        assert loops_under(tmp_path) == []
        wait_until(lambda: not _lives(hardware))
    finally:
        for pid in (hardware, labvc):
            if _lives(pid):
                os.kill(pid, signal.SIGKILL)


def _lives(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def _wait_without_loops(directory: Path) -> None:
    wait_until(lambda: not loops_under(directory))


def _ends(pid: int) -> bool:
    wait_until(lambda: not _lives(pid))
    return True
