"""What vSphere told us, as values. All sizes in bytes, all morefs as text ("vm-123")."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from transports.base import DatastoreRef


class Secret:
    """A text that is never shown: prints as ***; `reveal()` where it is used."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        return self._text

    def __repr__(self) -> str:
        return "***"

    __str__ = __repr__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._text == self._text

    def __hash__(self) -> int:
        return hash(self._text)


class PowerState(StrEnum):
    ON = "poweredOn"
    OFF = "poweredOff"
    SUSPENDED = "suspended"


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """A vCenter or a standalone ESXi host. The certificate is pinned by `thumbprint_sha256`
    (upper-case hex pairs with colons), taken when the server was added and confirmed by a person.
    """

    host: str
    port: int = 443
    thumbprint_sha256: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Login:
    username: str
    password: Secret


@dataclass(frozen=True, slots=True, kw_only=True)
class CloneTicket:
    """One-time ticket of another session of the same vCenter."""

    ticket: Secret


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerAddress:
    host: str
    port: int
    thumbprint_sha1: str
    """Of the confirmed certificate, as VDDK wants it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    name: str
    version: str
    build: str
    api_version: str
    api_type: str
    """"VirtualCenter" or "HostAgent"."""
    instance_uuid: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskInfo:
    """One virtual disk of a VM (or of a snapshot of it)."""

    key: int
    label: str
    path: str
    """Datastore path of the descriptor in use now."""
    base_path: str
    """Datastore path of the root of its chain (without snapshot deltas)."""
    uuid: str
    capacity_bytes: int
    datastore: str
    controller: str
    """For people and for the order: "SCSI (0:1)"."""
    disk_mode: str
    thin: bool
    change_id: str
    """Only meaningful for disks of a snapshot."""
    backup_obstacle: str
    """Why a snapshot does not contain this disk (independent, physical RDM, shared bus, ...); empty
    when it does."""
    eager: bool = False
    """Thick and written with zeros when it was made: a direct mode may write to it."""
    is_rdm: bool = False
    """Raw device mapping in virtual mode."""
    encrypted: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class VmInfo:
    moref: str
    name: str
    """Unescaped for people."""
    instance_uuid: str
    bios_uuid: str
    power_state: PowerState
    is_template: bool
    change_tracking_supported: bool
    change_tracking_enabled: bool
    hardware_version: str
    tools_running: bool
    guest_os: str
    host_moref: str
    path: tuple[str, ...]
    """Folder path from the datacenter down: ("DC0", "vm", "Prod")."""
    datacenter: str
    cluster: str
    resource_pool: str
    tags: tuple[str, ...]
    """Each tag twice: its bare name, and "category:name" for names that several categories have."""
    has_snapshots: bool
    consolidation_needed: bool
    managed_by: str
    """Extension that owns the VM (vCLS, appliances); empty for ordinary VMs."""
    disks: tuple[DiskInfo, ...]
    encrypted: bool = False
    """The VM's home is encrypted (config.keyId)."""
    host_version: str = ""
    """Of ESXi on `host_moref`, "8.0.2"; empty: not told."""
    scsi_buses: tuple[int, ...] = ()
    """Bus numbers of its SCSI controllers, with disks on them or without."""
    host_address: str = ""
    """Of HostInfo.address."""
    tools_version: str = ""
    """How the version of its VMware Tools stands (`guest.toolsVersionStatus2`): "guestToolsCurrent"; empty: not told."""
    guest_addresses: tuple[str, ...] = ()
    """IP addresses that its VMware Tools tell; none while they do not run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DatastoreInfo:
    moref: str
    name: str
    kind: str
    """"VMFS", "NFS", "NFS41", "vsan", "VVOL" or what the server says."""
    capacity_bytes: int
    free_bytes: int
    accessible: bool
    datacenter: str
    storage: DatastoreRef | None = None
    """What lies below, where the server describes it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostInfo:
    moref: str
    name: str
    version: str
    build: str
    connected: bool
    in_maintenance: bool
    cluster: str
    datacenter: str
    datastores: tuple[str, ...]
    address: str = ""
    """IP address of the adapter that carries backup traffic, or else management; empty: not told."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inventory:
    """Everything a job can select from, read in one go."""

    about: About
    datacenters: tuple[str, ...]
    clusters: tuple[str, ...]
    folders: tuple[str, ...]
    """Slash-joined paths below the datacenter's VM folder: "DC0/Prod/Web"."""
    resource_pools: tuple[str, ...]
    """Slash-joined: "DC0/Cluster0/Resources/Gold"."""
    hosts: tuple[HostInfo, ...]
    datastores: tuple[DatastoreInfo, ...]
    vms: tuple[VmInfo, ...]
    tags_known: bool
    """False when the server has no tagging service (standalone ESXi) or refused it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotInfo:
    """A VM snapshot as taken; `disks` come from the snapshot's own configuration."""

    moref: str
    name: str
    description: str
    vm_moref: str
    quiesced: bool
    """What was asked and granted; vSphere silently skips quiescing without running tools."""
    power_state: PowerState
    """Of the VM when the snapshot was made; as the tree says (off without memory) when listed later."""
    disks: tuple[DiskInfo, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ScsiController:
    """A SCSI controller of a VM, as vCenter shows it now."""

    key: int
    bus: int
    kind: str
    """Class of the device: "ParaVirtualSCSIController"."""
    taken: frozenset[int]
    """Unit numbers that something sits at; the controller's own (7) is not among them."""
    max_disks: int
    """How many disks it takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttachableVm:
    """A VM as far as disks may be attached to it."""

    moref: str
    name: str
    instance_uuid: str
    bios_uuid: str
    hardware_version: int
    """20 of "vmx-20"; 0: not told."""
    controllers: tuple[ScsiController, ...]
    disks: tuple[DiskInfo, ...]
    new_controller_disks: int
    """How many disks a paravirtual controller would take that is added to it."""
    change_version: str = ""
    """Of its configuration as it was read; a change that names it is refused when it is another by then. Empty: not
    told."""


Place = tuple[int, int]
"""Where a disk sits: bus of its SCSI controller, and unit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskToAttach:
    """A disk file that exists, to be attached to another VM than its own."""

    path: str
    """Datastore path of the descriptor."""
    write: bool
    """False: what the VM writes to it is thrown away and never reaches the file."""
    places: tuple[Place, ...] | None = None
    """Where we may have attached it: at no other place is it ours, whoever attached the same file in the same way.
    None: that was not noted (by an earlier release), and any place counts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttachedDisk:
    path: str
    disk_uuid: str
    """Backing uuid, "6000C29a-…"; empty where vCenter tells none."""
    controller_bus: int
    unit: int
    capacity_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NfcTicket:
    """Permission for one NFC connection; used once."""

    host: str
    port: int
    service: str
    """"vpxa-nfc" through vCenter, "nfc" on a standalone host."""
    session_id: Secret
    thumbprint_sha1: str
    certificate_pem: str = ""
    host_moref: str = ""
    """The host for which it was made."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostAddress:
    """An IP address of a host's VMkernel adapter."""

    address: str
    for_backup: bool = False
    """The administrator gave the adapter the service "vSphere Backup NFC"."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DatastoreLatency:
    """How long reads from a datastore took, as its hosts measured it last."""

    read_ms: float | None
    """Mean over its hosts in the last 20 s, weighted by their reads; None: not known."""
    problem: str = ""
    """Why it is not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VmPlacement:
    """Where a restored VM goes. Names as in Inventory; empty: as the configuration says."""

    name: str
    datacenter: str
    folder: str = ""
    resource_pool: str = ""
    host: str = ""
    datastore: str
    keep_identity: bool = False
    """Keep uuid, instanceUuid and MAC addresses (the original must be gone); else new ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewDisk:
    """A disk to add to a VM that is being restored."""

    disk_key: int
    """Key that it had in the restore point; the answer names the key that it has now."""
    capacity_bytes: int
    thin: bool
    datastore: str = ""
    """Empty: the placement's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VmConfig:
    """Configuration of a VM, kept with a restore point. `json` is pyVmomi's JSON of ConfigInfo plus
    names that the morefs in it stand for; only this package looks inside.
    """

    json: bytes
    nvram: bytes = field(default=b"", repr=False)
