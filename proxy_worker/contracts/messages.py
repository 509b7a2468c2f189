"""Work orders and reports between the backup server and its proxies.

Down: `TaskRequest` travels as the argument of one Celery task, `LeaseAnswer` and `ResultAck` through
the proxy's own `down` stream. Up: the `*Report` classes go into the proxy's own `up` stream.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from pipeline.model import DiskStats, ReadMode
from proxy_worker.contracts.ids import Attempt, ProxyId, SessionId, TaskId
from transports.base import LATER, DatastoreRef, DiskRef, Presented, TransportMode

SCHEMA_VERSION: Final = 1


class TaskKind(StrEnum):
    BACKUP_DISK = "backup-disk"
    RESTORE_DISK_TO_VM = "restore-disk-to-vm"
    RESTORE_DISK_TO_FILE = "restore-disk-to-file"
    COPY_DISK = "copy-disk"


class CompressionLevel(StrEnum):
    NONE = "none"
    FAST = "fast"
    BALANCED = "balanced"
    HIGH = "high"


class TaskOutcome(StrEnum):
    SUCCESS = "success"
    WARNING = "warning"  # done, but something should be looked at
    FAILED = "failed"  # permanent: the same attempt again would fail again
    RETRY = "retry"  # transient: worth another attempt, here or elsewhere
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupDiskOrder:
    """Read one disk of a VM snapshot into a repository."""

    disk: DiskRef
    previous_map_root: str
    """Map of this disk in the point that the increment builds on; empty for a full."""
    previous_change_id: str
    """Change id stored with that point; empty: tracking cannot be used."""
    current_change_id: str
    """Change id of the snapshot being read; empty: the disk is not tracked."""
    full_read_reason: str
    """Why the server wants everything read although a previous map exists; empty: no reason."""
    datastore_is_vmfs: bool
    compression: CompressionLevel
    known_changes: str = field(default="", metadata=LATER)
    """What changed since the previous point, asked while the VM snapshot still existed: extents as
    `contracts.extents` packs them. Empty: the proxy asks vCenter itself."""
    sampled_blocks: int = field(default=0, metadata=LATER)
    """So many blocks that change tracking calls unchanged are read all the same and compared, when anything
    changed at all. 0: none."""
    sample_when_unchanged: bool = field(default=False, metadata=LATER)
    """They are read although nothing changed: it is long since the disk's tracking was last put to the test."""
    continue_work: str = field(default="", metadata=LATER)
    """The task of an earlier session that read a part of this disk and was stopped; its work record stands in the
    repository. Empty: there is none."""
    continue_change_id: str = field(default="", metadata=LATER)
    """Change id of the moment that it read."""
    continue_changes: str = field(default="", metadata=LATER)
    """What changed since that moment, as `known_changes`. Empty: the proxy asks vCenter itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreDiskOrder:
    """Write one disk of a restore point to a VM's disk or to a raw file."""

    map_root: str
    capacity_bytes: int
    expected_sha256: str
    """Hash of the raw image when the point knows one; empty otherwise."""
    target_disk: DiskRef | None = None
    target_path: str = ""
    """Path of the raw file on the proxy's machine. The file is created; an existing one is refused
    unless `overwrite`."""
    overwrite: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RepositoryRef:
    """Where a repository is, without its secrets."""

    repository_id: str
    """Id inside the repository: the mover refuses another repository found at the same place."""
    location: str
    """What `pipeline.storage.open_storage` takes: the path of a directory, as the proxies see it, or the
    URL of a bucket."""
    immutable_days: int = field(default=0, metadata=LATER)
    """What is written is kept by the storage for so long; 0: it is not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyDiskOrder:
    """Copy one disk of a restore point from another repository into the task's own."""

    source: RepositoryRef
    map_root: str
    """Map of the disk in the source."""
    capacity_bytes: int
    base_map_root: str
    """Map, in the source, of the point that was copied last; empty: none was."""
    base_capacity_bytes: int
    copied_map_root: str
    """Map, in the task's repository, that the copy of `base_map_root` has; empty: none was."""
    compression: CompressionLevel


