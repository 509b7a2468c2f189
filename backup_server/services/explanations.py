"""Why a task runs where it runs, or waits; and where the disks of a plan would go. The same pure functions as
the scheduler's, asked with what the database says now.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from types import SimpleNamespace
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session as DbSession

from backup_server.db.states import TaskState
from backup_server.db.tables import Proxy, Task
from backup_server.services import (
    job_windows,
    limits,
    placement,
    proxy_rates,
    session_shapes,
    traffic_guard,
    traffic_rules,
)
from backup_server.services.context import Context
from backup_server.services.placement import Candidate, Decision
from backup_server.services.prospects import Prospect, prospects
from backup_server.services.proxy_facts import (
    Machines,
    directories_for,
    fleet_of,
    proxy_facts,
    task_refusals,
    task_wish,
)
from backup_server.services.shapes import when
from backup_server.services.surveys import ProxyFacts, Survey, Surveyor
from backup_server.services.task_ends import NOBODY, ProxyEnd
from backup_server.services.traffic_guard import NO_GUARD, Guard
from backup_server.services.wishes import refused_modes, wish_of
from proxy_worker.contracts.codec import MessageError, from_json
from proxy_worker.contracts.messages import ConnectionsReport, TaskKind
from transports.base import TransportMode
from transports.rules import DiskFacts, judge_disk

_SHOWN_FACTS = (
    "datastore",
    "datastore_kind",
    "datacenter",
    "path",
    "controller",
    "host_moref",
    "thin",
    "is_delta",
    "is_rdm",
    "encrypted",
    "write",
)

_UNSEEN = "traffic rules do not look at how the disk is read"


def why(ctx: Context, row: Task) -> dict[str, Any]:
    """The stored decision of a task with all candidates, what failed in earlier attempts, and for one that
    waits the decision as it would be now.
    """
    with ctx.db.read() as s:
        pending = row.state == TaskState.PENDING.value
        opens = job_windows.session_opens_at(s, row.session_id, ctx.clock()) if pending else None
        fresh, expected = _now(ctx, s, row, opens) if pending else (None, [])
    return {
        "task_id": row.id,
        "session_id": row.session_id,
        "title": row.title,
        "state": row.state,
        "attempt": row.attempt,
        "proxy": row.proxy_name or None,
        "mode": row.mode,
        "decision": None if row.decision is None else _whole(row, row.decision),
        "now": None if fresh is None else fresh.to_json(),
        "left": list((row.facts or {}).get("left") or ()),
        "disk": {name: row.facts[name] for name in _SHOWN_FACTS if name in (row.facts or {})},
        "reason": row.reason,
        "waits": _window_closed(opens) or session_shapes.waits(row),
        "not_before": when(opens or row.not_before) if pending else None,
        "prospects": [one.to_json() for one in expected],
    }


def _window_closed(opens: datetime | None) -> str:
    return f"the job's window is closed until {when(opens)}" if opens is not None else ""


def _whole(row: Task, stored: Mapping[str, Any]) -> dict[str, Any]:
    """A decision that is shared by tasks which wait alike names no modes that this disk alone excludes."""
    own = placement.refused_json(task_refusals(row))
    named = {one["mode"] for one in own}
    return {
        **stored,
        "modes": [*own, *(m for m in stored.get("modes") or () if m["mode"] not in named)],
    }


def decide_now(ctx: Context, s: DbSession, row: Task) -> Decision:
    """As the scheduler would decide at this moment; changes nothing."""
    return _now(ctx, s, row, None)[0]


def _now(
    ctx: Context, s: DbSession, row: Task, window_opens: datetime | None
) -> tuple[Decision, list[Prospect]]:
    """The decision of this moment, and when that could change."""
    now = ctx.clock()
    running = limits.running_now(s, now)
    used = Counter(one.proxy_id for one in running)
    machines = _MachinesAtOnce(s)
    proxies = _proxies(ctx, s, used, machines)
    guard = traffic_guard.read(s, ctx.ends, machines.ends, wait_s=traffic_guard.LOOKUP_WAIT_S)
    wish = task_wish(row, fleet_of(proxies, guard, directories_for(s, proxies)))
    held = limits.limits_of(s, ctx.settings, row, running, now)
    decision = placement.decide(wish, proxies, held, refused=task_refusals(row))
    expected = prospects(
        decision,
        held,
        proxies,
        running,
        now=now,
        window_opens=window_opens,
        not_before=row.not_before,
    )
    return decision, expected


class _MachinesAtOnce(Machines):
    """Read in one statement: nothing was kept from an earlier question."""

    def __init__(self, s: DbSession) -> None:
        super().__init__()
        looked = Proxy.connections_at.is_not(None)
        for row in s.execute(
            sa.select(Proxy.id, Proxy.connections_at, Proxy.connections).where(looked)
        ):
            with suppress(
                MessageError
            ):  # by another release; the proxy reports anew when its worker starts
                self._kept[row.id] = (row.connections_at, from_json(ConnectionsReport, row.connections))


def _proxies(ctx: Context, s: DbSession, used: dict[str, int], machines: Machines) -> list[ProxyFacts]:
    settings = ctx.settings
    silent_s = min(settings.proxy_offline_after_s, settings.lease_s)
    return proxy_facts(s, ctx.clock(), silent_s, used, machines)


# ---- plans ----------------------------------------------------------------------------------------


@dataclass(slots=True, kw_only=True)
class Foresight:
    """Where the disks of a job would go, one after the other, as if nothing else ran.

    Disks for which the same speaks are decided together; each proxy's share grows as it is given disks, so a
    plan spreads as a run does.
    """

    proxies: Sequence[ProxyFacts]
    repository_id: str
    allowed_proxies: Iterable[str]
    allowed_modes: Iterable[str]
    failover: bool
    guard: Guard = NO_GUARD
    has_rules: bool = False
    """Some traffic rule holds, or some proxy has a rate of its own."""
    ends: Mapping[str, ProxyEnd] = field(default_factory=dict)
    """By proxy id."""
    directories: frozenset[str] | None = None
    """As Fleet.directories."""
    _decided: dict[str, tuple[Survey, Decision]] = field(default_factory=dict)
    _surveyor: Surveyor = field(default_factory=Surveyor)
    _taken: Counter[str] = field(default_factory=Counter)

    def of(self, disk: DiskFacts, nfs_hosts: Iterable[str] = ()) -> dict[str, Any]:
        """proxy, mode, reason, fallbacks, better (modes that were not taken, and why), remarks. `nfs_hosts`: of the
        server of its datastore, where that is NFS.
        """
        kind = TaskKind.BACKUP_DISK.value
        modes = self.allowed_modes
        held = disk.storage_snapshot
        if held is not None and held.vm_snapshot_gone:
            # As a run allows it, also where the job names only the mode by which the clone is read.
            modes = (TransportMode.STORAGE_SNAPSHOT.value,)
        fleet = fleet_of(self.proxies)
        wish = wish_of(
            kind,
            disk,
            self.allowed_proxies,
            modes,
            failover=self.failover,
            proxy_vms=fleet.proxy_vms,
            proxy_hosts=fleet.proxy_hosts,
            networks=fleet.networks,
            near=fleet.near.get(self.repository_id, ()),
            forbidden=self.guard.forbidden(_as_task(disk, self.repository_id, nfs_hosts)),
            directory=self.directories is not None and self.repository_id in self.directories,
        )
        if wish.key not in self._decided:
            self._surveyor.follow(self.proxies)
            seen = self._surveyor.survey(wish)
            self._decided[wish.key] = seen, placement.decide(wish, self.proxies, [], known=seen)
        seen, decided = self._decided[wish.key]
        refused = refused_modes(kind, disk, modes)
        # What speaks against the disk alone is its own; the rest is shared.
        not_offered = [one for one in decided.refused if one.mode in wish.modes]
        decision = replace(decided, refused=(*refused, *not_offered))
        chosen = placement.choose(decision.candidates, self._taken)
        if chosen is not None:
            self._taken[chosen.proxy_id] += 1
        said = judge_disk(chosen.mode, disk).remarks if chosen else ()
        remarks = [one.text for one in said]
        if chosen is not None:
            remarks += placement.remarks_of(chosen, wish, self.proxies)
            remarks += [seen.warning] if seen.warning else []
            unseen = self._unseen(chosen, f"{disk.vcenter_id}/{disk.datastore}")
            remarks += [unseen] if unseen else []
        return {
            "proxy": chosen.proxy_name if chosen else None,
            "mode": chosen.mode.value if chosen else None,
            "reason": "" if chosen else decision.reason,
            "fallbacks": [
                mode.value for mode in (seen.after(chosen.proxy_id, chosen.mode) if chosen else ())
            ],
            "better": placement.refused_json(placement.better_modes(replace(decision, chosen=chosen))),
            "remarks": remarks,
        }

    def _unseen(self, chosen: Candidate, datastore: str) -> str:
        """Why traffic rules do not look at how the disk is read; empty: they do, or there are none."""
        if not self.has_rules:
            return ""
        end = self.ends.get(chosen.proxy_id, NOBODY)
        if chosen.mode is TransportMode.HOTADD:
            return f"{_UNSEEN}: the proxy's host reads it over its own storage network"
        if chosen.mode is TransportMode.DIRECT_SAN and datastore not in end.portals:
            return f"{_UNSEEN}: the proxy sees its LUNs, and no iSCSI target that they come from"
        return ""


def _as_task(disk: DiskFacts, repository_id: str, nfs_hosts: Iterable[str]) -> SimpleNamespace:
    """What a guard looks at of a task."""
    return SimpleNamespace(
        kind=TaskKind.BACKUP_DISK.value,
        vcenter_id=disk.vcenter_id,
        host_moref=disk.host_moref,
        datastore=f"{disk.vcenter_id}/{disk.datastore}",
        repository_id=repository_id,
        order={"disk": {"storage": {"nfs_hosts": list(nfs_hosts)}}},
    )


def foresight(
    ctx: Context,
    s: DbSession,
    *,
    repository_id: str,
    allowed_proxies: Iterable[str],
    allowed_modes: Iterable[str],
    failover: bool,
) -> Foresight:
    """For the plan of a job: all slots free."""
    machines = _MachinesAtOnce(s)
    proxies = _proxies(ctx, s, {}, machines)
    return Foresight(
        proxies=proxies,
        guard=traffic_guard.read(s, ctx.ends, machines.ends, wait_s=traffic_guard.LOOKUP_WAIT_S),
        has_rules=bool(traffic_rules.enabled_rules(s) or proxy_rates.own_rules(s)),
        ends=machines.ends(),
        directories=directories_for(s, proxies),
        repository_id=repository_id,
        allowed_proxies=tuple(allowed_proxies),
        allowed_modes=tuple(allowed_modes),
        failover=failover,
    )
