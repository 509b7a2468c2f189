from __future__ import annotations

from dataclasses import replace

from backup_server.db.tables import Task
from backup_server.services import disk_facts
from transports.vsphere.model import DatastoreInfo, DiskInfo, PowerState, VmInfo

DISK = DiskInfo(
    key=2000,
    label="Hard disk 1",
    path="[ds1] db01/db01-000001.vmdk",
    base_path="[ds1] db01/db01.vmdk",
    uuid="6000C29a",
    capacity_bytes=1 << 30,
    datastore="ds1",
    controller="NVMe (0:1)",
    disk_mode="persistent",
    thin=True,
    change_id="",
    backup_obstacle="",
)
VM = VmInfo(
    moref="vm-1",
    name="db01",
    instance_uuid="5000",
    bios_uuid="4200",
    power_state=PowerState.ON,
    is_template=False,
    change_tracking_supported=True,
    change_tracking_enabled=True,
    hardware_version="vmx-19",
    tools_running=True,
    guest_os="Microsoft Windows Server 2022 (64-bit)",
    host_moref="host-3",
    host_version="8.0.2",
    path=("DC0", "vm"),
    datacenter="DC0",
    cluster="C0",
    resource_pool="",
    tags=(),
    has_snapshots=True,
    consolidation_needed=False,
    managed_by="",
    disks=(DISK, replace(DISK, key=2001, datastore="vv")),
)


def store(name: str, kind: str) -> DatastoreInfo:
    return DatastoreInfo(
        moref=f"datastore-{name}",
        name=name,
        kind=kind,
        capacity_bytes=1,
        free_bytes=1,
        accessible=True,
        datacenter="DC0",
    )


def test_facts_of_a_disk_to_read() -> None:
    stores = {"ds1": store("ds1", "NFS"), "vv": store("vv", "VVOL")}
    facts = disk_facts.to_read("vc", VM, DISK, stores, quiesced=True)
    assert (facts.datastore_kind, facts.controller, facts.host_moref) == ("NFS", "NVMe", "host-3")
    assert facts.is_delta
    assert facts.windows
    assert facts.running
    assert facts.quiesced
    assert facts.vm_on_vvol
    assert not facts.encrypted
    assert not facts.write
    encrypted = disk_facts.to_read("vc", replace(VM, encrypted=True), DISK, {}, quiesced=False)
    assert encrypted.encrypted
    assert encrypted.datastore_kind == ""


def test_facts_of_a_disk_to_write() -> None:
    off = replace(VM, power_state=PowerState.OFF)
    base = replace(DISK, path=DISK.base_path, thin=False, eager=True)
    facts = disk_facts.to_write("vc", off, base, store("ds1", "VMFS"), datacenter="DC0")
    assert facts.write
    assert facts.eager
    assert not facts.is_delta
    assert facts.host_version == VM.host_version != ""


def test_facts_are_kept_with_the_task_beside_what_else_stands_there() -> None:
    facts = disk_facts.to_read("vc", VM, DISK, {}, quiesced=False)
    left = {"left": [{"proxy": "p2", "mode": "hotadd", "reason": "gone"}]}
    row = Task(facts={**disk_facts.stored(facts, failover=False), **left})
    assert disk_facts.of_task(row) == facts
    assert disk_facts.left_pairs(row.facts) == (("p2", "hotadd", "gone"),)
    assert not disk_facts.failover_allowed(row.facts)
    assert disk_facts.failover_allowed({})
    assert disk_facts.of_task(Task(facts={})) is None
    assert disk_facts.left_pairs({}) == ()
