"""The end of a session: its result from its VMs, the retry of those that failed, the prune after it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session as DbSession

from backup_server.db.states import Result, SessionKind, SessionState, change_state
from backup_server.db.tables import Job, Session, SessionVm, Task
from backup_server.services import (
    chains,
    copy_jobs,
    counters,
    events,
    job_windows,
    repository_facts,
    sessions,
    stopping,
    windows,
)
from backup_server.services.context import Context
from backup_server.services.session_sums import figures_of

_WORST_FIRST = (Result.FAILED, Result.CANCELLED, Result.WARNING, Result.SUCCESS)
_NAMED_IN_REASON = 3
_KEPT_OPTIONS = (job_windows.IGNORE_WINDOW, chains.AGAIN)
"""Options of a session that hold for its retries."""
_SCHEDULE_COMES = timedelta(minutes=1)
"""A scheduled run so soon after the window opens takes up what is left; it takes all VMs of the job."""


def finish(ctx: Context, session_id: str) -> None:
    """Running to finished, with everything that follows from it, in one transaction."""
    now = ctx.clock()
    with ctx.db() as s:
        _lock_job(s, session_id)
        session = s.get_one(Session, session_id)
        vms = list(
            s.scalars(
                sa.select(SessionVm)
                .where(SessionVm.session_id == session_id)
                .order_by(SessionVm.position)
            )
        )
        tasks = _tasks(s, session)
        result, reason = verdict(session, vms, tasks)
        figures = figures_of(s, [session], now, ended=True)[session_id]
        report = {**session.report, "figures": figures}
        change_state(
            s,
            Session,
            session_id,
            SessionState.RUNNING,
            SessionState.FINISHED,
            result=result.value,
            reason=reason,
            finished_at=now,
            report=report,
        )
        level = events.INFO if result is Result.SUCCESS else events.WARNING
        text = f"{result.value}{f': {reason}' if reason else ''}"
        events.record(s, now, "session.finished", text, session_id=session_id, level=level)
        counters.add(s, "sessions_ended", (session.kind, result.value))
        if session.kind in {SessionKind.BACKUP.value, SessionKind.COPY.value}:
            if session.stop_reason and not session.cancel_requested:
                _go_on_later(s, session, now)
                again = False
            else:
                can_help = any(_worth_another(vm) for vm in vms)
                again = retry_failed(ctx, s, session, can_help=can_help)
            _prune_after(ctx, s, session, vms)
            made_points = bool(vms) or session.kind == SessionKind.BACKUP.value
            _copy_after(ctx, s, session, made_points=made_points)
            if not again:
                follow(ctx, s, session, result, now)
    if session.kind in {SessionKind.BACKUP.value, SessionKind.COPY.value}:
        repository_facts.refresh_after(ctx, session.repository_id)


def _lock_job(s: DbSession, session_id: str) -> None:
    """Before the session is read: the end of another job either sees that this one is over, or has noted in it that
    it is to run again (`chains`).
    """
    job_id = sa.select(Session.job_id).where(Session.id == session_id).scalar_subquery()
    s.execute(sa.select(Job.id).where(Job.id == job_id).with_for_update(key_share=True))


def _tasks(s: DbSession, session: Session) -> list[Task]:
    """Those of a session that was stopped: only what is left of it has to be counted."""
    if not session.stop_reason:
        return []
    of_it = sa.select(Task).where(Task.session_id == session.id)
    only = sa.orm.load_only(Task.session_vm_id, Task.result)
    return list(s.scalars(of_it.options(only)))


def verdict(
    session: Session, vms: Sequence[SessionVm], tasks: Sequence[Task] = ()
) -> tuple[Result, str]:
    """The worst of the VMs' results, and a line that says how many and which. One that was stopped in order
    is worth a warning, and says what is left; unless a person cancelled it besides.
    """
    stopped = session.stop_reason and not session.cancel_requested
    if stopped and any(vm.result == Result.CANCELLED.value for vm in vms):
        left = stopping.what_is_left(session.stop_reason, vms, tasks)
        others = [vm for vm in vms if vm.result != Result.CANCELLED.value]
        if not any(vm.result == Result.FAILED.value for vm in others):
            return Result.WARNING, left
        result, reason = _worst(session, others)
        return result, f"{left}; {reason}" if reason else left
    return _worst(session, vms)


def _worst(session: Session, vms: Sequence[SessionVm]) -> tuple[Result, str]:
    warnings = [str(text) for text in session.report.get("warnings", [])]
    if not vms:
        if session.cancel_requested:
            return Result.CANCELLED, "cancelled"
        if session.kind == SessionKind.COPY.value:
            return Result.SUCCESS, "nothing new to copy"
        return Result.FAILED, "; ".join(["no VM to back up", *warnings])
    counts = Counter(vm.result for vm in vms)
    worst = next(result for result in _WORST_FIRST if counts[result.value])
    if worst is Result.SUCCESS and warnings:
        return Result.WARNING, "; ".join(warnings)
    if worst is Result.SUCCESS:
        return Result.SUCCESS, ""
    named = [vm for vm in vms if vm.result == worst.value]
    shown = "; ".join(f"{vm.name}: {vm.reason}" for vm in named[:_NAMED_IN_REASON] if vm.reason)
    more = len(named) - _NAMED_IN_REASON
    text = f"{len(named)} of {len(vms)} VMs {worst.value}" if len(vms) > 1 else ""
    parts = [part for part in (text, shown, f"and {more} more" if more > 0 else "") if part]
    return worst, "; ".join(parts)


def _worth_another(vm: SessionVm) -> bool:
    return vm.result == Result.FAILED.value and not vm.details.get("missing")


def retry_failed(ctx: Context, s: DbSession, session: Session, *, can_help: bool) -> bool:
    """Queue the automatic retry of the failed VMs (of all, when none had begun), if the job wants it. False:
    there is none.
    """
    job = s.get(Job, session.job_id) if session.job_id else None
    if job is None or not job.enabled or session.cancel_requested or not can_help:
        return False
    retries = job.options["retries"]
    if session.attempt > retries["count"] or sessions.open_session(s, job.id) is not None:
        return False
    now = ctx.clock()
    at = now + timedelta(seconds=retries["wait_s"])
    if not session.options.get(job_windows.IGNORE_WINDOW):
        at = windows.next_open(job.window, at)
    began = session.started_at is not None
    options: dict[str, Any] = {
        "full": bool(session.options.get("full")),
        "trigger": "retry",
        "not_before": at.isoformat(),
        **{name: session.options[name] for name in _KEPT_OPTIONS if name in session.options},
    }
    # A retry that could not even begin leaves the same VMs to be tried.
    if began or session.options.get("only_failed"):
        options["only_failed"] = True
    elif session.options.get("only_left"):
        options["only_left"] = True
    sessions.insert(
        s,
        sessions.kind_of(job),
        now=now,
        job=job,
        repository_id=job.repository_id,
        vcenter_id=job.vcenter_id,
        options=options,
        retry_of=session.id if began else session.retry_of or session.id,
        attempt=session.attempt + 1,
    )
    what = "the failed VMs are" if began else "the job is"
    text = f"{what} tried again at {at:%H:%M:%S} UTC (retry {session.attempt} of {retries['count']})"
    events.record(s, now, "session.retry", text, session_id=session.id)
    return True


def _go_on_later(s: DbSession, session: Session, now: datetime) -> None:
    """Queue what is left of a session that was stopped for the next window, unless its schedule comes then."""
    job = s.get(Job, session.job_id) if session.job_id else None
    if job is None or not job.enabled or sessions.open_session(s, job.id) is not None:
        return
    opens = windows.next_open(job.window, now)
    if job.next_run_at is not None and job.next_run_at <= opens + _SCHEDULE_COMES:
        text = f"what is left goes on with the run that is due at {job.next_run_at:%Y-%m-%d %H:%M} UTC"
        events.record(s, now, "session.goes-on", text, session_id=session.id)
        return
    sessions.insert(
        s,
        sessions.kind_of(job),
        now=now,
        job=job,
        repository_id=job.repository_id,
        vcenter_id=job.vcenter_id,
        options={
            "full": bool(session.options.get("full")),
            "trigger": "window",
            "only_left": True,
            "not_before": opens.isoformat(),
        },
        retry_of=session.id,
    )
    text = f"what is left goes on at {opens:%Y-%m-%d %H:%M} UTC, when the window opens"
    events.record(s, now, "session.goes-on", text, session_id=session.id)


def follow(ctx: Context, s: DbSession, session: Session, result: Result, now: datetime) -> None:
    """Jobs that are to run after this one's end."""
    if chains.start_followers(s, session, result, now):
        ctx.wake_engine.set()


