"""What the API answers, for the OpenAPI description and for tests.

Answers are plain values of the services and are not copied through these models; tests hold real
answers against them.
"""

from __future__ import annotations

from typing import Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict

T = TypeVar("T")


class Answer(BaseModel):
    model_config = ConfigDict(extra="allow", frozen=True)


class ErrorBody(Answer):
    code: str
    message: str
    details: dict[str, Any]


class ErrorAnswer(Answer):
    error: ErrorBody


class Page(Answer, Generic[T]):
    items: list[T]
    next: str | None


class About(Answer):
    version: str
    server_id: str
    started_at: str
    data_dir: str
    database: str
    broker: str
    flower_url: str | None
    proxies_door: list[str]
    """URLs of the door for proxies on other machines; empty: there is none."""


class Health(Answer):
    status: str


class Probe(Answer):
    thumbprint_sha256: str
    thumbprint_sha1: str


class Vcenter(Answer):
    id: str
    name: str
    host: str
    port: int
    username: str
    thumbprint_sha256: str
    instance_uuid: str
    about: dict[str, Any]
    inventory_at: str | None


class StorageDrivers(Answer):
    drivers: list[dict[str, Any]]


class StorageProbe(Answer):
    driver: str
    address: str
    identity: str


class TrafficRule(Answer):
    id: str
    name: str
    enabled: bool
    source: list[str]
    target: list[str]
    rate_bytes_per_s: int | None
    rate: str
    windows: list[dict[str, Any]]
    rate_now_bytes_per_s: int | None
    rate_now: str
    restores: bool
    encrypt: bool
    created_at: str | None


class Datastore(Answer):
    vcenter: str
    vcenter_id: str
    name: str
    kind: str
    capacity_bytes: int | None
    free_bytes: int | None
    settings: dict[str, Any]
    allowed: dict[str, Any]
    read_latency_ms: float | None
    measured_at: str | None
    problem: str
    closed_since: str | None
    allowance_bytes_per_s: int | None
    running_tasks: int
    pending_tasks: int


class StorageSystem(Answer):
    id: str
    name: str
    driver: str
    address: str
    identity: str
    enabled: bool
    options: dict[str, Any]
    proxies: list[dict[str, str]]
    model: str
    version: str
    volumes: list[dict[str, Any]]
    open_snapshots: list[str]
    rescanned_at: str | None
    problem: str


class Repository(Answer):
    id: str
    name: str
    repository_id: str
    location: str
    block_size_bytes: int
    max_tasks: int
    total_bytes: int | None
    free_bytes: int | None
    storage_secrets: bool
    """Whether the storage is opened with stored secrets."""
    immutable_days: int


class Recovered(Answer):
    repository: str
    as_of: str
    uncovered: int
    set_aside: int
    rebuilt_packs: int
    lost: list[str]
    restore_points: int


class RebuiltIndex(Answer):
    repository: str
    packs: int
    blobs: int
    scanned_packs: int
    unreadable: list[str]


class RepositoryKey(Answer):
    id: str
    kind: Literal["password", "key-file", "recovery", "unreadable"]
    label: str
    created_at: str | None
    version: int
    problem: str
    own: bool


class RepositoryKeys(Answer):
    keys: list[RepositoryKey]


class NewRepositoryKey(RepositoryKey):
    secret: str | None


class Extent(Answer):
    name: str
    location: str
    state: Literal["active", "sealed", "maintenance"]
    problem: str
    """Why it cannot be opened."""
    free_bytes: int | None
    total_bytes: int | None
    packs: int | None
    pack_bytes: int | None


class Extents(Answer):
    extents: list[Extent]


class KeyEpoch(Answer):
    key_epoch: int


class Upgraded(Answer):
    added: list[str]
    features: list[str]


class Proxy(Answer):
    id: str
    name: str
    description: str
    local: bool
    enabled: bool
    state: Literal["online", "offline", "draining", "drained", "never-seen"]
    slots: int
    running: int
    modes: list[str]
    offered_modes: list[str]
    no_directories: str
    """Why it gets no task that needs a directory: a repository in one, an image file; empty: it does."""
    failover_to_network: bool
    connected_datastores: list[str] | None
    preferred_networks: list[str]
    hotadd_nfs3_any_host: bool
    max_nfs_hops: int | None
    repositories: list[str]
    rate_limit_bytes_per_s: int | None
    rate_limit: str
    rate_windows: list[dict[str, Any]]
    rate_restores: bool
    rate_now_bytes_per_s: int | None
    rate_now: str
    vm_confirmed: Literal["local", "address", "administrator"] | None
    """By what it is believed to be the VM that it says; null: by nothing, so no disk is attached to it."""
    looked_at: str | None
    version: str | None
    last_seen_at: str | None
    clock_offset_s: float | None
    state_note: str
    """What is wrong with it, so that it gets no new tasks; empty: nothing."""
    server: str | None
    """The managed server on which vmhaul installed it."""
    operation: dict[str, Any] | None
    """What is done with it now."""


