"""What a site holds: data centre, hosts, datastores, VMs and their disks, as values."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vmhaul_lab.array import ArraySpec
from vmhaul_lab.content import MIB
from vmhaul_lab.errors import LabError
from vmhaul_lab.images import Content, DiskPlan
from vmhaul_lab.luns import LunSpec, LunStoreSpec
from vmhaul_lab.nfs import NfsExport
from vmhaul_lab.proxies import ProxyPlan

GIB = 1024 * MIB
USER = "administrator@vsphere.local"
STORAGE = "storage"
"""Folder of a site with a file system of its own, for what shares blocks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VmPlan:
    """One VM; `host` and `pool` must be among those of the site's cluster."""

    name: str
    disks: tuple[DiskPlan, ...]
    folder: str = ""
    pool: str = ""
    host: str = "esx1.lab"
    power: str = "on"
    guest_id: str = "debian12_64Guest"
    annotation: str = ""
    tags: tuple[str, ...] = ()
    memory_mb: int = 2048
    cpus: int = 2
    firmware: str = "efi"
    uuid: str = ""
    """BIOS UUID; made up when empty."""
    hardware: str = "vmx-19"
    extra_config: Mapping[str, str] = field(default_factory=dict)
    datacenter: str = ""
    """One of `SitePlan.more_datacenters`; the site's own when empty. Its hosts and datastores are others."""
    key_id: str = ""
    """Encrypted with this key."""
    tools: str = "running"
    """VMware Tools: running, stopped, missing."""
    template: bool = False
    bus_sharing: str = "noSharing"
    guest_view: str = ""
    """Name at the hardware process: the VM is a proxy whose disks appear as block devices."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LunPlan:
    """One LUN of a datastore, or its only one; sparse."""

    size_bytes: int = 16 * GIB
    naa: str = ""
    """Made from the names of site and datastore when empty."""
    partitioning: str = "gpt"
    delta: str = ""
    """Of the first LUN: kind of the delta files, "VMFSSPARSE" or "SESPARSE" (when empty)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DatastorePlan:
    """A datastore; its files lie in a folder of its name below the site's directory."""

    name: str
    kind: str = "VMFS"
    capacity_bytes: int = 4096 * GIB
    storage: dict[str, Any] = field(default_factory=dict)
    """What vCenter tells of the storage below, as labvc's site file names it: extents, vmfs_uuid, remote_host."""
    hosts: tuple[str, ...] = ()
    """Those that mount it; all of the data centre when empty."""
    read_only_hosts: tuple[str, ...] = ()
    told: bool = False
    """vCenter tells the hardware process before and after files change there (`storage-before`, `storage-after`)."""
    luns: tuple[LunPlan, ...] = ()
    """VMFS: the LUNs that show the datastore, see luns.py. Needs root."""
    vmfs_version: int = 6
    zoned: tuple[str, ...] | None = None
    """Proxies that see its LUNs; None: all."""
    snapshots: bool = False
    """NFS and NFS41: snapshots of the folder can be made below `.snapshots`, see filer.py. Needs root."""
    served: bool = False
    """NFS and NFS41: a real NFS server exports the folder."""
    export_options: Mapping[str, str] = field(default_factory=dict)
    """Of the export, in nfs-ganesha's words: {"Access_Type": "RO"}, {"Squash": "Root_Squash"}."""
    export_own_path: bool = False
    """Exported under the path that its folder has on this machine, as Linux file servers do."""

    def folder(self, site: Path) -> Path:
        """Where its files are."""
        return site / (STORAGE if self.shares_blocks else "datastores") / self.name

    @property
    def shares_blocks(self) -> bool:
        """Whether its files lie on the site's file system that shares blocks."""
        return bool(self.luns) or self.snapshots

    def lun_store(self, site: Path, proxies: Sequence[ProxyPlan]) -> LunStoreSpec:
        """The order to the hardware process, for a datastore with LUNs."""
        zoned = [proxy.name for proxy in proxies] if self.zoned is None else self.zoned
        directory = site / STORAGE / f".luns-{self.name}"
        return LunStoreSpec(
            name=self.name,
            folder=str(self.folder(site)),
            directory=str(directory),
            luns=tuple(
                LunSpec(
                    image=str(directory / f"lun{number}.img"),
                    size_bytes=lun.size_bytes,
                    naa=lun.naa or _made_up_naa(site, self.name, number),
                    partitioning=lun.partitioning,
                )
                for number, lun in enumerate(self.luns)
            ),
            vmfs_uuid=_made_up_vmfs_uuid(site, self.name),
            version=self.vmfs_version,
            delta=self.luns[0].delta,
            zoned=tuple(zoned),
        )

    def export(self, site: Path) -> NfsExport:
        """How it is exported."""
        return NfsExport(
            name=self.name,
            directory=str(self.folder(site)),
            version=3 if self.kind == "NFS" else 4,
            options=self.export_options,
            path=str(self.folder(site)) if self.export_own_path else "",
        )


