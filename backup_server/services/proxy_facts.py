"""Proxies and tasks as placement sees them: rows of the database as values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from ipaddress import ip_interface
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.orm import Session as DbSession

from backup_server.db.states import TaskState
from backup_server.db.tables import Proxy, Repository, Task
from backup_server.services import disk_facts, proxy_settings, proxy_troubles, proxy_vms
from backup_server.services.storage_places import has_directory
from backup_server.services.surveys import ProxyFacts
from backup_server.services.task_ends import ProxyEnd, proxy_end
from backup_server.services.traffic_guard import NO_GUARD, Guard
from backup_server.services.wishes import WITHOUT_VSPHERE, ModeRefused, Wish, refused_modes, wish_of
from proxy_worker.contracts.codec import MessageError, from_json
from proxy_worker.contracts.messages import ConnectionsReport, TaskKind
from transports.base import TransportMode
from transports.rules import Connected, ProxyMachine


class Machines:
    """What proxies found when they looked around, as values; read again only when one looked again."""

    def __init__(self) -> None:
        self._kept: dict[str, tuple[datetime | None, ConnectionsReport | None]] = {}
        self._ends: dict[str, tuple[ConnectionsReport, ProxyEnd]] = {}
        self._made: dict[str, tuple[tuple[Any, ...], ProxyMachine]] = {}

    def report_of(self, db: DbSession, proxy_id: str, at: datetime | None) -> ConnectionsReport | None:
        kept_at, report = self._kept.get(proxy_id, (None, None))
        if at is None or kept_at == at:
            return report if at is not None else None
        body = db.scalar(sa.select(Proxy.connections).where(Proxy.id == proxy_id))
        try:
            report = from_json(ConnectionsReport, body)
        except MessageError:
            report = None  # kept by another release; the proxy reports anew when its worker starts
        self._kept[proxy_id] = (at, report)
        return report

    def machine_of(
        self, row: Any, report: ConnectionsReport | None, offered: tuple[TransportMode, ...]
    ) -> ProxyMachine:
        """The same value while nothing of it changed: every heartbeat changes facts that are not about it."""
        facts = {name: value for name, value in row.facts.items() if name not in _OF_THE_MOMENT}
        given = (row.connections_at, row.settings, row.local, offered, facts)
        kept = self._made.get(row.id)
        if kept is None or kept[0] != given:
            kept = self._made[row.id] = given, _machine(row, report, offered)
        return kept[1]

    def ends(self) -> dict[str, ProxyEnd]:
        """Of every proxy that looked around, by its id."""
        return {
            proxy_id: self._end_of(proxy_id, report)
            for proxy_id, (_, report) in self._kept.items()
            if report is not None
        }

    def _end_of(self, proxy_id: str, report: ConnectionsReport) -> ProxyEnd:
        kept = self._ends.get(proxy_id)
        if kept is None or kept[0] is not report:
            portals = [(one.datastore, one.portals) for one in report.connections]
            kept = self._ends[proxy_id] = report, proxy_end(report.addresses, portals)
        return kept[1]


_OF_THE_MOMENT: Final = frozenset(
    {"slots", "running", "stopping", "cpu_share", "free_memory_bytes", "modes", proxy_troubles.BOOTS}
)
NO_DIRECTORIES: Final = "no_directories"
"""Fact of a proxy, as its heartbeats tell it."""
_COLUMNS: Final = (
    Proxy.id,
    Proxy.name,
    Proxy.enabled,
    Proxy.slots,
    Proxy.modes,
    Proxy.signing_key,
    Proxy.last_seen_at,
    Proxy.facts,
    Proxy.settings,
    Proxy.connections_at,
    Proxy.local,
)


def proxy_facts(
    db: DbSession,
    now: datetime,
    offline_after_s: float,
    used: Mapping[str, int],
    machines: Machines | None = None,
) -> list[ProxyFacts]:
    """All proxies by name; `used` are the slots that the index counts as taken."""
    machines = machines or Machines()
    return [
        _facts(
            row,
            machines,
            machines.report_of(db, row.id, row.connections_at),
            now=now,
            offline_after_s=offline_after_s,
            used=used.get(row.id, 0),
        )
        for row in db.execute(sa.select(*_COLUMNS).order_by(Proxy.name)).all()
    ]


def _facts(
    row: Any,
    machines: Machines,
    report: ConnectionsReport | None,
    *,
    now: datetime,
    offline_after_s: float,
    used: int,
) -> ProxyFacts:
    reported = row.facts.get("slots")
    seen = row.last_seen_at
    offered = _modes(row.facts.get("modes", []))
    return ProxyFacts(
        id=row.id,
        name=row.name,
        enabled=row.enabled,
        enrolled=row.signing_key is not None,
        online=seen is not None and now - seen <= timedelta(seconds=offline_after_s),
        stopping=bool(row.facts.get("stopping")),
        trouble=proxy_troubles.words_of(row.facts),
        # What the administrator allows, and no more than the worker has room for.
        slots=min(row.slots, reported) if isinstance(reported, int) else row.slots,
        used=used,
        offered_modes=offered,
        allowed_modes=_modes(row.modes),
        failover_to_network=proxy_settings.failover_to_network(row.settings),
        machine=machines.machine_of(row, report, offered),
        repositories=proxy_settings.near_repositories(row.settings),
        missing={} if report is None else {one.mode: one.reason for one in report.missing},
        no_directories=str(row.facts.get(NO_DIRECTORIES) or ""),
    )


def _machine(
    row: Any, report: ConnectionsReport | None, offered: tuple[TransportMode, ...]
) -> ProxyMachine:
    return ProxyMachine(
        id=row.id,
        vm_uuid="" if report is None else report.vm_uuid,
        vms=proxy_vms.of_facts(row.facts),
        confirmed=proxy_vms.confirmed_vms(
            row.facts, row.settings, "" if report is None else report.vm_uuid, local=row.local
        ),
        connections={}
        if report is None
        else {
            (one.datastore, one.mode): Connected(
                readable=one.readable, writable=one.writable, hops=one.hops, reason=one.reason
            )
            for one in report.connections
        },
        datastores=proxy_settings.connected_datastores(row.settings),
        offered_modes=offered,
        hotadd_nfs3_any_host=proxy_settings.hotadd_nfs3_any_host(row.settings),
        max_nfs_hops=proxy_settings.max_nfs_hops(row.settings),
        networks=() if report is None else networks_of(report.addresses),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """What wishes of tasks need to know of all proxies."""

    proxy_vms: frozenset[tuple[str, str]] = frozenset()
    """vCenter id and moref of every VM that is a proxy."""
    proxy_hosts: frozenset[tuple[str, str]] = frozenset()
    """vCenter id and moref of the hosts of proxies that attach disks on NFS only where the disk's VM runs on the same."""
    networks: frozenset[str] = frozenset()
    """Those in which proxies have addresses."""
    near: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Repository row id -> ids of the proxies that are set to be near to it."""
    directories: frozenset[str] | None = None
    """Row ids of the repositories that are directories; None: every proxy opens those."""
    guard: Guard = NO_GUARD
    """What traffic rules let nobody send in the clear."""


def directories_for(db: DbSession, proxies: Iterable[ProxyFacts]) -> frozenset[str] | None:
    """As Fleet.directories. Nothing is read while every proxy opens them."""
    if not any(proxy.no_directories for proxy in proxies):
        return None
    rows = db.execute(sa.select(Repository.id, Repository.location))
    return frozenset(row.id for row in rows if has_directory(row.location))


def fleet_of(
    proxies: Iterable[ProxyFacts],
    guard: Guard = NO_GUARD,
    directories: frozenset[str] | None = None,
) -> Fleet:
    """`directories`: as directories_for() answers."""
    known = list(proxies)
    near: dict[str, list[str]] = {}
    for proxy in known:
        for repository_id in proxy.repositories:
            near.setdefault(repository_id, []).append(proxy.id)
    return Fleet(
        proxy_vms=proxy_vms_of(known),
        proxy_hosts=frozenset(
            (vm.vcenter_id, vm.host_moref)
            for proxy in known
            if proxy.machine is not None
            and TransportMode.HOTADD in proxy.offered_modes
            and not proxy.machine.hotadd_nfs3_any_host
            for vm in proxy.machine.vms
        ),
        networks=frozenset(
            network
            for proxy in known
            if proxy.machine is not None
            for network in proxy.machine.networks
        ),
        near={repository_id: tuple(sorted(ids)) for repository_id, ids in near.items()},
        directories=directories,
        guard=guard,
    )


def networks_of(addresses: Iterable[str]) -> tuple[str, ...]:
    """Networks of addresses such as "192.0.2.7/24"; none of a single machine, of loopback or of one link."""
    found: set[str] = set()
    for text in addresses:
        try:
            one = ip_interface(text)
        except ValueError:
            continue  # as the proxy told it
        if one.is_loopback or one.is_link_local or one.network.num_addresses == 1:
            continue
        found.add(str(one.network))
    return tuple(sorted(found))


def proxy_vms_of(proxies: Iterable[ProxyFacts]) -> frozenset[tuple[str, str]]:
    """vCenter id and moref of every VM that is a proxy."""
    return frozenset(
        (vm.vcenter_id, vm.moref)
        for proxy in proxies
        if proxy.machine is not None
        for vm in proxy.machine.vms
    )


def _modes(names: list[str]) -> tuple[TransportMode, ...]:
    """Best first; names that this release does not know are left out."""
    return tuple(mode for mode in TransportMode if mode.value in names)


def task_wish(row: Task, fleet: Fleet) -> Wish:
    return wish_of(
        row.kind,
        disk_facts.of_task(row),
        row.allowed_proxies,
        row.allowed_modes,
        left=disk_facts.left_pairs(row.facts),
        failover=disk_facts.failover_allowed(row.facts),
        proxy_vms=fleet.proxy_vms,
        proxy_hosts=fleet.proxy_hosts,
        networks=fleet.networks,
        near=fleet.near.get(row.repository_id, ()),
        forbidden=fleet.guard.forbidden(row),
        directory=_needs_directory(row, fleet),
    )


def _needs_directory(row: Task, fleet: Fleet) -> bool:
    if fleet.directories is None:
        return False
    source = str((row.order.get("source") or {}).get("location", ""))
    return (
        row.kind == TaskKind.RESTORE_DISK_TO_FILE.value
        or row.repository_id in fleet.directories
        or has_directory(source)
    )


def task_refusals(row: Task) -> Sequence[ModeRefused]:
    """Modes that come into question for no proxy."""
    return refused_modes(row.kind, disk_facts.of_task(row), row.allowed_modes)


def task_host(row: Task) -> str:
    """The host whose NFC service a network mode would use: "<vcenter id>/<moref>"; empty: none is known."""
    if row.kind in WITHOUT_VSPHERE or not row.vcenter_id or not row.host_moref:
        return ""
    return f"{row.vcenter_id}/{row.host_moref}"


def running_by_proxy(db: DbSession) -> dict[str, int]:
    """Tasks that each proxy works on now, by proxy id."""
    rows = db.execute(
        sa.select(Task.proxy_id, sa.func.count())
        .where(Task.state == TaskState.RUNNING.value, Task.proxy_id.is_not(None))
        .group_by(Task.proxy_id)
    )
    return {str(proxy_id): int(count) for proxy_id, count in rows}
