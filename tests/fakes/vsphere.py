"""A vCenter in memory, behind the same declaration as the real client.

It has the habits that matter: change ids that only snapshots show and that begin with the next snapshot
after tracking was switched on, removal that keeps children, consolidation that may be needed, quiescing
that is skipped in silence, morefs that are not used again. Any call can be told to fail or to be the
last of its process.
"""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from uuid import uuid4

from tests.fakes.crash import CrashPlan
from transports.base import DatastoreRef, Extent
from transports.errors import (
    ChangeTrackingUnusableError,
    ObjectGoneError,
    PeerIdentityError,
    PermanentTransportError,
    TransientTransportError,
    TransportUnavailableError,
)
from transports.vsphere import Probe
from transports.vsphere.api import Announce, Vsphere
from transports.vsphere.model import (
    About,
    AttachableVm,
    AttachedDisk,
    DatastoreInfo,
    DatastoreLatency,
    DiskInfo,
    DiskToAttach,
    Endpoint,
    HostAddress,
    HostInfo,
    Inventory,
    Login,
    NewDisk,
    NfcTicket,
    Place,
    PowerState,
    ScsiController,
    Secret,
    ServerAddress,
    SnapshotInfo,
    VmConfig,
    VmInfo,
    VmPlacement,
)

GIB = 1 << 30
PASSWORD = "open sesame"
THUMBPRINT = ":".join(["AB"] * 32)


@dataclass
class FakeDisk:
    key: int
    label: str
    path: str
    capacity_bytes: int = GIB
    uuid: str = field(default_factory=lambda: str(uuid4()))
    thin: bool = True
    obstacle: str = ""
    tracking_uuid: str = ""
    writes: int = 0

    @property
    def datastore(self) -> str:
        return self.path[1 : self.path.index("]")]

    def info(self, *, change_id: str = "") -> DiskInfo:
        return DiskInfo(
            key=self.key,
            label=self.label,
            path=self.path,
            base_path=self.path,
            uuid=self.uuid,
            capacity_bytes=self.capacity_bytes,
            datastore=self.datastore,
            controller=f"SCSI (0:{self.key - 2000})",
            disk_mode="independent_persistent" if self.obstacle else "persistent",
            thin=self.thin,
            change_id=change_id,
            backup_obstacle=self.obstacle,
        )


@dataclass
class FakeVm:
    moref: str
    name: str
    disks: list[FakeDisk]
    instance_uuid: str = field(default_factory=lambda: str(uuid4()))
    power_state: PowerState = PowerState.ON
    tracking: bool = False
    tracking_supported: bool = True
    tools: bool = True
    guest_os: str = "debian12_64Guest"
    template: bool = False
    managed_by: str = ""
    tags: tuple[str, ...] = ()
    path: tuple[str, ...] = ("DC0", "vm")
    resource_pool: str = "DC0/Cluster0/Resources"
    snapshots: list[SnapshotInfo] = field(default_factory=list)
    consolidation_needed: bool = False
    mark: str = ""
    finished: bool = False
    bios_uuid: str = ""
    attached: dict[tuple[int, int], DiskToAttach] = field(default_factory=dict)
    """Disks of other VMs, by controller bus and unit."""
    guest_addresses: tuple[str, ...] = ()

    def info(self) -> VmInfo:
        return VmInfo(
            moref=self.moref,
            name=self.name,
            instance_uuid=self.instance_uuid,
            bios_uuid=self.bios_uuid or f"bios-{self.instance_uuid}",
            power_state=self.power_state,
            is_template=self.template,
            change_tracking_supported=self.tracking_supported,
            change_tracking_enabled=self.tracking,
            hardware_version="vmx-19",
            tools_running=self.tools,
            guest_os=self.guest_os,
            host_moref="host-1",
            path=self.path,
            datacenter="DC0",
            cluster="Cluster0",
            resource_pool=self.resource_pool,
            tags=self.tags,
            has_snapshots=bool(self.snapshots),
            consolidation_needed=self.consolidation_needed,
            managed_by=self.managed_by,
            disks=tuple(disk.info() for disk in self.disks),
            host_version="8.0.3",
            scsi_buses=(0,),
            guest_addresses=self.guest_addresses,
        )