@dataclass(frozen=True, slots=True, kw_only=True)
class RateLimit:
    """How fast one task may move data: all that is counted together."""

    bytes_per_s: int
    source: bool
    """What it reads is counted: of a backup the disk, of a restore or a copy the repository it comes from."""
    target: bool
    """What it sends is counted: of a backup or a copy the repository, of a restore the disk."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskRequest:
    """One work order: one VM disk in one session, on one proxy, for one attempt."""

    schema_version: int = SCHEMA_VERSION
    kind: TaskKind
    task_id: TaskId
    session_id: SessionId
    attempt: Attempt
    proxy_id: ProxyId
    expires_at_s: float
    """Unix time after which an order that was not begun must not be begun."""
    title: str
    """For people, logs and Flower: "backup db01 / Hard disk 2"."""
    mode: TransportMode
    repository: RepositoryRef
    backup: BackupDiskOrder | None = None
    restore: RestoreDiskOrder | None = None
    copy: CopyDiskOrder | None = field(default=None, metadata=LATER)
    fallback_modes: tuple[TransportMode, ...] = field(default=(), metadata=LATER)
    """Modes in which this proxy may go on when `mode` fails, in their order."""
    preferred_networks: tuple[str, ...] = field(default=(), metadata=LATER)
    """Networks ("192.0.2.0/24") in which a network mode looks for an address of the ESXi host first."""
    lease_s: float = field(default=0.0, metadata=LATER)
    """How long the lease lasts at least from the moment at which a heartbeat was sent that the server then
    answered with HELD. Whoever writes to a VM's disk MUST NOT write after that. 0: the server does not say."""
    rate: RateLimit | None = field(default=None, metadata=LATER)
    """How fast at its beginning; None: as fast as it can. A RateOrder changes it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VsphereAccess:
    """A session of vCenter for one task. The clone ticket works once, for a short time."""

    host: str
    port: int
    thumbprint_sha256: str
    clone_ticket: str = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSecrets:
    """Answer to a redeemed lease; on the wire sealed to the proxy's X25519 key. Never stored."""

    schema_version: int = SCHEMA_VERSION
    task_id: TaskId
    attempt: Attempt
    repository_key: str = field(repr=False)
    """What opens the repository: `Repository.key_material`."""
    storage_secrets: str = field(default="", repr=False, metadata=LATER)
    """What opens its storage, as a JSON object of texts; empty: nothing is needed."""
    source_repository_key: str = field(default="", repr=False, metadata=LATER)
    """The same two of a copy's source."""
    source_storage_secrets: str = field(default="", repr=False, metadata=LATER)
    vsphere: VsphereAccess | None = None


# ---- proxy -> server ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningTask:
    task_id: TaskId
    attempt: Attempt


@dataclass(frozen=True, slots=True, kw_only=True)
class HeartbeatReport:
    """Every heartbeat interval, and at once when a slot becomes free or the worker starts or stops."""

    schema_version: int = SCHEMA_VERSION
    proxy_id: ProxyId
    boot_id: str
    """New at every start of the worker: leases of another boot id are lost."""
    sequence: int
    version: str
    clock_s: float
    """The proxy's Unix time, for the clock check."""
    slots: int
    running: tuple[RunningTask, ...]
    stopping: bool
    modes: tuple[TransportMode, ...]
    cpu_share: float
    free_memory_bytes: int
    takes_leases_held: bool = field(default=False, metadata=LATER)
    """It understands `LeasesHeld`."""
    no_directories: str = field(default="", metadata=LATER)
    """Why the proxy opens no repository in a directory and makes no image file; empty: it does both."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgressReport:
    """Latest state of one task; may be lost, never needed for correctness."""

    schema_version: int = SCHEMA_VERSION
    task_id: TaskId
    attempt: Attempt
    phase: str
    """One of opening, querying-changes, reading, writing, finishing."""
    total_bytes: int
    """Bytes that will have to be considered; 0 while unknown."""
    done_bytes: int
    read_bytes: int
    stored_bytes: int
    bytes_per_s: float
    """Over the last few seconds."""
    bottleneck: str
    mode: TransportMode | None = field(default=None, metadata=LATER)
    """The mode in use now; None: no disk of vSphere is open, or the proxy does not tell."""
    rate_bytes_per_s: int = field(default=-1, metadata=LATER)
    """The rate that the mover holds now; 0: none. -1: the proxy does not tell."""
    passed_bytes_per_s: float = field(default=-1.0, metadata=LATER)
    """What passed under a rate over the last few seconds; -1: nothing was held to one, or the proxy does not tell."""
    held_share: float = field(default=0.0, metadata=LATER)
    """For which part of the last few seconds something waited because of the rate: threads that wait at once count
    each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failover:
    """One mode that was left in the course of a task."""

    mode: TransportMode
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultReport:
    """The end of one attempt. Kept by the proxy and sent again until the server acknowledges it."""

    schema_version: int = SCHEMA_VERSION
    task_id: TaskId
    attempt: Attempt
    outcome: TaskOutcome
    reason: str
    """For people; empty for a plain success."""
    read_mode: ReadMode | None = None
    read_mode_reason: str = ""
    """Why not an increment, when it is not."""
    map_root: str = ""
    sha256: str = ""
    mode: TransportMode | None = None
    """The mode that ended the disk."""
    stats: DiskStats | None = None
    failovers: tuple[Failover, ...] = field(default=(), metadata=LATER)
    """Modes that were left on the way, in their order."""
    tracking_mismatch: str = field(default="", metadata=LATER)
    """Where a sample showed that change tracking had missed a change, for people; empty: nowhere."""
    sampled_blocks: int = field(default=0, metadata=LATER)
    """How many blocks that tracking called unchanged were read and compared."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """Whether and how the proxy reaches one datastore in one mode."""

    datastore: str
    """`DatastoreProbe.datastore`."""
    mode: TransportMode
    readable: bool
    writable: bool
    hops: int = -1
    """Routers on the way to an NFS server; -1: not known."""
    reason: str = ""
    """Why not; empty when it is reached for both."""
    portals: tuple[str, ...] = field(default=(), metadata=LATER)
    """Addresses of iSCSI targets through which its LUNs are reached; empty: through none, or none is known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MissingMode:
    mode: TransportMode
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionsReport:
    """What the proxy found when it looked around: at its start, every four hours and when asked to."""

    schema_version: int = SCHEMA_VERSION
    proxy_id: ProxyId
    vm_uuid: str
    """SMBIOS UUID of the machine, lower case with dashes; empty: it shows none."""
    addresses: tuple[str, ...]
    """IP addresses with prefix lengths: "192.0.2.7/24"."""
    connections: tuple[Connection, ...]
    missing: tuple[MissingMode, ...]
    """Modes that the machine does not offer, and what it lacks."""


