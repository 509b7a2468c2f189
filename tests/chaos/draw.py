"""A round is drawn from its seed and its number, and from nothing else. Pure."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from tests.chaos.plan import (
    CALLS,
    LEASE_S,
    LUN_STORAGE,
    NFS_STORAGE,
    OBJECTS,
    POSTGRES,
    REDIS,
    VMS,
    Fault,
    FaultKind,
    Link,
    RoundPlan,
    Storage,
)

_STORAGE = {
    Storage.HOSTS: 4.0,
    Storage.NFS3: 1.2,
    Storage.NFS41: 0.8,
    Storage.SAN: 1.2,
    Storage.FILER: 1.4,
    Storage.ARRAY: 1.4,
}
_KINDS = {
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
    FaultKind.PROXY_DISABLED: 1.2,
    FaultKind.PROXY_REMOVED: 1.0,
    FaultKind.PROXY_REVOKED: 1.0,
    FaultKind.WINDOW_CLOSED: 2.0,
    FaultKind.RULES_CHANGED: 1.5,
}
_MORE_KINDS: tuple[tuple[FaultKind, float, Callable[[_Stage], bool]], ...] = (
    (FaultKind.ISOLATED, 2.0, lambda stage: stage.storage is not Storage.ARRAY),
    (FaultKind.NFS_GONE, 3.0, lambda stage: stage.storage in NFS_STORAGE),
    (FaultKind.UNZONED, 2.5, lambda stage: stage.storage in LUN_STORAGE),
    (FaultKind.ARRAY_REFUSES, 3.0, lambda stage: stage.storage is Storage.ARRAY),
)
"""Kinds for some rounds only."""
ARRAY_CALLS = (
    "POST /api/2.2/volume-snapshots",
    "POST /api/2.2/volumes",
    "POST /api/2.2/connections",
    "DELETE /api/2.2/connections",
    "DELETE /api/2.2/volumes",
    "DELETE /api/2.2/volume-snapshots",
    "GET /api/2.2/volume-snapshots",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stage:
    """What there is for faults to hit."""

    servers: list[str]
    workers: list[str]
    lasts_s: float
    postgres: bool
    storage: Storage
    objects: bool

    @property
    def parts(self) -> list[str]:
        """Servers twice: they are hit as often as proxies, of which there are more."""
        return [
            *self.servers,
            *self.servers,
            *self.workers,
            REDIS,
            *([POSTGRES] if self.postgres else []),
            *([OBJECTS] * 2 if self.objects else []),
        ]

    @property
    def cables(self) -> list[tuple[str, Link]]:
        """All that can be pulled."""
        of_proxies = [Link.BROKER, Link.SERVER, Link.SITE, *([Link.OBJECTS] if self.objects else [])]
        of_servers = [*of_proxies, *([Link.DATABASE] if self.postgres else [])]
        far = self.servers if self.storage is not Storage.ARRAY else []
        return [
            *((name, link) for name in self.workers for link in of_proxies),
            *((name, link) for name in far for link in of_servers),
        ]


def draw(seed: int, number: int) -> RoundPlan:
    """The round of that number."""
    rng = random.Random(f"vmhaul chaos {seed} {number}")
    postgres = rng.random() < 0.5
    servers = 2 if postgres and rng.random() < 0.5 else 1
    proxies = rng.choice((2, 2, 3))
    stage = _Stage(
        servers=[f"server{n}" for n in range(1, servers + 1)],
        workers=[f"px{n}" for n in range(1, proxies + 1)],
        lasts_s=rng.uniform(9.0, 15.0),
        postgres=postgres,
        storage=rng.choices(list(_STORAGE), list(_STORAGE.values()))[0],
        objects=rng.random() < 0.25,
    )
    count = rng.choice((1, 2, 3, 3, 4, 5, 6))
    drawn = [_fault(rng, stage) for _ in range(count)]
    if rng.random() < 0.4:
        drawn += _aimed(rng, stage)
    return RoundPlan(
        seed=seed,
        number=number,
        postgres=postgres,
        servers=servers,
        proxies=proxies,
        storage=stage.storage,
        hotadd=rng.random() < 0.5 and stage.storage in (Storage.HOSTS, Storage.NFS3),
        objects=stage.objects,
        user_snapshot=rng.random() < 0.3,
        read_delay_s=rng.choice((0.1, 0.3, 0.6, 1.0)),
        baseline=rng.random() < 0.6,
        copies=rng.random() < 0.4,
        restores=rng.random() < 0.5,
        cancels=rng.random() < 0.25,
        housekeeping=rng.random() < 0.4,
        lasts_s=stage.lasts_s,
        faults=tuple(sorted(drawn, key=lambda fault: fault.at_s)),
    )


def _aimed(rng: random.Random, stage: _Stage) -> list[Fault]:
    """A server that dies, or sleeps until another leads, while vCenter works at something for it."""
    at_s = rng.uniform(0.0, stage.lasts_s - 4.0)
    slow_s = rng.uniform(1.5, 4.0)
    slow = [
        Fault(at_s=at_s, kind=FaultKind.SLOW_VCENTER, link=call, lasts_s=slow_s)
        for call in rng.sample(CALLS, 3)
    ]
    kind, lasts = rng.choice(
        ((FaultKind.KILL, rng.uniform(0.2, 3.0)), (FaultKind.STOP, rng.uniform(LEASE_S, LEASE_S + 14)))
    )
    hit = Fault(
        at_s=at_s + rng.uniform(0.1, 4.0), kind=kind, part=rng.choice(stage.servers), lasts_s=lasts
    )
    return [*slow, hit]


def _fault(rng: random.Random, stage: _Stage) -> Fault:
    kinds = _KINDS | {kind: weight for kind, weight, fits in _MORE_KINDS if fits(stage)}
    kind = rng.choices(list(kinds), list(kinds.values()))[0]
    at_s = rng.uniform(0.0, stage.lasts_s - 1.0)
    brief_s = rng.uniform(0.2, 3.0)
    # Shorter and longer than a lease.
    long_s = rng.choice((rng.uniform(0.5, LEASE_S), rng.uniform(LEASE_S + 1, LEASE_S + 8)))
    if kind is FaultKind.CLOCK:
        # Some more than messages may be old.
        far_s = rng.choice((rng.uniform(5, 60), rng.uniform(5, 60), rng.uniform(60, 900)))
        shift_s = rng.choice((0.0, far_s, -far_s))
        part = rng.choice([*stage.servers, *stage.workers])
        return Fault(at_s=at_s, kind=kind, part=part, lasts_s=long_s, shift_s=shift_s)
    part, link, span_s = _aim(rng, stage, kind, brief_s, long_s)
    return Fault(at_s=at_s, kind=kind, part=part, link=link, lasts_s=span_s)


def _aim(
    rng: random.Random, stage: _Stage, kind: FaultKind, brief_s: float, long_s: float
) -> tuple[str, str, float]:
    """(part, link, how long)."""
    if kind is FaultKind.CUT:
        part, cable = rng.choice(stage.cables)
        return part, cable.value, long_s
    aims: dict[FaultKind, Callable[[], tuple[str, str, float]]] = {
        FaultKind.KILL: lambda: (rng.choice(stage.parts), "", brief_s),
        FaultKind.STOP: lambda: (rng.choice([p for p in stage.parts if p != POSTGRES]), "", long_s),
        FaultKind.MOVER_STOP: lambda: ("", "", long_s),
        # Until another leads, or nearly.
        FaultKind.ISOLATED: lambda: (rng.choice(stage.servers), "", rng.choice((brief_s, long_s + 6))),
        FaultKind.REDIS_LOST: lambda: ("", "", brief_s),
        FaultKind.DISK_FULL: lambda: ("", "", brief_s),
        FaultKind.SLOW_VCENTER: lambda: ("", rng.choice(CALLS), brief_s),
        FaultKind.REFUSED_CALL: lambda: ("", rng.choice(CALLS), 0.0),
        FaultKind.POWER_LOSS: lambda: (rng.choice(VMS), "", 0.0),
        FaultKind.NFS_GONE: lambda: ("", "", rng.choice((brief_s, long_s))),
        FaultKind.UNZONED: lambda: (rng.choice(("proxyvm1", "proxyvm2")), "", long_s),
        FaultKind.ARRAY_REFUSES: lambda: ("", rng.choice(ARRAY_CALLS), 0.0),
        FaultKind.PROXY_DISABLED: lambda: (rng.choice(stage.workers), "", long_s),
        FaultKind.PROXY_REMOVED: lambda: (rng.choice(stage.workers), "", brief_s),
        FaultKind.PROXY_REVOKED: lambda: (rng.choice(stage.workers), "", brief_s),
        FaultKind.WINDOW_CLOSED: lambda: (rng.choice(VMS), "", rng.choice((brief_s, long_s))),
        FaultKind.RULES_CHANGED: lambda: ("", "", long_s),
    }
    return aims[kind]() if kind in aims else ("", "", 0.0)
