"""Sessions whose time is over although nobody cancelled them: the job's window closed.

A session that is stopped ends **in order**: its running movers make durable what they have, its VMs' snapshots
go, and the disks that are left go on in the next window from what was stored (`services/unfinished.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Final

import sqlalchemy as sa
from sqlalchemy.orm import Session as DbSession

from backup_server.db.states import Result, SessionState
from backup_server.db.tables import Session, SessionVm, Task
from backup_server.services import events
from backup_server.services.tasks import cancel_session_tasks

WINDOW_CLOSED: Final = "the window closed"
_GOOD: Final = (Result.SUCCESS.value, Result.WARNING.value)


def stop(s: DbSession, session: Session, reason: str, now: datetime) -> bool:
    """Ask a running session to end in order, with its tasks. False: it was asked already, or is over."""
    asked = s.execute(
        sa.update(Session)
        .where(
            Session.id == session.id,
            Session.state == SessionState.RUNNING.value,
            Session.stop_reason == "",
            Session.cancel_requested.is_(False),
        )
        .values(stop_reason=reason)
        .returning(Session.id)
        .execution_options(synchronize_session=False)
    ).first()
    if asked is None:
        return False
    cancel_session_tasks(s, session.id, now)
    text = f"{reason}: what was read is kept, the rest follows in the next window"
    events.record(s, now, "session.stopped", text, session_id=session.id, level=events.WARNING)
    return True


def what_is_left(reason: str, vms: Sequence[SessionVm], tasks: Sequence[Task]) -> str:
    """For people: "the window closed; 3 of 8 disks are left (2 of 4 VMs)". A VM that was not begun counts the
    disks that the inventory showed.
    """
    left = total = 0
    by_vm: dict[str, list[Task]] = {}
    for task in tasks:
        by_vm.setdefault(task.session_vm_id, []).append(task)
    for vm in vms:
        own = by_vm.get(vm.id, [])
        disks = len(own) or int(vm.details.get("disk_count", 1))
        total += disks
        if vm.result == Result.CANCELLED.value:
            left += disks - sum(task.result in _GOOD for task in own)
    unfinished = sum(vm.result == Result.CANCELLED.value for vm in vms)
    return f"{reason}; {left} of {total} disks are left ({unfinished} of {len(vms)} VMs)"


def end_wanted(s: DbSession, session_id: str, *, lock: bool = False) -> str:
    """Why the session is to end; empty: it is not. `lock`: its row, against a change until the commit."""
    wanted = sa.select(Session.cancel_requested, Session.stop_reason).where(Session.id == session_id)
    row = s.execute(wanted.with_for_update() if lock else wanted).one_or_none()
    if row is None:
        return ""
    return "cancelled" if row.cancel_requested else str(row.stop_reason)