DATASTORES = (DatastorePlan(name="vmfs-fast"), DatastorePlan(name="nfs-bulk", kind="NFS"))


@dataclass(frozen=True, slots=True, kw_only=True)
class DatacenterPlan:
    """Another data centre of the site, with one cluster."""

    name: str
    hosts: tuple[str, ...]
    datastores: tuple[DatastorePlan, ...]
    cluster: str = "Cluster1"


@dataclass(frozen=True, slots=True, kw_only=True)
class SitePlan:
    """A whole site; most have one data centre and one cluster."""

    vms: tuple[VmPlan, ...]
    datacenter: str = "DC1"
    cluster: str = "Cluster1"
    hosts: tuple[str, ...] = ("esx1.lab", "esx2.lab")
    pools: tuple[str, ...] = ("Gold", "Silver")
    networks: tuple[str, ...] = ("VM Network",)
    datastores: tuple[DatastorePlan, ...] = DATASTORES
    cbt_page_bytes: int = 0
    users: tuple[dict[str, Any], ...] = ()
    proxies: tuple[ProxyPlan, ...] = ()
    """VMs that run backup proxies; they belong to the inventory like `vms`."""
    array: bool = False
    """The LUNs of all datastores are volumes of one disk array with a REST API; the proxies are its hosts."""
    more_datacenters: tuple[DatacenterPlan, ...] = ()
    """Names of datastores are unique over the site, as their folders are."""

    def array_spec(self, site: Path) -> ArraySpec | None:
        """The order to the hardware process, for a site with an array."""
        if not self.array:
            return None
        return ArraySpec(
            directory=str(site / STORAGE / ".array"),
            hosts=tuple(proxy.name for proxy in self.proxies),
            stores=tuple(store.name for store in self.all_datastores() if store.luns),
        )

    def disks(self) -> list[tuple[str, DiskPlan]]:
        """All disks as ('vm', plan) pairs."""
        return [(vm.name, disk) for vm in self.all_vms() for disk in vm.disks]

    def all_vms(self) -> list[VmPlan]:
        """The VMs, proxies among them."""
        return [*self.vms, *map(self._vm_of_proxy, self.proxies)]

    def all_datacenters(self) -> list[DatacenterPlan]:
        """The site's own, and the others."""
        own = DatacenterPlan(
            name=self.datacenter, hosts=self.hosts, datastores=self.datastores, cluster=self.cluster
        )
        return [own, *self.more_datacenters]

    def all_datastores(self) -> list[DatastorePlan]:
        """Of all data centres."""
        return [store for place in self.all_datacenters() for store in place.datastores]

    def _place_of(self, vm: VmPlan) -> DatacenterPlan:
        for place in self.all_datacenters():
            if place.name == (vm.datacenter or self.datacenter):
                return place
        raise LabError(f"VM {vm.name}: the site has no data centre {vm.datacenter!r}")

    def site_json(
        self,
        directory: Path,
        images: dict[str, Path],
        password: str,
        listen: str,
        hardware: str = "",
        nfs_host: str = "",
    ) -> dict[str, Any]:
        """The site as `labvc` reads it; `images` by 'vm/label', see `images.build_all`; `hardware`: address of the
        process that shows proxy VMs their disks; `nfs_host`: where datastores are served."""
        site: dict[str, Any] = {
            "listen": listen,
            "control": "127.0.0.1:0",
            "api_version": "8.0.3.0",
            "user": USER,
            "password": password,
            "users": list(self.users),
            "hardware": hardware,
            "datacenters": [
                {
                    "name": place.name,
                    "folders": sorted(
                        {
                            vm.folder
                            for vm in self.all_vms()
                            if vm.folder and self._place_of(vm) == place
                        }
                    ),
                    "networks": list(self.networks),
                    "clusters": [
                        {
                            "name": place.cluster,
                            "hosts": list(place.hosts),
                            "pools": list(self.pools) if place.name == self.datacenter else [],
                        }
                    ],
                    "datastores": [
                        _store_json(store, directory, nfs_host) for store in place.datastores
                    ],
                }
                for place in self.all_datacenters()
            ],
            "vms": [self._vm_json(vm, images) for vm in self.all_vms()],
        }
        if self.cbt_page_bytes:
            site["cbt_page_bytes"] = self.cbt_page_bytes
        return site

    def _vm_of_proxy(self, proxy: ProxyPlan) -> VmPlan:
        hosts = next(
            place.hosts
            for place in self.all_datacenters()
            if place.name == (proxy.datacenter or self.datacenter)
        )
        return VmPlan(
            name=proxy.name,
            disks=proxy.own_disks,
            folder=proxy.folder,
            host=proxy.host or hosts[0],
            uuid=proxy.bios_uuid,
            hardware=proxy.hardware,
            guest_view=proxy.name,
            datacenter=proxy.datacenter,
            key_id=proxy.key_id,
            extra_config={"disk.EnableUUID": "TRUE"} if proxy.enable_uuid else {},
        )

    def _vm_json(self, vm: VmPlan, images: dict[str, Path]) -> dict[str, Any]:
        place = self._place_of(vm)
        return {
            "name": vm.name,
            "datacenter": place.name,
            "folder": vm.folder,
            "cluster": place.cluster,
            "pool": vm.pool,
            "host": vm.host,
            "power": vm.power,
            "guest_id": vm.guest_id,
            "annotation": vm.annotation,
            "tags": list(vm.tags),
            "memory_mb": vm.memory_mb,
            "cpus": vm.cpus,
            "firmware": vm.firmware,
            "uuid": vm.uuid,
            "version": vm.hardware,
            "extra_config": dict(vm.extra_config),
            "guest_view": vm.guest_view,
            "key_id": vm.key_id,
            "tools": vm.tools,
            "template": vm.template,
            "bus_sharing": vm.bus_sharing,
            "disks": [
                {
                    "capacity_bytes": disk.capacity_bytes,
                    "thin": disk.thin,
                    "datastore": disk.datastore or place.datastores[0].name,
                    "image": str(images.get(f"{vm.name}/{disk.label}", "")),
                    "mode": disk.mode,
                    "controller": disk.controller,
                    "eager": disk.eager,
                    "sharing": disk.sharing,
                    "rdm": disk.rdm,
                    "label": disk.label,
                }
                for disk in vm.disks
            ],
        }


