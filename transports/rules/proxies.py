"""Rules about a disk and the proxy that is to read or write it."""

from __future__ import annotations

from typing import Final

from transports.base import TransportMode
from transports.rules.disks import HOTADD, NFS, SAN, SNAPSHOT
from transports.rules.facts import VMFS3_LARGEST_BYTES, ProxyMachine, ProxyVm, Reach
from transports.rules.rule import ProxyRule, Use

_RESCAN: Final = "`vmhaul proxy rescan` looks again"

# States of a VM's Tools as vSphere names them (guest.toolsVersionStatus2). The kernel of the proxy's guest finds an added
# disk by itself, so that Tools are absent, or kept by the distribution, keeps nobody from HotAdd; a release that VMware
# itself calls too old or harmful is not relied on while devices come and go.
_REFUSED_TOOLS: Final = {
    "guestToolsTooOld": "too old to be supported",
    "guestToolsBlacklisted": "a release with a known grave fault",
}
_REMARKED_TOOLS: Final = {
    "guestToolsNotInstalled": "not installed",
    "guestToolsNeedUpgrade": "not the latest",
    "guestToolsSupportedOld": "not the latest",
}


# -- storage snapshots


def _not_listed(reach: Reach, proxy: ProxyMachine, mode: TransportMode) -> str:
    del mode
    if not reach.snapshot_proxies or proxy.id in reach.snapshot_proxies:
        return ""
    return "the proxy is not among those that may read from the storage system"


def _cannot_read_clone(reach: Reach, proxy: ProxyMachine, mode: TransportMode) -> str:
    del mode
    by = reach.snapshot_read_by
    if by is None or by in proxy.offered_modes:
        return ""
    return f"the snapshot's clone is read by {by.value}, which the proxy does not offer"


# -- direct SAN and direct NFS


def _not_connected(reach: Reach, proxy: ProxyMachine, mode: TransportMode) -> str:
    if proxy.datastores is not None:
        if reach.datastore in proxy.datastores:
            return ""
        return f"datastore {reach.datastore} is not among the connected datastores that are set for the proxy"
    found = proxy.connected(reach.key, mode)
    if found is None:
        return f"the proxy has not found datastore {reach.datastore}; {_RESCAN}"
    if not found.readable:
        return f"the proxy does not reach datastore {reach.datastore}: {found.reason or 'it cannot be read'}"
    return ""


def _not_writable(reach: Reach, proxy: ProxyMachine, mode: TransportMode) -> str:
    found = proxy.connected(reach.key, mode)
    if found is None or not found.readable or found.writable:
        return ""
    return f"the proxy may only read datastore {reach.datastore}: {found.reason or 'writing is not allowed'}"


def _nvme_not_listed(reach: Reach, proxy: ProxyMachine, mode: TransportMode) -> str:
    del mode
    if not reach.on_nvme or (proxy.datastores is not None and reach.datastore in proxy.datastores):
        return ""
    return (
        f"datastore {reach.datastore} lies on NVMe namespaces: such ones are read only where an administrator named "
        "the datastore, with `vmhaul proxy edit NAME --datastore`"
    )


def _too_far(reach: Reach, proxy: ProxyMachine, mode: TransportMode) -> str:
    found = proxy.connected(reach.key, mode)
    if proxy.max_nfs_hops is None or found is None or not found.readable:
        return ""
    if found.hops <= proxy.max_nfs_hops:
        return ""
    return (
        f"the NFS server is {found.hops} routers away, and the proxy is set to read from at most "
        f"{proxy.max_nfs_hops}"
    )


# -- HotAdd


def _own_vms(reach: Reach, proxy: ProxyMachine) -> tuple[ProxyVm, ...]:
    return tuple(vm for vm in proxy.vms if vm.vcenter_id == reach.vcenter_id)


def _own_vm(reach: Reach, proxy: ProxyMachine) -> ProxyVm | None:
    """The one that is the proxy; None where another rule refuses."""
    vms = _own_vms(reach, proxy)
    return vms[0] if len(vms) == 1 else None


