"""The job database: SQLite for one machine, PostgreSQL for many; the same tables.

Ids are UUIDs in text. Times are aware, UTC. JSON columns hold values that are read as a whole and
never searched. Invariants stand as constraints and partial indices beside the table they guard.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


def new_id() -> str:
    return str(uuid4())


class UtcDateTime(sa.types.TypeDecorator[datetime]):
    """Aware in, aware out, on databases that know time zones and on those that do not."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a time without a time zone has no place in the database")
        value = value.astimezone(UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        del dialect
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Base(DeclarativeBase):
    type_annotation_map = {  # noqa: RUF012 - the form SQLAlchemy reads
        datetime: UtcDateTime,
        dict[str, Any]: sa.JSON,
        list[Any]: sa.JSON,
        int: sa.BigInteger().with_variant(sa.Integer, "sqlite"),
    }
    metadata = sa.MetaData(
        naming_convention={
            "ix": "ix_%(column_0_label)s",
            "uq": "uq_%(table_name)s_%(column_0_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


class Setting(Base):
    """Facts of this installation: server id, schema notes."""

    __tablename__ = "settings"
    name: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[str]


class Credential(Base):
    """A secret at rest, sealed with the server key (which is not in the database)."""

    __tablename__ = "credentials"
    id: Mapped[str] = mapped_column(primary_key=True, default=new_id)
    kind: Mapped[str]
    sealed: Mapped[bytes]
    created_at: Mapped[datetime]


class Vcenter(Base):
    __tablename__ = "vcenters"
    id: Mapped[str] = mapped_column(primary_key=True, default=new_id)
    name: Mapped[str] = mapped_column(unique=True)
    host: Mapped[str]
    port: Mapped[int]
    username: Mapped[str]
    credential_id: Mapped[str] = mapped_column(sa.ForeignKey("credentials.id"))
    thumbprint_sha256: Mapped[str]
    instance_uuid: Mapped[str]
    about: Mapped[dict[str, Any]]
    inventory: Mapped[dict[str, Any] | None] = mapped_column(sa.JSON, deferred=True)
    inventory_at: Mapped[datetime | None]
    created_at: Mapped[datetime]


class Repository(Base):
    __tablename__ = "repositories"
    id: Mapped[str] = mapped_column(primary_key=True, default=new_id)
    name: Mapped[str] = mapped_column(unique=True)
    repository_id: Mapped[str] = mapped_column(unique=True)
    """Id inside the repository."""
    location: Mapped[str]
    credential_id: Mapped[str] = mapped_column(sa.ForeignKey("credentials.id"))
    storage_credential_id: Mapped[str | None] = mapped_column(sa.ForeignKey("credentials.id"))
    """What opens the storage, a JSON object of texts; NULL where it asks for nothing."""
    settings: Mapped[dict[str, Any]] = mapped_column(default=dict)
    """extents, immutable_days, verification; services/repositories.py knows each."""
    next_check_at: Mapped[datetime | None] = mapped_column(index=True)
    """When the next scheduled verification is due."""
    block_size_bytes: Mapped[int]
    max_tasks: Mapped[int]
    total_bytes: Mapped[int | None]
    free_bytes: Mapped[int | None]
    space_at: Mapped[datetime | None]
    created_at: Mapped[datetime]


class Proxy(Base):
    __tablename__ = "proxies"
    id: Mapped[str] = mapped_column(primary_key=True, default=new_id)
    name: Mapped[str] = mapped_column(unique=True)
    description: Mapped[str] = mapped_column(default="")
    local: Mapped[bool]
    """Run by `vmhaul up` on the server's machine."""
    enabled: Mapped[bool] = mapped_column(default=True)
    slots: Mapped[int]
    modes: Mapped[list[Any]] = mapped_column(default=list)
    """Allowed transport modes; empty: all it can."""
    join_token_hash: Mapped[str | None]
    """SHA-256 of the one-time token; NULL once used."""
    join_token_expires_at: Mapped[datetime | None]
    signing_key: Mapped[str | None]
    """Ed25519 verify key, hexadecimal; NULL until enrolled."""
    sealing_key: Mapped[str | None]
    """X25519 public key, hexadecimal."""
    boot_id: Mapped[str | None]
    version: Mapped[str | None]
    last_seen_at: Mapped[datetime | None]
    clock_offset_s: Mapped[float | None]
    facts: Mapped[dict[str, Any]] = mapped_column(default=dict)
    """From the last heartbeat: cpu_share, free_memory_bytes, modes offered."""
    settings: Mapped[dict[str, Any]] = mapped_column(default=dict)
    """What the administrator set of its modes; services/proxies.py knows each."""
    connections: Mapped[dict[str, Any]] = mapped_column(default=dict)
    """The last ConnectionsReport."""
    connections_at: Mapped[datetime | None]
    server_id: Mapped[str | None] = mapped_column(sa.ForeignKey("managed_servers.id"))
    """The machine on which vmhaul installed it; NULL for one that joined by itself or is local."""
    broker_credential_id: Mapped[str | None] = mapped_column(sa.ForeignKey("credentials.id"))
    """Password of its own broker user; NULL for one on the broker's Unix socket."""
    state_note: Mapped[str] = mapped_column(default="")
    """What is wrong with it, for people: two machines with its identity, a version too old. Empty: nothing."""
    created_at: Mapped[datetime]


class Job(Base):
    __tablename__ = "jobs"
    id: Mapped[str] = mapped_column(primary_key=True, default=new_id)
    name: Mapped[str] = mapped_column(unique=True)
    description: Mapped[str] = mapped_column(default="")
    enabled: Mapped[bool] = mapped_column(default=True)
    kind: Mapped[str] = mapped_column(default="backup")
    """A JobKind: backup, copy."""
    vcenter_id: Mapped[str | None] = mapped_column(sa.ForeignKey("vcenters.id"))
    """NULL for a copy job."""
    repository_id: Mapped[str] = mapped_column(sa.ForeignKey("repositories.id"))
    """Where it writes to."""
    source_repository_id: Mapped[str | None] = mapped_column(sa.ForeignKey("repositories.id"))
    """Of a copy job: where it reads from."""
    selection: Mapped[dict[str, Any]]
    schedule: Mapped[dict[str, Any] | None] = mapped_column(sa.JSON)
    retention: Mapped[dict[str, Any]]
    options: Mapped[dict[str, Any]]
    """quiesce, compression, change_tracking, full_every_days, retries, proxies, modes."""
    next_run_at: Mapped[datetime | None] = mapped_column(index=True)
    window: Mapped[dict[str, Any] | None] = mapped_column(sa.JSON)
    """When it may run; NULL: always. services/windows.py knows its form."""
    after_job_id: Mapped[str | None] = mapped_column(
        sa.ForeignKey("jobs.id", ondelete="SET NULL"), index=True
    )
    """It runs when a session of that job has ended."""
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]


class JobRun(Base):
    """A due time that was acted on. The key keeps two schedulers from firing it twice."""

    __tablename__ = "job_runs"
    job_id: Mapped[str] = mapped_column(sa.ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    due_at: Mapped[datetime] = mapped_column(primary_key=True)
    outcome: Mapped[str]
    """"started", or why not: "missed", "still running"."""
    session_id: Mapped[str | None]


class Session(Base):
    """One run of a job, or one restore, check or prune."""

    __tablename__ = "sessions"
    id: Mapped[str] = mapped_column(primary_key=True, default=new_id)
    kind: Mapped[str]
    job_id: Mapped[str | None] = mapped_column(
        sa.ForeignKey("jobs.id", ondelete="SET NULL"), index=True
    )
    job_name: Mapped[str] = mapped_column(default="")
    """Kept when the job is gone."""
    repository_id: Mapped[str | None] = mapped_column(sa.ForeignKey("repositories.id"))
    vcenter_id: Mapped[str | None] = mapped_column(sa.ForeignKey("vcenters.id"))
    state: Mapped[str]
    result: Mapped[str | None]
    reason: Mapped[str] = mapped_column(default="")
    options: Mapped[dict[str, Any]] = mapped_column(default=dict)
    """What this run was asked: full, only_failed, the restore's target, check's arguments."""
    cancel_requested: Mapped[bool] = mapped_column(default=False)
    stop_reason: Mapped[str] = mapped_column(default="")
    """Why it is to stop in order although nobody cancelled it: its window closed. Empty: it is not."""
    retry_of: Mapped[str | None]
    attempt: Mapped[int] = mapped_column(default=1)
    """1 for the first run, counted up by automatic retries of the failed VMs."""
    created_at: Mapped[datetime] = mapped_column(index=True)
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    report: Mapped[dict[str, Any]] = mapped_column(default=dict)
    """What a session without VMs found: problems of a check, figures of a prune."""

    __table_args__ = (
        # One session of a job at a time; everything that starts one relies on this.
        sa.Index(
            "uq_sessions_one_open_per_job",
            "job_id",
            unique=True,
            sqlite_where=sa.text("state <> 'finished' AND job_id IS NOT NULL"),
            postgresql_where=sa.text("state <> 'finished' AND job_id IS NOT NULL"),
        ),
        sa.Index("ix_sessions_state", "state"),
    )


class SessionVm(Base):
    """One VM in one session."""

    __tablename__ = "session_vms"
    id: Mapped[str] = mapped_column(primary_key=True, default=new_id)
    session_id: Mapped[str] = mapped_column(
        sa.ForeignKey("sessions.id", ondelete="CASCADE"), index=True
    )
    position: Mapped[int]
    moref: Mapped[str]
    instance_uuid: Mapped[str]
    name: Mapped[str]
    state: Mapped[str]
    result: Mapped[str | None]
    reason: Mapped[str] = mapped_column(default="")
    warnings: Mapped[list[Any]] = mapped_column(default=list)
    restore_point_id: Mapped[str | None]
    """Backup: the id the point will have, chosen before anything else. Restore: the source."""
    details: Mapped[dict[str, Any]] = mapped_column(default=dict)
    """What later steps need: snapshot, per-disk change ids, consistency, target VM."""
    vm_config: Mapped[bytes | None] = mapped_column(deferred=True)
    nvram: Mapped[bytes | None] = mapped_column(deferred=True)
    snapshot_at: Mapped[datetime | None]
    snapshot_removed_at: Mapped[datetime | None]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]

    __table_args__ = (
        # A VM is in a session once, however many selectors name it.
        sa.UniqueConstraint("session_id", "instance_uuid", name="uq_session_vms_vm"),
        sa.Index("ix_session_vms_state", "state"),
    )


class Task(Base):
    """One VM disk in one session."""

    __tablename__ = "tasks"
    id: Mapped[str] = mapped_column(primary_key=True, default=new_id)
    session_id: Mapped[str] = mapped_column(
        sa.ForeignKey("sessions.id", ondelete="CASCADE"), index=True
    )
    session_vm_id: Mapped[str] = mapped_column(
        sa.ForeignKey("session_vms.id", ondelete="CASCADE"), index=True
    )
    kind: Mapped[str]
    title: Mapped[str]
    position: Mapped[int]
    disk_key: Mapped[int]
    disk_label: Mapped[str]
    disk_path: Mapped[str]
    capacity_bytes: Mapped[int]
    datastore: Mapped[str]
    """"<vcenter id>/<datastore name>": what datastore limits count."""
    repository_id: Mapped[str] = mapped_column(sa.ForeignKey("repositories.id"))
    vcenter_id: Mapped[str | None] = mapped_column(sa.ForeignKey("vcenters.id"))
    order: Mapped[dict[str, Any]]
    """The BackupDiskOrder or RestoreDiskOrder as JSON."""
    host_moref: Mapped[str] = mapped_column(default="")
    """ESXi host of the VM when the task was made: what the NFC budget counts. Empty: none is asked."""
    facts: Mapped[dict[str, Any]] = mapped_column(default=dict)
    """transports.rules.DiskFacts as JSON: what the transport modes are judged by."""
    allowed_proxies: Mapped[list[Any]] = mapped_column(default=list)
    """Proxy ids; empty: any."""
    allowed_modes: Mapped[list[Any]] = mapped_column(default=list)
    priority: Mapped[int]
    """Lower is sooner: 0 restore, 1 backup, 2 copy."""
    state: Mapped[str]
    result: Mapped[str | None]
    reason: Mapped[str] = mapped_column(default="")
    attempt: Mapped[int] = mapped_column(default=0)
    """Raised by every hand-out; the fencing token. 0: never handed out."""
    failures: Mapped[int] = mapped_column(default=0)
    """Attempts that ended with RETRY or a lost lease."""
    not_before: Mapped[datetime | None]
    """Back-off after a failed attempt."""
    cancel_requested: Mapped[bool] = mapped_column(default=False)
    proxy_id: Mapped[str | None] = mapped_column(sa.ForeignKey("proxies.id", ondelete="SET NULL"))
    proxy_name: Mapped[str] = mapped_column(default="")
    proxy_boot_id: Mapped[str | None]
    mode: Mapped[str | None]
    leased_until: Mapped[datetime | None] = mapped_column(index=True)
    decision: Mapped[dict[str, Any] | None] = mapped_column(sa.JSON)
    """Placement: chosen pair and all candidates with reasons."""
    progress: Mapped[dict[str, Any]] = mapped_column(default=dict)
    read_mode: Mapped[str | None]
    read_mode_reason: Mapped[str] = mapped_column(default="")
    map_root: Mapped[str] = mapped_column(default="")
    sha256: Mapped[str] = mapped_column(default="")
    stats: Mapped[dict[str, Any] | None] = mapped_column(sa.JSON)
    continues_task_id: Mapped[str | None]
    """The task of an earlier session whose work, durable in the repository, this one goes on from."""
    rate_bytes_per_s: Mapped[int | None]
    """What traffic rules and latency control let it move now; NULL: as much as it can."""
    created_at: Mapped[datetime]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]

    __table_args__ = (
        # One task for a disk in a session, whatever is retried or sent twice.
        sa.UniqueConstraint("session_vm_id", "disk_key", name="uq_tasks_disk"),
        # What the dispatcher asks in every round: which tasks are new, and whose pause is over.
        sa.Index("ix_tasks_state", "state", "created_at"),
        sa.Index(
            "ix_tasks_not_before",
            "not_before",
            sqlite_where=sa.text("not_before IS NOT NULL"),
            postgresql_where=sa.text("not_before IS NOT NULL"),
        ),
    )


class RestorePointRow(Base):
    """Catalogue of restore points; the repository is the truth, this can be rebuilt from it."""

    __tablename__ = "restore_points"
    id: Mapped[str] = mapped_column(primary_key=True)
    repository_id: Mapped[str] = mapped_column(sa.ForeignKey("repositories.id"), index=True)
    job_id: Mapped[str | None] = mapped_column(sa.ForeignKey("jobs.id", ondelete="SET NULL"))
    job_name: Mapped[str]
    session_id: Mapped[str | None]
    vcenter_uuid: Mapped[str]
    instance_uuid: Mapped[str]
    vm_name: Mapped[str]
    created_at: Mapped[datetime]
    kind: Mapped[str]
    consistency: Mapped[str]
    previous_id: Mapped[str | None]
    disks: Mapped[list[Any]]
    """As in DiskPoint, plus read_bytes and stored_bytes where known."""
    size_bytes: Mapped[int]
    source_point_id: Mapped[str | None] = mapped_column(index=True)
    """Of a copy: the point that it is a copy of."""
    immutable_until: Mapped[datetime | None]
    """Until when the storage keeps it whatever anybody wants; NULL: it does not."""
    doubt: Mapped[str] = mapped_column(default="")
    """Why its content may miss changes; empty: nothing speaks against it."""
    deleting: Mapped[bool] = mapped_column(default=False)
    """Chosen by retention or a person; the repository's part is not done yet."""

    __table_args__ = (
        sa.Index("ix_restore_points_chain", "repository_id", "instance_uuid", "created_at"),
    )


class Intent(Base):
    """A side effect on vSphere, written before it is made; closed when nothing of it is left."""

    __tablename__ = "intents"
    id: Mapped[str] = mapped_column(primary_key=True, default=new_id)
    kind: Mapped[str]
    state: Mapped[str]
    vcenter_id: Mapped[str] = mapped_column(sa.ForeignKey("vcenters.id"))
    session_id: Mapped[str | None] = mapped_column(index=True)
    session_vm_id: Mapped[str | None] = mapped_column(index=True)
    vm_moref: Mapped[str]
    vm_instance_uuid: Mapped[str]
    vm_name: Mapped[str]
    mark: Mapped[str]
    """What the thing bears so that it is known as ours."""
    object_ref: Mapped[str | None]
    """Moref, once vSphere told it."""
    task_id: Mapped[str | None] = mapped_column(index=True)
    """The task for which it was made, where it was one."""
    details: Mapped[dict[str, Any]] = mapped_column(default=dict)
    """What undoing needs besides: proxy, attempt, slot, storage system, snapshot."""
    problem: Mapped[str] = mapped_column(default="")
    """Why cleaning up did not succeed so far."""
    tries: Mapped[int] = mapped_column(default=0)
    next_try_at: Mapped[datetime | None]
    created_at: Mapped[datetime]
    closed_at: Mapped[datetime | None]

    __table_args__ = (sa.Index("ix_intents_state", "state"),)


class ManagedServer(Base):
    """A machine to which vmhaul has access: proxies are installed, upgraded and removed on it."""

    __tablename__ = "managed_servers"
    id: Mapped[str] = mapped_column(primary_key=True, default=new_id)
    name: Mapped[str] = mapped_column(unique=True)
    kind: Mapped[str]
    """"linux" (SSH) or "windows" (WinRM)."""
    address: Mapped[str]
    port: Mapped[int]
    username: Mapped[str]
    credential_id: Mapped[str | None] = mapped_column(sa.ForeignKey("credentials.id"))
    host_key: Mapped[str]
    """Pinned: the SSH host key, or the SHA-256 of the WinRM listener's certificate."""
    facts: Mapped[dict[str, Any]] = mapped_column(default=dict)
    """What was found there: system, Python, init, space."""
    created_at: Mapped[datetime]


class TrafficRule(Base):
    """How fast, and how, data may move between two sets of addresses."""

    __tablename__ = "traffic_rules"
    id: Mapped[str] = mapped_column(primary_key=True, default=new_id)
    name: Mapped[str] = mapped_column(unique=True)
    enabled: Mapped[bool] = mapped_column(default=True)
    source: Mapped[list[Any]] = mapped_column(default=list)
    """Networks ("192.0.2.0/24") or ranges ("192.0.2.1-192.0.2.9"); the rule holds in both directions."""
    target: Mapped[list[Any]] = mapped_column(default=list)
    rate_bytes_per_s: Mapped[int | None]
    """For all traffic together that it covers; NULL: not limited."""
    encrypt: Mapped[bool] = mapped_column(default=False)
    options: Mapped[dict[str, Any]] = mapped_column(default=dict)
    """windows, restores; services/traffic_rules.py knows each."""
    created_at: Mapped[datetime]


class DatastoreLoad(Base):
    """What is allowed on one datastore, and how slow it was last."""

    __tablename__ = "datastore_loads"
    id: Mapped[str] = mapped_column(primary_key=True, default=new_id)
    vcenter_id: Mapped[str] = mapped_column(sa.ForeignKey("vcenters.id", ondelete="CASCADE"))
    datastore: Mapped[str]
    """Its name."""
    settings: Mapped[dict[str, Any]] = mapped_column(default=dict)
    """What overrides the server's settings; services/datastore_loads.py knows each."""
    read_latency_ms: Mapped[float | None]
    measured_at: Mapped[datetime | None]
    problem: Mapped[str] = mapped_column(default="")
    """Why it could not be measured; empty when it could."""
    control: Mapped[dict[str, Any]] = mapped_column(default=dict)
    """What follows from the latency; services/datastore_loads.py knows each."""

    __table_args__ = (
        sa.UniqueConstraint("vcenter_id", "datastore", name="uq_datastore_loads_datastore"),
    )


class StorageSystem(Base):
    """A disk array or file server that makes snapshots of the volumes below datastores."""

    __tablename__ = "storage_systems"
    id: Mapped[str] = mapped_column(primary_key=True, default=new_id)
    name: Mapped[str] = mapped_column(unique=True)
    driver: Mapped[str]
    address: Mapped[str]
    options: Mapped[dict[str, Any]] = mapped_column(default=dict)
    """services/storage_systems.py knows each driver's; the proxies that may read from it among them."""
    credential_id: Mapped[str | None] = mapped_column(sa.ForeignKey("credentials.id"))
    enabled: Mapped[bool] = mapped_column(default=True)
    volumes: Mapped[list[Any]] = mapped_column(default=list)
    """From the last rescan: volumes with the datastores that lie on them."""
    rescanned_at: Mapped[datetime | None]
    problem: Mapped[str] = mapped_column(default="")
    """Why the last rescan failed; empty when it did not."""
    created_at: Mapped[datetime]


class OutboxRow(Base):
    """A message to be sent after its transaction committed."""

    __tablename__ = "outbox"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    kind: Mapped[str]
    """"task": a TaskRequest for a proxy's queue; "down": a LeaseAnswer for its down stream; "rescan": a
    RescanOrder for that stream."""
    proxy_id: Mapped[str]
    task_id: Mapped[str | None]
    attempt: Mapped[int | None]
    body: Mapped[dict[str, Any]]
    created_at: Mapped[datetime]


class Event(Base):
    """Log lines of a session, for people."""

    __tablename__ = "events"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    session_id: Mapped[str | None] = mapped_column(
        sa.ForeignKey("sessions.id", ondelete="CASCADE"), index=True
    )
    task_id: Mapped[str | None]
    at: Mapped[datetime]
    level: Mapped[str]
    """info, warning or error."""
    name: Mapped[str]
    """Stable event name: "snapshot.created"."""
    text: Mapped[str]


class Leader(Base):
    """Who runs the scheduler: one row, held by renewing it."""

    __tablename__ = "leader"
    name: Mapped[str] = mapped_column(primary_key=True)
    owner: Mapped[str]
    until: Mapped[datetime]
    fence: Mapped[int]
