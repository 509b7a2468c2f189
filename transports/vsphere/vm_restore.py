"""Making a VM again: find its place, create it, add its disks, finish it, or take it away again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from pyVmomi import vim, vmodl

from transports.errors import ObjectGoneError, PermanentTransportError, TransportError
from transports.vsphere import restore_spec, tasks
from transports.vsphere.config_export import SavedConfig
from transports.vsphere.datastore_files import put_file
from transports.vsphere.devices import capacity_bytes, disk_infos
from transports.vsphere.faults import translated
from transports.vsphere.inventory import find_datastore
from transports.vsphere.model import DiskInfo, NewDisk, PowerState, VmPlacement
from transports.vsphere.places import Place, Places, moref, read_places, unescape
from transports.vsphere.properties import read, read_view
from transports.vsphere.restore_spec import MARK_KEY, Network
from transports.vsphere.session import Connection

CREATE_TIMEOUT_S: Final = 15 * 60.0
DESTROY_TIMEOUT_S: Final = 3600.0
# A new thick disk may be zeroed while it is made.
ADD_DISK_TIMEOUT_S: Final = 4 * 3600.0


def create_vm(connection: Connection, saved: SavedConfig, placement: VmPlacement, *, mark: str) -> str:
    places = read_places(connection)
    target = _Target(connection, places, saved, placement)
    folder = target.folder()
    _refuse_twins(connection, folder, saved, placement)
    find_datastore(places, placement.datastore, placement.datacenter)
    made = restore_spec.vm_spec(saved, placement, target.network, mark=mark)
    host = target.host()
    task = connection.object(vim.Folder, folder.moref).CreateVM_Task(
        config=made.spec,
        pool=connection.object(vim.ResourcePool, target.pool()),
        host=connection.object(vim.HostSystem, host) if host else None,
    )
    return moref(tasks.wait(connection, task, timeout_s=CREATE_TIMEOUT_S))


def find_marked_vm(connection: Connection, mark: str) -> str | None:
    for vm, properties in read_view(connection, [(vim.VirtualMachine, ("config.extraConfig",))]):
        if _mark(properties.get("config.extraConfig")) == mark:
            return moref(vm)
    return None


def add_disks(
    connection: Connection,
    vm_moref: str,
    saved: SavedConfig,
    new_disks: Sequence[NewDisk],
    placement: VmPlacement,
) -> dict[int, DiskInfo]:
    vm = connection.vm(vm_moref)
    found: dict[int, DiskInfo] = {}
    for new in new_disks:
        devices = _devices(connection, vm)
        try:
            changes, where = restore_spec.disk_spec(saved, new, devices, placement)
        except KeyError as error:
            raise PermanentTransportError(
                f"the saved configuration has no disk with key {new.disk_key}; choose other disks"
            ) from error
        disk = restore_spec.disk_at(devices, where)
        # One that is there already was added before a crash: the VM is ours and was made without disks.
        if disk is None:
            task = vm.ReconfigVM_Task(spec=vim.vm.ConfigSpec(deviceChange=changes))
            tasks.wait(connection, task, timeout_s=ADD_DISK_TIMEOUT_S)
            devices = _devices(connection, vm)
            disk = restore_spec.disk_at(devices, where)
        if disk is None:
            raise PermanentTransportError(
                f"vSphere added the disk for key {new.disk_key} to VM {vm_moref}, but it is not at"
                f" {where[0]} {where[1]}:{where[2]}; delete the VM and restore again"
            )
        if capacity_bytes(disk) != new.capacity_bytes:
            raise PermanentTransportError(
                f"the disk at {where[0]} {where[1]}:{where[2]} of VM {vm_moref} has"
                f" {capacity_bytes(disk)} bytes instead of {new.capacity_bytes};"
                " delete the VM and restore again"
            )
        found[new.disk_key] = next(info for info in disk_infos(devices) if info.key == disk.key)
    return found


def finish_vm(
    connection: Connection, vm_moref: str, saved: SavedConfig, placement: VmPlacement
) -> list[str]:
    vm = connection.vm(vm_moref)
    places = read_places(connection)
    target = _Target(connection, places, saved, placement)
    warnings = restore_spec.vm_spec(saved, placement, target.network, mark="").warnings
    if saved.nvram_problem:
        warnings.append(f"the VM's nvram is not in the restore point: {saved.nvram_problem}")
    spec = vim.vm.ConfigSpec(extraConfig=[vim.option.OptionValue(key=MARK_KEY, value="")])
    order = restore_spec.boot_order(saved, _devices(connection, vm))
    if order:
        spec.bootOptions = vim.vm.BootOptions(bootOrder=order)
    if saved.nvram:
        _restore_nvram(connection, vm, places, saved, spec, warnings)
    tasks.wait(connection, vm.ReconfigVM_Task(spec=spec), timeout_s=CREATE_TIMEOUT_S)
    return warnings


def destroy_marked_vm(connection: Connection, vm_moref: str, mark: str) -> None:
    vm = connection.vm(vm_moref)
    try:
        seen = read(connection, vm, "config.extraConfig", "runtime.powerState", "name")
        # Our only licence to delete a VM.
        if not mark or _mark(seen.get("config.extraConfig")) != mark:
            raise PermanentTransportError(
                f"VM {seen.get('name', vm_moref)} does not bear this restore's mark; it was left alone"
            )
        if str(seen.get("runtime.powerState")) != PowerState.OFF:
            raise PermanentTransportError(
                f"VM {seen.get('name', vm_moref)} is not powered off; it was left alone:"
                " somebody uses it, look at it in the client"
            )
        tasks.wait(connection, vm.Destroy_Task(), timeout_s=DESTROY_TIMEOUT_S)
    except vmodl.fault.ManagedObjectNotFound:
        return


def power_on(connection: Connection, vm_moref: str) -> None:
    vm = connection.vm(vm_moref)
    if str(read(connection, vm, "runtime.powerState").get("runtime.powerState")) == PowerState.ON:
        return
    tasks.wait(connection, vm.PowerOnVM_Task(), timeout_s=CREATE_TIMEOUT_S)


class _Target:
    """Where the VM goes, as morefs."""

    def __init__(
        self, connection: Connection, places: Places, saved: SavedConfig, placement: VmPlacement
    ) -> None:
        self._connection = connection
        self._places = places
        self._saved = saved
        self._placement = placement

    def folder(self) -> Place:
        wanted = self._placement.folder
        folders = {
            self._places.vm_folder_path(place.moref): place for place in self._places.vm_folders()
        }
        if wanted:
            if wanted not in folders:
                raise PermanentTransportError(
                    f"there is no VM folder {wanted}; name it as {self._placement.datacenter}/Folder"
                )
            return folders[wanted]
        before = self._saved.place("folder")
        if before in folders and self._in_datacenter(folders[before]):
            return folders[before]
        if self._placement.datacenter not in folders:
            raise PermanentTransportError(
                f"there is no datacenter named {self._placement.datacenter}; check the name"
            )
        return folders[self._placement.datacenter]

    def pool(self) -> str:
        pools = {
            self._places.pool_path(place.moref): place
            for place in self._places.of_kind("ResourcePool", "VirtualApp")
        }
        wanted = self._placement.resource_pool
        if wanted:
            if wanted not in pools:
                raise PermanentTransportError(
                    f"there is no resource pool {wanted}; name it as"
                    f" {self._placement.datacenter}/Cluster/Resources/Pool"
                )
            return pools[wanted].moref
        if self._placement.host:
            return self._root_pool(self.host())
        before = pools.get(self._saved.place("resource_pool"))
        if before is not None and self._in_datacenter(before):
            return before.moref
        return self._root_pool(self._host_with_datastore())

    def host(self) -> str:
        """Moref of the wanted host; empty: vCenter chooses, or the pool's own host."""
        if not self._placement.host:
            return ""
        for place in self._places.of_kind("HostSystem"):
            if place.name == self._placement.host and self._in_datacenter(place):
                return place.moref
        raise PermanentTransportError(
            f"datacenter {self._placement.datacenter} has no host named {self._placement.host}"
        )

    def network(self, name: str) -> Network | None:
        """The network of that name in the target's datacenter, else any, to be left disconnected."""
        networks = sorted(
            (
                place
                for place in self._places.of_kind("Network", "DistributedVirtualPortgroup")
                if self._in_datacenter(place)
            ),
            # Uplink port groups carry no VMs; standard networks are the safer substitute.
            key=lambda place: (place.kind != "Network", "uplink" in place.name.lower(), place.name),
        )
        exact = next((place for place in networks if place.name == name), None)
        chosen = exact or next(iter(networks), None)
        if chosen is None:
            return None
        return Network(
            name=chosen.name, backing=self._network_backing(chosen), is_substitute=exact is None
        )

    def _network_backing(self, place: Place) -> Any:
        card: Any = vim.vm.device.VirtualEthernetCard
        if place.kind == "Network":
            return card.NetworkBackingInfo(
                deviceName=place.name, network=self._connection.object(vim.Network, place.moref)
            )
        switch = place.properties["config.distributedVirtualSwitch"]
        uuid = read(self._connection, switch, "uuid").get("uuid")
        return card.DistributedVirtualPortBackingInfo(
            port=vim.dvs.PortConnection(
                switchUuid=str(uuid), portgroupKey=str(place.properties.get("key") or place.moref)
            )
        )

    def _host_with_datastore(self) -> str:
        for host in self._places.of_kind("HostSystem"):
            stores = [
                self._places.get(moref(store)) for store in host.properties.get("datastore") or []
            ]
            names = {store.name for store in stores if store is not None}
            if (
                self._placement.datastore in names
                and self._in_datacenter(host)
                and str(host.properties.get("runtime.connectionState", "connected")) == "connected"
                and not host.properties.get("runtime.inMaintenanceMode", False)
            ):
                return host.moref
        raise PermanentTransportError(
            f"no host of datacenter {self._placement.datacenter} that is ready has datastore"
            f" {self._placement.datastore}; choose another datastore or name a resource pool"
        )

    def _root_pool(self, host: str) -> str:
        compute = self._places.compute_of(host)
        pool = moref(compute.properties.get("resourcePool")) if compute else ""
        if not pool:
            raise ObjectGoneError(f"host {host} has no resource pool; name one for the restored VM")
        return pool

    def _in_datacenter(self, place: Place) -> bool:
        return self._places.datacenter(place.moref) == self._placement.datacenter