def _no_vm(reach: Reach, proxy: ProxyMachine, mode: TransportMode) -> str:
    del mode
    if _own_vms(reach, proxy):
        return ""
    if not proxy.vm_uuid:
        return f"the proxy's machine shows no SMBIOS UUID, so it is not known to be a VM; {_RESCAN}"
    return f"the proxy (SMBIOS UUID {proxy.vm_uuid}) is no VM of the disk's vCenter"


def _ambiguous(reach: Reach, proxy: ProxyMachine, mode: TransportMode) -> str:
    del mode
    vms = _own_vms(reach, proxy)
    if len(vms) <= 1:
        return ""
    names = ", ".join(sorted(f"{vm.name} ({vm.moref})" for vm in vms))
    return f"several VMs have the proxy's SMBIOS UUID {proxy.vm_uuid}: {names}; give the copies one of their own"


def _unconfirmed(reach: Reach, proxy: ProxyMachine, mode: TransportMode) -> str:
    del mode
    vm = _own_vm(reach, proxy)
    if vm is None or (vm.vcenter_id, vm.moref) in proxy.confirmed:
        return ""
    return f"only the proxy itself says that it is VM {vm.name} ({vm.moref}); `vmhaul proxy confirm-vm NAME` confirms it"


def _tracked(reach: Reach, proxy: ProxyMachine, mode: TransportMode) -> str:
    del mode
    vm = _own_vm(reach, proxy)
    if vm is None or not vm.tracked:
        return ""
    return (
        f"changes of the disks of VM {vm.name}, the proxy, are tracked, and those of a disk added to it would be too; "
        "switch its change tracking off (changeTrackingEnabled, then make a snapshot and remove it)"
    )


def _tools_faulty(reach: Reach, proxy: ProxyMachine, mode: TransportMode) -> str:
    del mode
    vm = _own_vm(reach, proxy)
    if vm is None or vm.tools_version not in _REFUSED_TOOLS:
        return ""
    return (
        f"VMware Tools of VM {vm.name}, the proxy, are {_REFUSED_TOOLS[vm.tools_version]}; update them"
    )


def _tools_not_latest(reach: Reach, proxy: ProxyMachine, mode: TransportMode) -> str:
    del mode
    vm = _own_vm(reach, proxy)
    if vm is None or vm.tools_version not in _REMARKED_TOOLS:
        return ""
    return f"VMware Tools of VM {vm.name}, the proxy, are {_REMARKED_TOOLS[vm.tools_version]}"


def _own_disk(reach: Reach, proxy: ProxyMachine, mode: TransportMode) -> str:
    del mode
    vm = _own_vm(reach, proxy)
    if vm is None or reach.vm_moref != vm.moref:
        return ""
    return f"{vm.name} is this proxy: a VM cannot be given its own disks"


def _other_datacenter(reach: Reach, proxy: ProxyMachine, mode: TransportMode) -> str:
    del mode
    vm = _own_vm(reach, proxy)
    if vm is None or vm.datacenter == reach.datacenter:
        return ""
    return f"the proxy's VM is in datacenter {vm.datacenter}, the disk in {reach.datacenter}"


def _not_mounted(reach: Reach, proxy: ProxyMachine, mode: TransportMode) -> str:
    del mode
    vm = _own_vm(reach, proxy)
    if vm is None or vm.datacenter != reach.datacenter or reach.datastore in vm.datastores:
        return ""
    return f"the host of the proxy's VM does not mount datastore {reach.datastore}"


def _no_scsi0(reach: Reach, proxy: ProxyMachine, mode: TransportMode) -> str:
    del mode
    vm = _own_vm(reach, proxy)
    return (
        "" if vm is None or vm.scsi0 else f"VM {vm.name} of the proxy has no SCSI controller 0; add one"
    )


