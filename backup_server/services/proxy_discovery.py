"""What proxies found when they looked around, and asking them to look again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session as DbSession

from backup_server.db.tables import OutboxRow, Proxy, Vcenter
from backup_server.services import proxy_vms
from backup_server.services.context import Context
from backup_server.services.shapes import by_ref, when
from backup_server.services.tasks import OUTBOX_RESCAN
from proxy_worker.contracts.codec import to_json
from proxy_worker.contracts.ids import ProxyId
from proxy_worker.contracts.messages import RescanOrder
from transports.rules import ProxyVm


def rescan(ctx: Context, ref: str) -> str:
    """Ask a proxy to look around now; answers its id. What it finds comes with its next report."""
    with ctx.db() as s:
        row = by_ref(s, Proxy, ref)
        ask(s, [row.id], ctx.clock())
        return row.id


def ask_all(s: DbSession, now: datetime) -> None:
    """Ask every proxy that ever worked to look around."""
    ids = s.scalars(sa.select(Proxy.id).where(Proxy.last_seen_at.is_not(None)).order_by(Proxy.id))
    ask(s, list(ids), now)


def ask(s: DbSession, proxy_ids: Sequence[str], now: datetime) -> None:
    """In the caller's transaction. A proxy that is away looks around when it starts."""
    for proxy_id in proxy_ids:
        s.add(
            OutboxRow(
                kind=OUTBOX_RESCAN,
                proxy_id=proxy_id,
                task_id=None,
                attempt=None,
                body=to_json(RescanOrder(proxy_id=ProxyId(proxy_id))),
                created_at=now,
            )
        )


def shape(s: DbSession, row: Proxy) -> dict[str, Any]:
    """The last look of a proxy, for people and programs; `at` None: it has not looked yet."""
    names = {found.id: found.name for found in s.execute(sa.select(Vcenter.id, Vcenter.name))}
    found: Mapping[str, Any] = row.connections or {}
    return {
        "at": when(row.connections_at),
        "vm_uuid": found.get("vm_uuid", ""),
        "addresses": list(found.get("addresses", ())),
        "called_from": str(row.facts.get(proxy_vms.PEER, "")),
        "vms": [_vm(vm, names) for vm in proxy_vms.of_facts(row.facts)],
        "datastores": [_datastore(one, names) for one in found.get("connections", ())],
        "missing": list(found.get("missing", ())),
    }


def _vm(vm: ProxyVm, names: Mapping[str, str]) -> dict[str, Any]:
    return {
        "vcenter": names.get(vm.vcenter_id, vm.vcenter_id),
        "name": vm.name,
        "moref": vm.moref,
        "datacenter": vm.datacenter,
        "host": vm.host_moref,
        "datastores": list(vm.datastores),
        "free_slots": vm.free_slots,
        "addresses": list(vm.addresses),
        "encrypted": vm.encrypted,
    }


def _datastore(one: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    vcenter_id, _, name = str(one.get("datastore", "")).partition("/")
    return {
        "vcenter": names.get(vcenter_id, vcenter_id),
        "datastore": name,
        "mode": one.get("mode"),
        "readable": bool(one.get("readable")),
        "writable": bool(one.get("writable")),
        "hops": None if int(one.get("hops", -1)) < 0 else int(one["hops"]),
        "reason": str(one.get("reason", "")),
        "portals": [str(address) for address in one.get("portals", ())],
    }
