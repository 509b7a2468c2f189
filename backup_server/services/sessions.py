"""Sessions: begun, looked at, cancelled. What drives them is the engine."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError as DuplicateError
from sqlalchemy.orm import Session as DbSession

from backup_server.db.states import JobKind, Result, SessionKind, SessionState, change_state
from backup_server.db.tables import Job, Repository, Session, SessionVm, Task, new_id
from backup_server.errors import ConflictError, InvalidError, NotFoundError
from backup_server.services import counters, explanations
from backup_server.services import events as event_log
from backup_server.services.context import Context
from backup_server.services.paging import page
from backup_server.services.references import by_prefix
from backup_server.services.session_shapes import VM_CHOICES, session_shapes, vm_page
from backup_server.services.shapes import MAX_LIMIT, page_limit

LATEST: Final = "latest"
_OF_JOBS: Final = (SessionKind.BACKUP.value, SessionKind.COPY.value)

DEFAULT_VMS: Final = 100
"""Of one session, shown at a time."""
_CURSOR_DIGITS: Final = 9
"""Of a place among a session's VMs: what the database takes for a number."""


def list_all(
    ctx: Context,
    *,
    job: str | None = None,
    state: str | None = None,
    kind: str | None = None,
    limit: int = 100,
    after: str | None = None,
) -> dict[str, Any]:
    """{"items": sessions without their VMs, newest first, "next": cursor or None}."""
    with ctx.db.read() as s:
        query = sa.select(Session)
        if job is not None:
            known = s.scalar(sa.select(Job.id).where(sa.or_(Job.id == job, Job.name == job)))
            # The name finds sessions of a job that is gone, too.
            query = query.where(sa.or_(Session.job_id == (known or job), Session.job_name == job))
        if state is not None:
            query = query.where(Session.state == _member(SessionState, "state", state))
        if kind is not None:
            query = query.where(Session.kind == _member(SessionKind, "kind", kind))
        rows, cursor = page(s, query, Session, limit=page_limit(limit), after=after)
        return {"items": session_shapes(s, rows, ctx.clock()), "next": cursor}


def _member(states: type[SessionState | SessionKind], name: str, value: str) -> str:
    known = [member.value for member in states]
    if value not in known:
        raise InvalidError(
            f"{name} must be one of {', '.join(known)}", details={name: f"one of {', '.join(known)}"}
        )
    return value


def get(
    ctx: Context,
    session_id: str,
    *,
    limit: int = DEFAULT_VMS,
    after: str | None = None,
    only: str | None = None,
) -> dict[str, Any]:
    """One session with `vms` and their `tasks`, at most `limit` VMs, and `vms_next`: the cursor behind which more
    come, or None. A prefix of the id that names one is enough. `only`: one of VM_CHOICES.
    """
    if only is not None and only not in VM_CHOICES:
        raise InvalidError(
            f"only must be one of {', '.join(VM_CHOICES)}",
            details={"only": f"one of {', '.join(VM_CHOICES)}"},
        )
    if after is not None and not (after.isdecimal() and len(after) <= _CURSOR_DIGITS):
        raise InvalidError(
            "the cursor is not one that a session answered", details={"after": "not a cursor"}
        )
    with ctx.db.read() as s:
        row = find(s, session_id)
        [shape] = session_shapes(s, [row], ctx.clock())
        vms, more = vm_page(
            s, row.id, limit=min(limit, MAX_LIMIT), after=int(after) if after else -1, only=only
        )
        return {**shape, "vms": vms, "vms_next": None if more is None else str(more)}


def find(s: DbSession, ref: str) -> Session:
    """Row by id, by a prefix of it of four characters or more, or the newest by `latest`."""
    if ref == LATEST:
        newest = s.scalar(
            sa.select(Session).order_by(Session.created_at.desc(), Session.id.desc()).limit(1)
        )
        if newest is None:
            raise NotFoundError("there are no sessions yet: start one with `vmhaul job run JOB`")
        return newest
    return by_prefix(s, Session, ref, "session", "`vmhaul session list` shows them")


def events(ctx: Context, session_id: str, *, after: int = 0, limit: int = 1000) -> list[dict[str, Any]]:
    """Log lines with a greater id, oldest first."""
    with ctx.db.read() as s:
        return event_log.of_session(s, find(s, session_id).id, after=after, limit=limit)


def newest_events(ctx: Context, session_id: str, limit: int) -> tuple[list[dict[str, Any]], int]:
    """The youngest log lines, oldest first, and how many older ones there are. By the whole id."""
    with ctx.db.read() as s:
        return event_log.newest_of_session(s, session_id, limit)


def why(ctx: Context, task_id: str) -> dict[str, Any]:
    """Placement decision of a task, with all candidates and their reasons. A prefix of the id will do."""
    with ctx.db.read() as s:
        row = by_prefix(s, Task, task_id, "task", "`vmhaul session show` lists tasks")
    return explanations.why(ctx, row)


