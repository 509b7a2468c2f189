"""Intents made: what is written down before vSphere or a storage system is asked for anything."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session as DbSession

from backup_server.db.states import IntentKind, IntentState
from backup_server.db.tables import Intent, Task, new_id
from backup_server.services import leases
from backup_server.services.steps import Work


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The VM on which something is about to be changed."""

    moref: str
    instance_uuid: str
    name: str


def target_of(work: Work) -> Target:
    """The VM that the session works on."""
    vm = work.vm
    return Target(moref=vm.moref, instance_uuid=vm.instance_uuid, name=vm.name)


def of_session(
    s: DbSession,
    work: Work,
    kind: IntentKind,
    now: datetime,
    *,
    target: Target,
    mark: str,
    intent_id: str,
    of_vm: bool = True,
    details: Mapping[str, Any] | None = None,
    next_try_at: datetime | None = None,
) -> Intent:
    """A new one of a session's VM. `of_vm` False: it is not to be found under that VM."""
    return _add(
        s,
        kind,
        now,
        target=target,
        intent_id=intent_id,
        mark=mark,
        vcenter_id=work.vcenter_id,
        session_id=work.session.id,
        session_vm_id=work.vm.id if of_vm else None,
        details=dict(details or {}),
        next_try_at=next_try_at,
    )


def lock_task(s: DbSession, task: Task) -> None:
    """The task's attempt either ends before, and is seen to, or after, and sees what is written until then."""
    s.execute(sa.select(Task.id).where(Task.id == task.id).with_for_update())


def of_attempt(
    s: DbSession,
    task: Task,
    attempt: int,
    kind: IntentKind,
    now: datetime,
    *,
    target: Target,
    mark: str,
    details: Mapping[str, Any],
) -> Intent:
    """The attempt's open one for that VM, made where there is none. ForbiddenError when the attempt is over."""
    proxy_id = task.proxy_id or ""
    lock_task(s, task)
    leases.require_attempt(s, proxy_id, task.id, attempt)
    found = s.scalars(
        sa.select(Intent).where(
            Intent.kind == kind.value,
            Intent.state == IntentState.OPEN.value,
            Intent.task_id == task.id,
            Intent.vm_moref == target.moref,
        )
    )
    for intent in found:
        if intent.details.get("attempt") == attempt:
            return intent
    return _add(
        s,
        kind,
        now,
        target=target,
        intent_id=new_id(),
        mark=mark,
        vcenter_id=task.vcenter_id or "",
        session_id=task.session_id,
        session_vm_id=task.session_vm_id,
        task_id=task.id,
        details={"proxy_id": proxy_id, "attempt": attempt, **details},
    )


def _add(
    s: DbSession, kind: IntentKind, now: datetime, *, target: Target, intent_id: str, **values: Any
) -> Intent:
    intent = Intent(
        id=intent_id,
        kind=kind.value,
        state=IntentState.OPEN.value,
        vm_moref=target.moref,
        vm_instance_uuid=target.instance_uuid,
        vm_name=target.name,
        object_ref=None,
        created_at=now,
        closed_at=None,
        **{"next_try_at": None, **values},
    )
    s.add(intent)
    return intent
