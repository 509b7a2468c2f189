"""Read latency of datastores, from the server's performance counters.

Each ESXi host measures, every 20 s, how long its reads from a datastore took and how many there were. The real-time
series of a host has the last hour of that. A datastore's figure is that of the slowest host that reads from it: a mean would hide one that suffers behind others
that do not. A host counts that does a twentieth at least of what the busiest does: figures of a few reads say little.

Source: vSphere Web Services API, PerformanceManager; group "datastore" of its counters. Counters are found by
name: their numbers differ between releases. Instances are the last part of a datastore's URL
("ds:///vmfs/volumes/<instance>/").
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from pyVmomi import vim

from transports.vsphere.model import DatastoreLatency
from transports.vsphere.places import moref, unescape
from transports.vsphere.properties import read, read_objects, read_view
from transports.vsphere.session import Connection

GROUP: Final = "datastore"
LATENCY: Final = "totalReadLatency"
READS: Final = "numberReadAveraged"
ROLLUP: Final = "average"
INTERVAL_S: Final = 20
_SAMPLES: Final = 3
_OLDEST: Final = timedelta(seconds=90)
COUNTED_SHARE: Final = 0.05
_PLACES_KEPT_S: Final = 600.0
_METRICS_PER_QUERY: Final = 64
"""What a vCenter answers at once with its defaults."""
_TO_MS: Final = {"millisecond": 1.0, "microsecond": 0.001}


@dataclass(frozen=True, slots=True, kw_only=True)
class Counters:
    """Numbers of the counters on this server."""

    latency: int
    reads: int
    to_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Store:
    name: str
    instance: str
    hosts: tuple[str, ...]
    """That have it mounted and can reach it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sample:
    latency_ms: float
    reads_per_s: float


