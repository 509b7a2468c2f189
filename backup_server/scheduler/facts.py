"""What the dispatcher reads from SQL before it decides."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.orm import Session as DbSession
from sqlalchemy.orm import load_only

from backup_server.db.states import TaskState
from backup_server.db.tables import Proxy, Repository, Task
from backup_server.scheduler.claims import RunningClaim
from backup_server.services import disk_facts, proxy_settings, proxy_vms
from backup_server.services.placement import ProxyFacts
from backup_server.services.wishes import WITHOUT_VSPHERE, ModeRefused, Wish, refused_modes, wish_of
from proxy_worker.contracts.codec import MessageError, from_json
from proxy_worker.contracts.messages import ConnectionsReport
from transports.base import TransportMode
from transports.rules import NETWORK_MODES, Connected, ProxyMachine


class Machines:
    """What proxies found when they looked around, as values; read again only when one looked again."""

    def __init__(self) -> None:
        self._kept: dict[str, tuple[datetime | None, ConnectionsReport | None]] = {}

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
            machines.report_of(db, row.id, row.connections_at),
            now=now,
            offline_after_s=offline_after_s,
            used=used.get(row.id, 0),
        )
        for row in db.execute(sa.select(*_COLUMNS).order_by(Proxy.name)).all()
    ]


def _facts(
    row: Any, report: ConnectionsReport | None, *, now: datetime, offline_after_s: float, used: int
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
        # What the administrator allows, and no more than the worker has room for.
        slots=min(row.slots, reported) if isinstance(reported, int) else row.slots,
        used=used,
        offered_modes=offered,
        allowed_modes=_modes(row.modes),
        failover_to_network=proxy_settings.failover_to_network(row.settings),
        machine=_machine(row, report, offered),
        missing={} if report is None else {one.mode: one.reason for one in report.missing},
    )


def _machine(
    row: Any, report: ConnectionsReport | None, offered: tuple[TransportMode, ...]
) -> ProxyMachine:
    return ProxyMachine(
        id=row.id,
        vm_uuid="" if report is None else report.vm_uuid,
        vms=proxy_vms.of_facts(row.facts),
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
    )


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


def task_wish(row: Task, proxy_vms: frozenset[tuple[str, str]]) -> Wish:
    return wish_of(
        row.kind,
        disk_facts.of_task(row),
        row.allowed_proxies,
        row.allowed_modes,
        left=disk_facts.left_pairs(row.facts),
        failover=disk_facts.failover_allowed(row.facts),
        proxy_vms=proxy_vms,
    )


def task_refusals(row: Task) -> Sequence[ModeRefused]:
    """Modes that come into question for no proxy."""
    return refused_modes(row.kind, disk_facts.of_task(row), row.allowed_modes)


def task_host(row: Task) -> str:
    """The host whose NFC service a network mode would use: "<vcenter id>/<moref>"; empty: none is known."""
    if row.kind in WITHOUT_VSPHERE or not row.vcenter_id or not row.host_moref:
        return ""
    return f"{row.vcenter_id}/{row.host_moref}"


def proxy_ids(db: DbSession) -> list[str]:
    return list(db.scalars(sa.select(Proxy.id).order_by(Proxy.name)))


def open_hosts(db: DbSession) -> set[str]:
    """Hosts of tasks that are not over, as task_host() names them."""
    rows = db.execute(
        sa.select(Task.vcenter_id, Task.host_moref)
        .where(Task.state != TaskState.DONE.value, Task.vcenter_id.is_not(None), Task.host_moref != "")
        .distinct()
    )
    return {f"{vcenter_id}/{host}" for vcenter_id, host in rows}


def repository_limits(db: DbSession) -> dict[str, tuple[str, int]]:
    """Repository row id -> name and most tasks at once."""
    rows = db.execute(sa.select(Repository.id, Repository.name, Repository.max_tasks))
    return {row.id: (row.name, row.max_tasks) for row in rows}


def pending_ids(db: DbSession, now: datetime) -> set[str]:
    """Tasks that may be handed out now."""
    return set(
        db.scalars(
            sa.select(Task.id).where(
                Task.state == TaskState.PENDING.value,
                Task.cancel_requested.is_(False),
                sa.or_(Task.not_before.is_(None), Task.not_before <= now),
            )
        )
    )


def tasks_by_id(db: DbSession, ids: set[str], *, batch: int = 500) -> list[Task]:
    """Rows in the order in which they are to be queued."""
    rows: list[Task] = []
    wanted = sorted(ids)
    for i in range(0, len(wanted), batch):
        rows += db.scalars(sa.select(Task).where(Task.id.in_(wanted[i : i + batch])))
    return sorted(rows, key=lambda row: (row.created_at, row.session_id, row.position, row.id))


def running_claims(db: DbSession) -> list[RunningClaim]:
    rows = db.scalars(
        sa.select(Task)
        .options(load_only(*_CLAIM_COLUMNS))
        .where(Task.state == TaskState.RUNNING.value, Task.proxy_id.is_not(None))
    )
    return [
        RunningClaim(
            task_id=row.id,
            proxy_id=row.proxy_id or "",
            attempt=row.attempt,
            repository_id=row.repository_id,
            host=task_host(row) if row.mode in _NETWORK else "",
        )
        for row in rows
    ]


_NETWORK: Final = frozenset(mode.value for mode in NETWORK_MODES)
_CLAIM_COLUMNS: Final = (
    Task.kind,
    Task.proxy_id,
    Task.attempt,
    Task.repository_id,
    Task.vcenter_id,
    Task.host_moref,
    Task.mode,
)