def _refuse_twins(
    connection: Connection, folder: Place, saved: SavedConfig, placement: VmPlacement
) -> None:
    """Another VM of that name in that folder, or one that still has the identity that is to be kept."""
    identity = str(saved.config_info().instanceUuid or "") if placement.keep_identity else ""
    wanted = ("name", "parent", "config.instanceUuid")
    for _, properties in read_view(connection, [(vim.VirtualMachine, wanted)]):
        name = unescape(str(properties.get("name", "")))
        if name == placement.name and moref(properties.get("parent")) == folder.moref:
            raise PermanentTransportError(
                f"there is a VM named {name} in folder {folder.name} already;"
                " choose another name or folder, or remove that VM"
            )
        if identity and str(properties.get("config.instanceUuid") or "") == identity:
            raise PermanentTransportError(
                f"VM {name} still has the identity ({identity}) that the restored VM is to keep;"
                " remove that VM first, or restore with a new identity"
            )


def _restore_nvram(
    connection: Connection, vm: Any, places: Places, saved: SavedConfig, spec: Any, warnings: list[str]
) -> None:
    seen = read(connection, vm, "config.files.vmPathName", "runtime.host")
    directory = str(seen["config.files.vmPathName"]).rpartition("/")[0]
    path = f"{directory}/{saved.name}.nvram"
    try:
        with translated(f"write {path}"):
            put_file(
                connection.session,
                path,
                places.datacenter_path(moref(seen.get("runtime.host"))),
                saved.nvram,
            )
    except TransportError as error:
        warnings.append(f"the VM's nvram (EFI variables) was not restored: {error}")
        return
    spec.extraConfig.append(vim.option.OptionValue(key="nvram", value=f"{saved.name}.nvram"))


def _devices(connection: Connection, vm: Any) -> list[Any]:
    return list(read(connection, vm, "config.hardware.device")["config.hardware.device"])


def _mark(options: Any) -> str:
    return next((str(option.value) for option in options or [] if option.key == MARK_KEY), "")
