"""Between which machines the data of a task moves: what traffic rules look at.

| end | addresses |
|---|---|
| the proxy | those that it told of when it looked around |
| a disk, `nbdssl`, `nbd` | the ESXi host's VMkernel adapters |
| a disk, `direct-nfs` | the NFS server's |
| a disk, `storage-snapshot` | the storage system's |
| a disk, `direct-san` | portals of the iSCSI targets through which the proxy reaches its datastore; none over Fibre Channel |
| a disk, `hotadd` | none: it comes through the host that the proxy is on |
| a repository | its endpoint's, its NFS server's; none for a directory of the proxy |
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.orm import Session as DbSession

from backup_server.db.tables import Repository, StorageSystem, Task
from backup_server.services.lookups import NONE, Addresses, Lookups, addresses_of_name
from backup_server.services.networks import addresses_of, parse_address
from backup_server.services.storage_places import Place, places_of
from proxy_worker.contracts.messages import TaskKind
from transports.base import TransportMode
from transports.vsphere.api import Vsphere

RESTORES: Final = frozenset({TaskKind.RESTORE_DISK_TO_VM.value, TaskKind.RESTORE_DISK_TO_FILE.value})
_NETWORK: Final = frozenset({TransportMode.NBDSSL, TransportMode.NBD})
IN_CLEAR: Final = {
    TransportMode.NBD: "nbd sends the disk in the clear",
    TransportMode.DIRECT_NFS: "NFS sends the disk in the clear",
    TransportMode.STORAGE_SNAPSHOT: "storage is read in the clear",
    TransportMode.DIRECT_SAN: "iSCSI sends the disk in the clear",
}
"""Modes whose traffic can be read on the way, where it crosses a network at all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """What is at the other end of a proxy's traffic."""

    addresses: Addresses
    clear: str = ""
    """What crosses the network in the clear, for people; empty: nothing does."""
    is_known: bool = True
    """False: it is being looked up."""
    by_network: bool = False
    """An IP network leads there, also where its addresses are not known."""


NOWHERE: Final = Point(addresses=NONE)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxyEnd:
    """A proxy, as what moves to and from it sees it."""

    addresses: Addresses = NONE
    portals: Mapping[str, Addresses] = field(default_factory=dict)
    """Of the iSCSI targets through which it reaches LUNs, by datastore, "<vcenter id>/<name>"."""


NOBODY: Final = ProxyEnd()


def proxy_end(addresses: Iterable[str], portals: Iterable[tuple[str, Iterable[str]]]) -> ProxyEnd:
    """Out of what it told when it looked around; `portals`: pairs of datastore and addresses."""
    found: dict[str, Addresses] = {}
    for datastore, texts in portals:
        if told := addresses_of(texts):
            found[datastore] = found.get(datastore, NONE) | told
    return ProxyEnd(addresses=addresses_of(addresses), portals=found)


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskFacts:
    """What decides about the ends of a task, out of its row and those that it names."""

    kind: str
    vcenter_id: str
    host_moref: str
    datastore: str
    """"<vcenter id>/<name>"."""
    nfs_hosts: tuple[str, ...]
    storage_hosts: tuple[str, ...]
    """Storage systems on which its datastore lies."""
    repository: str
    """Location that it writes to, of a restore the one that it reads."""
    copied_from: str
    """Location that a copy reads; empty for others."""

    @property
    def is_restore(self) -> bool:
        return self.kind in RESTORES


@dataclass(frozen=True, slots=True, kw_only=True)
class Storages:
    """Where repositories and datastores are, for facts of many tasks."""

    locations: Mapping[str, str]
    """By repository row id."""
    systems: Mapping[str, tuple[str, ...]]
    """Hosts of storage systems by datastore, "<vcenter id>/<name>"."""

    @classmethod
    def read(cls, s: DbSession) -> Storages:
        rows = s.execute(sa.select(Repository.id, Repository.location))
        return cls(locations={row.id: row.location for row in rows}, systems=_systems_by_datastore(s))

    def facts_of(self, row: Any) -> TaskFacts:
        """`row`: a Task, or its columns."""
        return TaskFacts(
            kind=row.kind,
            vcenter_id=row.vcenter_id or "",
            host_moref=row.host_moref,
            datastore=row.datastore or "",
            nfs_hosts=_nfs_hosts(row.order),
            storage_hosts=self.systems.get(row.datastore, ()),
            repository=self.locations.get(row.repository_id, ""),
            copied_from=str((row.order.get("source") or {}).get("location", "")),
        )


