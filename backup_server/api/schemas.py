"""Bodies that the API takes. A field that is not named here is refused.

Whether values make sense together is the services' matter; this is about shape. Passwords are
`SecretStr`, so that they print as stars.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr

from transports.vsphere.model import Secret

Port = Annotated[int, Field(ge=1, le=65535)]
Name = Annotated[str, Field(min_length=1, max_length=100)]


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    def given(self) -> dict[str, Any]:
        """Only the fields that the request named."""
        return self.model_dump(exclude_unset=True)


class ProbeBody(Body):
    host: str = Field(min_length=1)
    port: Port = 443


class VcenterBody(Body):
    name: Name
    host: str = Field(min_length=1)
    port: Port = 443
    username: str = Field(min_length=1)
    password: SecretStr
    thumbprint_sha256: str


class VcenterChanges(Body):
    name: Name | None = None
    host: str | None = None
    port: Port | None = None
    username: str | None = None
    password: SecretStr | None = None
    thumbprint_sha256: str | None = None


class DatastoreChanges(Body):
    max_tasks: int | None = Field(default=None, description="0: no limit; null: the server's setting.")
    max_snapshots: int | None = None
    latency_control: bool | None = None
    latency_stop_ms: float | None = None
    latency_throttle_ms: float | None = None


class StorageProxy(Body):
    proxy: str = Field(min_length=1)
    host: str = Field(default="", description="What the system calls the proxy.")


class StorageProbeBody(Body):
    driver: str
    address: str = Field(min_length=1)


class StorageChanges(Body):
    name: Name | None = None
    address: str | None = None
    identity: str | None = Field(
        default=None, description="The confirmed thumbprint of its certificate, or of its host key."
    )
    secrets: dict[str, SecretStr] | None = None
    options: dict[str, str | list[str]] | None = None
    proxies: list[StorageProxy] | None = Field(default=None, description="Those that may read from it.")
    enabled: bool | None = None

    def values(self) -> dict[str, Any]:
        """What was given, with secrets in the form in which they are not shown."""
        given = {name: value for name, value in self.given().items() if value is not None}
        if self.secrets is not None:
            given["secrets"] = {
                name: Secret(text.get_secret_value()) for name, text in self.secrets.items()
            }
        return given


class StorageBody(StorageChanges):
    name: Name
    driver: str
    address: str = Field(min_length=1)
    identity: str
    secrets: dict[str, SecretStr]


class RepositoryBody(Body):
    name: Name
    location: str = Field(
        min_length=1, description="Directory, as server and proxies see it, or the URL of a bucket."
    )
    password: SecretStr
    storage_secrets: dict[str, SecretStr] | None = Field(
        default=None, description="What opens the bucket: access_key_id, secret_access_key and so on."
    )
    immutable_days: int = Field(
        default=0,
        ge=0,
        description="Restore points are kept by the storage for so long; 0: they are not.",
    )
    block_size_bytes: int | None = None
    max_tasks: int | None = Field(default=None, ge=1)
    import_existing: bool = Field(default=False, alias="import")


class RepositoryChanges(Body):
    storage_secrets: dict[str, SecretStr] | None = None
    immutable_days: int | None = Field(default=None, ge=0)
    name: Name | None = None
    max_tasks: int | None = Field(default=None, ge=1)
    verification: Verification | None = None


class KeyBody(Body):
    kind: Literal["password", "key-file", "recovery"]
    password: SecretStr | None = None
    label: str = ""


class KeyChangeBody(Body):
    new_password: SecretStr
    old_password: SecretStr | None = None


class KeyRotateBody(Body):
    without: list[str] = Field(default_factory=list)


class KeyUseBody(Body):
    password: SecretStr


class RecoverBody(Body):
    as_of: datetime = Field(description="Time that the bucket is brought back to, with its zone.")


class CheckBody(Body):
    read_data: bool = Field(default=False, description="Read all data, or the sample's.")
    sample_share: float | None = Field(
        default=None, ge=0, le=1, description="Read the data of this share of the packs."
    )


class Verification(Body):
    schedule: Schedule
    sample_share: float | None = Field(
        default=None, gt=0, le=1, description="Null: such that all data are read every 30 days."
    )
    read_data: bool = True


class RepairBody(Body):
    sources: list[str] | None = Field(
        default=None, description="Repositories to look in; null: all that hold the same points."
    )
    from_live: bool = False
    dry_run: bool = False


class ExtentBody(Body):
    name: Name
    location: str = Field(
        min_length=1, description="Directory or bucket, as server and proxies see it."
    )
    first_name: Name = "first"


class ExtentChanges(Body):
    state: Literal["active", "sealed", "maintenance"]


class NothingBody(Body):
    """An empty object, or no body at all."""


class ProxyBody(Body):
    name: Name
    slots: int | None = Field(default=None, ge=1)
    local: bool = False
    description: str = ""


class PlacesBody(Body):
    install_dir: str | None = Field(default=None, description="Where vmhaul is put; /opt/vmhaul.")
    data_dir: str | None = Field(
        default=None, description="The proxy's own directory; /var/lib/vmhaul-proxy."
    )
    service: str | None = Field(default=None, description="Name of its service; vmhaul-proxy.")
    user: str | None = Field(default=None, description="Its user; vmhaul.")


class LoginBody(Body):
    """How vmhaul logs in to a machine; on a server whose credentials are kept all may be left out."""

    password: SecretStr | None = None
    private_key: SecretStr | None = None
    passphrase: SecretStr | None = None
    sudo_password: SecretStr | None = None
    agent_path: str | None = Field(
        default=None,
        description="Socket of an SSH agent on the server's machine; nothing is kept then.",
    )

    def values(self) -> dict[str, Any]:
        """What was given, with secrets in the form in which they are not shown."""
        return {
            name: Secret(value.get_secret_value()) if isinstance(value, SecretStr) else value
            for name in self.model_fields_set
            if (value := _plain(getattr(self, name))) is not None
        }


def _plain(value: Any) -> Any:
    return value.given() if isinstance(value, Body) else value


MachineKind = Annotated[
    Literal["linux", "windows"],
    Field(description="linux: over SSH; windows: over WinRM with HTTPS (experimental)."),
]


class ServerProbeBody(Body):
    address: str = Field(min_length=1)
    port: Port | None = Field(default=None, description="22 for SSH and 5986 for WinRM by default.")
    kind: MachineKind = "linux"


class ServerLookBody(LoginBody):
    server: str | None = Field(default=None, description="A managed server; else address and the rest.")
    address: str | None = None
    port: Port | None = None
    kind: MachineKind | None = None
    username: str | None = None
    host_key: str | None = Field(
        default=None,
        description="The confirmed fingerprint of its SSH host key, or of WinRM's certificate: SHA256:...",
    )
    python: str | None = Field(default=None, description="A Python there, instead of the newest.")
    places: PlacesBody | None = None


class ProxyDeployBody(ServerLookBody):
    name: Name | None = None
    slots: int | None = Field(default=None, ge=1)
    description: str | None = None
    keep_credentials: bool | None = Field(
        default=None, description="Sealed on the server, for upgrades; a private key is by default."
    )
    install_packages: bool | None = Field(
        default=None, description="Let the machine's package manager install what is missing."
    )
    extras: list[str] | None = None
    wheelhouse: str | None = Field(
        default=None,
        description="Directory of wheels on the server's machine, for sites without index.",
    )


class ProxyUpgradeBody(LoginBody):
    names: list[str] | None = None
    all: bool | None = None
    force: bool | None = Field(default=None, description="Also where it has this release already.")
    drain_timeout_s: int | None = Field(default=None, ge=1)
    wheelhouse: str | None = None


class ProxyUninstallBody(LoginBody):
    keep_files: bool | None = None
    force: bool | None = Field(
        default=None,
        description="Also when its machine does not answer, and without waiting for tasks.",
    )
    drain_timeout_s: int | None = Field(default=None, ge=1)


class ProxyChanges(Body):
    name: Name | None = None
    slots: int | None = Field(default=None, ge=1)
    enabled: bool | None = None
    description: str | None = None
    modes: list[str] | None = None
    failover_to_network: bool | None = Field(
        default=None, description="Its network modes take over where its others fail."
    )
    connected_datastores: list[str] | None = Field(
        default=None, description="Names; null: those that it finds by itself."
    )
    preferred_networks: list[str] | None = Field(
        default=None, description="Networks in which it meets hosts, best first."
    )
    hotadd_nfs3_any_host: bool | None = Field(
        default=None, description="HotAdd of disks on NFS 3 from another host than the VM's."
    )
    max_nfs_hops: int | None = Field(
        default=None, description="Direct NFS to servers at most so many routers away; null: any."
    )
    repositories: list[str] | None = Field(
        default=None,
        description="Repositories, by name or id, whose tasks it takes before other proxies.",
    )
    rate_limit: int | str | None = Field(
        default=None,
        description="How fast its tasks together may move data over the network, as the rate of a traffic rule; "
        "null: no limit.",
    )
    rate_windows: list[dict[str, Any]] | None = Field(
        default=None,
        description="Other rates in weekly hours: [{window, rate}]; the first that is open counts.",
    )
    rate_restores: bool | None = Field(default=None, description="Restores are held to it as well.")


class ConfirmVmBody(Body):
    vm_uuid: str = Field(
        description="SMBIOS UUID that the proxy shows, as `discovery.vm_uuid` told it."
    )


class EnrolBody(Body):
    token: SecretStr
    name: Name
    signing_key: str = Field(description="Ed25519 verify key, hexadecimal.")
    sealing_key: str = Field(description="X25519 public key, hexadecimal.")
    version: str = Field(max_length=64)


class Selector(Body):
    type: Literal["vm", "folder", "resource-pool", "cluster", "datacenter", "tag", "job", "all"]
    name: str = "*"


class ExcludedDisk(Body):
    vm: str = Field(min_length=1)
    disk: str | int


class Selection(Body):
    include: list[Selector]
    exclude: list[Selector] = []
    exclude_disks: list[ExcludedDisk] = []


class Schedule(Body):
    cron: str
    time_zone: str = "UTC"
    missed: Literal["run-once", "skip"] = "run-once"


class Window(Body):
    """Weekly hours, as `hours` ({days, from, to}) or as `text` ("mon-fri 22:00-06:00, sat,sun 00:00-24:00")."""

    time_zone: str | None = Field(default=None, description="The schedule's, else UTC.")
    rule: Literal["allowed", "denied"] = "allowed"
    hours: list[dict[str, Any]] | None = None
    text: str | None = None


class RateInHours(Body):
    window: Window
    rate: str | int | None = Field(description="As of the rule; null or unlimited: no limit then.")


class TrafficRuleChanges(Body):
    name: Name | None = None
    enabled: bool | None = None
    source: list[str] | None = Field(
        default=None, description="Networks, ranges and addresses; the rule holds in both directions."
    )
    target: list[str] | None = None
    rate: str | int | None = Field(
        default=None, description="200Mbit, 50MB/s, or bytes a second; null: only in `windows`."
    )
    windows: list[RateInHours] | None = Field(
        default=None, description="Other rates in weekly hours; the first that is open counts."
    )
    restores: bool | None = Field(default=None, description="Restores are held to the rate as well.")
    encrypt: bool | None = Field(default=None, description="Nothing may cross in the clear.")


class TrafficRuleBody(TrafficRuleChanges):
    name: Name
    source: list[str]
    target: list[str]


class Retention(Body):
    """`keep` or `days`, and on top of either what stands for weeks, months and years."""

    keep: int | None = Field(default=None, ge=1)
    days: int | None = Field(default=None, ge=1)
    weekly: int = Field(default=0, ge=0)
    monthly: int = Field(default=0, ge=0)
    yearly: int = Field(default=0, ge=0)
    week_start: Literal[
        "monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"
    ] = "monday"
    gone_days: int | None = Field(default=None, ge=1)


class RetentionPreviewBody(Body):
    retention: Retention | None = None
    vm: str | None = None


class Retries(Body):
    count: int = Field(default=3, ge=0)
    wait_s: int = Field(default=600, ge=0)


class JobChanges(Body):
    """Any of a job's fields."""

    name: Name | None = None
    description: str | None = None
    enabled: bool | None = None
    vcenter: str | None = None
    repository: str | None = None
    source_repository: str | None = Field(default=None, description="Of a copy: where it reads from.")
    after_backup: bool | None = Field(
        default=None, description="Of a copy: runs after each backup into its source."
    )
    first: Literal["all", "newest"] | None = Field(
        default=None, description="Of a copy: how much of a VM that was never copied."
    )
    selection: Selection | None = None
    schedule: Schedule | None = None
    window: Window | None = Field(default=None, description="When it may run; null: always.")
    after_job: str | None = Field(
        default=None, description="It runs when a session of that job has ended."
    )
    after_result: Literal["good", "any"] | None = Field(
        default=None, description="After success and warning only, or after a failure as well."
    )
    retention: Retention | None = None
    quiesce: Literal["off", "try", "require"] | None = None
    compression: Literal["none", "fast", "balanced", "high"] | None = None
    change_tracking: bool | None = None
    full_every_days: int | None = Field(default=None, ge=1)
    sample_blocks: int | None = Field(
        default=None,
        ge=0,
        le=1024,
        description="Blocks of each disk that change tracking calls unchanged and that are compared all the same.",
    )
    retries: Retries | None = None
    proxies: list[str] | None = None
    modes: list[str] | None = None
    failover_to_network: bool | None = Field(
        default=None,
        description="Network modes may read what another mode could, when that one fails or is busy.",
    )
    storage_snapshots: bool | None = Field(
        default=None, description="Read from storage snapshots where a registered system has all disks."
    )
    storage_failover: bool | None = Field(
        default=None, description="Read in the standard way when no storage snapshot can be made."
    )


class JobEdit(JobChanges):
    confirm_removal: bool = Field(
        default=False, description="The new retention may remove restore points that the old one keeps."
    )


class JobBody(JobChanges):
    name: Name
    kind: Literal["backup", "copy"] = "backup"
    repository: str


class RunBody(Body):
    full: bool = False
    only_failed: bool = False
    ignore_window: bool = Field(
        default=False, description="Begin outside of the job's window too, and run to the end."
    )


class RestoreDiskBody(Body):
    restore_point: str
    disk: int | str = Field(description="Key, label, or number from 1.")
    path: str = Field(min_length=1)
    proxy: str | None = None
    overwrite: bool = False


class RestoreVmBody(Body):
    restore_point: str
    name: str = Field(min_length=1)
    vcenter: str | None = None
    datacenter: str | None = None
    folder: str | None = None
    resource_pool: str | None = None
    host: str | None = None
    datastore: str | None = None
    disks: list[int | str] | None = None
    power_on: bool = False
    keep_identity: bool = False
    thin: bool | None = None
    modes: list[str] = Field(default=[], description="Only these transport modes; empty: any.")
    proxies: list[str] = Field(default=[], description="Only these proxies; empty: any.")
