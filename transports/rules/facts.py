"""What the rules look at: a disk as vSphere describes it, and a proxy as it describes itself."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from typing import Final
from uuid import UUID

from transports.base import TransportMode

NETWORK_MODES: Final = frozenset({TransportMode.NBDSSL, TransportMode.NBD})
"""Those that read through a service of the ESXi host, whose connections and memory are counted."""

CONNECTED_MODES: Final = frozenset({TransportMode.DIRECT_SAN, TransportMode.DIRECT_NFS})
"""Those that need the proxy to be connected to the datastore."""

_GIB: Final = 1 << 30
VMFS3_LARGEST_BYTES: Final = {1: 256 * _GIB, 2: 512 * _GIB, 4: 1024 * _GIB, 8: 2048 * _GIB}
"""Largest file on VMFS 3 by block size in MiB."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageSnapshotFacts:
    """Of a disk whose job asks for backup from storage snapshots."""

    system: str = ""
    """Name of the storage system that has the datastore's volume; empty: none that is registered."""
    obstacle: str = ""
    """Why the VM cannot be backed up from it: a disk on other storage, too little space. Empty: it can."""
    proxies: tuple[str, ...] = ()
    """Ids of the proxies that may read from the system; empty: any."""
    read_by: TransportMode | None = None
    """The direct mode in which the snapshot's clone is read."""
    vm_snapshot_gone: bool = False
    """The VM snapshot was removed after the storage snapshot was made: nothing else holds that state."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskFacts:
    """One disk of one VM and what is to be done with it. Kept with the task as JSON (`Task.facts`).

    Source: vSphere's inventory and the VM snapshot's own configuration, when the task is made.
    """

    vcenter_id: str
    """Row id of the vCenter."""
    vm_moref: str
    vm_name: str
    datacenter: str
    datastore: str
    datastore_kind: str
    """As DatastoreRef.kind."""
    path: str
    """Datastore path of the file that is read or written."""
    capacity_bytes: int
    controller: str
    """"SCSI", "SATA", "NVMe", "IDE"; empty: not known."""
    write: bool = False
    """For a restore; else it is read."""
    host_moref: str = ""
    """ESXi host on which the VM is registered."""
    host_version: str = ""
    """Of ESXi, "8.0.2"; empty: not known."""
    host_address: str = ""
    """IP address at which the host's NFC service is met; empty: not known."""
    data_hosts: tuple[str, ...] = ()
    """On vSAN: morefs of the hosts whose own devices hold most of the VM's data; empty: not known."""
    on_nvme: bool = False
    """The datastore lies on NVMe namespaces."""
    thin: bool = False
    eager: bool = False
    """Thick, and written with zeros when it was made."""
    is_delta: bool = False
    """The file has a parent: the VM has an earlier snapshot or is a linked clone."""
    is_rdm: bool = False
    """Raw device mapping in virtual mode."""
    encrypted: bool = False
    """The VM's home or this disk is encrypted by vSphere."""
    is_template: bool = False
    running: bool = False
    windows: bool = False
    tools_running: bool = False
    quiesced: bool = False
    """The job asks for quiescing."""
    vm_on_vvol: bool = False
    """Some disk of the VM is on a virtual volume."""
    obstacle: str = ""
    """Why no snapshot contains the disk; empty when one does."""
    storage_snapshot: StorageSnapshotFacts | None = None
    """None: the job does not ask for storage snapshots."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    """What a proxy has to reach. Few values for many disks: what speaks of one disk alone is left out."""

    vcenter_id: str
    datacenter: str
    datastore: str
    datastore_kind: str
    write: bool
    encrypted: bool
    host_moref: str = ""
    """Only where it matters: of a disk on NFS, and of a host on which a proxy runs that it may hinder."""
    vm_moref: str = ""
    """Only of VMs that are proxies themselves."""
    larger_than_bytes: int = 0
    """The disk is larger than this, one of the largest files of VMFS 3; 0: it is not larger than any."""
    snapshot_proxies: tuple[str, ...] | None = None
    """Of a storage system: ids of the proxies that may read from it; empty: any. None: no storage snapshot."""
    snapshot_read_by: TransportMode | None = None
    networks: tuple[str, ...] = ()
    """Networks with proxies in which the host's address lies."""
    data_hosts: tuple[str, ...] = ()
    """As DiskFacts."""
    on_nvme: bool = False

    @property
    def key(self) -> str:
        """Of the datastore, as proxies name it in what they find."""
        return f"{self.vcenter_id}/{self.datastore}"


