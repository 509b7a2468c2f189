"""Which VM of a vCenter a proxy is: by the SMBIOS UUID that its machine shows.

Looked up whenever an inventory is read and whenever a proxy tells another UUID; kept with the proxy's facts, as
what the rules of HotAdd are asked with. Hosts change under a running proxy (vMotion), so a disk that cannot be
attached after all is read in another mode; nothing rests on this being of this very minute.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from ipaddress import ip_address
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.orm import Session as DbSession

from backup_server.db.engine import Database
from backup_server.db.tables import Proxy, Vcenter
from proxy_worker.contracts.codec import MessageError, from_json, to_json
from transports.rules import ProxyVm, same_uuid
from transports.rules.facts import VMFS3_LARGEST_BYTES
from transports.vsphere.model import DatastoreInfo, DiskInfo, HostInfo, Inventory, VmInfo

VMS: Final = "vms"
PEER: Final = "peer"
"""Names in `Proxy.facts`: its VMs; the address from which it called last."""
CONFIRMED: Final = "confirmed_vm"
"""Name in `Proxy.settings`: {vm_uuid, by}. Only what stands here or is local is believed to be a VM."""
SCSI_BUSES: Final = 4
DISKS_PER_BUS: Final = 15
_ATTACHED: Final = "independent_nonpersistent"
"""Mode of a disk that was added for reading: it is not the proxy's own."""


def own_vms(vm_uuid: str, vcenter_id: str, inventory: Inventory) -> list[ProxyVm]:
    """Every VM with that UUID in either byte order; more than one is for the rules to refuse."""
    if not vm_uuid:
        return []
    hosts = {host.moref: host for host in inventory.hosts}
    return [
        _proxy_vm(vcenter_id, vm, hosts.get(vm.host_moref), inventory.datastores)
        for vm in inventory.vms
        if same_uuid(vm_uuid, vm.bios_uuid)
    ]


def _proxy_vm(
    vcenter_id: str, vm: VmInfo, host: HostInfo | None, stores: Sequence[DatastoreInfo]
) -> ProxyVm:
    own = [disk for disk in vm.disks if disk.disk_mode != _ATTACHED]
    home = {disk.datastore for disk in own}
    here = [store for store in stores if store.name in home and store.datacenter == vm.datacenter]
    return ProxyVm(
        vcenter_id=vcenter_id,
        moref=vm.moref,
        name=vm.name,
        datacenter=vm.datacenter,
        host_moref=vm.host_moref,
        datastores=() if host is None else host.datastores,
        home_datastores=tuple(sorted(home)),
        home_kinds=tuple(sorted({store.kind for store in here})),
        home_largest_file_bytes=_largest_file(here),
        encrypted=vm.encrypted,
        scsi0=0 in vm.scsi_buses,
        free_slots=SCSI_BUSES * DISKS_PER_BUS - sum(_on_scsi(disk) for disk in own),
        tracked=vm.change_tracking_enabled,
        tools_version=vm.tools_version,
        addresses=vm.guest_addresses,
    )


def _on_scsi(disk: DiskInfo) -> bool:
    return disk.controller.startswith("SCSI")


def _largest_file(home: Sequence[DatastoreInfo]) -> int:
    """Of VMFS 3; 0 where it is no bound. The block size is not told: the smallest is what is safe."""
    old = any(store.storage and store.storage.vmfs_version.startswith("3") for store in home)
    return min(VMFS3_LARGEST_BYTES.values()) if old else 0


def of_facts(facts: Mapping[str, Any]) -> tuple[ProxyVm, ...]:
    """As kept in `Proxy.facts`."""
    try:
        return tuple(from_json(ProxyVm, one, ignore_unknown=True) for one in facts.get(VMS) or ())
    except MessageError:
        return ()  # kept by another release; the next look writes it anew


def follow_inventory(db: Database, vcenter_id: str, inventory: Inventory) -> None:
    """Note for each proxy its VMs in this vCenter, which was read just now."""
    with db.read() as s:
        rows = s.execute(sa.select(Proxy.id, Proxy.facts, Proxy.connections).order_by(Proxy.id)).all()
    for row in rows:
        found = own_vms(str(row.connections.get("vm_uuid", "")), vcenter_id, inventory)
        if _with(row.facts, found, vcenter_id) != (row.facts.get(VMS) or []):
            with db() as s:
                _note(s, row.id, found, vcenter_id)