UpReport = HeartbeatReport | ProgressReport | ResultReport | ConnectionsReport


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretsRequest:
    """Asks for the secrets of a task, over HTTP; the signature and the lease are the authority."""

    schema_version: int = SCHEMA_VERSION
    task_id: TaskId
    attempt: Attempt


@dataclass(frozen=True, slots=True, kw_only=True)
class PresentRequest:
    """Asks, over HTTP, to make the task's disk reachable. Asked again it has the same answer."""

    schema_version: int = SCHEMA_VERSION
    task_id: TaskId
    attempt: Attempt
    mode: TransportMode
    write: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class WithdrawRequest:
    """Says, over HTTP, that the disk is closed and need not be reachable any more."""

    schema_version: int = SCHEMA_VERSION
    task_id: TaskId
    attempt: Attempt
    mode: TransportMode


@dataclass(frozen=True, slots=True, kw_only=True)
class DatastoresRequest:
    """Asks, over HTTP, for the datastores that this proxy should look for."""

    schema_version: int = SCHEMA_VERSION
    proxy_id: ProxyId


# ---- server -> proxy, besides TaskRequest ---------------------------------------------------------


class LeaseVerdict(StrEnum):
    HELD = "held"
    LOST = "lost"  # stop at once, report nothing that changes anything
    CANCEL = "cancel"  # stop in order, report CANCELLED


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseAnswer:
    schema_version: int = SCHEMA_VERSION
    task_id: TaskId
    attempt: Attempt
    verdict: LeaseVerdict
    sequence: int = field(default=0, metadata=LATER)
    """Of the heartbeat that is answered; 0: this answers none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeasesHeld:
    """All that a heartbeat named and that is to go on, in one message; to workers whose heartbeats say that they take
    it. The others, and other verdicts, are told by a `LeaseAnswer` each.
    """

    schema_version: int = SCHEMA_VERSION
    sequence: int
    """Of the heartbeat that is answered."""
    held: tuple[RunningTask, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultAck:
    schema_version: int = SCHEMA_VERSION
    task_id: TaskId
    attempt: Attempt


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedSecrets:
    """Answer to a SecretsRequest. The box is anonymous; the envelope around it says that it is the
    server's.
    """

    schema_version: int = SCHEMA_VERSION
    task_id: TaskId
    attempt: Attempt
    sealed: str = field(repr=False)
    """TaskSecrets as JSON in a libsodium sealed box to the proxy's X25519 key, base64url."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PresentAnswer:
    """Answer to a PresentRequest. One that was refused is an HTTP error: 409 when another mode may do, 503
    when another try may.
    """

    schema_version: int = SCHEMA_VERSION
    task_id: TaskId
    attempt: Attempt
    presented: Presented


@dataclass(frozen=True, slots=True, kw_only=True)
class WithdrawAnswer:
    schema_version: int = SCHEMA_VERSION
    task_id: TaskId
    attempt: Attempt


@dataclass(frozen=True, slots=True, kw_only=True)
class DatastoreProbe:
    datastore: str
    """"<vcenter id>/<datastore name>", as tasks name it."""
    storage: DatastoreRef


@dataclass(frozen=True, slots=True, kw_only=True)
class DatastoresAnswer:
    schema_version: int = SCHEMA_VERSION
    probes: tuple[DatastoreProbe, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RescanOrder:
    """Look around now and report."""

    schema_version: int = SCHEMA_VERSION
    proxy_id: ProxyId


@dataclass(frozen=True, slots=True, kw_only=True)
class RateOrder:
    """How fast a running attempt may move data from now on. Said again while it holds."""

    schema_version: int = SCHEMA_VERSION
    task_id: TaskId
    attempt: Attempt
    rate: RateLimit | None
    """None: as fast as it can."""


DownMessage = LeaseAnswer | LeasesHeld | ResultAck | RescanOrder | RateOrder