def insert(
    s: DbSession,
    kind: SessionKind,
    *,
    now: datetime,
    job: Job | None = None,
    repository_id: str | None = None,
    vcenter_id: str | None = None,
    options: Mapping[str, Any] | None = None,
    retry_of: str | None = None,
    attempt: int = 1,
) -> Session:
    """A queued session in the caller's transaction."""
    row = Session(
        id=new_id(),
        kind=kind.value,
        job_id=job.id if job else None,
        job_name=job.name if job else "",
        repository_id=repository_id,
        vcenter_id=vcenter_id,
        state=SessionState.QUEUED.value,
        result=None,
        options=dict(options or {}),
        cancel_requested=False,
        retry_of=retry_of,
        attempt=attempt,
        created_at=now,
        started_at=None,
        finished_at=None,
        report={},
    )
    s.add(row)
    s.flush()
    return row


def start_backup(
    s: DbSession,
    job: Job,
    *,
    now: datetime,
    full: bool = False,
    only_failed: bool = False,
    trigger: str = "manual",
    more: Mapping[str, Any] | None = None,
) -> Session:
    """A queued session of the job, in the caller's transaction; then set `ctx.wake_engine`. `more`: options
    besides.

    ConflictError when one is open. One that still waits for its time (a retry, the next window) gives way.
    """
    waiting = open_session(s, job.id)
    if waiting is not None:
        if not gives_way(waiting):
            raise ConflictError(
                f"job {job.name!r} is running already: session {waiting.id}; wait for it or cancel it",
                details={"session": waiting.id},
            )
        change_state(
            s,
            Session,
            waiting.id,
            SessionState.QUEUED,
            SessionState.FINISHED,
            result=Result.CANCELLED.value,
            reason="a new run of the job took the place of this one, which waited for its time",
            finished_at=now,
        )
        counters.add(s, "sessions_ended", (waiting.kind, Result.CANCELLED.value))
        s.flush()
    options: dict[str, Any] = {"full": full, "trigger": trigger, **(more or {})}
    retry_of = None
    if only_failed:
        retry_of = last_failed(s, job)
        options["only_failed"] = True
    try:
        with s.begin_nested():
            return insert(
                s,
                kind_of(job),
                now=now,
                job=job,
                repository_id=job.repository_id,
                vcenter_id=job.vcenter_id,
                options=options,
                retry_of=retry_of,
            )
    except DuplicateError:
        raise ConflictError(f"job {job.name!r} is running already; wait for it or cancel it") from None


def gives_way(session: Session) -> bool:
    """Whether a new run of the job may take the place of this one, which waits for its time."""
    return session.state == SessionState.QUEUED.value and "not_before" in session.options


def kind_of(job: Job) -> SessionKind:
    """What a run of the job is."""
    return SessionKind.COPY if job.kind == JobKind.COPY.value else SessionKind.BACKUP


def open_session(s: DbSession, job_id: str) -> Session | None:
    """The job's session that is queued or running, if there is one."""
    return s.scalar(
        sa.select(Session).where(
            Session.job_id == job_id,
            Session.kind.in_(_OF_JOBS),
            Session.state != SessionState.FINISHED.value,
        )
    )


def last_failed(s: DbSession, job: Job) -> str:
    """Id of the job's last session when VMs failed in it; ConflictError when none did."""
    last = s.scalar(
        sa.select(Session)
        .where(
            Session.job_id == job.id,
            Session.kind.in_(_OF_JOBS),
            Session.state == SessionState.FINISHED.value,
            Session.started_at.is_not(None),
        )
        .order_by(Session.created_at.desc(), Session.id)
        .limit(1)
    )
    failed = last is not None and s.scalar(
        sa.select(sa.func.count())
        .select_from(SessionVm)
        .where(SessionVm.session_id == last.id, SessionVm.result == Result.FAILED.value)
    )
    if last is None or not failed:
        raise ConflictError(
            f"no VM failed in the last session of job {job.name!r}; run it without only_failed"
        )
    return last.id


def cancel(ctx: Context, session_id: str) -> dict[str, Any]:
    """Ask a session to end. Its running tasks are told, its snapshots removed. ConflictError when over."""
    from backup_server.services.tasks import cancel_session_tasks

    with ctx.db() as s:
        row = find(s, session_id)
        asked = s.execute(
            sa.update(Session)
            .where(Session.id == row.id, Session.state != SessionState.FINISHED.value)
            .values(cancel_requested=True)
            .returning(Session.id)
        ).first()
        if asked is None:
            raise ConflictError(f"session {row.id} is over already, there is nothing to cancel")
        cancel_session_tasks(s, row.id, ctx.clock())
        if not row.cancel_requested:
            event_log.record(
                s, ctx.clock(), "session.cancel", "cancelling was asked for", session_id=row.id
            )
    ctx.wake_engine.set()
    ctx.wake_dispatcher.set()
    return get(ctx, row.id)


def refuse_busy(ctx: Context, row: Repository, why: str) -> None:
    """ConflictError when a session of the repository runs; `why` that is in the way."""
    with ctx.db.read() as s:
        busy = s.scalar(
            sa.select(Session.id).where(
                Session.repository_id == row.id, Session.state == SessionState.RUNNING.value
            )
        )
    if busy is not None:
        raise ConflictError(
            f"repository {row.name!r} is used by session {busy}, and {why}; wait for it or cancel it",
            details={"session": busy},
        )