def _store_json(store: DatastorePlan, directory: Path, nfs_host: str) -> dict[str, Any]:
    served = {"remote_host": nfs_host, "remote_path": store.export(directory).remote_path}
    return {
        "name": store.name,
        "type": store.kind,
        "path": str(store.folder(directory)),
        "capacity_bytes": store.capacity_bytes,
        "hosts": list(store.hosts),
        "read_only_hosts": list(store.read_only_hosts),
        "told": store.told or bool(store.luns),
        **(_vmfs_json(store.lun_store(directory, ())) if store.luns else {}),
        **(served if store.served else {}),
        **store.storage,
    }


def _vmfs_json(spec: LunStoreSpec) -> dict[str, Any]:
    return {
        "vmfs_uuid": spec.vmfs_uuid,
        "vmfs_version": "6.82" if spec.version == 6 else "5.81",
        "capacity_bytes": sum(lun.size_bytes for lun in spec.luns),
        "extents": [{"disk_name": lun.naa, "partition": 1} for lun in spec.luns],
    }


def _made_up_naa(site: Path, store: str, number: int) -> str:
    # As FlashArrays name their volumes: their number as a maker, then the volume's serial number.
    return f"naa.624a9370{hashlib.sha256(f'{site}/{store}/{number}'.encode()).hexdigest()[:24]}"


def _made_up_vmfs_uuid(site: Path, store: str) -> str:
    text = hashlib.sha256(f"{site}/{store}".encode()).hexdigest()
    return f"{text[:8]}-{text[8:16]}-{text[16:20]}-005056{text[20:26]}"


def quick_vms(count: int = 2, *, disks: int = 2, capacity_bytes: int = 16 * MIB) -> tuple[VmPlan, ...]:
    """VMs with small disks of bare blocks: no file systems, no root, made in a moment."""
    return tuple(
        VmPlan(
            name=f"vm{number:02d}",
            disks=tuple(
                DiskPlan(label=f"disk{index}", capacity_bytes=capacity_bytes, layout="raw")
                for index in range(disks)
            ),
        )
        for number in range(1, count + 1)
    )


