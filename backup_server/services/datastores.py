"""Datastores as the doors show them: what is allowed on each, how slow it was last, what it is used for now."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.orm import Session as DbSession

from backup_server.db.states import TaskState
from backup_server.db.tables import DatastoreLoad, Task, Vcenter
from backup_server.errors import NotFoundError, VmhaulError
from backup_server.services import datastore_loads, vcenters
from backup_server.services.context import Context
from backup_server.services.datastore_loads import (
    LATENCY_CONTROL,
    MAX_SNAPSHOTS,
    MAX_TASKS,
    NAMES,
    STOP_MS,
    THROTTLE_MS,
)
from backup_server.services.shapes import Fields, by_ref, when
from transports.errors import TransportError
from transports.vsphere.model import DatastoreInfo

INVENTORY_AGE_S: Final = 3600.0
"""Of an inventory that tells well enough which datastores there are."""
MOST_TASKS: Final = 10_000
MOST_SNAPSHOTS: Final = 1000
MOST_MS: Final = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class _Used:
    running: Counter[str]
    pending: Counter[str]


def list_all(ctx: Context, vcenter: str | None = None) -> list[dict[str, Any]]:
    """Of all vCenters or of one, by name; those of a vCenter that does not answer as far as they were used."""
    with ctx.db.read() as s:
        rows = [by_ref(s, Vcenter, vcenter)] if vcenter else list(_vcenters(s))
        known = [(row.id, row.name) for row in rows]
    inventories = {vcenter_id: _inventory(ctx, vcenter_id) for vcenter_id, _ in known}
    with ctx.db.read() as s:
        used = _used(s)
        return [
            shape
            for vcenter_id, name in known
            for shape in _of_vcenter(ctx, s, vcenter_id, name, inventories[vcenter_id], used)
        ]


def get(ctx: Context, vcenter: str, name: str) -> dict[str, Any]:
    """NotFoundError when the vCenter has none of that name."""
    found = [one for one in list_all(ctx, vcenter) if one["name"] == name]
    if not found:
        raise NotFoundError(
            f"vCenter {vcenter} has no datastore {name!r}; `vmhaul datastore list` has them"
        )
    return found[0]


def edit(ctx: Context, vcenter: str, name: str, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Change what is named; null goes back to the server's setting. InvalidError names what cannot be accepted."""
    values = _values(changes)
    with ctx.db.read() as s:
        vcenter_id = by_ref(s, Vcenter, vcenter).id
    get(ctx, vcenter_id, name)
    with ctx.db() as s:
        row = datastore_loads.row_of(s, vcenter_id, name)
        merged = {**row.settings, **values}
        row.settings = {key: value for key, value in merged.items() if value is not None}
    ctx.wake_dispatcher.set()
    ctx.wake_engine.set()
    return get(ctx, vcenter_id, name)


def _values(changes: Mapping[str, Any]) -> dict[str, Any]:
    given = Fields(changes)
    found: dict[str, Any] = {}
    bounds = {MAX_TASKS: (0, MOST_TASKS), MAX_SNAPSHOTS: (1, MOST_SNAPSHOTS)}
    for name in NAMES:
        if not given.has(name):
            continue
        if changes[name] is None:
            found[name] = given.take(name)
        elif name == LATENCY_CONTROL:
            found[name] = given.flag(name)
        elif name in bounds:
            low, high = bounds[name]
            found[name] = given.number(name, low=low, high=high)
        else:
            found[name] = given.checked(name, _check_ms)
    stop, throttle = found.get(STOP_MS), found.get(THROTTLE_MS)
    if stop is not None and throttle is not None and throttle < stop:
        given.wrong(THROTTLE_MS, f"must not be below {STOP_MS}")
    given.finish("the datastore's settings")
    return found


def _check_ms(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= MOST_MS:
        raise ValueError(f"must be a number of milliseconds above 0, {MOST_MS} at most, or null")
    return float(value)


def _vcenters(s: DbSession) -> sa.ScalarResult[Vcenter]:
    return s.scalars(sa.select(Vcenter).order_by(Vcenter.name))


def _inventory(ctx: Context, vcenter_id: str) -> dict[str, DatastoreInfo]:
    try:
        found = vcenters.load_inventory(ctx, vcenter_id, max_age_s=INVENTORY_AGE_S)
    except (TransportError, VmhaulError) as error:
        ctx.log.warning("datastores.vcenter-unread", vcenter_id=vcenter_id, reason=str(error))
        return {}
    return {store.name: store for store in found.datastores}


def _used(s: DbSession) -> _Used:
    rows = s.execute(
        sa.select(Task.datastore, Task.state, sa.func.count())
        .where(Task.state != TaskState.DONE.value, Task.datastore != "")
        .group_by(Task.datastore, Task.state)
    )
    used = _Used(running=Counter(), pending=Counter())
    for store, state, count in rows:
        (used.running if state == TaskState.RUNNING.value else used.pending)[store] += int(count)
    return used


def _of_vcenter(
    ctx: Context,
    s: DbSession,
    vcenter_id: str,
    vcenter: str,
    inventory: Mapping[str, DatastoreInfo],
    used: _Used,
) -> list[dict[str, Any]]:
    rows = {
        row.datastore: row
        for row in s.scalars(sa.select(DatastoreLoad).where(DatastoreLoad.vcenter_id == vcenter_id))
    }
    prefix = f"{vcenter_id}/"
    busy = {
        name.removeprefix(prefix) for name in used.running | used.pending if name.startswith(prefix)
    }
    now = ctx.clock()
    return [
        {
            "vcenter": vcenter,
            "vcenter_id": vcenter_id,
            "name": name,
            **_storage(inventory.get(name)),
            **_load(ctx, rows.get(name), now),
            "running_tasks": used.running[prefix + name],
            "pending_tasks": used.pending[prefix + name],
        }
        for name in sorted(inventory.keys() | rows.keys() | busy)
    ]


def _storage(store: DatastoreInfo | None) -> dict[str, Any]:
    return {
        "kind": store.kind if store else "",
        "capacity_bytes": store.capacity_bytes if store else None,
        "free_bytes": store.free_bytes if store else None,
    }


def _load(ctx: Context, row: DatastoreLoad | None, now: datetime) -> dict[str, Any]:
    own = dict(row.settings) if row else {}
    allowed = datastore_loads.allowed(own, ctx.settings)
    control = datastore_loads.control_of(row, ctx.settings, now) if row else None
    return {
        "settings": {name: own.get(name) for name in NAMES},
        "allowed": {
            MAX_TASKS: allowed.max_tasks,
            MAX_SNAPSHOTS: allowed.max_snapshots,
            LATENCY_CONTROL: allowed.latency_control,
            STOP_MS: allowed.latency_stop_ms,
            THROTTLE_MS: allowed.latency_throttle_ms,
        },
        "read_latency_ms": row.read_latency_ms if row else None,
        "measured_at": when(row.measured_at) if row else None,
        "problem": row.problem if row else "",
        "closed_since": when(control.closed_since) if control else None,
        "allowance_bytes_per_s": control.allowance_bytes_per_s if control else None,
    }