class FakeVcenter:
    """The server's state, shared by all clients."""

    def __init__(self, plan: CrashPlan | None = None) -> None:
        self.plan = plan
        self.instance_uuid = str(uuid4())
        self.lock = threading.RLock()
        self.vms: dict[str, FakeVm] = {}
        self.datastores = {"ds1": 100 * GIB, "ds2": 100 * GIB}
        self.storage: dict[str, DatastoreRef] = {}
        """What lies below a datastore, where the vCenter tells."""
        self.latencies: dict[str, DatastoreLatency] = {}
        self.areas: dict[int, list[Extent]] = {}
        """What changed, by the disk's key."""
        self.calls: list[str] = []
        self.scripted: dict[str, list[Exception]] = {}
        self.after: dict[str, Callable[[], None]] = {}
        self.password = PASSWORD
        self.thumbprint = THUMBPRINT
        self.missing: list[str] = []
        self.missing_of: dict[str, list[str]] = {}
        self.most_snapshots = 0
        self._morefs = itertools.count(100)

    # -- what a test does

    def add_vm(self, name: str, disks: int = 2, **values: object) -> FakeVm:
        moref = self.moref("vm")
        vm = FakeVm(
            moref=moref,
            name=name,
            disks=[
                FakeDisk(key=2000 + n, label=f"Hard disk {n + 1}", path=f"[ds1] {name}/{name}_{n}.vmdk")
                for n in range(disks)
            ],
            **values,  # type: ignore[arg-type]
        )
        self.vms[moref] = vm
        return vm

    def moref(self, kind: str) -> str:
        return f"{kind}-{next(self._morefs)}"

    def fail(self, call: str, *errors: Exception) -> None:
        """The next calls of that name raise these, one each."""
        self.scripted.setdefault(call, []).extend(errors)

    def snapshot_by_hand(self, vm: FakeVm, name: str, description: str = "") -> SnapshotInfo:
        """A snapshot that somebody made who is not vmhaul."""
        snapshot = self.new_snapshot(vm, name, description, quiesced=False)
        vm.snapshots.append(snapshot)
        return snapshot

    def new_snapshot(self, vm: FakeVm, name: str, description: str, *, quiesced: bool) -> SnapshotInfo:
        disks = []
        for disk in vm.disks:
            if disk.obstacle:
                continue
            if not vm.tracking:
                disk.tracking_uuid = ""  # only now what was switched off takes effect
            else:
                disk.tracking_uuid = disk.tracking_uuid or uuid4().hex
                disk.writes += 1
            change_id = f"{disk.tracking_uuid}/{disk.writes}" if disk.tracking_uuid else ""
            disks.append(disk.info(change_id=change_id))
        return SnapshotInfo(
            moref=self.moref("snapshot"),
            name=name,
            description=description,
            vm_moref=vm.moref,
            quiesced=quiesced,
            power_state=vm.power_state,
            disks=tuple(disks),
        )

    def all_snapshots(self) -> list[SnapshotInfo]:
        return [snapshot for vm in self.vms.values() for snapshot in vm.snapshots]

    def held(self) -> set[str]:
        """Files that are attached to another VM than their own."""
        return {one.path for vm in self.vms.values() for one in vm.attached.values()}

    def refuse_held(self, vm: FakeVm) -> None:
        """What holds a file of the VM locks it."""
        held = self.held() & {disk.path for disk in vm.disks}
        if held:
            raise TransientTransportError(f"{', '.join(sorted(held))} is locked")

    # -- what a client does

    def enter(self, call: str) -> None:
        if self.plan is not None:
            self.plan.point(f"before {call}")
        with self.lock:
            self.calls.append(call)
            errors = self.scripted.get(call)
            error = errors.pop(0) if errors else None
        if error is not None:
            raise error

    def leave(self, call: str) -> None:
        hook = self.after.pop(call, None)
        if hook is not None:
            hook()
        if self.plan is not None:
            self.plan.point(f"after {call}")

    def get(self, moref: str) -> FakeVm:
        try:
            return self.vms[moref]
        except KeyError:
            raise ObjectGoneError(f"VM {moref} is no longer registered") from None

    def probe(self, host: str, port: int) -> Probe:
        if host == "nowhere":
            raise TransientTransportError(f"{host}:{port} does not answer")
        return Probe(self.thumbprint, ":".join(["CD"] * 20), "")

    def connect(
        self, endpoint: Endpoint, auth: Login, *, clock: Callable[[], float], keep_alive_s: float
    ) -> Vsphere:
        del clock, keep_alive_s
        self.enter("connect")
        if endpoint.host == "nowhere":
            raise TransientTransportError("nowhere does not answer")
        if endpoint.thumbprint_sha256 != self.thumbprint:
            raise PeerIdentityError("the certificate is not the pinned one")
        if auth.password != Secret(self.password):
            raise PermanentTransportError("the login was refused: wrong user name or password")
        return FakeVsphere(self)