def follow_uuid(s: DbSession, proxy_id: str, vm_uuid: str) -> None:
    """Look for a proxy's new UUID in the inventories that were read last."""
    rows = s.execute(sa.select(Vcenter.id, Vcenter.inventory).where(Vcenter.inventory.is_not(None)))
    for vcenter_id, kept in rows:
        mine = [vm for vm in kept.get("vms", ()) if same_uuid(vm_uuid, str(vm.get("bios_uuid", "")))]
        try:
            inventory = from_json(Inventory, {**kept, "vms": mine}, ignore_unknown=True)
        except MessageError:
            continue  # kept by another release; it is read anew before a job needs it
        _note(s, proxy_id, own_vms(vm_uuid, vcenter_id, inventory), vcenter_id)


def _note(s: DbSession, proxy_id: str, found: Sequence[ProxyVm], vcenter_id: str) -> None:
    # With the row locked: heartbeats write the same column. Not its key, which claimed tasks refer to.
    row = s.get(Proxy, proxy_id, with_for_update={"key_share": True}, populate_existing=True)
    if row is not None:
        row.facts = {**row.facts, VMS: _with(row.facts, found, vcenter_id)}
        confirm_by_address(row)
        s.flush()


# ---- whether it is that VM for certain -------------------------------------------------------------


def how_confirmed(settings: Mapping[str, Any], vm_uuid: str, *, local: bool) -> str:
    """By what all VMs with the proxy's UUID are believed to be it: "local", "address", "administrator"; empty: by
    nothing but its own word.
    """
    if local:
        return "local"
    noted = settings.get(CONFIRMED) or {}
    return str(noted.get("by", "")) if same_uuid(vm_uuid, str(noted.get("vm_uuid", ""))) else ""


def confirmed_vms(
    facts: Mapping[str, Any], settings: Mapping[str, Any], vm_uuid: str, *, local: bool
) -> frozenset[tuple[str, str]]:
    """vCenter id and moref of the VMs that the proxy may be taken for."""
    if not how_confirmed(settings, vm_uuid, local=local):
        return frozenset()
    return frozenset((vm.vcenter_id, vm.moref) for vm in of_facts(facts))


def all_confirmed(s: DbSession) -> frozenset[tuple[str, str]]:
    """Of all proxies."""
    uuid = Proxy.connections["vm_uuid"].as_string()
    rows = s.execute(sa.select(Proxy.facts, Proxy.settings, Proxy.local, uuid.label("vm_uuid")))
    return frozenset().union(
        *(
            confirmed_vms(row.facts, row.settings, row.vm_uuid or "", local=row.local)
            for row in rows.all()
        )
    )


def is_confirmed(row: Proxy) -> bool:
    return bool(how_confirmed(row.settings, uuid_of(row), local=row.local))


def uuid_of(row: Proxy) -> str:
    """SMBIOS UUID that its machine shows; empty: none."""
    return str((row.connections or {}).get("vm_uuid", ""))


def confirm(row: Proxy, by: str) -> None:
    """Note that the proxy is the VM whose UUID it shows now."""
    noted = {"vm_uuid": uuid_of(row), "by": by}
    row.settings = {**row.settings, CONFIRMED: noted}


def unconfirm(row: Proxy) -> None:
    """Its machine or its keys are others: what was confirmed of the earlier says nothing of it."""
    row.settings = {name: value for name, value in row.settings.items() if name != CONFIRMED}


def confirm_by_address(row: Proxy) -> None:
    """Where it calls from the address that the one VM with its UUID has: another machine cannot speak from there.

    The addresses that it tells of itself prove nothing, and are not looked at.
    """
    if is_confirmed(row) or not uuid_of(row):
        return
    vms = of_facts(row.facts)
    peer = str(row.facts.get(PEER, ""))
    alone = len({vm.vcenter_id for vm in vms}) == len(vms)
    if alone and any(is_telling(peer) and peer in vm.addresses for vm in vms):
        confirm(row, "address")


def is_telling(address: str) -> bool:
    """Whether an address tells machines apart."""
    try:
        one = ip_address(address)
    except ValueError:
        return False
    return not (one.is_loopback or one.is_link_local or one.is_unspecified)


def note_peer(s: DbSession, proxy_id: str, address: str) -> None:
    """From where a call came that the proxy signed."""
    row = s.get(Proxy, proxy_id, with_for_update={"key_share": True}, populate_existing=True)
    if row is not None and row.facts.get(PEER) != address:
        row.facts = {**row.facts, PEER: address}
        confirm_by_address(row)
        s.flush()


def _with(facts: Mapping[str, Any], found: Sequence[ProxyVm], vcenter_id: str) -> list[Any]:
    others = [one for one in facts.get(VMS) or () if one.get("vcenter_id") != vcenter_id]
    return [*others, *(to_json(vm) for vm in found)]
