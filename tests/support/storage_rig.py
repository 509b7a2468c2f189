"""A server with a storage system below its datastores, and a proxy that may read from it."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import sqlalchemy as sa

from backup_server.db.states import TaskState, change_state
from backup_server.db.tables import Proxy, Task
from backup_server.services import jobs, presentations, storage_systems
from proxy_worker.contracts.ids import Attempt, TaskId
from proxy_worker.contracts.messages import PresentRequest, WithdrawRequest
from tests.fakes.server import Rig
from tests.fakes.storage import IDENTITY, TOKEN
from transports.base import DatastoreRef, LunExtent, Presented, TransportMode

LUN1 = "naa.624a93700000000000000001"
LUN2 = "naa.624a93700000000000000002"
MODE = TransportMode.STORAGE_SNAPSHOT
HOST = "proxy1-host"


def vmfs(name: str, *luns: str) -> DatastoreRef:
    return DatastoreRef(
        name=name,
        kind="VMFS",
        vmfs_uuid="5f1b2c3d-00000001-0002-0000000000ff",
        vmfs_version="6.82",
        extents=tuple(LunExtent(lun=lun, partition=1) for lun in luns),
    )


def nfs(name: str, path: str, host: str = "filer1") -> DatastoreRef:
    return DatastoreRef(name=name, kind="NFS", nfs_hosts=(host,), nfs_path=path)


def with_array(rig: Rig, **changes: Any) -> Rig:
    """ds1 and ds2 are on LUNs of the array; what it freezes is which VM snapshots there are."""
    rig.array.lun("vol1", LUN1)
    rig.array.lun("vol2", LUN2)
    rig.vcenter.storage = {"ds1": vmfs("ds1", LUN1), "ds2": vmfs("ds2", LUN2)}
    rig.array.content = lambda volume: sorted(one.moref for one in rig.vcenter.all_snapshots())
    enrol(rig)
    storage_systems.add(rig.ctx, {**array_values(rig), **changes})
    return rig


def enrol(rig: Rig) -> None:
    """Its proxies count as enrolled."""
    with rig.ctx.db() as s:
        s.execute(sa.update(Proxy).values(signing_key="00" * 32))


def array_values(rig: Rig) -> dict[str, Any]:
    return {
        "name": "array1",
        "driver": "fake",
        "address": "array1.test",
        "identity": IDENTITY,
        "secrets": {"token": TOKEN},
        "proxies": [{"proxy": rig.default_proxy().name, "host": HOST}],
    }


def begin(rig: Rig, **options: Any) -> tuple[str, list[Task]]:
    """A session of job1 up to its tasks."""
    session_id = str(jobs.run(rig.ctx, "job1", **options)["id"])
    for _ in range(4):
        rig.engine.run_once()
    return session_id, sorted(rig.rows(Task, session_id=session_id), key=lambda task: task.position)


def hand_out(rig: Rig, task: Task, attempt: int = 1) -> Task:
    """The default proxy holds that attempt of the task from now on."""
    with rig.ctx.db() as s:
        row = s.get_one(Task, task.id)
        if row.state == TaskState.PENDING.value:
            change_state(
                s,
                Task,
                task.id,
                TaskState.PENDING,
                TaskState.RUNNING,
                proxy_id=rig.default_proxy().id,
                mode=MODE.value,
                leased_until=rig.clock.now + timedelta(hours=1),
            )
        s.execute(sa.update(Task).where(Task.id == task.id).values(attempt=attempt))
    with rig.ctx.db.read() as s:
        return s.get_one(Task, task.id)


def present(rig: Rig, task: Task, attempt: int = 1) -> Presented:
    question = PresentRequest(task_id=TaskId(task.id), attempt=Attempt(attempt), mode=MODE, write=False)
    return presentations.present(rig.ctx, rig.default_proxy().id, question).presented


def withdraw(rig: Rig, task: Task, attempt: int = 1) -> None:
    question = WithdrawRequest(task_id=TaskId(task.id), attempt=Attempt(attempt), mode=MODE)
    presentations.withdraw(rig.ctx, rig.default_proxy().id, question)


def give_back(rig: Rig, task: Task) -> None:
    """The attempt is over; the task waits for another."""
    with rig.ctx.db() as s:
        # The fakes of proxies that end tasks later on count no attempts.
        change_state(s, Task, task.id, TaskState.RUNNING, TaskState.PENDING, proxy_id=None)
        s.execute(sa.update(Task).where(Task.id == task.id).values(attempt=0))