def _no_slot(reach: Reach, proxy: ProxyMachine, mode: TransportMode) -> str:
    del mode
    vm = _own_vm(reach, proxy)
    if vm is None or vm.free_slots > 0:
        return ""
    return f"VM {vm.name} of the proxy has no free slot on its four SCSI controllers"


def _not_encrypted(reach: Reach, proxy: ProxyMachine, mode: TransportMode) -> str:
    del mode
    vm = _own_vm(reach, proxy)
    if vm is None or not reach.encrypted or vm.encrypted:
        return ""
    return "the disk is encrypted by vSphere, and the proxy's VM is not: only an encrypted VM may be given it"


def _not_on_vsan(reach: Reach, proxy: ProxyMachine, mode: TransportMode) -> str:
    del mode
    vm = _own_vm(reach, proxy)
    if vm is None or reach.datastore_kind != "vsan" or "vsan" in vm.home_kinds:
        return ""
    return "the disk is on vSAN, and the proxy's VM has no disk there"


def _not_on_vvol(reach: Reach, proxy: ProxyMachine, mode: TransportMode) -> str:
    del mode
    vm = _own_vm(reach, proxy)
    if vm is None or reach.datastore_kind != "VVOL" or reach.datastore in vm.home_datastores:
        return ""
    return f"the disk is a virtual volume of {reach.datastore}, and the proxy's VM has no disk there"


def _nfs3_elsewhere(reach: Reach, proxy: ProxyMachine, mode: TransportMode) -> str:
    del mode
    vm = _own_vm(reach, proxy)
    if vm is None or reach.datastore_kind != "NFS" or proxy.hotadd_nfs3_any_host:
        return ""
    if vm.host_moref and vm.host_moref == reach.host_moref:
        return ""
    return (
        "the disk is on NFS 3, and its VM runs on another host than the proxy: the VM would stand still for half a "
        "minute when its snapshot is removed; `vmhaul proxy edit NAME --hotadd-nfs3-any-host` allows it all the same"
    )


def _vmfs3_home(reach: Reach, proxy: ProxyMachine, mode: TransportMode) -> str:
    del mode
    vm = _own_vm(reach, proxy)
    if vm is None or not vm.home_largest_file_bytes:
        return ""
    if reach.larger_than_bytes < vm.home_largest_file_bytes:
        return ""
    return (
        f"the proxy's VM lies on VMFS 3, which holds no file of more than {vm.home_largest_file_bytes >> 30} GiB, "
        "and the disk is larger; move the VM to VMFS 5 or 6"
    )


_LARGEST = ", ".join(
    f"{size >> 30} GiB with blocks of {mib} MiB" for mib, size in VMFS3_LARGEST_BYTES.items()
)

