"""A made-up site for the simulation of the fleet: proxies, datastores, repositories, hosts, and the disks of a night.

Affinities are mixed: SAN reaches some datastores from some proxies, NFS some from others, proxies that are VMs
attach disks of the datastores that their host mounts, and everything can be read through its host. Limits are
tight: each is met often, and together they leave more room than there are slots.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa

from backup_server.db.engine import Database
from backup_server.db.states import SessionState, TaskState, VmState
from backup_server.db.tables import (
    Credential,
    DatastoreLoad,
    Proxy,
    Repository,
    Session,
    SessionVm,
    Task,
    Vcenter,
    new_id,
)
from backup_server.services import disk_facts, proxy_vms
from proxy_worker.config import ENROLMENT_FILE, Enrolment
from proxy_worker.contracts.codec import to_json
from proxy_worker.contracts.ids import ProxyId
from proxy_worker.contracts.messages import (
    BackupDiskOrder,
    CompressionLevel,
    Connection,
    ConnectionsReport,
    CopyDiskOrder,
    RepositoryRef,
    RestoreDiskOrder,
    TaskKind,
)
from proxy_worker.identity import load_or_create_identity
from transports.base import DiskRef, TransportMode
from transports.rules import DiskFacts, ProxyVm

VCENTER: Final = "vc"
MEAN_TASK_S: Final = 640.0
"""Of a real night: 30,000 disks over 1,600 slots in three hours and twenty minutes."""
GIB: Final = 1 << 30
NARROW_EACH: Final = 10
"""One datastore in so many takes a quarter of the tasks of the others, and holds a fifth of their VMs: with as many
as the others it would alone decide when the night ends."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    vms: int
    disks: int
    proxies: int
    slots: int
    """Of each proxy."""
    compress: float
    """Tasks take so many times less than in life."""
    seed: int = 1

    @property
    def datastores(self) -> int:
        return max(4, self.proxies // 2)

    @property
    def shares(self) -> tuple[int, ...]:
        """Number of a datastore for each share of VMs that it holds."""
        return tuple(
            number for number in range(self.datastores) for _ in range(5 if number % NARROW_EACH else 1)
        )

    @property
    def hosts(self) -> int:
        return max(4, self.proxies)

    @property
    def repositories(self) -> int:
        return max(3, self.proxies // 10)

    @property
    def all_slots(self) -> int:
        return self.proxies * self.slots

    @property
    def mean_task_s(self) -> float:
        return MEAN_TASK_S / self.compress


@dataclass(frozen=True, slots=True, kw_only=True)
class PlayedProxy:
    """What a worker process has to know."""

    id: str
    name: str
    directory: str
    modes: list[str]
    report: dict[str, Any]


def server_settings(size: Size) -> dict[str, Any]:
    """Settings of the server. Half of the slots may read through hosts; datastores leave half as much again."""
    per_datastore = max(2, round(1.5 * size.all_slots / size.datastores))
    return {
        "host_nfc_streams": max(2, round(0.75 * size.all_slots / size.hosts)),
        "host_nfc_memory_bytes": 1 << 40,
        "datastore_max_tasks": per_datastore,
    }


def _kind(number: int) -> str:
    return ("VMFS", "VMFS", "NFS", "vsan")[number % 4]


def _store(number: int) -> str:
    return f"datastore {number:03}"


def make_site(
    db: Database,
    size: Size,
    place: Path,
    *,
    server_url: str,
    server_key: str,
    broker_url: str,
    now: datetime,
) -> list[PlayedProxy]:
    """Rows of everything but sessions, and a directory for each proxy."""
    rng = random.Random(size.seed)
    with db() as s:
        credential = Credential(id=new_id(), kind="repository", sealed=b"x", created_at=now)
        s.add(credential)
        s.flush()
        s.add(
            Vcenter(
                id=VCENTER,
                name="vc",
                host="vc.test",
                port=443,
                username="x",
                credential_id=credential.id,
                thumbprint_sha256="",
                instance_uuid="",
                about={},
                created_at=now,
            )
        )
        per_repository = max(2, round(1.3 * size.all_slots / size.repositories))
        for number in range(size.repositories):
            s.add(
                Repository(
                    id=f"repository-{number}",
                    name=f"repository {number}",
                    repository_id=new_id(),
                    location="somewhere",
                    credential_id=credential.id,
                    block_size_bytes=1 << 20,
                    max_tasks=per_repository,
                    created_at=now,
                )
            )
        s.flush()
        # one datastore in ten is narrower than the others
        for number in range(0, size.datastores, NARROW_EACH):
            s.add(
                DatastoreLoad(
                    vcenter_id=VCENTER,
                    datastore=_store(number),
                    settings={"max_tasks": max(1, size.slots // 2)},
                    read_latency_ms=None,
                    measured_at=None,
                )
            )
        played = []
        for number in range(size.proxies):
            made = _proxy(number, size, rng, place)
            identity = load_or_create_identity(Path(made.directory))
            s.add(
                Proxy(
                    id=made.id,
                    name=made.name,
                    local=False,
                    slots=size.slots,
                    signing_key=identity.signing_public,
                    sealing_key=identity.sealing_public,
                    facts={"slots": size.slots, "modes": made.modes, "vms": _own_vm(number, size)},
                    connections=made.report,
                    connections_at=now,
                    created_at=now,
                    settings=_confirmed(number, size),
                )
            )
            enrolment = Enrolment(
                proxy_id=ProxyId(made.id),
                name=made.name,
                server_url=server_url,
                server_key=server_key,
                broker_url=broker_url,
            )
            (Path(made.directory) / ENROLMENT_FILE).write_text(json.dumps(asdict(enrolment)))
            played.append(made)
    (place / "proxies.json").write_text(json.dumps([asdict(one) for one in played]))
    return played


def _proxy(number: int, size: Size, rng: random.Random, place: Path) -> PlayedProxy:
    """Of five: two on the SAN, one beside the NFS servers, one a VM, one that reaches nothing but hosts."""
    proxy_id = f"{number:08x}-0000-4000-8000-{rng.randrange(1 << 48):012x}"
    directory = place / f"proxy-{number:03}"
    directory.mkdir()
    modes = [TransportMode.NBDSSL]
    stores: list[int] = []
    group = number % 5
    if group in (0, 1):
        modes.insert(0, TransportMode.DIRECT_SAN)
        vmfs = [n for n in range(size.datastores) if _kind(n) == "VMFS"]
        stores = rng.sample(vmfs, min(len(vmfs), 10))
    elif group == 2:
        modes.insert(0, TransportMode.DIRECT_NFS)
        stores = [n for n in range(size.datastores) if _kind(n) == "NFS"]
    elif group == 3:
        modes.insert(0, TransportMode.HOTADD)
    report = ConnectionsReport(
        proxy_id=ProxyId(proxy_id),
        vm_uuid=_uuid(number),
        addresses=(),
        connections=tuple(
            Connection(
                datastore=f"{VCENTER}/{_store(store)}",
                mode=modes[0],
                readable=True,
                writable=True,
                hops=1 if modes[0] is TransportMode.DIRECT_NFS else 0,
                reason="",
            )
            for store in stores
        ),
        missing=(),
    )
    return PlayedProxy(
        id=proxy_id,
        name=f"proxy-{number:03}",
        directory=str(directory),
        modes=[mode.value for mode in modes],
        report=to_json(report),
    )


def _uuid(number: int) -> str:
    return f"420a1b2c-3d4e-5f60-7182-{number:012x}"


def _confirmed(number: int, size: Size) -> dict[str, Any]:
    """As after `vmhaul proxy confirm-vm`."""
    if not _own_vm(number, size):
        return {}
    return {proxy_vms.CONFIRMED: {"vm_uuid": _uuid(number), "by": "administrator"}}


def _own_vm(number: int, size: Size) -> list[dict[str, Any]]:
    if number % 5 != 3:
        return []
    mounted = [_store(n) for n in range(size.datastores) if n % 3 == number % 3]
    vm = ProxyVm(
        vcenter_id=VCENTER,
        moref=f"vm-p{number}",
        name=f"proxy-{number:03}",
        datacenter="DC",
        host_moref=f"host-{number % size.hosts}",
        datastores=tuple(mounted),
        home_datastores=tuple(mounted[:1]),
        free_slots=max(1, size.slots // 2),
    )
    return [to_json(vm)]


# ---- the night ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """What one session adds."""

    session: dict[str, Any]
    vms: list[dict[str, Any]]
    tasks: list[dict[str, Any]]


def night(db: Database, size: Size, now: datetime) -> Iterator[Rows]:
    """Sessions of up to 200 VMs: nine of ten backups, the others copies and restores to files."""
    rng = random.Random(size.seed + 1)
    with db.read() as s:
        known = s.execute(sa.select(Repository.id, Repository.repository_id))
        inner = {row.id: row.repository_id for row in known}
    per_vm = size.disks / size.vms
    done = made = sessions = 0
    while done < size.vms:
        count = min(200, size.vms - done, max(5, size.vms // 20))
        kind = rng.choices(["backup", "copy", "restore"], weights=[18, 1, 1])[0]
        # in turn: one that has twice what the others have would alone decide when the night ends
        repository = sessions % size.repositories
        sessions += 1
        session = {
            "id": new_id(),
            "kind": kind,
            "state": SessionState.RUNNING.value,
            "job_name": f"{kind} {done}",
            "created_at": now,
            "started_at": now,
        }
        vms, tasks = [], []
        for number in range(done, done + count):
            vm = {
                "id": new_id(),
                "session_id": session["id"],
                "position": number - done,
                "moref": f"vm-{number}",
                "instance_uuid": new_id(),
                "name": f"vm-{number:05}",
                "state": VmState.RUNNING.value,
            }
            vms.append(vm)
            disks = round((number + 1) * per_vm) - round(number * per_vm)
            tasks += [
                _task(rng, size, kind, repository, inner, vm, number, disk, now)
                for disk in range(disks)
            ]
        made += len(tasks)
        done += count
        yield Rows(session=session, vms=vms, tasks=tasks)


def _task(
    rng: random.Random,
    size: Size,
    kind: str,
    repository: int,
    inner: dict[str, str],
    vm: dict[str, Any],
    number: int,
    disk: int,
    now: datetime,
) -> dict[str, Any]:
    mean_s = size.mean_task_s
    sleep_s = min(4 * mean_s, max(0.05 * mean_s, rng.lognormvariate(0, 0.6) * mean_s / 1.2))
    # a VM's disks are mostly on one datastore
    shares = size.shares
    store = (
        shares[number * 7919 % len(shares)] + (disk if rng.random() < 0.2 else 0)
    ) % size.datastores
    host = f"host-{number % size.hosts}"
    values: dict[str, Any] = {
        "id": new_id(),
        "session_id": vm["session_id"],
        "session_vm_id": vm["id"],
        "title": f"{vm['name']} disk {disk} sleep={sleep_s:.3f}",
        "position": number,
        "disk_key": 2000 + disk,
        "disk_label": f"Hard disk {disk + 1}",
        "disk_path": f"[{_store(store)}] {vm['name']}/{disk}.vmdk",
        "capacity_bytes": 40 * GIB,
        "repository_id": f"repository-{repository}",
        "state": TaskState.PENDING.value,
        "created_at": now,
        "allowed_proxies": [],
        "allowed_modes": [],
        "datastore": "",
        "vcenter_id": None,
        "host_moref": "",
        "facts": {},
    }
    if kind == "copy":
        source = f"repository-{(repository + 1) % size.repositories}"
        order: Any = CopyDiskOrder(
            source=RepositoryRef(repository_id=inner[source], location="elsewhere"),
            map_root="ab" * 32,
            capacity_bytes=40 * GIB,
            base_map_root="",
            base_capacity_bytes=0,
            copied_map_root="",
            compression=CompressionLevel.FAST,
        )
        return {**values, "kind": TaskKind.COPY_DISK.value, "priority": 2, "order": to_json(order)}
    if kind == "restore":
        order = RestoreDiskOrder(
            map_root="ab" * 32,
            capacity_bytes=40 * GIB,
            expected_sha256="",
            target_path=f"{vm['name']}-{disk}.raw",
        )
        kind_name = TaskKind.RESTORE_DISK_TO_FILE.value
        return {**values, "kind": kind_name, "priority": 0, "order": to_json(order)}
    facts = DiskFacts(
        vcenter_id=VCENTER,
        vm_moref=vm["moref"],
        vm_name=vm["name"],
        datacenter="DC",
        datastore=_store(store),
        datastore_kind=_kind(store),
        path=values["disk_path"],
        capacity_bytes=40 * GIB,
        controller="SCSI",
        host_moref=host,
    )
    order = BackupDiskOrder(
        disk=DiskRef(
            vm_moref=vm["moref"],
            vm_name=vm["name"],
            disk_key=2000 + disk,
            path=values["disk_path"],
            capacity_bytes=40 * GIB,
            datastore=_store(store),
            snapshot_moref="snapshot-1",
        ),
        previous_map_root="",
        previous_change_id="",
        current_change_id="",
        full_read_reason="",
        datastore_is_vmfs=True,
        compression=CompressionLevel.FAST,
    )
    return {
        **values,
        "kind": TaskKind.BACKUP_DISK.value,
        "priority": 1,
        "order": to_json(order),
        "datastore": f"{VCENTER}/{_store(store)}",
        "vcenter_id": VCENTER,
        "host_moref": host,
        "facts": disk_facts.stored(facts),
    }


def insert(db: Database, rows: Rows) -> None:
    with db() as s:
        s.execute(sa.insert(Session), [rows.session])
        s.execute(sa.insert(SessionVm), rows.vms)
        s.execute(sa.insert(Task), rows.tasks)
