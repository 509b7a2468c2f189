"""What the flows share: the rows that a step works on, and the ways in which a VM's step ends.

A **step** brings one VM of a session from one state to the next. It may be killed at any point and is
begun again from what is committed; so everything it does outside of SQL is looked for before it is
done, and SQL is told before and after.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session as DbSession
from sqlalchemy.orm import undefer

from backup_server.db.states import IntentKind, IntentState, Result, VmState, change_state
from backup_server.db.tables import Intent, Session, SessionVm, Task
from backup_server.services import events
from backup_server.services.context import Context

MAX_WAIT_S = 300.0


class StepFailedError(Exception):
    """The step cannot succeed, however often it is tried. The message is the VM's reason."""


class StepCancelledError(Exception):
    """The session was cancelled while the step was under way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """Rows as they were when the step began."""

    session: Session
    vm: SessionVm
    vcenter_id: str
    job: Mapping[str, Any]
    """What the job said when the session began: options, retention, selection."""

    @property
    def details(self) -> dict[str, Any]:
        return self.vm.details


def load(ctx: Context, vm_id: str) -> Work:
    with ctx.db.read() as s:
        vm = s.get_one(
            SessionVm, vm_id, options=[undefer(SessionVm.vm_config), undefer(SessionVm.nvram)]
        )
        session = s.get_one(Session, vm.session_id)
        return Work(
            session=session,
            vm=vm,
            vcenter_id=session.vcenter_id or "",
            job=session.options.get("job", {}),
        )


def cancel_check(ctx: Context, session_id: str) -> Callable[[], bool]:
    """Answers whether the session is to end before its time; reads it each time it is asked."""

    def cancelled() -> bool:
        with ctx.db.read() as s:
            row = s.execute(
                sa.select(Session.cancel_requested, Session.stop_reason).where(Session.id == session_id)
            ).one_or_none()
        return row is not None and (row.cancel_requested or bool(row.stop_reason))

    return cancelled


def note(
    s: DbSession, ctx: Context, work: Work, name: str, text: str, level: str = events.INFO
) -> None:
    """An event of the VM's session."""
    events.record(
        s, ctx.clock(), name, f"{work.vm.name}: {text}", session_id=work.session.id, level=level
    )


def remember(s: DbSession, vm_id: str, **values: Any) -> SessionVm:
    """Set entries of the VM's details in the caller's transaction (None removes one)."""
    vm = s.get_one(SessionVm, vm_id)
    details = {**vm.details, **values}
    vm.details = {name: value for name, value in details.items() if value is not None}
    return vm


def warn(ctx: Context, work: Work, text: str, name: str = "vm.warning") -> None:
    """A warning of the VM, once."""
    with ctx.db() as s:
        vm = s.get_one(SessionVm, work.vm.id)
        if text not in vm.warnings:
            vm.warnings = [*vm.warnings, text]
            note(s, ctx, work, name, text, events.WARNING)


def open_intent(s: DbSession, vm_id: str) -> Intent | None:
    """The VM's intent that is not closed, if there is one: its snapshot's or its restored VM's. Intents of
    single disks and of storage snapshots are looked after by those who made them.
    """
    return s.scalar(
        sa.select(Intent).where(
            Intent.session_vm_id == vm_id,
            Intent.state == IntentState.OPEN.value,
            Intent.kind.in_([IntentKind.SNAPSHOT.value, IntentKind.RESTORED_VM.value]),
        )
    )


def tasks_of(s: DbSession, vm_id: str) -> list[Task]:
    return list(s.scalars(sa.select(Task).where(Task.session_vm_id == vm_id).order_by(Task.position)))


def end_vm(s: DbSession, ctx: Context, work: Work, state: VmState, result: Result, reason: str) -> None:
    """Bring the VM to its end in the caller's transaction. StaleStateError when it left `state`."""
    change_state(
        s,
        SessionVm,
        work.vm.id,
        state,
        VmState.DONE,
        result=result.value,
        reason=reason,
        finished_at=ctx.clock(),
    )
    level = {Result.FAILED: events.ERROR, Result.WARNING: events.WARNING}.get(result, events.INFO)
    tail = f": {reason}" if reason not in {"", result.value} else ""
    note(s, ctx, work, "vm.done", f"{result.value}{tail}", level)


def give_up(ctx: Context, work: Work, result: Result, reason: str) -> None:
    """From preparing: end the VM, by way of finishing when something may have to be undone."""
    with ctx.db() as s:
        if open_intent(s, work.vm.id) is None:
            end_vm(s, ctx, work, VmState.PREPARING, result, reason)
            return
        remember(s, work.vm.id, failure={"result": result.value, "reason": reason}, tries=None)
        s.flush()
        change_state(s, SessionVm, work.vm.id, VmState.PREPARING, VmState.FINISHING)


def defer(ctx: Context, work: Work, reason: str, *, tries: int) -> bool:
    """Count a transient failure and set the time of the next try; False when all tries are used."""
    used = int(work.details.get("tries", 0)) + 1
    if used >= tries:
        return False
    wait_s = min(ctx.settings.step_wait_s * 2 ** (used - 1), MAX_WAIT_S)
    with ctx.db() as s:
        remember(
            s,
            work.vm.id,
            tries=used,
            not_before=(ctx.clock() + timedelta(seconds=wait_s)).isoformat(),
        )
        note(s, ctx, work, "vm.waits", f"{reason}; try {used + 1} in {wait_s:.0f} s", events.WARNING)
    return True


def is_due(details: Mapping[str, Any], now: datetime, *, at_most_s: float | None = None) -> bool:
    """False while the VM waits for its next try. `at_most_s`: no such wait is longer, so one that is was written
    while the clock was ahead, and is over.
    """
    not_before = details.get("not_before")
    if not_before is None:
        return True
    until = datetime.fromisoformat(not_before)
    return until <= now or (at_most_s is not None and until > now + timedelta(seconds=at_most_s))