def _disk(
    label: str, layout: str, capacity_mib: int, /, *, thin: bool = True, **contents_mib: int
) -> DiskPlan:
    return DiskPlan(
        label=label,
        layout=layout,
        capacity_bytes=capacity_mib * MIB,
        thin=thin,
        contents=tuple(
            Content(maker=maker, budget_bytes=size * MIB) for maker, size in contents_mib.items()
        ),
    )


def _small() -> tuple[VmPlan, ...]:
    return (
        VmPlan(
            name="web01",
            folder="Prod/Web",
            pool="Gold",
            tags=("backup:daily",),
            disks=(
                _disk("system", "system", 192, host=24, logs=8),
                _disk("content", "xfs", 320, small=6, media=8),
            ),
        ),
        VmPlan(
            name="db01",
            folder="Prod/DB",
            pool="Silver",
            host="esx2.lab",
            tags=("backup:daily",),
            disks=(
                _disk("data", "lvm-ext4", 128, dump=10, texts=4),
                replace(_disk("orders", "gpt-ext4", 64, sqlite=10), datastore="nfs-bulk"),
            ),
        ),
        VmPlan(
            name="files01",
            folder="Prod",
            power="off",
            disks=(_disk("archive", "raw", 64, thin=False), _disk("spare", "empty", 256)),
        ),
    )


def _normal() -> tuple[VmPlan, ...]:
    web_system = _disk("system", "system", 1024, host=110, logs=40, texts=10)
    return (
        VmPlan(
            name="web01",
            folder="Prod/Web",
            pool="Gold",
            tags=("backup:daily",),
            disks=(web_system, _disk("content", "gpt-xfs", 768, small=50, media=50)),
        ),
        VmPlan(
            name="web02",
            folder="Prod/Web",
            pool="Gold",
            host="esx2.lab",
            tags=("backup:daily",),
            disks=(
                replace(web_system, clone_of="web01/system"),
                _disk("content", "gpt-ext4", 512, mail=30, logs=30),
            ),
        ),
        VmPlan(
            name="db01",
            folder="Prod/DB",
            pool="Silver",
            host="esx2.lab",
            tags=("backup:daily",),
            disks=(
                _disk("system", "system", 768, host=80, logs=20),
                _disk("data", "lvm-xfs", 1024, dump=100, texts=20),
                replace(_disk("orders", "gpt-ext4", 512, sqlite=90), datastore="nfs-bulk"),
            ),
        ),
        VmPlan(
            name="files01",
            folder="Prod/Files",
            pool="Silver",
            tags=("backup:daily",),
            disks=(
                replace(
                    _disk("share", "xfs", 2048, media=140, small=30, mail=30), datastore="nfs-bulk"
                ),
                _disk("archive", "lvm-ext4", 256, media=40, thin=False),
                _disk("spare", "gpt-ext4", 1024, texts=4),
            ),
        ),
        VmPlan(
            name="scratch01",
            folder="Test",
            disks=(_disk("scratch", "raw", 64),),
        ),
    )


def _larger(disk: DiskPlan, capacity: int, content: int) -> DiskPlan:
    return replace(
        disk,
        capacity_bytes=disk.capacity_bytes * capacity,
        contents=tuple(
            replace(item, budget_bytes=item.budget_bytes * content) for item in disk.contents
        ),
    )


def huge_vm() -> VmPlan:
    """A VM with a 2 TiB thin disk that holds next to nothing."""
    return VmPlan(
        name="huge01", folder="Prod/Files", disks=(_disk("huge", "gpt-xfs", 2 << 20, texts=8),)
    )


PROXY_VM = "proxy-vm"
"""The proxy of a sized site that is a VM."""


def sized(size: str, *, huge: bool = False) -> SitePlan:
    """The site of one size: `quick`, `small`, `normal` or `large` (with `huge`: also a 2 TiB disk).

    `quick` has bare blocks on ordinary datastores: it needs neither root nor a moment's time.
    """
    if size == "quick":
        return SitePlan(vms=quick_vms(4), datastores=DATASTORES)
    if size == "small":
        vms = _small()
    elif size == "normal":
        vms = _normal()
    elif size == "large":
        vms = tuple(
            replace(vm, disks=tuple(_larger(disk, 4, 4) for disk in vm.disks)) for vm in _normal()
        )
    else:
        raise LabError(f"size {size!r} is not known; take quick, small, normal or large")
    return SitePlan(
        vms=(*vms, huge_vm()) if huge or size == "large" else vms,
        datastores=(
            DatastorePlan(name="vmfs-fast"),
            DatastorePlan(name="nfs-bulk", kind="NFS", served=True),
        ),
        proxies=(ProxyPlan(name=PROXY_VM, host="esx2.lab"),),
    )