PROXY_RULES: Final = (
    ProxyRule(
        id="storage-snapshot-proxy",
        modes=SNAPSHOT,
        use=Use.READ,
        text="The proxy is among those that the storage system names.",
        check=_not_listed,
    ),
    ProxyRule(
        id="storage-snapshot-reader",
        modes=SNAPSHOT,
        use=Use.READ,
        text="The proxy offers the direct mode by which the snapshot's clone is read.",
        check=_cannot_read_clone,
    ),
    ProxyRule(
        id="direct-connected",
        modes=SAN | NFS,
        text="The proxy reaches the datastore: its LUNs are visible and not taken for another's, or its export can be "
        "opened. Found by the proxy at its start, every four hours and by rescan, or set by hand.",
        check=_not_connected,
    ),
    ProxyRule(
        id="direct-writable",
        modes=SAN | NFS,
        use=Use.WRITE,
        text="The proxy may write there: LUNs presented for writing, an export with write access for root.",
        check=_not_writable,
    ),
    ProxyRule(
        id="san-nvme-listed",
        modes=SAN,
        text="Datastores on NVMe namespaces are read only by proxies for which they are set by hand: names of namespaces "
        "are not found by NAA id, and must be meant.",
        check=_nvme_not_listed,
    ),
    ProxyRule(
        id="nfs-hops",
        modes=NFS,
        text="The NFS server is not further away than the proxy's setting allows, in routers. Of several proxies those "
        "with the fewest are taken.",
        check=_too_far,
    ),
    ProxyRule(
        id="hotadd-vm",
        modes=HOTADD,
        text="The proxy is a VM of the vCenter of the disk, known by its SMBIOS UUID in either byte order.",
        check=_no_vm,
    ),
    ProxyRule(
        id="hotadd-one-vm",
        modes=HOTADD,
        text="No other VM of that vCenter has the same SMBIOS UUID, as clones may.",
        check=_ambiguous,
    ),
    ProxyRule(
        id="hotadd-confirmed",
        modes=HOTADD,
        text="That the proxy is the VM whose SMBIOS UUID it shows does not rest on its word: it runs on the backup "
        "server's machine, or the address from which it calls is one that the VM's VMware Tools tell, or an "
        "administrator confirmed it. Another UUID has to be confirmed anew.",
        check=_unconfirmed,
    ),
    ProxyRule(
        id="hotadd-not-itself",
        modes=HOTADD,
        text="The disk is not one of the proxy's own VM.",
        check=_own_disk,
    ),
    ProxyRule(
        id="hotadd-datacenter",
        modes=HOTADD,
        text="The proxy's VM is in the datacenter of the disk.",
        check=_other_datacenter,
    ),
    ProxyRule(
        id="hotadd-mounted",
        modes=HOTADD,
        text="The host of the proxy's VM mounts the datastore of the disk.",
        check=_not_mounted,
    ),
    ProxyRule(
        id="hotadd-scsi0",
        modes=HOTADD,
        text="The proxy's VM has a SCSI controller 0.",
        check=_no_scsi0,
    ),
    ProxyRule(
        id="hotadd-slot",
        modes=HOTADD,
        text="The proxy's VM has a free slot: up to four SCSI controllers, each counted with 15 disks.",
        check=_no_slot,
    ),
    ProxyRule(
        id="hotadd-encrypted",
        modes=HOTADD,
        text="Disks that vSphere encrypts need an encrypted VM as proxy.",
        check=_not_encrypted,
    ),
    ProxyRule(
        id="hotadd-vsan",
        modes=HOTADD,
        text="Disks on vSAN need a proxy whose own disks are on vSAN.",
        check=_not_on_vsan,
    ),
    ProxyRule(
        id="hotadd-vvol",
        modes=HOTADD,
        text="Disks on virtual volumes need a proxy with a disk in the same container.",
        check=_not_on_vvol,
    ),
    ProxyRule(
        id="hotadd-nfs3-host",
        modes=HOTADD,
        use=Use.READ,
        text="Disks on NFS 3 need a proxy on the host of the VM, unless the proxy's setting allows others: the VM is "
        "stunned for long when its snapshot is removed.",
        check=_nfs3_elsewhere,
    ),
    ProxyRule(
        id="hotadd-tracking",
        modes=HOTADD,
        text="Changes of the disks of the proxy's VM are not tracked: those of added disks would be as well. vmhaul does "
        "not switch tracking on for a VM that is a proxy.",
        check=_tracked,
    ),
    ProxyRule(
        id="hotadd-tools",
        modes=HOTADD,
        text="VMware Tools of the proxy's VM, where it has them, are none that VMware calls too old or faulty.",
        check=_tools_faulty,
    ),
    ProxyRule(
        id="hotadd-tools-latest",
        modes=HOTADD,
        text="VMware Tools of the proxy's VM that are absent or not the latest are remarked: an added disk is found by "
        "the guest's kernel, not by them.",
        check=_tools_not_latest,
        remark=True,
    ),
    ProxyRule(
        id="hotadd-vmfs3-file",
        modes=HOTADD,
        text=f"A proxy's VM on VMFS 3 takes disks no larger than a file there: {_LARGEST}.",
        check=_vmfs3_home,
    ),
)
