"""What an administrator does in the vSphere client while vmhaul works: straight pyVmomi."""

from __future__ import annotations

import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pyVim.connect import Disconnect, SmartConnect
from pyVmomi import vim
from vmhaul_lab.site import LabSite


@contextmanager
def vcenter(site: LabSite) -> Iterator[Any]:
    service = SmartConnect(
        host=site.vcenter_host,
        port=site.vcenter_port,
        user=site.user,
        pwd=site.password,
        sslContext=ssl._create_unverified_context(),  # loopback; the product's pinning has its own tests
    )
    try:
        yield service.RetrieveContent()
    finally:
        Disconnect(service)


def _wait(task: Any) -> Any:
    while task.info.state not in {"success", "error"}:
        time.sleep(0.05)
    assert task.info.state == "success", task.info.error
    return task.info.result


def _vm(content: Any, name: str) -> Any:
    view = content.viewManager.CreateContainerView(content.rootFolder, [vim.VirtualMachine], True)
    try:
        return next(vm for vm in view.view if vm.name == name)
    finally:
        view.Destroy()


def delete_vm(site: LabSite, name: str) -> None:
    with vcenter(site) as content:
        vm = _vm(content, name)
        if vm.runtime.powerState == "poweredOn":
            _wait(vm.PowerOffVM_Task())
        _wait(vm.Destroy_Task())


def unregister_vm(site: LabSite, name: str) -> None:
    with vcenter(site) as content:
        vm = _vm(content, name)
        if vm.runtime.powerState == "poweredOn":
            _wait(vm.PowerOffVM_Task())
        vm.UnregisterVM()


def add_disk(site: LabSite, name: str, capacity_bytes: int) -> None:
    with vcenter(site) as content:
        vm = _vm(content, name)
        devices = vm.config.hardware.device
        controller = next(d for d in devices if isinstance(d, vim.vm.device.VirtualSCSIController))
        used = {d.unitNumber for d in devices if d.controllerKey == controller.key}
        disk = vim.vm.device.VirtualDisk(
            key=-1,
            controllerKey=controller.key,
            unitNumber=next(unit for unit in range(16) if unit != 7 and unit not in used),
            capacityInKB=capacity_bytes >> 10,
            capacityInBytes=capacity_bytes,
            backing=vim.vm.device.VirtualDisk.FlatVer2BackingInfo(
                fileName="", diskMode="persistent", thinProvisioned=True
            ),
        )
        change = vim.vm.device.VirtualDeviceSpec(operation="add", fileOperation="create", device=disk)
        _wait(vm.ReconfigVM_Task(vim.vm.ConfigSpec(deviceChange=[change])))


def grow_disk(site: LabSite, name: str, key: int, capacity_bytes: int) -> None:
    with vcenter(site) as content:
        vm = _vm(content, name)
        disk = next(d for d in vm.config.hardware.device if d.key == key)
        disk.capacityInKB, disk.capacityInBytes = capacity_bytes >> 10, capacity_bytes
        change = vim.vm.device.VirtualDeviceSpec(operation="edit", device=disk)
        _wait(vm.ReconfigVM_Task(vim.vm.ConfigSpec(deviceChange=[change])))


def take_snapshot(site: LabSite, name: str, snapshot: str) -> None:
    with vcenter(site) as content:
        _wait(_vm(content, name).CreateSnapshot_Task(snapshot, "by hand", False, False))


def remove_snapshots(site: LabSite, name: str) -> None:
    """All snapshots of the VM, as a person does in the client; files in use may keep it from folding."""
    with vcenter(site) as content:
        vm = _vm(content, name)
        while vm.snapshot is not None and vm.snapshot.rootSnapshotList:
            task = vm.snapshot.rootSnapshotList[0].snapshot.RemoveSnapshot_Task(removeChildren=True)
            while task.info.state not in {"success", "error"}:
                time.sleep(0.05)


def snapshot_names(site: LabSite) -> list[str]:
    """Names of all snapshots of all VMs."""
    return [snapshot.name for vm in site.control.vms() for snapshot in vm.snapshots]
