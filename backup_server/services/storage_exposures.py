"""Showing a storage snapshot to one proxy for one attempt of a task, and taking it away again."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.orm import Session as DbSession

from backup_server.db.states import IntentKind, IntentState
from backup_server.db.tables import Intent, Proxy, Task
from backup_server.db.tables import StorageSystem as StorageRow
from backup_server.errors import ConflictError, ForbiddenError, NotFoundError, UnavailableError
from backup_server.log import task_ids
from backup_server.services import new_intents, storage_snapshots, storage_systems
from backup_server.services.context import Context
from backup_server.services.storage_pool import PROXIES
from proxy_worker.contracts.codec import decode_order
from proxy_worker.contracts.messages import BackupDiskOrder, PresentRequest, WithdrawRequest
from transports.base import DiskRef, Presented
from transports.errors import TransientTransportError, TransportError
from transports.storage_systems.base import Volume, exposure_name
from transports.storage_systems.matching import READ_BY, exposed_disk


def present(ctx: Context, task: Task, question: PresentRequest) -> Presented:
    """Show the task's disk. ConflictError: another proxy may do. UnavailableError: another try may."""
    disk = _disk(task, write=question.write)
    held = storage_snapshots.held_of(task)
    if held is None:
        raise ConflictError(f"the VM of task {task.id} is not held in a storage snapshot")
    with ctx.db.read() as s:
        row = s.get(StorageRow, held["system"])
        if row is None or storage_snapshots.open_for(s, held["intent"]) is None:
            raise ConflictError(f"the storage snapshot of task {task.id} is gone; run the job again")
        host = _host(s, row, task.proxy_id or "")
        known = {volume.id: volume for volume in storage_systems.volumes_of(row)}
    missing = [one for one in held["volumes"] if one not in known]
    if missing:
        raise ConflictError(f"storage system {row.name} has no volume {', '.join(missing)} any more")
    volumes: list[Volume] = [known[one] for one in held["volumes"]]
    intent = _ensure_intent(ctx, task, question)
    try:
        shown = ctx.storage.get(row.id).expose(intent.mark, [one.id for one in volumes], host)
    except TransientTransportError as error:
        raise UnavailableError(str(error)) from error
    except (TransportError, NotFoundError) as error:
        raise ConflictError(str(error)) from error
    return Presented(disk=exposed_disk(disk, volumes, shown), mode=READ_BY[volumes[0].kind])


def withdraw(ctx: Context, task: Task, question: WithdrawRequest) -> None:
    """Take away what the attempt was shown. What cannot be taken away now the janitor takes away later."""
    with ctx.db.read() as s:
        intents = [
            intent for intent in _open(s, task.id) if intent.details.get("attempt") == question.attempt
        ]
    for intent in intents:
        try:
            storage_snapshots.clean(ctx, intent)
        except (TransportError, NotFoundError) as error:
            ctx.log.warning("storage-exposure.left", **task_ids(task), reason=str(error))
            continue
        storage_snapshots.close(ctx, intent)


def _disk(task: Task, *, write: bool) -> DiskRef:
    order = decode_order(task.kind, task.order)
    if isinstance(order, BackupDiskOrder) and not write:
        return order.disk
    raise ForbiddenError(f"task {task.id} reads no disk of a storage snapshot")


def _host(s: DbSession, row: StorageRow, proxy_id: str) -> str:
    for one in row.options.get(PROXIES, []):
        if one["proxy_id"] == proxy_id:
            return str(one["host"])
    proxy = s.get(Proxy, proxy_id)
    name = proxy.name if proxy is not None else proxy_id
    raise ConflictError(f"proxy {name} may not read from storage system {row.name}")


def _open(s: DbSession, task_id: str) -> list[Intent]:
    return list(
        s.scalars(
            sa.select(Intent).where(
                Intent.kind == IntentKind.STORAGE_EXPOSURE.value,
                Intent.state == IntentState.OPEN.value,
                Intent.task_id == task_id,
            )
        )
    )


def _ensure_intent(ctx: Context, task: Task, question: PresentRequest) -> Intent:
    """The attempt's open intent, committed before the system is asked for anything."""
    with ctx.db() as s:
        new_intents.lock_task(s, task)
        held = storage_snapshots.held_of(task)
        snapshot = None if held is None else storage_snapshots.open_for(s, held["intent"])
        if held is None or snapshot is None:
            raise ConflictError(f"the storage snapshot of task {task.id} is gone; run the job again")
        return new_intents.of_attempt(
            s,
            task,
            question.attempt,
            IntentKind.STORAGE_EXPOSURE,
            ctx.clock(),
            target=new_intents.Target(
                moref=snapshot.vm_moref,
                instance_uuid=snapshot.vm_instance_uuid,
                name=snapshot.vm_name,
            ),
            mark=exposure_name(snapshot.mark, f"{task.id} {question.attempt}"),
            details={"systems": [{"system": held["system"], "volumes": held["volumes"]}]},
        )