class FakeVsphere:
    """One client."""

    def __init__(self, site: FakeVcenter) -> None:
        self.site = site
        self.closed = False

    def about(self) -> About:
        return About(
            name="Fake vCenter",
            version="8.0.3",
            build="1",
            api_version="8.0.3.0",
            api_type="VirtualCenter",
            instance_uuid=self.site.instance_uuid,
        )

    def clock_offset_s(self) -> float:
        return 0.5

    def keep_alive(self) -> None:
        self.site.enter("keep_alive")

    def clone_ticket(self) -> Secret:
        self.site.enter("clone_ticket")
        return Secret(f"cst-{uuid4()}")

    def server_address(self) -> ServerAddress:
        return ServerAddress(host="vc.lab", port=443, thumbprint_sha1="AA:BB")

    def missing_privileges(self, role: str) -> list[str]:
        return self.site.missing if role == "backup" else self.site.missing_of.get(role, [])

    def close(self) -> None:
        self.closed = True

    def inventory(self) -> Inventory:
        self.site.enter("inventory")
        vms = tuple(vm.info() for vm in self.site.vms.values())
        return Inventory(
            about=self.about(),
            datacenters=("DC0",),
            clusters=("Cluster0",),
            folders=("DC0/Prod",),
            resource_pools=("DC0/Cluster0/Resources",),
            hosts=(
                HostInfo(
                    moref="host-1",
                    name="127.0.0.1",
                    version="8.0.3",
                    build="1",
                    connected=True,
                    in_maintenance=False,
                    cluster="Cluster0",
                    datacenter="DC0",
                    datastores=tuple(self.site.datastores),
                ),
            ),
            datastores=tuple(self.datastore(name, "DC0") for name in self.site.datastores),
            vms=vms,
            tags_known=True,
        )

    def vm(self, moref: str) -> VmInfo:
        self.site.enter("vm")
        return self.site.get(moref).info()

    def datastore(self, name: str, datacenter: str) -> DatastoreInfo:
        if name not in self.site.datastores:
            raise ObjectGoneError(f"there is no datastore {name}")
        storage = self.site.storage.get(name)
        return DatastoreInfo(
            moref=f"datastore-{name}",
            name=name,
            kind="VMFS" if storage is None else storage.kind,
            storage=storage,
            capacity_bytes=200 * GIB,
            free_bytes=self.site.datastores[name],
            accessible=True,
            datacenter=datacenter,
        )

    def snapshots(self, vm_moref: str) -> list[SnapshotInfo]:
        self.site.enter("snapshots")
        return list(self.site.get(vm_moref).snapshots)

    def changed_areas(
        self, vm_moref: str, snapshot_moref: str, disk_key: int, change_id: str
    ) -> list[Extent]:
        self.site.enter("changed_areas")
        if snapshot_moref not in {one.moref for one in self.site.get(vm_moref).snapshots}:
            raise ChangeTrackingUnusableError("the snapshot does not exist")
        del change_id
        return list(self.site.areas.get(disk_key, []))

    def nfc_ticket(self, vm_moref: str, disk_key: int, *, write: bool) -> NfcTicket:
        del vm_moref, disk_key, write
        raise PermanentTransportError("the fake serves no disks")

    def datastore_latencies(self, names: Collection[str]) -> dict[str, DatastoreLatency]:
        self.site.enter("datastore_latencies")
        unknown = DatastoreLatency(read_ms=None, problem="no counter")
        return {name: self.site.latencies.get(name, unknown) for name in names}

    def host_addresses(self, host_moref: str) -> tuple[HostAddress, ...]:
        del host_moref
        return (HostAddress(address="127.0.0.1"),)

    def vm_config(self, vm_moref: str, snapshot_moref: str | None) -> VmConfig:
        self.site.enter("vm_config")
        vm = self.site.get(vm_moref)
        content = {"name": vm.name, "snapshot": snapshot_moref, "disks": len(vm.disks)}
        return VmConfig(json=json.dumps(content).encode(), nvram=b"nvram")

    def enable_change_tracking(self, vm_moref: str) -> None:
        self.site.enter("enable_change_tracking")
        self.site.get(vm_moref).tracking = True
        self.site.leave("enable_change_tracking")

    def disable_change_tracking(self, vm_moref: str) -> None:
        self.site.enter("disable_change_tracking")
        vm = self.site.get(vm_moref)
        if vm.snapshots:
            raise PermanentTransportError("the VM has snapshots")
        vm.tracking = False
        self.site.leave("disable_change_tracking")

    def create_snapshot(
        self,
        vm_moref: str,
        *,
        name: str,
        description: str,
        quiesce: bool,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> SnapshotInfo:
        self.site.enter("create_snapshot")
        if cancelled():
            raise PermanentTransportError("the snapshot was cancelled")
        with self.site.lock:
            vm = self.site.get(vm_moref)
            granted = quiesce and vm.tools and vm.power_state is PowerState.ON
            snapshot = self.site.new_snapshot(vm, name, description, quiesced=granted)
            vm.snapshots.append(snapshot)
            self.site.most_snapshots = max(self.site.most_snapshots, len(self.site.all_snapshots()))
        self.site.leave("create_snapshot")
        return snapshot

    def remove_snapshot(self, vm_moref: str, snapshot_moref: str) -> None:
        self.site.enter("remove_snapshot")
        with self.site.lock:
            vm = self.site.get(vm_moref)
            self.site.refuse_held(vm)
            vm.snapshots = [one for one in vm.snapshots if one.moref != snapshot_moref]
        self.site.leave("remove_snapshot")

    def consolidation_needed(self, vm_moref: str) -> bool:
        return self.site.get(vm_moref).consolidation_needed

    def consolidate(self, vm_moref: str) -> None:
        self.site.enter("consolidate")
        self.site.get(vm_moref).consolidation_needed = False
        self.site.leave("consolidate")

    def create_vm(self, config: VmConfig, placement: VmPlacement, *, mark: str) -> str:
        self.site.enter("create_vm")
        with self.site.lock:
            if any(vm.name == placement.name for vm in self.site.vms.values()):
                raise PermanentTransportError(f"a VM named {placement.name} exists")
            vm = self.site.add_vm(placement.name, disks=0, power_state=PowerState.OFF)
            vm.mark = mark
        self.site.leave("create_vm")
        return vm.moref

    def find_marked_vm(self, mark: str) -> str | None:
        self.site.enter("find_marked_vm")
        return next((vm.moref for vm in self.site.vms.values() if vm.mark == mark), None)

    def add_disks(
        self, vm_moref: str, config: VmConfig, disks: Sequence[NewDisk], placement: VmPlacement
    ) -> dict[int, DiskInfo]:
        self.site.enter("add_disks")
        vm = self.site.get(vm_moref)
        answer: dict[int, DiskInfo] = {}
        for at, disk in enumerate(disks):
            store = disk.datastore or placement.datastore
            new = FakeDisk(
                key=3000 + at,
                label=f"Hard disk {at + 1}",
                path=f"[{store}] {vm.name}/{vm.name}_{at}.vmdk",
                capacity_bytes=disk.capacity_bytes,
                thin=disk.thin,
            )
            vm.disks.append(new)
            answer[disk.disk_key] = new.info()
        self.site.leave("add_disks")
        return answer

    def finish_vm(self, vm_moref: str, config: VmConfig, placement: VmPlacement) -> list[str]:
        self.site.enter("finish_vm")
        vm = self.site.get(vm_moref)
        vm.mark = ""
        vm.finished = True
        self.site.leave("finish_vm")
        return []

    def destroy_marked_vm(self, vm_moref: str, mark: str) -> None:
        self.site.enter("destroy_marked_vm")
        vm = self.site.vms.get(vm_moref)
        if vm is not None and vm.mark == mark:
            self.site.refuse_held(vm)
            del self.site.vms[vm_moref]
        self.site.leave("destroy_marked_vm")

    def power_on(self, vm_moref: str) -> None:
        self.site.enter("power_on")
        self.site.refuse_held(self.site.get(vm_moref))
        self.site.get(vm_moref).power_state = PowerState.ON
        self.site.leave("power_on")

    # -- disks attached to other VMs

    def vms_by_bios_uuid(self, bios_uuid: str) -> list[str]:
        self.site.enter("vms_by_bios_uuid")
        return [vm.moref for vm in self.site.vms.values() if vm.bios_uuid == bios_uuid]

    def attachable_vm(self, moref: str) -> AttachableVm:
        self.site.enter("attachable_vm")
        vm = self.site.get(moref)
        own = [disk.info() for disk in vm.disks]
        foreign = [self._foreign(place, one) for place, one in vm.attached.items()]
        taken = {unit for _, unit in vm.attached} | set(range(len(own)))
        return AttachableVm(
            moref=moref,
            name=vm.name,
            instance_uuid=vm.instance_uuid,
            bios_uuid=vm.bios_uuid,
            hardware_version=19,
            controllers=(
                ScsiController(
                    key=1000,
                    bus=0,
                    kind="ParaVirtualSCSIController",
                    taken=frozenset(taken),
                    max_disks=15,
                ),
            ),
            disks=(*own, *foreign),
            new_controller_disks=15,
        )

    def _foreign(self, place: tuple[int, int], one: DiskToAttach) -> DiskInfo:
        disk = self._file(one.path)
        mode = "independent_persistent" if one.write else "independent_nonpersistent"
        at = f"SCSI ({place[0]}:{place[1]})"
        return replace(disk.info(), key=2000 + place[1], disk_mode=mode, controller=at)

    def _file(self, path: str) -> FakeDisk:
        for vm in self.site.vms.values():
            for disk in vm.disks:
                if disk.path == path:
                    return disk
        raise PermanentTransportError(f"there is no file {path}")

    def attach_disks(
        self, vm_moref: str, disks: Sequence[DiskToAttach], announce: Announce = lambda _places: None
    ) -> list[AttachedDisk]:
        self.site.enter("attach_disks")
        with self.site.lock:
            vm = self.site.get(vm_moref)
            files = {one.path: self._file(one.path) for one in disks}
            free = (n for n in range(len(vm.disks), 16) if n != 7 and (0, n) not in vm.attached)
            places = {one: self._place(vm, one) or (0, next(free)) for one in disks}
        announce([places[one] for one in disks])
        with self.site.lock:
            for one, place in places.items():
                vm.attached[place] = replace(one, places=None)
        self.site.leave("attach_disks")
        return [
            AttachedDisk(
                path=one.path,
                disk_uuid=files[one.path].uuid,
                controller_bus=places[one][0],
                unit=places[one][1],
                capacity_bytes=files[one.path].capacity_bytes,
            )
            for one in disks
        ]

    @staticmethod
    def _place(vm: FakeVm, one: DiskToAttach) -> Place | None:
        """Where it is, if by us. Somebody else's attachment of the file is in the way."""
        ours = _places(vm, one)
        if not ours and one.path in {other.path for other in vm.attached.values()}:
            raise TransportUnavailableError(f"{one.path} is attached already, and not by vmhaul")
        return next(iter(ours), None)

    def detach_disks(self, vm_moref: str, disks: Sequence[DiskToAttach]) -> None:
        self.site.enter("detach_disks")
        with self.site.lock:
            vm = self.site.get(vm_moref)
            gone = {place for one in disks for place in _places(vm, one)}
            vm.attached = {place: one for place, one in vm.attached.items() if place not in gone}
        self.site.leave("detach_disks")


def _places(vm: FakeVm, one: DiskToAttach) -> list[Place]:
    return [
        place
        for place, other in vm.attached.items()
        if (other.path, other.write) == (one.path, one.write)
        and (one.places is None or place in one.places)
    ]


def grow(disk: FakeDisk, by_bytes: int) -> None:
    disk.capacity_bytes += by_bytes


def renamed(snapshot: SnapshotInfo, name: str) -> SnapshotInfo:
    return replace(snapshot, name=name)
