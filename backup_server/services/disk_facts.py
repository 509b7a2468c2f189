"""What the transport rules are told of a disk: read from vSphere when its task is made, kept with the task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from backup_server.db.tables import Task
from proxy_worker.contracts.codec import MessageError, from_json, to_json
from transports.rules import DiskFacts, StorageSnapshotFacts
from transports.vsphere.model import DatastoreInfo, DiskInfo, PowerState, VmInfo

VVOL: Final = "VVOL"
_REASON_CHARS: Final = 300
_NVME_NAMES: Final = ("eui.", "t10.nvme")


def to_read(
    vcenter_id: str,
    vm: VmInfo,
    disk: DiskInfo,
    stores: Mapping[str, DatastoreInfo],
    *,
    quiesced: bool,
    storage_snapshot: StorageSnapshotFacts | None = None,
) -> DiskFacts:
    """Of a disk that is backed up. `disk` is that of the VM snapshot where there is one; `stores` has the
    datastores of all disks of the VM by name.
    """
    return DiskFacts(
        vcenter_id=vcenter_id,
        vm_moref=vm.moref,
        vm_name=vm.name,
        datacenter=vm.datacenter,
        datastore=disk.datastore,
        datastore_kind=_kind(stores.get(disk.datastore)),
        path=disk.path,
        capacity_bytes=disk.capacity_bytes,
        controller=controller_kind(disk),
        host_moref=vm.host_moref,
        host_version=vm.host_version,
        host_address=vm.host_address,
        on_nvme=_on_nvme(stores.get(disk.datastore)),
        thin=disk.thin,
        eager=disk.eager,
        is_delta=disk.path != disk.base_path,
        is_rdm=disk.is_rdm,
        encrypted=vm.encrypted or disk.encrypted,
        is_template=vm.is_template,
        running=vm.power_state is PowerState.ON,
        windows=is_windows(vm.guest_os),
        tools_running=vm.tools_running,
        quiesced=quiesced,
        vm_on_vvol=any(_kind(stores.get(one.datastore)) == VVOL for one in vm.disks),
        obstacle=disk.backup_obstacle,
        storage_snapshot=storage_snapshot,
    )


def to_write(
    vcenter_id: str, vm: VmInfo, disk: DiskInfo, store: DatastoreInfo | None, *, datacenter: str
) -> DiskFacts:
    """Of a new disk of a VM that is being restored."""
    return DiskFacts(
        vcenter_id=vcenter_id,
        vm_moref=vm.moref,
        vm_name=vm.name,
        datacenter=datacenter,
        datastore=disk.datastore,
        datastore_kind=_kind(store),
        path=disk.path,
        capacity_bytes=disk.capacity_bytes,
        controller=controller_kind(disk),
        write=True,
        host_moref=vm.host_moref,
        host_version=vm.host_version,
        host_address=vm.host_address,
        on_nvme=_on_nvme(store),
        thin=disk.thin,
        eager=disk.eager,
        is_delta=disk.path != disk.base_path,
        is_rdm=disk.is_rdm,
        encrypted=vm.encrypted or disk.encrypted,
        vm_on_vvol=_kind(store) == VVOL,
    )


def is_windows(guest_os: str) -> bool:
    return "windows" in guest_os.lower() or guest_os.lower().startswith("win")


def controller_kind(disk: DiskInfo) -> str:
    """As the device tells: of "SCSI (0:1)" the first word."""
    return disk.controller.partition(" ")[0]


def _on_nvme(store: DatastoreInfo | None) -> bool:
    """By the names that hosts give namespaces: SCSI disks may be named by EUI-64 too, and are then listed as well."""
    extents = store.storage.extents if store is not None and store.storage is not None else ()
    return any(extent.lun.lower().startswith(_NVME_NAMES) for extent in extents)


def _kind(store: DatastoreInfo | None) -> str:
    return "" if store is None else store.kind


def of_task(row: Task) -> DiskFacts | None:
    """As stored; None for a task that opens no disk of vSphere, or that an earlier release made."""
    try:
        return from_json(DiskFacts, row.facts, ignore_unknown=True)
    except MessageError:
        return None


def stored(facts: DiskFacts, *, failover: bool = True) -> dict[str, Any]:
    """For `Task.facts`, with what else placement looks at. `left`, which results add later, stands beside it."""
    return {**to_json(facts), "failover_to_network": failover}


def left_pairs(facts: Mapping[str, Any]) -> tuple[tuple[str, str, str], ...]:
    """Proxy id, mode and reason of what failed in earlier attempts of the task."""
    return tuple(
        (str(pair["proxy"]), str(pair["mode"]), str(pair.get("reason", ""))[:_REASON_CHARS])
        for pair in facts.get("left") or ()
    )


def failover_allowed(facts: Mapping[str, Any]) -> bool:
    """Whether the job lets network modes take over."""
    return bool(facts.get("failover_to_network", True))
