"""Check, prune, repair and rescan: sessions without VMs, carried out by an agent of their own."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session as DbSession

from backup_server.db.states import Result, SessionKind, SessionState, TaskState, change_state
from backup_server.db.tables import Repository, Session, Task
from backup_server.errors import ConflictError, VmhaulError
from backup_server.services import (
    catalogue,
    counters,
    damage,
    events,
    extents,
    repairs,
    repositories,
    restore_points,
    unfinished,
    verification,
)
from backup_server.services.context import Context

_SHOWN_PROBLEMS = 3


def run(ctx: Context, session_id: str) -> None:
    """Carry out a running session to its end. May be begun again after a crash: all calls repeat."""
    with ctx.db.read() as s:
        session = s.get_one(Session, session_id)
    if session.state != SessionState.RUNNING.value:
        return
    report: dict[str, Any] = {}
    try:
        if session.repository_id is None:
            result, reason = Result.FAILED, "the repository was removed"
        else:
            report = _carry_out(ctx, session, session.repository_id)
            result, reason = _verdict(session, report)
    except VmhaulError as error:
        result, reason = Result.FAILED, str(error)
    now = ctx.clock()
    lost = report.pop("damage", [])
    with ctx.db() as s:
        if session.kind == SessionKind.CHECK.value and session.repository_id and report:
            report["damaged_points"] = _mark_damaged(s, session, lost, now)
            if report["damaged_points"]:
                repairs.queue(ctx, s, session.repository_id)
        if session.kind == SessionKind.REPAIR.value and report:
            repairs.note_result(ctx, s, session, report)
        change_state(
            s,
            Session,
            session_id,
            SessionState.RUNNING,
            SessionState.FINISHED,
            result=result.value,
            reason=reason,
            finished_at=now,
            report={**session.report, **report},
        )
        counters.add(s, "sessions_ended", (session.kind, result.value))
        level = events.INFO if result is Result.SUCCESS else events.ERROR
        text = f"{result.value}{f': {reason}' if reason else ''}"
        events.record(s, now, "session.finished", text, session_id=session_id, level=level)


def _mark_damaged(s: DbSession, session: Session, lost: list[dict[str, Any]], now: datetime) -> int:
    """Say what a check found lost with the restore points that lost it; answers how many did."""
    verification.advance(s, session)
    complete = float(session.options.get("sample_share", 0.0)) >= 1
    marked = damage.record(s, session.repository_id or "", lost, is_complete=complete, now=now)
    if marked:
        text = f"{len(marked)} restore points are damaged; `vmhaul restore-point list` says which"
        events.record(s, now, "check.damage", text, session_id=session.id, level=events.ERROR)
    return len(marked)


def _carry_out(ctx: Context, session: Session, repository_id: str) -> dict[str, Any]:
    with ctx.db.read() as s:
        away = extents.offline(s.get_one(Repository, repository_id))
    match session.kind:
        case SessionKind.PRUNE.value | SessionKind.REPAIR.value if away:
            # What is away must not be taken for what nobody needs, nor for what is lost.
            raise ConflictError(
                f"{session.kind} not begun: extent {', '.join(away)} is in maintenance; activate it (or "
                "remove it with --lost), and begin again"
            )
        case SessionKind.CHECK.value:
            with ctx.agents.dedicated(repository_id) as agent:
                return agent.check(
                    read_data=bool(session.options.get("read_data")),
                    sample_share=float(session.options.get("sample_share", 0.0)),
                    sample_start=session.options.get("sample_start"),
                )
        case SessionKind.REPAIR.value:
            report = repairs.carry_out(ctx, session, repository_id)
        case SessionKind.PRUNE.value:
            restore_points.forget_marked(ctx, repository_id)
            with ctx.agents.dedicated(repository_id) as agent:
                report = agent.prune(_needed_work(ctx, repository_id), ctx.settings.prune_min_age_s)
        case SessionKind.EVACUATION.value:
            report = extents.run_evacuation(ctx, session, repository_id)
        case _:
            report = catalogue.rebuild(ctx, repository_id)
    repositories.refresh_space(ctx, repository_id)
    return report


def _needed_work(ctx: Context, repository_id: str) -> list[str]:
    """Tasks that may go on from what they left in the repository."""
    with ctx.db.read() as s:
        left = unfinished.needed_work(s, repository_id, ctx.clock())
        return left + list(
            s.scalars(
                sa.select(Task.id)
                .join(Session, Session.id == Task.session_id)
                .where(
                    Task.repository_id == repository_id,
                    sa.or_(
                        Task.state != TaskState.DONE.value,
                        # Done but not yet in a committed point.
                        Session.state != SessionState.FINISHED.value,
                    ),
                )
            )
        )


def _verdict(session: Session, report: dict[str, Any]) -> tuple[Result, str]:
    problems = report.get("problems") or []
    if session.kind == SessionKind.CHECK.value and problems:
        shown = "; ".join(str(text) for text in problems[:_SHOWN_PROBLEMS])
        more = len(problems) - _SHOWN_PROBLEMS
        return Result.FAILED, shown + (f"; and {more} more" if more > 0 else "")
    if session.kind == SessionKind.REPAIR.value:
        return repairs.verdict(session, report)
    return Result.SUCCESS, ""