def _copy_after(ctx: Context, s: DbSession, session: Session, *, made_points: bool) -> None:
    """Queue the copy jobs that follow the backups of this repository."""
    s.flush()
    for job in copy_jobs.jobs_after(s, session, made_points=made_points):
        # Locked: a copy that ends at this very moment either is over for us, or sees that this session has ended.
        s.execute(sa.select(Job.id).where(Job.id == job.id).with_for_update())
        waiting = sessions.open_session(s, job.id)
        if waiting is None or sessions.gives_way(waiting):
            more = job_windows.until_open(job.window, ctx.clock())
            sessions.start_backup(s, job, now=ctx.clock(), trigger="session", more=more)
            text = f"copy job {job.name} follows"
            events.record(s, ctx.clock(), "session.copy", text, session_id=session.id)
    ctx.wake_engine.set()


def _prune_after(ctx: Context, s: DbSession, session: Session, vms: Sequence[SessionVm]) -> None:
    """Queue a prune when restore points were forgotten and no other session needs the repository."""
    if not ctx.settings.prune_after_session or session.repository_id is None:
        return
    if not any(vm.details.get("forgotten") for vm in vms):
        return
    running = s.scalar(
        sa.select(sa.func.count())
        .select_from(Session)
        .where(
            Session.repository_id == session.repository_id,
            Session.id != session.id,
            Session.state == SessionState.RUNNING.value,
        )
    )
    if not running:
        options = {"trigger": "session", "session": session.id}
        queue_prune(ctx, s, session.repository_id, options)


def queue_prune(ctx: Context, s: DbSession, repository_id: str, options: dict[str, Any]) -> None:
    """Queue a prune, unless one waits already or settings forbid it. It begins when the repository's
    other sessions let it.
    """
    if not ctx.settings.prune_after_session:
        return
    waiting = s.scalar(
        sa.select(Session.id)
        .where(
            Session.repository_id == repository_id,
            Session.kind == SessionKind.PRUNE.value,
            Session.state == SessionState.QUEUED.value,
        )
        .limit(1)
    )
    if waiting is None:
        sessions.insert(
            s, SessionKind.PRUNE, now=ctx.clock(), repository_id=repository_id, options=options
        )
