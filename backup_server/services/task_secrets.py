"""Secrets of one task, for the proxy that holds it now. Never stored, never logged."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.orm import Session as DbSession

from backup_server.db.states import TaskState
from backup_server.db.tables import Repository, Task, Vcenter
from backup_server.errors import ForbiddenError, UnavailableError
from backup_server.services.context import Context
from backup_server.services.repository_agent import secrets_of
from backup_server.services.vcenters import as_server_error
from backup_server.services.wishes import WITHOUT_VSPHERE
from proxy_worker.contracts.ids import Attempt, TaskId
from proxy_worker.contracts.messages import TaskKind, TaskSecrets, VsphereAccess
from transports.errors import TransportError


def redeem(ctx: Context, proxy_id: str, task_id: str, attempt: int) -> TaskSecrets:
    """Repository key and a fresh clone ticket, while SQL says that this proxy holds this attempt.

    ForbiddenError when it does not (the same words for every reason: they are an answer to somebody
    who may only guess). UnavailableError when vCenter or repository do not answer.
    """
    with ctx.db.read() as s:
        row = s.scalar(
            sa.select(Task).where(
                Task.id == task_id,
                Task.state == TaskState.RUNNING.value,
                Task.attempt == attempt,
                Task.proxy_id == proxy_id,
                Task.cancel_requested.is_(False),
                Task.leased_until > ctx.clock(),
            )
        )
        if row is None:
            raise ForbiddenError(
                f"the proxy does not hold attempt {attempt} of task {task_id} now; stop working on it"
            )
        vcenter = s.get(Vcenter, row.vcenter_id) if row.vcenter_id else None
        source_id = _source_of(s, row)
    opened = ctx.agents.get(row.repository_id).opened()
    access = None
    if row.kind not in WITHOUT_VSPHERE:
        if vcenter is None:
            raise UnavailableError(
                f"the vCenter of task {task_id} was removed; start the session again"
            )
        try:
            ticket = ctx.vcenters.get(vcenter.id).clone_ticket()
        except TransportError as error:
            raise as_server_error(error) from error
        access = VsphereAccess(
            host=vcenter.host,
            port=vcenter.port,
            thumbprint_sha256=vcenter.thumbprint_sha256,
            clone_ticket=ticket.reveal(),
        )
    return TaskSecrets(
        task_id=TaskId(row.id),
        attempt=Attempt(row.attempt),
        repository_key=opened.master_key.reveal(),
        storage_secrets=_storage_secrets(ctx, row.repository_id),
        source_repository_key=_source_key(ctx, source_id),
        source_storage_secrets=_storage_secrets(ctx, source_id),
        vsphere=access,
    )


def _source_of(s: DbSession, row: Task) -> str | None:
    """Row id of the repository that a copy reads from; None for every other task."""
    if row.kind != TaskKind.COPY_DISK.value:
        return None
    inner_id = row.order["source"]["repository_id"]
    source_id = s.scalar(sa.select(Repository.id).where(Repository.repository_id == inner_id))
    if source_id is None:
        raise UnavailableError(
            f"the repository that task {row.id} copies from was removed; add it again or cancel the copy"
        )
    return source_id


def _source_key(ctx: Context, source_id: str | None) -> str:
    return "" if source_id is None else ctx.agents.get(source_id).opened().master_key.reveal()


def _storage_secrets(ctx: Context, repository_id: str | None) -> str:
    """What opens the storage of a repository, as JSON; empty where it asks for nothing."""
    if repository_id is None:
        return ""
    with ctx.db.read() as s:
        secrets = secrets_of(ctx.credentials, s, s.get_one(Repository, repository_id))
    return "" if secrets is None else secrets.reveal()
