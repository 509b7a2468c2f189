"""The end of a session: its result from its VMs, the retry of those that failed, the prune after it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session as DbSession

from backup_server.db.states import Result, SessionKind, SessionState, change_state
from backup_server.db.tables import Job, Session, SessionVm, Task
from backup_server.services import copy_jobs, events, repository_facts, sessions
from backup_server.services.context import Context
from backup_server.services.session_shapes import session_figures

_WORST_FIRST = (Result.FAILED, Result.CANCELLED, Result.WARNING, Result.SUCCESS)
_NAMED_IN_REASON = 3


def finish(ctx: Context, session_id: str) -> None:
    """Running to finished, with everything that follows from it, in one transaction."""
    now = ctx.clock()
    with ctx.db() as s:
        session = s.get_one(Session, session_id)
        vms = list(
            s.scalars(
                sa.select(SessionVm)
                .where(SessionVm.session_id == session_id)
                .order_by(SessionVm.position)
            )
        )
        tasks = list(s.scalars(sa.select(Task).where(Task.session_id == session_id)))
        result, reason = verdict(session, vms)
        session.finished_at = now  # for the figures; written with the state below
        figures = session_figures(session, vms, tasks, now)
        figures["progress"]["eta_s"] = None
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
        if session.kind in {SessionKind.BACKUP.value, SessionKind.COPY.value}:
            retry_failed(ctx, s, session, can_help=any(_worth_another(vm) for vm in vms))
            _prune_after(ctx, s, session, vms)
            if vms or session.kind == SessionKind.BACKUP.value:
                # Two jobs that copy to and fro would start each other for ever, with nothing to copy.
                _copy_after(ctx, s, session)
    if session.kind in {SessionKind.BACKUP.value, SessionKind.COPY.value}:
        repository_facts.refresh_after(ctx, session.repository_id)


def verdict(session: Session, vms: Sequence[SessionVm]) -> tuple[Result, str]:
    """The worst of the VMs' results, and a line that says how many and which."""
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


def retry_failed(ctx: Context, s: DbSession, session: Session, *, can_help: bool) -> None:
    """Queue the automatic retry of the failed VMs (of all, when none had begun), if the job wants it."""
    job = s.get(Job, session.job_id) if session.job_id else None
    if job is None or not job.enabled or session.cancel_requested or not can_help:
        return
    retries = job.options["retries"]
    if session.attempt > retries["count"] or sessions.open_session(s, job.id) is not None:
        return
    now = ctx.clock()
    at = now + timedelta(seconds=retries["wait_s"])
    began = session.started_at is not None
    options: dict[str, Any] = {
        "full": bool(session.options.get("full")),
        "trigger": "retry",
        "not_before": at.isoformat(),
    }
    # A retry that could not even begin leaves the same VMs to be tried.
    if began or session.options.get("only_failed"):
        options["only_failed"] = True
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


def _copy_after(ctx: Context, s: DbSession, session: Session) -> None:
    """Queue the copy jobs that follow the backups of this repository."""
    s.flush()
    for job in copy_jobs.jobs_after(s, session):
        if sessions.open_session(s, job.id) is None:
            sessions.start_backup(s, job, now=ctx.clock(), trigger="session")
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
