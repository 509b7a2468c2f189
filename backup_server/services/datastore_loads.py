"""Load of datastores: what is allowed on each, how slow it was last, and what follows for tasks.

| setting of a datastore | what | without it |
|---|---|---|
| max_tasks | tasks at once that read or write it; 0: no limit | `datastore_max_tasks` |
| max_snapshots | VM snapshots of vmhaul that may be open on it | `snapshots_per_datastore` |
| latency_control | whether its latency limits anything | `latency_control` |
| latency_stop_ms | read latency above which it takes no new task | `latency_stop_ms` |
| latency_throttle_ms | read latency above which its tasks are slowed | `latency_throttle_ms` |

A row exists for what was set or measured; everything else goes by the server's settings. Keys of limits are
"d:<vcenter id>/<datastore name>": `Task.datastore` with a letter before it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.orm import Session as DbSession

from backup_server.config import Settings
from backup_server.db.tables import DatastoreLoad, new_id
from backup_server.services.latency import Control, Thresholds

MAX_TASKS: Final = "max_tasks"
MAX_SNAPSHOTS: Final = "max_snapshots"
LATENCY_CONTROL: Final = "latency_control"
STOP_MS: Final = "latency_stop_ms"
THROTTLE_MS: Final = "latency_throttle_ms"
NAMES: Final = (MAX_TASKS, MAX_SNAPSHOTS, LATENCY_CONTROL, STOP_MS, THROTTLE_MS)

STALE_AFTER: Final = timedelta(seconds=90)
"""An older figure says nothing of now: it counts as unknown, not as slow."""


def limit_key(datastore: str) -> str:
    """`datastore` as `Task.datastore` names it; empty for a task that is on none."""
    return f"d:{datastore}" if datastore else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowed:
    """What holds for one datastore: its own settings over the server's."""

    max_tasks: int
    max_snapshots: int
    latency_control: bool
    latency_stop_ms: float
    latency_throttle_ms: float

    @property
    def thresholds(self) -> Thresholds:
        return Thresholds(stop_ms=self.latency_stop_ms, throttle_ms=self.latency_throttle_ms)


def allowed(own: Mapping[str, Any], settings: Settings) -> Allowed:
    """`own`: `DatastoreLoad.settings`, empty where there is no row."""
    stop_ms = float(own.get(STOP_MS, settings.latency_stop_ms))
    return Allowed(
        max_tasks=int(own.get(MAX_TASKS, settings.datastore_max_tasks)),
        max_snapshots=int(own.get(MAX_SNAPSHOTS, settings.snapshots_per_datastore)),
        latency_control=bool(own.get(LATENCY_CONTROL, settings.latency_control)),
        latency_stop_ms=stop_ms,
        latency_throttle_ms=max(stop_ms, float(own.get(THROTTLE_MS, settings.latency_throttle_ms))),
    )


# ---- what the dispatcher and the engine ask -------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Loads:
    """All of it as one value, read with one statement."""

    settings: Settings
    own: Mapping[str, Mapping[str, Any]]
    """Settings by datastore, "<vcenter id>/<name>"; only of those that have a row."""
    closed: Mapping[str, str]
    """Limit key -> why nothing new is handed out there."""
    trickling: frozenset[str]
    """Datastores that have been slow for so long that they take one task at a time."""

    def max_tasks(self, datastore: str) -> int:
        """Most tasks at once on that datastore; 0: no limit."""
        most = allowed(self.own.get(datastore, {}), self.settings).max_tasks
        return 1 if datastore in self.trickling else most

    def max_snapshots(self, datastore: str) -> int:
        return allowed(self.own.get(datastore, {}), self.settings).max_snapshots

    def limits(self, datastores: Iterable[str]) -> dict[str, int]:
        """Limit key -> most tasks at once, for each of the datastores that is named; 0: no limit."""
        return {limit_key(name): self.max_tasks(name) for name in datastores if name}


def read(s: DbSession, settings: Settings, now: datetime) -> Loads:
    closed: dict[str, str] = {}
    trickling: set[str] = set()
    own: dict[str, Mapping[str, Any]] = {}
    for row in s.scalars(sa.select(DatastoreLoad)):
        name = f"{row.vcenter_id}/{row.datastore}"
        own[name] = row.settings
        control = control_of(row, settings, now)
        if control.trickles(now):
            trickling.add(name)
        elif control.closed_since is not None:
            closed[limit_key(name)] = _why_closed(row, settings)
    return Loads(settings=settings, own=own, closed=closed, trickling=frozenset(trickling))


def limits(s: DbSession, settings: Settings, now: datetime) -> dict[str, int]:
    """Limit key -> most tasks at once, of datastores that have a row; 0: no limit. `Loads` knows the others too."""
    loads = read(s, settings, now)
    return loads.limits(loads.own)


def closed(s: DbSession, settings: Settings, now: datetime) -> dict[str, str]:
    """Limit key -> why nothing new is handed out there now."""
    return dict(read(s, settings, now).closed)


def allowances(s: DbSession, settings: Settings, now: datetime) -> dict[str, int]:
    """Datastore ("<vcenter id>/<name>") -> bytes a second for all tasks together that read from it, where they are
    slowed now.
    """
    found: dict[str, int] = {}
    for row in s.scalars(sa.select(DatastoreLoad)):
        most = control_of(row, settings, now).allowance_bytes_per_s
        if most is not None:
            found[f"{row.vcenter_id}/{row.datastore}"] = most
    return found


def max_snapshots(s: DbSession, settings: Settings, vcenter_id: str, name: str) -> int:
    """VM snapshots of vmhaul that may be open on the datastore."""
    own = s.scalar(
        sa.select(DatastoreLoad.settings).where(
            DatastoreLoad.vcenter_id == vcenter_id, DatastoreLoad.datastore == name
        )
    )
    return allowed(own or {}, settings).max_snapshots


def control_of(row: DatastoreLoad, settings: Settings, now: datetime) -> Control:
    """What holds now: nothing where the last figure is too old, or latency is not to limit anything."""
    fresh = row.measured_at is not None and now - row.measured_at <= STALE_AFTER
    if not fresh or row.read_latency_ms is None or not allowed(row.settings, settings).latency_control:
        return Control()
    return Control.of(row.control)


def _why_closed(row: DatastoreLoad, settings: Settings) -> str:
    stop_ms = allowed(row.settings, settings).latency_stop_ms
    return (
        f"datastore {row.datastore} is slow: reading takes {row.read_latency_ms:.0f} ms there, and above {stop_ms:g} ms "
        "it is given nothing new; it is measured every 20 s"
    )


def row_of(s: DbSession, vcenter_id: str, name: str) -> DatastoreLoad:
    """The datastore's row, made when there is none yet."""
    row = s.scalar(
        sa.select(DatastoreLoad).where(
            DatastoreLoad.vcenter_id == vcenter_id, DatastoreLoad.datastore == name
        )
    )
    if row is None:
        row = DatastoreLoad(
            id=new_id(),
            vcenter_id=vcenter_id,
            datastore=name,
            settings={},
            read_latency_ms=None,
            measured_at=None,
            control={},
        )
        s.add(row)
        s.flush()
    return row
