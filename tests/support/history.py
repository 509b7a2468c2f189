"""Rows as a site with some history has them, for tests of API and console."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from backup_server.config import Settings
from backup_server.db.states import Result, SessionKind, SessionState, TaskState, VmState
from backup_server.db.tables import (
    Event,
    Job,
    Proxy,
    Repository,
    RestorePointRow,
    Session,
    SessionVm,
    Task,
    Vcenter,
)
from backup_server.services.bootstrap import open_context
from backup_server.services.context import Context
from backup_server.services.vcenter_pool import VsphereDoor
from transports.errors import TransientTransportError
from transports.vsphere import Probe
from transports.vsphere.api import Vsphere
from transports.vsphere.model import Endpoint, Login, Secret

NOW = datetime(2026, 11, 23, 2, 30, tzinfo=UTC)
PRINT = ":".join(["AB"] * 32)
GIB = 1 << 30


@dataclass(slots=True)
class Clock:
    now: datetime = NOW

    def __call__(self) -> datetime:
        return self.now


def _connect(endpoint: Endpoint, auth: Login, **kwargs: Any) -> Vsphere:
    del auth, kwargs
    raise TransientTransportError(f"{endpoint.host} does not answer; check the address")


def _probe(host: str, port: int) -> Probe:
    if host == "nobody":
        raise TransientTransportError(f"{host}:{port} does not answer; check the address")
    return Probe(PRINT, PRINT[:59], "")


def make_context(data_dir: Path, clock: Clock) -> Context:
    """A context over SQLite in `data_dir`; vCenters never answer, certificates do."""
    settings = Settings(data_dir=data_dir, flower=False)
    return open_context(settings, clock=clock, vsphere=VsphereDoor(connect=_connect, probe=_probe))


@dataclass(frozen=True, slots=True, kw_only=True)
class Seeded:
    job_id: str
    running_id: str
    finished_id: str
    point_id: str
    task_id: str


def seed(ctx: Context) -> Seeded:
    """One vCenter, repository and job; a session that ended and one that runs; a restore point."""
    now = ctx.clock()
    with ctx.db() as s:
        secret = ctx.credentials.store(s, "vcenter", Secret("x"), now)
        other = ctx.credentials.store(s, "repository", Secret("x"), now)
        s.add(_vcenter(secret, now))
        s.add(_repository(other, now))
        s.flush()
        s.add(_job(now))
        proxy = s.query(Proxy).filter_by(name="default").one()
        proxy.signing_key, proxy.sealing_key = "ab" * 32, "cd" * 32
        proxy.last_seen_at, proxy.version, proxy.clock_offset_s = now, "0.1.0", 0.1
        proxy.facts = {"modes": ["nbdssl", "nbd"]}
        s.flush()
        for session in _sessions(now):
            s.add(session)
        s.flush()
        for vm in _vms(now):
            s.add(vm)
        s.flush()
        for task in _tasks(now, proxy.id):
            s.add(task)
        s.add(_point(now))
        for event in _events(now):
            s.add(event)
    return Seeded(
        job_id="job-1", running_id=RUNNING, finished_id=FINISHED, point_id=POINT, task_id="task-run-1"
    )


RUNNING = "aaaaaaaa-0000-4000-8000-000000000001"
FINISHED = "bbbbbbbb-0000-4000-8000-000000000001"
POINT = "cccccccc-0000-4000-8000-000000000001"


def _vcenter(credential: str, now: datetime) -> Vcenter:
    return Vcenter(
        id="vc-1",
        name="prod",
        host="vc.example.com",
        port=443,
        username="backup@vsphere.local",
        credential_id=credential,
        thumbprint_sha256=PRINT,
        instance_uuid="vc-uuid",
        about={"name": "VMware vCenter Server", "version": "8.0.3"},
        inventory_at=now,
        created_at=now,
    )


def _repository(credential: str, now: datetime) -> Repository:
    return Repository(
        id="repo-1",
        name="main",
        repository_id="00000000-0000-4000-8000-000000000009",
        location="/backup/vmhaul",
        credential_id=credential,
        block_size_bytes=1 << 20,
        max_tasks=8,
        total_bytes=4000 * GIB,
        free_bytes=2600 * GIB,
        space_at=now,
        created_at=now,
    )


def _job(now: datetime) -> Job:
    return Job(
        id="job-1",
        name="nightly",
        description="Web and database servers",
        vcenter_id="vc-1",
        repository_id="repo-1",
        selection={
            "include": [{"type": "vm", "name": "web*"}, {"type": "folder", "name": "DC0/Prod/DB"}],
            "exclude": [{"type": "vm", "name": "web-test*"}],
            "exclude_disks": [{"vm": "db01", "disk": "Hard disk 3"}],
        },
        schedule={"cron": "30 2 * * *", "time_zone": "Europe/Berlin", "missed": "run-once"},
        retention={"keep": 14},
        options={
            "quiesce": "try",
            "compression": "balanced",
            "change_tracking": True,
            "full_every_days": None,
            "sample_blocks": 16,
            "retries": {"count": 3, "wait_s": 600},
            "proxies": [],
            "modes": [],
        },
        next_run_at=now + timedelta(hours=23),
        created_at=now,
        updated_at=now,
    )


def _session(session_id: str, created_at: datetime, **values: Any) -> Session:
    return Session(
        id=session_id,
        kind=SessionKind.BACKUP.value,
        job_id="job-1",
        job_name="nightly",
        repository_id="repo-1",
        vcenter_id="vc-1",
        options={},
        retry_of=None,
        created_at=created_at,
        started_at=created_at,
        **values,
    )


REPORT = {
    "warnings": ["VM 'old01' is named by the job but does not exist"],
    "skipped": [{"name": "tpl-web", "reason": "a template is not backed up", "expected": True}],
}


def _sessions(now: datetime) -> list[Session]:
    yesterday = now - timedelta(days=1)
    figures = {
        "progress": {
            "total_bytes": 60 * GIB,
            "done_bytes": 60 * GIB,
            "read_bytes": 58 * GIB,
            "stored_bytes": 17 * GIB,
            "bytes_per_s": 240e6,
            "eta_s": None,
            "elapsed_s": 258.0,
            "bottleneck": "source",
        },
        "counts": {"vms": 1, "tasks": 1, "success": 0, "warning": 1, "failed": 0, "cancelled": 0},
    }
    return [
        _session(
            FINISHED,
            yesterday,
            state=SessionState.FINISHED.value,
            result=Result.WARNING.value,
            reason="1 of 1 VMs ended with warnings",
            finished_at=yesterday + timedelta(seconds=258),
            report={"figures": figures},
        ),
        _session(
            RUNNING, now, state=SessionState.RUNNING.value, result=None, finished_at=None, report=REPORT
        ),
    ]


def _vm(session_id: str, position: int, name: str, now: datetime, **values: Any) -> SessionVm:
    return SessionVm(
        id=f"{session_id[:2]}-vm-{name}",
        session_id=session_id,
        position=position,
        moref=f"vm-{position}",
        instance_uuid=f"uuid-{name}",
        name=name,
        started_at=now,
        **values,
    )


def _vms(now: datetime) -> list[SessionVm]:
    return [
        _vm(
            FINISHED,
            1,
            "db01",
            now,
            state=VmState.DONE.value,
            result=Result.WARNING.value,
            warnings=["the guest could not be quiesced: the snapshot is crash-consistent"],
            details={"kind": "full", "consistency": "crash-consistent"},
            restore_point_id=POINT,
            snapshot_at=now - timedelta(hours=2),
            snapshot_removed_at=now - timedelta(hours=2) + timedelta(seconds=250),
        ),
        _vm(
            RUNNING,
            1,
            "db01",
            now,
            state=VmState.RUNNING.value,
            result=None,
            details={"kind": "increment"},
        ),
        _vm(RUNNING, 2, "web01", now, state=VmState.PREPARING.value, result=None),
    ]


def _task(task_id: str, session_id: str, number: int, now: datetime, proxy: str, **values: Any) -> Task:
    return Task(
        id=task_id,
        session_id=session_id,
        session_vm_id=f"{session_id[:2]}-vm-db01",
        kind="backup-disk",
        title=f"backup db01 / Hard disk {number}",
        position=number,
        disk_key=1999 + number,
        disk_label=f"Hard disk {number}",
        disk_path=f"[ssd] db01/db01_{number}.vmdk",
        capacity_bytes=60 * GIB,
        datastore="vc-1/ssd",
        repository_id="repo-1",
        vcenter_id="vc-1",
        order={},
        priority=1,
        created_at=now,
        **{"proxy_id": proxy, "proxy_name": "default", "mode": "nbdssl", "attempt": 1, **values},
    )


STATS = {
    "capacity_bytes": 60 * GIB,
    "read_bytes": 58 * GIB,
    "changed_bytes": 60 * GIB,
    "stored_bytes": 17 * GIB,
    "blocks": {"zero": 2048, "new": 40000, "deduplicated": 19392, "unchanged": 0},
    "duration_s": 240.0,
    "stages": {"source": 0.9, "proxy": 0.5, "network": 0.4, "target": 0.2},
}


def _tasks(now: datetime, proxy_id: str) -> list[Task]:
    moving = {
        "phase": "reading",
        "total_bytes": 4 * GIB,
        "done_bytes": 3 * GIB,
        "read_bytes": 3 * GIB,
        "stored_bytes": GIB,
        "bytes_per_s": 180e6,
        "bottleneck": "source",
    }
    decision = {
        "proxy": proxy_id,
        "mode": "nbdssl",
        "reason": "best mode, least busy proxy",
        "candidates": [
            {
                "proxy": proxy_id,
                "name": "default",
                "mode": "nbdssl",
                "accepted": True,
                "reason": "",
                "used": 0,
                "slots": 2,
            }
        ],
    }
    return [
        _task(
            "task-done",
            FINISHED,
            1,
            now,
            proxy_id,
            state=TaskState.DONE.value,
            result=Result.SUCCESS.value,
            read_mode="full",
            read_mode_reason="first backup of this VM in this repository",
            stats=STATS,
        ),
        _task(
            "task-run-1",
            RUNNING,
            1,
            now,
            proxy_id,
            state=TaskState.RUNNING.value,
            result=None,
            progress=moving,
            read_mode="increment",
            decision=decision,
        ),
        _task(
            "task-run-2",
            RUNNING,
            2,
            now,
            proxy_id,
            state=TaskState.PENDING.value,
            result=None,
            proxy_id=None,
            proxy_name="",
            mode=None,
            attempt=0,
        ),
    ]


def _point(now: datetime) -> RestorePointRow:
    return RestorePointRow(
        id=POINT,
        repository_id="repo-1",
        job_id="job-1",
        job_name="nightly",
        session_id=FINISHED,
        vcenter_uuid="vc-uuid",
        instance_uuid="uuid-db01",
        vm_name="db01",
        created_at=now - timedelta(days=1),
        kind="full",
        consistency="crash-consistent",
        previous_id=None,
        disks=[
            {
                "disk_key": 2000,
                "label": "Hard disk 1",
                "disk_uuid": "u",
                "path": "[ssd] db01/db01_1.vmdk",
                "capacity_bytes": 60 * GIB,
                "map_root": "0" * 64,
                "change_id": "",
                "thin": True,
                "read_bytes": 58 * GIB,
                "stored_bytes": 17 * GIB,
            }
        ],
        size_bytes=17 * GIB,
    )


def _events(now: datetime) -> list[Event]:
    lines = [
        ("info", "session.started", "session of job nightly began: 2 VMs"),
        ("info", "snapshot.created", "db01: snapshot made in 1.2 s"),
        ("warning", "quiesce.failed", "db01: the guest could not be quiesced, the job goes on without"),
        ("error", "nfc.cut", "db01 / Hard disk 1: the NFC connection was cut; it is tried again <b>"),
    ]
    return [
        Event(session_id=RUNNING, at=now + timedelta(seconds=n), level=level, name=name, text=text)
        for n, (level, name, text) in enumerate(lines)
    ]
