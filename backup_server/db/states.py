"""Every state and every way from one to the next.

A change of state is an UPDATE guarded by the old state (and, for a task, by the attempt); when no row
matched, somebody else was faster and `StaleStateError` says so. Nothing outside of this module writes a
`state` column.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.orm import Session as DbSession

from backup_server.db.tables import Base


class SessionState(StrEnum):
    QUEUED = "queued"  # -> running, finished (cancelled before it began)
    RUNNING = "running"  # -> finished
    FINISHED = "finished"


class VmState(StrEnum):
    """A VM in a session."""

    PENDING = "pending"  # -> preparing, done
    PREPARING = "preparing"  # -> running, finishing, pending (server restarted), done
    RUNNING = "running"  # -> finishing
    FINISHING = "finishing"  # -> done, preparing (a copy goes on with the VM's next restore point)
    DONE = "done"


class TaskState(StrEnum):
    """One VM disk in a session."""

    PENDING = "pending"  # -> running (claimed), done (cancelled, given up)
    RUNNING = "running"  # -> done (result), pending (lease expired, or the attempt asked for another)
    DONE = "done"


class Result(StrEnum):
    """How a session, a VM or a task ended; NULL until then."""

    SUCCESS = "success"
    WARNING = "warning"
    FAILED = "failed"
    CANCELLED = "cancelled"


class IntentState(StrEnum):
    OPEN = "open"  # written before the side effect; it may or may not exist -> done
    DONE = "done"  # undone or handed over; nothing of it is left to clean


class IntentKind(StrEnum):
    SNAPSHOT = "snapshot"
    RESTORED_VM = "restored-vm"
    HOT_ADDED_DISK = "hot-added-disk"
    STORAGE_SNAPSHOT = "storage-snapshot"
    STORAGE_EXPOSURE = (
        "storage-exposure"  # what one proxy is shown of a storage snapshot for one attempt
    )


class JobKind(StrEnum):
    BACKUP = "backup"
    COPY = "copy"


class SessionKind(StrEnum):
    BACKUP = "backup"
    RESTORE = "restore"
    COPY = "copy"
    CHECK = "repository-check"
    PRUNE = "prune"
    REPAIR = "repair"
    RESCAN = "rescan"
    EVACUATION = "evacuation"


ARROWS: Final[dict[type[StrEnum], dict[str, frozenset[str]]]] = {
    SessionState: {
        SessionState.QUEUED: frozenset({SessionState.RUNNING, SessionState.FINISHED}),
        SessionState.RUNNING: frozenset({SessionState.FINISHED}),
    },
    VmState: {
        VmState.PENDING: frozenset({VmState.PREPARING, VmState.DONE}),
        VmState.PREPARING: frozenset(
            {VmState.RUNNING, VmState.FINISHING, VmState.PENDING, VmState.DONE}
        ),
        VmState.RUNNING: frozenset({VmState.FINISHING}),
        VmState.FINISHING: frozenset({VmState.DONE, VmState.PREPARING}),
    },
    TaskState: {
        TaskState.PENDING: frozenset({TaskState.RUNNING, TaskState.DONE}),
        TaskState.RUNNING: frozenset({TaskState.DONE, TaskState.PENDING}),
    },
    IntentState: {IntentState.OPEN: frozenset({IntentState.DONE})},
}


class StaleStateError(Exception):
    """The row was no longer in the state that the change started from."""


def change_state(
    db: DbSession,
    table: type[Base],
    row_id: str,
    old: StrEnum,
    new: StrEnum,
    *,
    attempt: int | None = None,
    **values: Any,
) -> None:
    """Move one row from `old` to `new` and set `values` in the same UPDATE.

    Raises StaleStateError when the row was elsewhere already, ValueError for an arrow that does not
    exist.
    """
    if new not in ARROWS[type(old)].get(old, frozenset()):
        raise ValueError(f"{table.__tablename__}: no way from {old} to {new}")
    columns = table.__table__.c
    where = [columns.id == row_id, columns.state == old.value]
    if attempt is not None:
        where.append(columns.attempt == attempt)
    result = db.execute(sa.update(table).where(*where).values(state=new.value, **values))
    if result.rowcount != 1:  # type: ignore[attr-defined]
        fence = "" if attempt is None else f" with attempt {attempt}"
        raise StaleStateError(f"{table.__tablename__} {row_id} is no longer {old}{fence}")


def change_states(
    db: DbSession,
    table: type[Base],
    old: StrEnum,
    new: StrEnum,
    changes: Sequence[Mapping[str, Any]],
) -> None:
    """As `change_state` for many rows with one statement: all of them or, with StaleStateError, none that counts
    (the caller's transaction must end then). Each change names `id`, `attempt` (the one to be found) and the columns
    to set, the same in all; `new_attempt` sets the attempt itself.
    """
    if new not in ARROWS[type(old)].get(old, frozenset()):
        raise ValueError(f"{table.__tablename__}: no way from {old} to {new}")
    if not changes:
        return
    columns = table.__table__.c
    names = changes[0].keys() - {"id", "attempt", "new_attempt"}
    values = {columns[name]: sa.bindparam(f"v_{name}", type_=columns[name].type) for name in names}
    if "new_attempt" in changes[0]:
        values[columns.attempt] = sa.bindparam("v_new_attempt")
    statement = (
        sa.update(table.__table__)  # type: ignore[arg-type]
        .where(
            columns.id == sa.bindparam("b_id"),
            columns.state == old.value,
            columns.attempt == sa.bindparam("b_attempt"),
        )
        .values({columns.state: new.value, **values})
    )
    rows = [
        {
            "b_id": change["id"],
            "b_attempt": change["attempt"],
            **{f"v_{name}": value for name, value in change.items() if name not in {"id", "attempt"}},
        }
        for change in changes
    ]
    result = db.connection().execute(statement, rows)
    if result.rowcount != len(rows):
        raise StaleStateError(
            f"{table.__tablename__}: {len(rows) - result.rowcount} of {len(rows)} rows are no longer {old}"
        )
