"""What a round is: drawn from its seed, and nothing else. Pure."""

from __future__ import annotations

import random
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
    CUT = "cut"  # a proxy's link carries nothing
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


class Link(StrEnum):
    """What a proxy reaches, each over a cable of its own."""

    BROKER = "broker"
    SERVER = "server"
    SITE = "site"


REDIS: Final = "redis"
POSTGRES: Final = "postgres"
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
    hotadd: bool
    """The first proxy is a VM of the site and attaches disks to itself."""
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


def draw(seed: int, number: int) -> RoundPlan:
    """The round of that number."""
    rng = random.Random(f"vmhaul chaos {seed} {number}")
    postgres = rng.random() < 0.5
    servers = 2 if postgres and rng.random() < 0.4 else 1
    proxies = rng.choice((2, 2, 3))
    lasts_s = rng.uniform(9.0, 15.0)
    parts = [f"server{n}" for n in range(1, servers + 1)]
    workers = [f"px{n}" for n in range(1, proxies + 1)]
    count = rng.choice((1, 2, 3, 3, 4, 5, 6))
    drawn = [_fault(rng, parts, workers, lasts_s, postgres=postgres) for _ in range(count)]
    if rng.random() < 0.4:
        drawn += _aimed(rng, parts, lasts_s)
    faults = sorted(drawn, key=lambda fault: fault.at_s)
    return RoundPlan(
        seed=seed,
        number=number,
        postgres=postgres,
        servers=servers,
        proxies=proxies,
        hotadd=rng.random() < 0.35,
        user_snapshot=rng.random() < 0.3,
        read_delay_s=rng.choice((0.1, 0.3, 0.6, 1.0)),
        baseline=rng.random() < 0.6,
        copies=rng.random() < 0.4,
        restores=rng.random() < 0.5,
        cancels=rng.random() < 0.25,
        housekeeping=rng.random() < 0.4,
        lasts_s=lasts_s,
        faults=tuple(faults),
    )


def _aimed(rng: random.Random, servers: list[str], lasts_s: float) -> list[Fault]:
    """A server that dies, or sleeps until another leads, while vCenter works at something for it."""
    at_s = rng.uniform(0.0, lasts_s - 4.0)
    slow_s = rng.uniform(1.5, 4.0)
    slow = [
        Fault(at_s=at_s, kind=FaultKind.SLOW_VCENTER, link=call, lasts_s=slow_s)
        for call in rng.sample(CALLS, 3)
    ]
    kind, lasts = rng.choice(
        ((FaultKind.KILL, rng.uniform(0.2, 3.0)), (FaultKind.STOP, rng.uniform(LEASE_S, LEASE_S + 14)))
    )
    hit = Fault(at_s=at_s + rng.uniform(0.1, 4.0), kind=kind, part=rng.choice(servers), lasts_s=lasts)
    return [*slow, hit]


def _fault(
    rng: random.Random, servers: list[str], workers: list[str], lasts_s: float, *, postgres: bool
) -> Fault:
    kinds = {
        FaultKind.KILL: 5.0,
        FaultKind.STOP: 4.0,
        FaultKind.MOVER_KILL: 2.0,
        FaultKind.MOVER_STOP: 1.0,
        FaultKind.CUT: 4.0,
        FaultKind.CLOCK: 2.0,
        FaultKind.REDIS_LOST: 1.0,
        FaultKind.REDIS_FLUSH: 1.0,
        FaultKind.DISK_FULL: 1.0,
        FaultKind.VCENTER_FORGETS: 0.7,
        FaultKind.NFC_CUT: 0.7,
        FaultKind.AGENT_KILL: 1.0,
        FaultKind.SLOW_VCENTER: 1.5,
        FaultKind.REFUSED_CALL: 0.7,
        FaultKind.SNAPSHOT_STUCK: 0.4,
        FaultKind.POWER_LOSS: 0.5,
    }
    kind = rng.choices(list(kinds), list(kinds.values()))[0]
    at_s = rng.uniform(0.0, lasts_s - 1.0)
    brief_s = rng.uniform(0.2, 3.0)
    # Shorter and longer than a lease.
    long_s = rng.choice((rng.uniform(0.5, LEASE_S), rng.uniform(LEASE_S + 1, LEASE_S + 8)))
    anything = [*servers, *servers, *workers, REDIS, *([POSTGRES] if postgres else [])]
    part, link, span_s, shift_s = "", "", 0.0, 0.0
    if kind is FaultKind.KILL:
        part, span_s = rng.choice(anything), brief_s
    elif kind is FaultKind.STOP:
        part, span_s = rng.choice([p for p in anything if p != POSTGRES]), long_s
    elif kind is FaultKind.MOVER_STOP:
        span_s = long_s
    elif kind is FaultKind.CUT:
        part, link, span_s = rng.choice(workers), rng.choice(list(Link)).value, long_s
    elif kind is FaultKind.CLOCK:
        part, span_s = rng.choice([*servers, *workers]), long_s
        # Some more than messages may be old.
        far_s = rng.choice((rng.uniform(5, 60), rng.uniform(5, 60), rng.uniform(60, 900)))
        shift_s = rng.choice((0.0, far_s, -far_s))
    elif kind in (FaultKind.REDIS_LOST, FaultKind.DISK_FULL):
        span_s = brief_s
    elif kind is FaultKind.SLOW_VCENTER:
        link, span_s = rng.choice(CALLS), brief_s
    elif kind is FaultKind.REFUSED_CALL:
        link = rng.choice(CALLS)
    elif kind is FaultKind.POWER_LOSS:
        part = rng.choice(VMS)
    return Fault(at_s=at_s, kind=kind, part=part, link=link, lasts_s=span_s, shift_s=shift_s)
