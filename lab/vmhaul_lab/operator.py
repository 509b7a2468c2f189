"""What an administrator does in the vSphere client, by hand: straight pyVmomi."""

import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pyVim.connect import Disconnect, SmartConnect
from pyVmomi import vim

from vmhaul_lab.errors import LabError
from vmhaul_lab.site import LabSite


@contextmanager
def client(site: LabSite) -> Iterator[Any]:
    """The vCenter's content, in a session of its own."""
    # Loopback; that the product pins the certificate is shown elsewhere.
    context = ssl._create_unverified_context()  # noqa: SLF001
    service = SmartConnect(
        host=site.vcenter_host,
        port=site.vcenter_port,
        user=site.user,
        pwd=site.password,
        sslContext=context,
    )
    try:
        yield service.RetrieveContent()
    finally:
        Disconnect(service)


def find_vm(content: Any, name: str) -> Any:
    """The VM of that name; `LabError` when there is none."""
    view = content.viewManager.CreateContainerView(content.rootFolder, [vim.VirtualMachine], True)
    try:
        for vm in view.view:
            if vm.name == name:
                return vm
    finally:
        view.Destroy()
    raise LabError(f"the vCenter has no VM {name!r}")


def finish(task: Any) -> Any:
    """Wait for a task; its result, or `LabError` with what vCenter said."""
    while task.info.state not in {"success", "error"}:
        time.sleep(0.05)
    if task.info.state == "error":
        raise LabError(f"{task.info.descriptionId}: {task.info.error.msg}")
    return task.info.result


def take_snapshot(site: LabSite, vm: str, name: str) -> None:
    """A snapshot of the user's own."""
    with client(site) as content:
        finish(find_vm(content, vm).CreateSnapshot_Task(name, "by hand", False, False))


def power(site: LabSite, vm: str, *, on: bool) -> None:
    """Switch a VM on or off."""
    with client(site) as content:
        found = find_vm(content, vm)
        finish(found.PowerOnVM_Task() if on else found.PowerOffVM_Task())


def delete_vm(site: LabSite, vm: str) -> None:
    """Delete a VM with its disks."""
    with client(site) as content:
        found = find_vm(content, vm)
        if found.runtime.powerState == "poweredOn":
            finish(found.PowerOffVM_Task())
        finish(found.Destroy_Task())