class LatencyReader:
    """Remembers what seldom changes: counters, instances, hosts. Safe for threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counters: Counters | None = None
        self._stores: tuple[_Store, ...] = ()
        self._stores_at_s = float("-inf")
        self._live: dict[str, bool] = {}

    def read(
        self, connection: Connection, names: Collection[str], now_s: float
    ) -> dict[str, DatastoreLatency]:
        """By name, for each that is asked for. Datastores of the same name count as one: the slowest."""
        with self._lock:
            counters = self._known_counters(connection)
            if counters is None:
                return _all(names, "the server has no counter of the read latency of datastores")
            stores = [one for one in self._known_stores(connection, now_s) if one.name in names]
            hosts = self._live_hosts(connection, {host for one in stores for host in one.hosts})
        samples = _samples(connection, counters, stores, hosts)
        missing = set(names) - {store.name for store in stores}
        found = _all(missing, "the server has no such datastore")
        for store in stores:
            latency = _slowest(store, samples, hosts)
            before = found.get(store.name)
            if before is None or (latency.read_ms or -1) > (before.read_ms or -1):
                found[store.name] = latency
        return found

    def _known_counters(self, connection: Connection) -> Counters | None:
        if self._counters is None:
            manager = connection.content.perfManager
            seen = read(connection, manager, "perfCounter").get("perfCounter") or []
            self._counters = find_counters(seen)
        return self._counters

    def _known_stores(self, connection: Connection, now_s: float) -> tuple[_Store, ...]:
        if now_s - self._stores_at_s >= _PLACES_KEPT_S:
            self._stores = tuple(_read_stores(connection))
            self._stores_at_s = now_s
            self._live.clear()
        return self._stores

    def _live_hosts(self, connection: Connection, hosts: Collection[str]) -> frozenset[str]:
        """Those that measure every 20 s; one that is away does not."""
        asked = [connection.object(vim.HostSystem, one) for one in sorted(hosts)]
        connected = (
            {
                moref(host)
                for host, seen in read_objects(
                    connection, asked, vim.HostSystem, ["runtime.connectionState"]
                )
                if str(seen.get("runtime.connectionState")) == "connected"
            }
            if asked
            else set()
        )
        manager = connection.content.perfManager
        for host in connected - self._live.keys():
            summary = manager.QueryPerfProviderSummary(connection.object(vim.HostSystem, host))
            self._live[host] = (
                bool(summary.currentSupported) and int(summary.refreshRate or 0) == INTERVAL_S
            )
        return frozenset(host for host in connected if self._live[host])


def find_counters(infos: Sequence[Any]) -> Counters | None:
    """By group, name and rollup; None where the server has none of them."""
    by_name = {
        (str(info.groupInfo.key), str(info.nameInfo.key), str(info.rollupType)): info for info in infos
    }
    latency = by_name.get((GROUP, LATENCY, ROLLUP))
    reads = by_name.get((GROUP, READS, ROLLUP))
    if latency is None or reads is None or str(latency.unitInfo.key) not in _TO_MS:
        return None
    return Counters(
        latency=int(latency.key), reads=int(reads.key), to_ms=_TO_MS[str(latency.unitInfo.key)]
    )


def instance_of(url: str) -> str:
    """What counters call the datastore of that URL."""
    return url.rstrip("/").rpartition("/")[2]


def _read_stores(connection: Connection) -> Iterator[_Store]:
    wanted = [(vim.Datastore, ("name", "summary.url", "host"))]
    for _, seen in read_view(connection, wanted):
        url = str(seen.get("summary.url") or "")
        if url and "name" in seen:
            yield _Store(
                name=unescape(str(seen["name"])),
                instance=instance_of(url),
                hosts=tuple(
                    moref(mount.key)
                    for mount in seen.get("host") or []
                    if mount.mountInfo.accessible is not False
                ),
            )


def _samples(
    connection: Connection, counters: Counters, stores: Sequence[_Store], hosts: Collection[str]
) -> Mapping[tuple[str, str], _Sample]:
    """Newest figures by host and instance."""
    metrics: dict[str, list[Any]] = {}
    for store in stores:
        for host in set(store.hosts).intersection(hosts):
            metrics.setdefault(host, []).extend(
                vim.PerformanceManager.MetricId(counterId=counter, instance=store.instance)
                for counter in (counters.latency, counters.reads)
            )
    if not metrics:
        return {}
    now = connection.root().CurrentTime()
    found: dict[tuple[str, str], _Sample] = {}
    for specs in _batches(connection, metrics):
        for entity in connection.content.perfManager.QueryPerf(specs) or []:
            found.update(_of_host(moref(entity.entity), entity, counters, now))
    return found


def _batches(connection: Connection, metrics: Mapping[str, list[Any]]) -> Iterator[list[Any]]:
    pieces = (
        vim.PerformanceManager.QuerySpec(
            entity=connection.object(vim.HostSystem, host),
            metricId=wanted[at : at + _METRICS_PER_QUERY],
            intervalId=INTERVAL_S,
            maxSample=_SAMPLES,
            format="normal",
        )
        for host, wanted in sorted(metrics.items())
        for at in range(0, len(wanted), _METRICS_PER_QUERY)
    )
    batch: list[Any] = []
    size = 0
    for piece in pieces:
        if batch and size + len(piece.metricId) > _METRICS_PER_QUERY:
            yield batch
            batch, size = [], 0
        batch.append(piece)
        size += len(piece.metricId)
    if batch:
        yield batch


def _of_host(
    host: str, entity: Any, counters: Counters, now: datetime
) -> Iterator[tuple[tuple[str, str], _Sample]]:
    """The newest sample of each instance that is young enough."""
    times = [_aware(info.timestamp) for info in entity.sampleInfo or []]
    series = {
        (int(one.id.counterId), str(one.id.instance)): list(one.value or [])
        for one in entity.value or []
    }
    for (counter, instance), values in series.items():
        if counter != counters.latency:
            continue
        reads = series.get((counters.reads, instance), [])
        at = _newest(values, times, _aware(now))
        if at is not None:
            reads_per_s = max(0, reads[at]) if at < len(reads) else 0
            yield (
                (host, instance),
                _Sample(latency_ms=values[at] * counters.to_ms, reads_per_s=reads_per_s),
            )


def _newest(values: Sequence[int], times: Sequence[datetime], now: datetime) -> int | None:
    """Where the youngest value stands that was measured (-1 is none) and is not too old."""
    good = [
        at
        for at, (value, moment) in enumerate(zip(values, times, strict=False))
        if value >= 0 and now - moment <= _OLDEST
    ]
    return max(good, key=lambda at: times[at], default=None)


def _aware(moment: datetime) -> datetime:
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def _slowest(
    store: _Store, samples: Mapping[tuple[str, str], _Sample], hosts: Collection[str]
) -> DatastoreLatency:
    told = [samples[host, store.instance] for host in store.hosts if (host, store.instance) in samples]
    if not told:
        why = "its hosts measure no read latency of it"
        if not set(store.hosts).intersection(hosts):
            why = "no host that measures has it mounted"
        return DatastoreLatency(read_ms=None, problem=why)
    # Where all read less than once a second, what they say is all there is.
    least = COUNTED_SHARE * max(one.reads_per_s for one in told)
    return DatastoreLatency(read_ms=max(one.latency_ms for one in told if one.reads_per_s >= least))


def _all(names: Collection[str], problem: str) -> dict[str, DatastoreLatency]:
    return {name: DatastoreLatency(read_ms=None, problem=problem) for name in names}