class Operation(Answer):
    id: str
    kind: Literal["add", "upgrade", "remove"]
    target: str
    state: Literal["running", "success", "failed"]
    steps: list[dict[str, Any]]
    error: str
    result: dict[str, Any]
    created_at: str
    finished_at: str | None


class ManagedServer(Answer):
    id: str
    name: str
    kind: Literal["linux", "windows"]
    address: str
    port: int
    username: str
    host_key: str
    credentials_kept: bool
    facts: dict[str, Any]
    proxies: list[dict[str, Any]]
    created_at: str


class ServerKey(Answer):
    address: str
    port: int
    host_key: str


class ServerFacts(Answer):
    system: str
    architecture: str
    init: str
    package_manager: str
    python: str
    python_version: str
    free_bytes: int
    clock_offset_s: float
    missing_packages: list[str]
    useful_packages: list[str]
    problems: list[str]


class ProxyWithDiscovery(Proxy):
    discovery: dict[str, Any]
    """What it found when it looked around last."""


class ProxyRevoked(ProxyWithDiscovery):
    repositories_to_rotate: list[str]
    """Whose keys it was given: `vmhaul repository key rotate` changes them."""


class ProxyWithToken(Proxy):
    join_token: str | None = None


class Enrolment(Answer):
    proxy_id: str
    server_key: str
    broker_url: str
    broker_ca_pem: str = ""


class Job(Answer):
    id: str
    name: str
    description: str
    enabled: bool
    kind: Literal["backup", "copy"]
    vcenter: str | None
    repository: str
    source_repository: str | None
    after_backup: bool
    first: str | None
    selection: dict[str, Any]
    schedule: dict[str, Any] | None
    window: dict[str, Any] | None
    after_job: str | None
    after_result: Literal["good", "any"]
    retention: dict[str, Any]
    quiesce: str
    compression: str
    change_tracking: bool
    full_every_days: int | None
    sample_blocks: int
    retries: dict[str, Any]
    proxies: list[str]
    modes: list[str]
    failover_to_network: bool
    storage_snapshots: bool
    storage_failover: bool
    next_run_at: str | None
    last_session: dict[str, Any] | None
    missed_runs: list[dict[str, Any]] | None = None
    """{due_at, why}, newest first; only where one job is asked for."""


class Progress(Answer):
    total_bytes: int
    done_bytes: int
    read_bytes: int
    stored_bytes: int
    bytes_per_s: float
    eta_s: float | None
    bottleneck: str | None


class Failover(Answer):
    proxy: str
    mode: str
    reason: str
    attempt: int


class Task(Answer):
    id: str
    kind: str
    disk_key: int
    label: str
    state: Literal["pending", "running", "done"]
    result: str | None
    reason: str
    proxy: str | None
    mode: str | None
    failovers: list[Failover]
    attempt: int
    read_mode: str | None
    read_mode_reason: str
    progress: dict[str, Any]
    stats: dict[str, Any] | None


class SessionVm(Answer):
    name: str
    moref: str
    instance_uuid: str
    state: str
    result: str | None
    reason: str
    restore_point_id: str | None
    tasks: list[Task]


class Session(Answer):
    id: str
    kind: str
    job: str | None
    state: Literal["queued", "running", "finished"]
    result: Literal["success", "warning", "failed", "cancelled"] | None
    reason: str
    started_at: str | None
    finished_at: str | None
    progress: Progress
    counts: dict[str, int]
    retry_of: str | None
    attempt: int
    stop_reason: str
    waits_until: str | None


class SessionWithVms(Session):
    vms: list[SessionVm]
    vms_next: str | None


class Event(Answer):
    id: int
    at: str
    level: Literal["info", "warning", "error"]
    name: str
    text: str


class RestorePoint(Answer):
    id: str
    vm: str
    instance_uuid: str
    job: str | None
    repository: str
    created_at: str
    kind: str
    consistency: str
    disks: list[dict[str, Any]]
    previous: str | None
    copy_of: str | None
    size_bytes: int
    doubt: str


class RetentionPoint(Answer):
    id: str
    created_at: str
    action: Literal["keep", "remove"]
    reason: str
    marks: list[str]


class RetentionVm(Answer):
    vm: str
    instance_uuid: str
    repository: str | None
    in_job: bool | None
    points: list[RetentionPoint]


class RetentionPreview(Answer):
    job: str
    retention: dict[str, Any]
    at: str
    vms: list[RetentionVm]
    keep: int
    remove: int
    remove_bytes: int


class RetentionDone(Answer):
    removed: int
    vms: int


class Check(Answer):
    name: str
    level: Literal["ok", "warning", "error"]
    text: str
    advice: str


class Checks(Answer):
    checks: list[Check]


class ConsoleLink(Answer):
    path: str
    expires_at: str


def ok(model: Any, *errors: int) -> dict[int | str, dict[str, Any]]:
    """`responses` of a route: what it answers, and which errors it may."""
    described: dict[int | str, dict[str, Any]] = {200: {"model": model}}
    for status in (*errors, 401):
        described[status] = {"model": ErrorAnswer}
    return described
