"""Everything a job can select from, and single VMs and datastores."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any, Final

from pyVmomi import vim

from transports.base import DatastoreRef, LunExtent
from transports.errors import ObjectGoneError, PermanentTransportError
from transports.vsphere.devices import disk_infos, scsi_buses
from transports.vsphere.host_addresses import SERVICES, service_address
from transports.vsphere.model import About, DatastoreInfo, HostInfo, Inventory, PowerState, VmInfo
from transports.vsphere.places import Place, Places, moref, read_places, unescape
from transports.vsphere.properties import Properties, read, read_view
from transports.vsphere.session import Connection

VM_PROPERTIES: Final = (
    "name",
    "parent",
    "parentVApp",
    "resourcePool",
    "config.instanceUuid",
    "config.uuid",
    "config.template",
    "config.version",
    "config.changeTrackingEnabled",
    "config.managedBy",
    "config.guestFullName",
    "config.hardware.device",
    "config.keyId",
    "capability.changeTrackingSupported",
    "guest.toolsRunningStatus",
    "guest.toolsVersionStatus2",
    "guest.net",
    "runtime.powerState",
    "runtime.host",
    "runtime.consolidationNeeded",
    "snapshot",
)
_TOOLS_RUNNING: Final = "guestToolsRunning"


def about(connection: Connection) -> About:
    info = connection.content.about
    return About(
        name=str(info.name),
        version=str(info.version),
        build=str(info.build),
        api_version=str(info.apiVersion),
        api_type=str(info.apiType),
        instance_uuid=str(info.instanceUuid or ""),
    )


def read_inventory(
    connection: Connection, tags: dict[str, tuple[str, ...]], *, tags_known: bool
) -> Inventory:
    places = read_places(connection)
    vms = [
        vm_info(moref(vm), properties, places, tags.get(moref(vm), ()))
        for vm, properties in read_view(connection, [(vim.VirtualMachine, VM_PROPERTIES)])
        # A VM that is being deleted or has lost its files has no configuration.
        if "config.hardware.device" in properties
    ]
    return Inventory(
        about=about(connection),
        datacenters=_sorted(place.name for place in places.of_kind("Datacenter")),
        clusters=_sorted(place.name for place in places.of_kind("ClusterComputeResource")),
        folders=_sorted(
            path for place in places.vm_folders() if "/" in (path := places.vm_folder_path(place.moref))
        ),
        resource_pools=_sorted(
            places.pool_path(place.moref) for place in places.of_kind("ResourcePool", "VirtualApp")
        ),
        hosts=tuple(_host(place, places) for place in places.of_kind("HostSystem")),
        datastores=tuple(_datastore(place, places) for place in places.of_kind("Datastore")),
        vms=tuple(sorted(vms, key=lambda vm: (vm.name, vm.moref))),
        tags_known=tags_known,
    )


def read_vm(connection: Connection, vm_moref: str, tags: tuple[str, ...] = ()) -> VmInfo:
    properties = read(connection, connection.vm(vm_moref), *VM_PROPERTIES)
    if "config.hardware.device" not in properties:
        raise ObjectGoneError(
            f"VM {vm_moref} has no configuration: it is inaccessible or being deleted; look at it in the client"
        )
    return vm_info(vm_moref, properties, read_places(connection), tags)


def vm_info(vm_moref: str, properties: Properties, places: Places, tags: tuple[str, ...]) -> VmInfo:
    # A VM in a vApp has no folder of its own; it is found where the vApp is.
    parent = moref(properties.get("parent")) or moref(properties.get("parentVApp"))
    host = moref(properties.get("runtime.host"))
    pool = moref(properties.get("resourcePool"))
    managed_by = properties.get("config.managedBy")
    return VmInfo(
        moref=vm_moref,
        name=unescape(str(properties.get("name", ""))),
        instance_uuid=str(properties.get("config.instanceUuid") or ""),
        bios_uuid=str(properties.get("config.uuid") or ""),
        power_state=PowerState(str(properties.get("runtime.powerState", PowerState.OFF))),
        is_template=bool(properties.get("config.template", False)),
        change_tracking_supported=bool(properties.get("capability.changeTrackingSupported", False)),
        change_tracking_enabled=bool(properties.get("config.changeTrackingEnabled", False)),
        hardware_version=str(properties.get("config.version") or ""),
        tools_running=tools_running(properties),
        guest_os=str(properties.get("config.guestFullName") or ""),
        host_moref=host,
        path=places.path(parent),
        datacenter=places.datacenter(parent) or places.datacenter(host),
        cluster=places.cluster(host),
        resource_pool=places.pool_path(pool) if pool else "",
        tags=tags,
        has_snapshots=bool(getattr(properties.get("snapshot"), "rootSnapshotList", None)),
        consolidation_needed=bool(properties.get("runtime.consolidationNeeded", False)),
        managed_by=str(getattr(managed_by, "extensionKey", "") or ""),
        disks=disk_infos(properties.get("config.hardware.device")),
        encrypted=properties.get("config.keyId") is not None,
        host_version=_host_version(places.get(host)),
        scsi_buses=scsi_buses(properties.get("config.hardware.device")),
        host_address=_host_address(places.get(host)),
        tools_version=str(properties.get("guest.toolsVersionStatus2") or ""),
        guest_addresses=tuple(
            str(address) for nic in properties.get("guest.net") or [] for address in nic.ipAddress or []
        ),
    )


def tools_running(properties: Properties) -> bool:
    return str(properties.get("guest.toolsRunningStatus", "")) == _TOOLS_RUNNING


def read_datastore(connection: Connection, name: str, datacenter: str) -> DatastoreInfo:
    places = read_places(connection)
    return _datastore(find_datastore(places, name, datacenter), places)


def find_datastore(places: Places, name: str, datacenter: str) -> Place:
    for place in places.of_kind("Datastore"):
        if place.name == name and places.datacenter(place.moref) == datacenter:
            return place
    raise PermanentTransportError(
        f"datacenter {datacenter} has no datastore named {name}; check the name"
    )


def _datastore(place: Place, places: Places) -> DatastoreInfo:
    seen = place.properties
    return DatastoreInfo(
        moref=place.moref,
        name=place.name,
        kind=str(seen.get("summary.type") or ""),
        capacity_bytes=int(seen.get("summary.capacity") or 0),
        free_bytes=int(seen.get("summary.freeSpace") or 0),
        accessible=bool(seen.get("summary.accessible", False)),
        datacenter=places.datacenter(place.moref),
        storage=storage_of(place.name, str(seen.get("summary.type") or ""), seen.get("info")),
    )


def storage_of(name: str, kind: str, info: Any) -> DatastoreRef | None:
    """What lies below a datastore, from its VmfsDatastoreInfo or NasDatastoreInfo; None for other kinds, and
    where the server leaves out what it takes to find the storage.
    """
    vmfs = getattr(info, "vmfs", None)
    if vmfs is not None and vmfs.uuid:
        extents = [
            LunExtent(lun=str(part.diskName), partition=int(part.partition))
            for part in vmfs.extent or ()
        ]
        return DatastoreRef(
            name=name,
            kind=kind,
            vmfs_uuid=str(vmfs.uuid),
            vmfs_version=str(vmfs.version or ""),
            extents=tuple(extents),
        )
    nas = getattr(info, "nas", None)
    if nas is not None and nas.remotePath:
        # Version 3 is mounted from one host; 4.1 may list several addresses, that one among them.
        hosts = [str(host) for host in (nas.remoteHost, *(nas.remoteHostNames or ())) if host]
        return DatastoreRef(
            name=name,
            kind=kind,
            nfs_hosts=tuple(dict.fromkeys(hosts)),
            nfs_path=str(nas.remotePath),
        )
    return None


def _host_version(host: Place | None) -> str:
    return "" if host is None else str(host.properties.get("summary.config.product.version") or "")


def _host_address(host: Place | None) -> str:
    """Of a host that does not tell its adapters the name, where that is an address."""
    if host is None:
        return ""
    told = service_address(host.properties.get(SERVICES))
    for text in (told, host.name):
        try:
            return str(ip_address(text))
        except ValueError:
            continue
    return ""


def _host(place: Place, places: Places) -> HostInfo:
    seen = place.properties
    stores = [places.get(moref(store)) for store in seen.get("datastore") or []]
    return HostInfo(
        moref=place.moref,
        name=place.name,
        version=str(seen.get("summary.config.product.version") or ""),
        build=str(seen.get("summary.config.product.build") or ""),
        connected=str(seen.get("runtime.connectionState", "")) == "connected",
        in_maintenance=bool(seen.get("runtime.inMaintenanceMode", False)),
        cluster=places.cluster(place.moref),
        datacenter=places.datacenter(place.moref),
        datastores=tuple(store.name for store in stores if store is not None),
        address=_host_address(place),
    )


def _sorted(names: Any) -> tuple[str, ...]:
    return tuple(sorted(set(names)))