def read_facts(s: DbSession, task_ids: Iterable[str]) -> dict[str, TaskFacts]:
    """Of tasks that exist."""
    wanted = list(task_ids)
    storages = Storages.read(s)
    found: dict[str, TaskFacts] = {}
    for at in range(0, len(wanted), 500):
        rows = s.execute(
            sa.select(
                Task.id,
                Task.kind,
                Task.vcenter_id,
                Task.host_moref,
                Task.datastore,
                Task.repository_id,
                Task.order,
            ).where(Task.id.in_(wanted[at : at + 500]))
        )
        found.update({row.id: storages.facts_of(row) for row in rows})
    return found


def mode_in_use(row: Any) -> TransportMode | None:
    """Of a running task: a mover tells when it went on in another mode than the one it was handed."""
    name = (row.progress or {}).get("mode") or row.mode
    return TransportMode(name) if name in set(TransportMode) else None


def _nfs_hosts(order: dict[str, Any]) -> tuple[str, ...]:
    disk = order.get("disk") or order.get("target_disk") or {}
    return tuple((disk.get("storage") or {}).get("nfs_hosts", ()))


def _systems_by_datastore(s: DbSession) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for row in s.scalars(sa.select(StorageSystem)):
        host = row.address.rpartition("@")[2].partition("/")[0]
        host = host.rpartition(":")[0] if host.count(":") == 1 else host.strip("[]")
        for volume in row.volumes:
            for store in volume.get("datastores", ()):
                name = f"{store['vcenter_id']}/{store['name']}"
                found[name] = tuple(sorted({*found.get(name, ()), host}))
    return found


class Ends:
    """Finds the addresses. Safe for threads."""

    def __init__(self, vcenter: Callable[[str], Vsphere] | None, lookups: Lookups) -> None:
        """`vcenter`: the client of a vCenter by its id; None: hosts are not known."""
        self._vcenter = vcenter
        self._lookups = lookups

    @property
    def answered(self) -> int:
        """As Lookups.answered."""
        return self._lookups.answered

    def disk(
        self, facts: TaskFacts, mode: TransportMode | None, end: ProxyEnd = NOBODY, *, wait_s: float
    ) -> Point:
        """Where the disk of vSphere is in that mode for the proxy `end`; of a copy the repository that it reads."""
        if facts.copied_from:
            return self._storage(facts.copied_from, wait_s)
        if mode is None or facts.kind == TaskKind.RESTORE_DISK_TO_FILE.value:
            return NOWHERE
        by_network = mode in _NETWORK or mode is TransportMode.DIRECT_NFS
        if mode in _NETWORK:
            point = self._host(facts.vcenter_id, facts.host_moref, wait_s)
        elif mode is TransportMode.DIRECT_NFS:
            point = self._names(facts.nfs_hosts, wait_s)
        elif mode is TransportMode.STORAGE_SNAPSHOT:
            point = self._names(facts.storage_hosts, wait_s)
        elif mode is TransportMode.DIRECT_SAN and (found := end.portals.get(facts.datastore)):
            point = Point(addresses=found)
        else:
            return NOWHERE
        return Point(
            addresses=point.addresses,
            clear=IN_CLEAR.get(mode, ""),
            is_known=point.is_known,
            by_network=by_network or bool(point.addresses),
        )

    def repository(self, facts: TaskFacts, *, wait_s: float) -> Point:
        return self._storage(facts.repository, wait_s)

    def _storage(self, location: str, wait_s: float) -> Point:
        places = [place for place in places_of(location) if place.host]
        point = self._names((place.host for place in places), wait_s)
        return Point(
            addresses=point.addresses,
            clear=_clear(places),
            is_known=point.is_known,
            by_network=bool(places),
        )

    def _names(self, names: Iterable[str], wait_s: float) -> Point:
        found: set[Any] = set()
        is_known = True
        for name in names:
            try:
                found.add(parse_address(name))
                continue
            except ValueError:
                ask = partial(addresses_of_name, name)
            addresses = self._lookups.get(f"name {name}", ask, wait_s=wait_s)
            is_known = is_known and addresses is not None
            found.update(addresses or ())
        return Point(addresses=frozenset(found), is_known=is_known)

    def _host(self, vcenter_id: str, host_moref: str, wait_s: float) -> Point:
        vcenter = self._vcenter
        if vcenter is None or not vcenter_id or not host_moref:
            return NOWHERE

        def ask() -> Addresses:
            told = vcenter(vcenter_id).host_addresses(host_moref)
            return frozenset(parse_address(one.address) for one in told)

        key = f"host {vcenter_id}/{host_moref}"
        addresses = self._lookups.get(key, ask, wait_s=wait_s, of=vcenter_id)
        return Point(addresses=addresses or NONE, is_known=addresses is not None)


def _clear(places: Iterable[Place]) -> str:
    how = sorted({place.how for place in places if place.clear})
    return f"the repository is reached by {' and '.join(how)}, in the clear" if how else ""
