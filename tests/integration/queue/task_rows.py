"""Rows of tasks in a database, without a broker."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session as DbSession

from backup_server.db.engine import Database
from backup_server.db.states import SessionState, TaskState, VmState
from backup_server.db.tables import (
    Credential,
    OutboxRow,
    Proxy,
    Repository,
    Session,
    SessionVm,
    Task,
    new_id,
)
from backup_server.services import results, tasks
from backup_server.services.results import Applied, RetryPolicy
from backup_server.services.tasks import Placement
from pipeline.model import BlockCounts, DiskStats, StageTimes
from proxy_worker.contracts.codec import to_json
from proxy_worker.contracts.ids import Attempt, TaskId
from proxy_worker.contracts.messages import (
    BackupDiskOrder,
    CompressionLevel,
    ResultReport,
    TaskOutcome,
    TaskRequest,
)
from transports.base import DiskRef, TransportMode

NOW = datetime(2026, 3, 1, 22, tzinfo=UTC)
POLICY = RetryPolicy(attempts=3, wait_s=10, wait_max_s=15)
STATS = DiskStats(
    capacity_bytes=10,
    read_bytes=10,
    changed_bytes=10,
    stored_bytes=5,
    blocks=BlockCounts(zero=0, new=1, deduplicated=0, unchanged=0),
    duration_s=1.0,
    stages=StageTimes(source=1, proxy=0, network=0, target=0),
)
ORDER = {
    "map_root": "ab" * 32,
    "capacity_bytes": 10,
    "expected_sha256": "",
    "target_path": "/x",
    "target_disk": None,
    "overwrite": False,
}


def backup_order(disk_key: int = 2000) -> dict[str, Any]:
    return to_json(
        BackupDiskOrder(
            disk=DiskRef(
                vm_moref="vm-1",
                vm_name="db01",
                disk_key=disk_key,
                path="[ds] db01/db01.vmdk",
                capacity_bytes=1 << 30,
                datastore="ds",
                snapshot_moref="snapshot-1",
            ),
            previous_map_root="",
            previous_change_id="",
            current_change_id="",
            full_read_reason="",
            datastore_is_vmfs=True,
            compression=CompressionLevel.FAST,
        )
    )


def add_repository(s: DbSession, now: datetime, **changes: Any) -> str:
    credential = Credential(id=new_id(), kind="repository", sealed=b"x", created_at=now)
    s.add(credential)
    s.flush()
    values = {
        "id": new_id(),
        "name": "main",
        "repository_id": new_id(),
        "location": "somewhere",
        "credential_id": credential.id,
        "block_size_bytes": 1 << 20,
        "max_tasks": 50,
        "created_at": now,
        **changes,
    }
    s.add(Repository(**values))
    s.flush()
    return str(values["id"])


def add_session(s: DbSession, now: datetime, kind: str) -> str:
    """One that runs."""
    row = Session(id=new_id(), kind=kind, state=SessionState.RUNNING.value, created_at=now)
    s.add(row)
    s.flush()
    return row.id


def add_vm(s: DbSession, session_id: str) -> str:
    row = SessionVm(
        id=new_id(),
        session_id=session_id,
        position=0,
        moref="vm-1",
        instance_uuid=new_id(),
        name="db01",
        state=VmState.RUNNING.value,
    )
    s.add(row)
    s.flush()
    return row.id


class Rows:
    def __init__(self, db: Database) -> None:
        self.db = db
        with db() as s:
            self.repository_id = add_repository(s, NOW)
            self.session_id = add_session(s, NOW, "restore")
            self.vm_id = add_vm(s, self.session_id)
            for name in ("px1", "px2"):
                s.add(Proxy(id=name, name=name, local=True, slots=2, created_at=NOW))
        self.count = 0

    def add(self, **changes: Any) -> str:
        self.count += 1
        values = {
            "id": new_id(),
            "session_id": self.session_id,
            "session_vm_id": self.vm_id,
            "kind": "restore-disk-to-file",
            "title": "disk",
            "position": self.count,
            "disk_key": self.count,
            "disk_label": "",
            "disk_path": "",
            "capacity_bytes": 10,
            "datastore": "",
            "repository_id": self.repository_id,
            "order": ORDER,
            "priority": 0,
            "state": TaskState.PENDING.value,
            "created_at": NOW,
            **changes,
        }
        with self.db() as s:
            s.add(Task(**values))
        return str(values["id"])

    def get(self, task_id: str) -> Task:
        with self.db.read() as s:
            return s.get_one(Task, task_id)

    def start(self, task_id: str, proxy: str = "px1", boot: str | None = "boot1") -> TaskRequest:
        with self.db() as s:
            return tasks.start_attempt(
                s,
                s.get_one(Task, task_id),
                Placement(
                    proxy_id=proxy,
                    proxy_name=proxy,
                    boot_id=boot,
                    mode=TransportMode.NBDSSL,
                    decision={"why": "test"},
                ),
                now=NOW,
                lease_s=30,
                order_ttl_s=60,
            )

    def running(self, **changes: Any) -> str:
        task_id = self.add(**changes)
        self.start(task_id)
        return task_id

    def apply(self, report: ResultReport, proxy: str = "px1") -> Applied:
        with self.db() as s:
            return results.apply_result(s, proxy, report, policy=POLICY, now=NOW)

    def outbox(self) -> list[OutboxRow]:
        with self.db.read() as s:
            return list(s.scalars(sa.select(OutboxRow).order_by(OutboxRow.id)))


def report(task_id: str, attempt: int = 1, **changes: Any) -> ResultReport:
    values: dict[str, Any] = {"outcome": TaskOutcome.SUCCESS, "reason": "", **changes}
    return ResultReport(task_id=TaskId(task_id), attempt=Attempt(attempt), **values)