def reach_of(
    disk: DiskFacts,
    *,
    proxy_vms: frozenset[tuple[str, str]] = frozenset(),
    proxy_hosts: Collection[tuple[str, str]] | None = None,
    networks: Collection[str] = (),
) -> Reach:
    """`proxy_vms`: vCenter id and moref of every VM that is a proxy. `proxy_hosts`: vCenter id and moref of the hosts
    that need to be told apart, as proxies run there; None: all. `networks`: those that proxies are in.
    """
    snapshot = disk.storage_snapshot
    host = (disk.vcenter_id, disk.host_moref)
    is_host_told = disk.datastore_kind == "NFS" and (proxy_hosts is None or host in proxy_hosts)
    return Reach(
        vcenter_id=disk.vcenter_id,
        datacenter=disk.datacenter,
        datastore=disk.datastore,
        datastore_kind=disk.datastore_kind,
        write=disk.write,
        encrypted=disk.encrypted,
        host_moref=disk.host_moref if is_host_told else "",
        vm_moref=disk.vm_moref if (disk.vcenter_id, disk.vm_moref) in proxy_vms else "",
        larger_than_bytes=max(
            (size for size in VMFS3_LARGEST_BYTES.values() if disk.capacity_bytes > size), default=0
        ),
        snapshot_proxies=None if snapshot is None else snapshot.proxies,
        snapshot_read_by=None if snapshot is None else snapshot.read_by,
        networks=_around(disk.host_address, networks),
        data_hosts=disk.data_hosts,
        on_nvme=disk.on_nvme,
    )


def _around(address: str, networks: Collection[str]) -> tuple[str, ...]:
    """Of the networks those in which the address lies."""
    if not address or not networks:
        return ()
    one = ip_address(address)
    return tuple(sorted(text for text in networks if one in ip_network(text)))


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxyVm:
    """A VM of a vCenter that has a proxy's SMBIOS UUID: the proxy itself, if there is but one."""

    vcenter_id: str
    moref: str
    name: str
    datacenter: str
    host_moref: str
    datastores: tuple[str, ...]
    """Names of those that its host mounts."""
    home_datastores: tuple[str, ...]
    """Names of those on which its own disks lie."""
    home_kinds: tuple[str, ...] = ()
    """Their kinds, as DatastoreRef.kind."""
    home_largest_file_bytes: int = 0
    """Largest file that its own datastore can hold, where that is a bound (VMFS 3); 0: it is none."""
    encrypted: bool = False
    scsi0: bool = True
    """It has a SCSI controller 0, with a disk or without."""
    free_slots: int = 0
    """Places for further disks on up to four SCSI controllers."""
    tracked: bool = False
    """Changes of its own disks are tracked: something backs it up."""
    tools_version: str = ""
    """How its VMware Tools stand, in vSphere's words ("guestToolsCurrent"); empty: not told."""
    addresses: tuple[str, ...] = ()
    """Its guest's, as its VMware Tools tell."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Connected:
    """What the proxy found of one datastore in one mode."""

    readable: bool
    writable: bool
    hops: int = -1
    """Routers on the way; -1: not known."""
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxyMachine:
    """A proxy's machine, as the rules see it."""

    id: str
    vm_uuid: str = ""
    """SMBIOS UUID; empty: it shows none."""
    vms: tuple[ProxyVm, ...] = ()
    """All VMs of all vCenters that have it, in either byte order."""
    confirmed: frozenset[tuple[str, str]] = frozenset()
    """Of these VMs, by vCenter id and moref, those that the proxy is for certain, not by its own word alone."""
    connections: Mapping[tuple[str, TransportMode], Connected] = field(default_factory=dict)
    """By "<vcenter id>/<datastore>" and mode."""
    datastores: frozenset[str] | None = None
    """Names of the connected datastores as set by hand; None: what it finds."""
    offered_modes: tuple[TransportMode, ...] = ()
    hotadd_nfs3_any_host: bool = False
    """HotAdd of disks on NFS 3 also where the VM runs on another host than the proxy."""
    max_nfs_hops: int | None = None
    """Direct NFS only to servers at most so many routers away; None: any."""
    networks: tuple[str, ...] = ()
    """In which it has addresses: "192.0.2.0/24"."""

    def connected(self, datastore: str, mode: TransportMode) -> Connected | None:
        return self.connections.get((datastore, mode))


def same_uuid(machine: str, vm: str) -> bool:
    """Whether an SMBIOS UUID is that of a VM: some firmware swaps the bytes of the first three groups."""
    try:
        one, other = UUID(machine), UUID(vm)
    except ValueError:
        return False
    return other in (one, UUID(bytes=one.bytes_le))
