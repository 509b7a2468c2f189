"""What a round is. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

LEASE_S: Final = 6.0
"""Leases of the rounds' servers: faults last shorter and longer than this."""


class FaultKind(StrEnum):
    KILL = "kill"  # kill -9, started again when the fault ends
    STOP = "stop"  # SIGSTOP, SIGCONT when the fault ends
    MOVER_KILL = "mover-kill"
    MOVER_STOP = "mover-stop"
    CUT = "cut"  # a link of a proxy or a server carries nothing
    ISOLATED = "isolated"  # none of a server's links does
    CLOCK = "clock"  # the part's clock shows another time, or stands still
    REDIS_LOST = "redis-lost"  # killed, and started again without its files
    REDIS_FLUSH = "redis-flush"
    DISK_FULL = "disk-full"
    VCENTER_FORGETS = "vcenter-forgets"  # every session of the vCenter ends
    NFC_CUT = "nfc-cut"  # a connection to an ESXi host breaks
    AGENT_KILL = "agent-kill"  # the process with which a server works in a repository
    SLOW_VCENTER = "slow-vcenter"  # a call takes its time, so that other faults meet it half done
    REFUSED_CALL = "refused-call"  # a task of vCenter fails
    SNAPSHOT_STUCK = "snapshot-stuck"  # a removal leaves the VM in need of consolidation
    POWER_LOSS = "power-loss"  # of a VM: its change tracking begins anew
    NFS_GONE = "nfs-gone"  # the NFS server is killed, and started again when the fault ends
    UNZONED = "unzoned"  # a proxy's machine loses the LUNs
    ARRAY_REFUSES = "array-refuses"  # calls of the disk array fail
    # What administrators do in the middle, and take back when the fault ends.
    PROXY_DISABLED = "proxy-disabled"
    PROXY_REMOVED = "proxy-removed"  # by force, and added again with a machine that knows nothing
    PROXY_REVOKED = "proxy-revoked"  # and enrolled again
    WINDOW_CLOSED = "window-closed"  # of a VM's job
    RULES_CHANGED = "rules-changed"  # a traffic rule is made, changed, and removed


DEEDS: Final = frozenset(
    {
        FaultKind.PROXY_DISABLED,
        FaultKind.PROXY_REMOVED,
        FaultKind.PROXY_REVOKED,
        FaultKind.WINDOW_CLOSED,
        FaultKind.RULES_CHANGED,
    }
)


class Link(StrEnum):
    """What a proxy or a server reaches, each over a cable of its own."""

    BROKER = "broker"
    SERVER = "server"
    """Of a proxy: the servers; of a server: everybody who calls it."""
    SITE = "site"
    OBJECTS = "objects"
    DATABASE = "database"


class Storage(StrEnum):
    """What the VMs' disks lie on."""

    HOSTS = "hosts"  # only ESXi hosts show them, or HotAdd
    NFS3 = "nfs3"  # a real NFS server, which proxies read and write, too
    NFS41 = "nfs41"
    SAN = "san"  # LUNs with VMFS, which two proxies see
    FILER = "filer"  # NFS 4.1, and jobs read snapshots that are directories of it
    ARRAY = "array"  # as SAN, and jobs read snapshots of the array's volumes


NFS_STORAGE: Final = frozenset({Storage.NFS3, Storage.NFS41, Storage.FILER})
LUN_STORAGE: Final = frozenset({Storage.SAN, Storage.ARRAY})
SNAPSHOT_STORAGE: Final = frozenset({Storage.FILER, Storage.ARRAY})

REDIS: Final = "redis"
POSTGRES: Final = "postgres"
OBJECTS: Final = "objects"
"""The door of the object storage: killed, it loses connections and answers, but no object."""
VMS: Final = ("vm01", "vm02")
CALLS: Final = (
    "CreateSnapshotEx_Task",
    "CreateSnapshot_Task",
    "RemoveSnapshot_Task",
    "ReconfigVM_Task",
)
"""Of vCenter, those that change something."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One thing that goes wrong. Seconds from the begin of the work."""

    at_s: float
    kind: FaultKind
    part: str = ""
    """Name of the part that it hits: server1, px2, redis, postgres, vm01; empty where the kind says it."""
    link: str = ""
    """Of a cut: the cable; of vCenter's kinds: the call."""
    lasts_s: float = 0.0
    shift_s: float = 0.0
    """Of a clock: how far it goes wrong; 0: it stands still."""

    def __str__(self) -> str:
        words = [f"{self.at_s:5.1f} s", self.kind.value, self.part, self.link]
        if self.shift_s:
            words.append(f"by {self.shift_s:+.0f} s")
        if self.lasts_s:
            words.append(f"for {self.lasts_s:.1f} s")
        return " ".join(word for word in words if word)


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundPlan:
    """One round."""

    seed: int
    number: int
    postgres: bool
    servers: int
    proxies: int
    storage: Storage
    hotadd: bool
    """The first proxy is a VM of the site and attaches disks to itself."""
    objects: bool
    """The first repository is a bucket."""
    user_snapshot: bool
    """One VM has a snapshot that a person made."""
    read_delay_s: float
    """Every read from an ESXi host takes at least so long, so that tasks last."""
    baseline: bool
    """A backup without faults comes first."""
    copies: bool
    restores: bool
    cancels: bool
    housekeeping: bool
    """Prunes, checks and rescans are asked for, and restore points deleted."""
    lasts_s: float
    faults: tuple[Fault, ...]

    @property
    def server_names(self) -> tuple[str, ...]:
        return tuple(f"server{number}" for number in range(1, self.servers + 1))

    @property
    def proxy_names(self) -> tuple[str, ...]:
        return tuple(f"px{number}" for number in range(1, self.proxies + 1))

    @property
    def proxy_vms(self) -> tuple[str, ...]:
        """VMs of the site in which the first proxies are."""
        if self.storage in LUN_STORAGE:
            return ("proxyvm1", "proxyvm2")
        return ("proxyvm1",) if self.hotadd else ()

    @property
    def far_servers(self) -> bool:
        """Each server is behind cables of its own. The lab's array listens where only this machine reaches it."""
        return self.storage is not Storage.ARRAY

    @property
    def clocked(self) -> tuple[str, ...]:
        """Parts whose clocks go wrong."""
        return tuple({fault.part: None for fault in self.faults if fault.kind is FaultKind.CLOCK})

    def lines(self) -> list[str]:
        """For people."""
        database = "PostgreSQL" if self.postgres else "SQLite"
        does = [
            name
            for name, on in (
                ("baseline", self.baseline),
                ("copies", self.copies),
                ("restores", self.restores),
                ("cancels", self.cancels),
                ("housekeeping", self.housekeeping),
                (f"disks on {self.storage.value}", self.storage is not Storage.HOSTS),
                ("a bucket", self.objects),
                ("HotAdd", self.hotadd),
                ("a user's snapshot", self.user_snapshot),
            )
            if on
        ]
        head = (
            f"round {self.number} of seed {self.seed}: {database}, {self.servers} server(s), "
            f"{self.proxies} proxies, {self.lasts_s:.0f} s, reads take {self.read_delay_s:.2f} s; "
            + ", ".join(does)
        )
        return [head, *(f"  {fault}" for fault in self.faults)]
