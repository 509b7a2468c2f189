"""Measures the read latency of datastores that have tasks, every 20 s, and writes down what follows.

Each vCenter is asked on a thread of its own, so that one that does not answer keeps no other waiting; a figure that
comes late counts for less time, and one that does not come at all leaves the datastore unlimited after 90 s.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.orm import Session as DbSession

from backup_server.db.states import TaskState
from backup_server.db.tables import DatastoreLoad, Task, Vcenter
from backup_server.errors import VmhaulError
from backup_server.scheduler.needs import SchedulerContext
from backup_server.services import datastore_loads, latency
from proxy_worker.contracts.messages import TaskKind
from transports.errors import TransportError
from transports.vsphere.api import Vsphere
from transports.vsphere.model import DatastoreLatency

_THREADS: Final = 4
GetVcenter = Callable[[str], Vsphere]
"""The client of a vCenter by its id."""


class LatencyMeter:
    """One for the process; `step` runs on one thread."""

    def __init__(
        self,
        ctx: SchedulerContext,
        vcenter: GetVcenter,
        *,
        leading: Callable[[], bool],
        wake_rates: threading.Event,
    ) -> None:
        self._ctx = ctx
        self._vcenter = vcenter
        self._leading = leading
        self._wake_rates = wake_rates
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="vmhaul-latency")
        self._asked: dict[str, Future[None]] = {}

    def step(self) -> bool:
        """Begin a measurement of every vCenter whose last one has ended."""
        if not self._leading():
            return False
        for vcenter_id, names in self._wanted().items():
            before = self._asked.get(vcenter_id)
            if before is None or before.done():
                self._asked[vcenter_id] = self._pool.submit(self._measure, vcenter_id, names)
        return False

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def wait(self) -> None:
        """Until what was begun has ended."""
        for asked in list(self._asked.values()):
            asked.result()

    def _wanted(self) -> dict[str, set[str]]:
        """Names of datastores with tasks that run or wait, by vCenter; without those that are not to be measured."""
        settings = self._ctx.settings
        with self._ctx.db.read() as s:
            stores = s.scalars(
                sa.select(Task.datastore)
                .where(Task.state != TaskState.DONE.value, Task.datastore != "")
                .distinct()
            ).all()
            own = {
                f"{row.vcenter_id}/{row.datastore}": row.settings
                for row in s.scalars(sa.select(DatastoreLoad))
            }
        wanted: dict[str, set[str]] = {}
        for store in stores:
            if datastore_loads.allowed(own.get(store, {}), settings).latency_control:
                vcenter_id, _, name = store.partition("/")
                wanted.setdefault(vcenter_id, set()).add(name)
        return wanted

    def _measure(self, vcenter_id: str, names: Collection[str]) -> None:
        try:
            found: Mapping[str, DatastoreLatency] = self._vcenter(vcenter_id).datastore_latencies(names)
        except (TransportError, VmhaulError) as error:
            found = {name: DatastoreLatency(read_ms=None, problem=str(error)) for name in names}
        except Exception:
            # Nobody asks for the answer of this thread. What is not measured is not limited.
            self._ctx.log.exception("latency.not-measured", vcenter_id=vcenter_id)
            return
        try:
            self._store(vcenter_id, found)
        except Exception:
            self._ctx.log.exception("latency.not-stored", vcenter_id=vcenter_id)

    def _store(self, vcenter_id: str, found: Mapping[str, DatastoreLatency]) -> None:
        now = self._ctx.clock()
        changed: list[tuple[str, latency.Control]] = []
        with self._ctx.db() as s:
            if s.get(Vcenter, vcenter_id) is None:
                return  # removed meanwhile
            readers = _readers(s)
            for name, told in sorted(found.items()):
                row = datastore_loads.row_of(s, vcenter_id, name)
                before = datastore_loads.control_of(row, self._ctx.settings, now)
                count, moving = readers.get(f"{vcenter_id}/{name}", (0, 0.0))
                after = latency.follow(
                    before,
                    latency_ms=told.read_ms,
                    thresholds=datastore_loads.allowed(row.settings, self._ctx.settings).thresholds,
                    moving_bytes_per_s=moving,
                    readers=count,
                    now=now,
                )
                row.read_latency_ms, row.problem, row.measured_at = told.read_ms, told.problem, now
                row.control = after.to_json()
                if after != before:
                    changed.append((name, after))
        for name, control in changed:
            self._ctx.log.info(
                "datastore.load",
                datastore=name,
                vcenter_id=vcenter_id,
                read_latency_ms=found[name].read_ms,
                **control.to_json(),
            )
        if changed:
            self._ctx.wake_dispatcher.set()
            self._wake_rates.set()


def _readers(s: DbSession) -> dict[str, tuple[int, float]]:
    """By datastore: how many running tasks read from it, and what they move together, as they said last."""
    rows: Any = s.execute(
        sa.select(Task.datastore, Task.progress).where(
            Task.state == TaskState.RUNNING.value,
            Task.kind == TaskKind.BACKUP_DISK.value,
            Task.datastore != "",
        )
    )
    found: dict[str, tuple[int, float]] = {}
    for store, progress in rows:
        count, moving = found.get(store, (0, 0.0))
        found[store] = (count + 1, moving + float((progress or {}).get("bytes_per_s") or 0.0))
    return found
