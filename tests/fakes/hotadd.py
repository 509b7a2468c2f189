"""Proxies that have their disks attached before they end a task, and die now and then."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session as DbSession

from backup_server.db.states import Result, TaskState, change_state
from backup_server.db.tables import Proxy, Task
from backup_server.errors import ConflictError
from backup_server.services import presentations
from backup_server.services.proxy_vms import CONFIRMED
from proxy_worker.contracts.messages import PresentRequest, TaskKind, WithdrawRequest
from tests.fakes.server import FakeProxies, Rig
from tests.fakes.vsphere import FakeVm
from transports.base import Presented, TransportMode
from transports.vsphere.model import DiskToAttach

UUID = "42209f1e-0c2d-4b3a-8f10-aabbccddeeff"
PROXY = "proxy-1"


def add_proxy(rig: Rig, name: str = PROXY, uuid: str = UUID, *, confirmed: bool = True) -> FakeVm:
    """An enrolled proxy in a VM of the vCenter, which has a disk of its own and one that a person attached."""
    with DbSession(rig.ctx.db.engine) as s, s.begin():
        s.add(
            Proxy(
                id=name,
                name=name,
                local=False,
                slots=4,
                signing_key="00" * 32,
                connections={"vm_uuid": uuid} if uuid else {},
                settings={CONFIRMED: {"vm_uuid": uuid, "by": "administrator"}} if confirmed else {},
                created_at=rig.clock(),
            )
        )
    vm = rig.vcenter.add_vm(name, disks=1, bios_uuid=uuid)
    other = rig.vcenter.add_vm(f"{name}-other", disks=1)
    vm.attached[0, 9] = DiskToAttach(path=other.disks[0].path, write=False)
    return vm


def foreign(vm: FakeVm) -> dict[tuple[int, int], DiskToAttach]:
    """What is attached to the VM but for the disk that a person attached."""
    return {place: one for place, one in vm.attached.items() if place != (0, 9)}


def hand_out(rig: Rig, task: Task, proxy: str = PROXY) -> int:
    """The next attempt, running at the proxy; its number."""
    with DbSession(rig.ctx.db.engine) as s, s.begin():
        change_state(
            s,
            Task,
            task.id,
            TaskState.PENDING,
            TaskState.RUNNING,
            attempt=task.attempt,
            proxy_id=proxy,
            mode=TransportMode.HOTADD.value,
        )
        s.execute(sa.update(Task).where(Task.id == task.id).values(attempt=task.attempt + 1))
    return task.attempt + 1


def end_attempt(rig: Rig, task_id: str) -> None:
    """Its lease is over; the task waits for another."""
    with DbSession(rig.ctx.db.engine) as s, s.begin():
        change_state(s, Task, task_id, TaskState.RUNNING, TaskState.PENDING)


def present(rig: Rig, task: Task, attempt: int, proxy: str = PROXY) -> Presented:
    question = PresentRequest(
        task_id=task.id,  # type: ignore[arg-type]
        attempt=attempt,  # type: ignore[arg-type]
        mode=TransportMode.HOTADD,
        write=task.kind == TaskKind.RESTORE_DISK_TO_VM.value,
    )
    return presentations.present(rig.ctx, proxy, question).presented


def withdraw(rig: Rig, task: Task, attempt: int, proxy: str = PROXY) -> None:
    question = WithdrawRequest(
        task_id=task.id,  # type: ignore[arg-type]
        attempt=attempt,  # type: ignore[arg-type]
        mode=TransportMode.HOTADD,
    )
    presentations.withdraw(rig.ctx, proxy, question)


@dataclass
class HotaddProxies(FakeProxies):
    """Each task's disk is attached; `dies`: so many first attempts end with the proxy, nothing withdrawn."""

    rig: Rig
    dies: int = 0
    withdraws: bool = True
    presented: list[Presented] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(self.rig)

    def work(self) -> int:
        for task in self.rig.rows(Task, state=TaskState.RUNNING.value):
            end_attempt(self.rig, task.id)
        pending = self.rig.rows(Task, state=TaskState.PENDING.value)
        for task in pending:
            self._work_on(task)
        return len(pending)

    def _work_on(self, task: Task) -> None:
        attempt = hand_out(self.rig, task)
        try:
            presented = present(self.rig, task, attempt)
        except ConflictError as error:
            self.refused.append(str(error))
        else:
            self.presented.append(presented)
            path = presented.disk.path
            assert path in {
                one.path for vm in self.rig.vcenter.vms.values() for one in vm.attached.values()
            }
            if task.attempt < self.dies:
                return
            if self.withdraws:
                withdraw(self.rig, task, attempt)
        self._end(task, attempt)

    def _end(self, task: Task, attempt: int) -> None:
        result, reason = self.outcome(task)
        good = result in (Result.SUCCESS, Result.WARNING)
        values: dict[str, Any] = {
            "map_root": f"{int(task.id[:8], 16):064x}" if good else "",
            "read_mode": "increment" if task.order.get("previous_map_root") else "full",
            "stats": self._stats(task) if good else None,
        }
        with DbSession(self.rig.ctx.db.engine) as s, s.begin():
            change_state(
                s,
                Task,
                task.id,
                TaskState.RUNNING,
                TaskState.DONE,
                attempt=attempt,
                result=result.value,
                reason=reason,
                finished_at=self.rig.clock(),
                **values,
            )
        self.done.append(task)
