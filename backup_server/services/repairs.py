"""Repair of a repository: begun by a person, or by a check that found restore points damaged.

What is lost is looked for in every registered repository that holds copies of this one's restore points
or the originals of its copies. What none has, the next backup may have: it reads the whole disk when the
restore point before it is damaged, and blocks that still have their old content make old points whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.orm import Session as DbSession

from backup_server.db.states import JobKind, Result, SessionKind, SessionState
from backup_server.db.tables import Job, Repository, RestorePointRow, Session
from backup_server.errors import InvalidError, VmhaulError
from backup_server.services import damage, events, sessions, verification
from backup_server.services.context import Context
from backup_server.services.repository_agent import RepairSource
from backup_server.services.shapes import by_ref

_NAMED: Final = 3
_LOGGED: Final = 50
"""How many lost extents get a line in the session's log."""


def start(
    ctx: Context,
    ref: str,
    *,
    sources: Sequence[str] | None = None,
    from_live: bool = False,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Begin a repair; answers the Session.

    `sources`: names of repositories to look in; None: all that hold the same restore points, empty: none.
    `from_live`: afterwards run the jobs of points that are still damaged, reading everything. `dry_run`:
    say what could be repaired, change nothing. ConflictError when a repair is under way.
    """
    if dry_run and from_live:
        text = "a trial run changes nothing, so it cannot start backups; leave out one of the two"
        raise InvalidError(text, details={"from_live": text})
    with ctx.db() as s:
        row = by_ref(s, Repository, ref)
        verification.refuse_second(s, row, SessionKind.REPAIR)
        chosen = None if sources is None else [by_ref(s, Repository, one).id for one in sources]
        if chosen and row.id in chosen:
            text = "is the repository that is to be repaired; name another one"
            raise InvalidError(f"sources: {text}", details={"sources": text})
        options = {"sources": chosen, "from_live": from_live, "dry_run": dry_run}
        session = sessions.insert(
            s, SessionKind.REPAIR, now=ctx.clock(), repository_id=row.id, options=options
        )
    ctx.wake_engine.set()
    return sessions.get(ctx, session.id)


def queue(ctx: Context, s: DbSession, repository_id: str) -> None:
    """A repair after a check that found restore points damaged, in the caller's transaction."""
    waiting = s.scalar(
        sa.select(Session.id).where(
            Session.repository_id == repository_id,
            Session.kind == SessionKind.REPAIR.value,
            Session.state != SessionState.FINISHED.value,
        )
    )
    if waiting is None:
        options = {"sources": None, "from_live": False, "dry_run": False, "trigger": "check"}
        sessions.insert(
            s, SessionKind.REPAIR, now=ctx.clock(), repository_id=repository_id, options=options
        )
        ctx.wake_engine.set()


def carry_out(ctx: Context, session: Session, repository_id: str) -> dict[str, Any]:
    """The agent's report. Repositories that cannot be opened are left out and named."""
    found: list[RepairSource] = []
    unreachable: list[str] = []
    with ctx.db.read() as s:
        chosen = session.options.get("sources")
        ids = _relatives(s, repository_id) if chosen is None else chosen
        rows = s.scalars(
            sa.select(Repository).where(Repository.id.in_(ids)).order_by(Repository.name)
        ).all()
    for row in rows:
        try:
            opened = ctx.agents.get(row.id).opened()
        except VmhaulError as error:
            unreachable.append(f"repository {row.name} was not asked: {error}")
            continue
        found.append(
            RepairSource(
                name=row.name,
                location=row.location,
                repository_id=row.repository_id,
                key=opened.master_key,
                storage=ctx.agents.access(row.id).storage,
            )
        )
    with ctx.agents.dedicated(repository_id) as agent:
        report = agent.repair(found, dry_run=bool(session.options.get("dry_run")))
    # The pool's agent has an index that names packs which are gone now.
    ctx.agents.forget(repository_id)
    return {**report, "asked": [one.name for one in found], "unreachable": unreachable}


def _relatives(s: DbSession, repository_id: str) -> list[str]:
    """Repositories that hold copies of this one's points, or the originals of its copies."""
    ours = sa.orm.aliased(RestorePointRow)
    theirs = sa.orm.aliased(RestorePointRow)
    related = sa.or_(theirs.source_point_id == ours.id, ours.source_point_id == theirs.id)
    found = s.scalars(
        sa.select(theirs.repository_id)
        .join(ours, related)
        .where(ours.repository_id == repository_id, theirs.repository_id != repository_id)
        .distinct()
    )
    return list(found)


def verdict(session: Session, report: dict[str, Any]) -> tuple[Result, str]:
    """What became of it, in a line."""
    lost, repaired = report["lost"], report["repaired_blobs"]
    if not report["damage"] and not report["problems"] and not lost:
        return Result.SUCCESS, "nothing is damaged"
    could = "could be " if session.options.get("dry_run") else ""
    origins = ", ".join(f"{count} from {name}" for name, count in report["repaired_from"].items())
    parts = [
        f"{report['damaged_packs']} damaged packs",
        f"{repaired} blocks {could}brought back" + (f" ({origins})" if origins else ""),
    ]
    shown = [str(entry["text"]) for entry in lost[:_NAMED]] + report["problems"][:_NAMED]
    more = len(lost) + len(report["problems"]) - len(shown)
    parts += [*shown, f"and {more} more"] if more > 0 else shown
    parts += report["unreachable"]
    bad = lost or report["problems"]
    return (Result.FAILED if bad else Result.SUCCESS), "; ".join(parts)


def note_result(ctx: Context, s: DbSession, session: Session, report: dict[str, Any]) -> None:
    """Mark what stays lost, unmark what is whole again, and begin the backups that may help."""
    repository_id = session.repository_id
    if repository_id is None or session.options.get("dry_run"):
        return
    marked = damage.record(s, repository_id, report["lost"], is_complete=True, now=ctx.clock())
    report["damaged_points"] = len(marked)
    for entry in report["lost"][:_LOGGED]:
        events.record(
            s, ctx.clock(), "repair.lost", entry["text"], session_id=session.id, level=events.ERROR
        )
    if marked and session.options.get("from_live"):
        _back_up(ctx, s, session, marked)


def _back_up(ctx: Context, s: DbSession, session: Session, point_ids: Sequence[str]) -> None:
    """Run the jobs that made these points, reading everything: what still has its old content is stored
    again, under the same id, and the old points have it back.
    """
    jobs = s.scalars(
        # No DISTINCT over whole rows: PostgreSQL cannot compare JSON columns.
        sa.select(Job).where(
            Job.kind == JobKind.BACKUP.value,
            Job.id.in_(sa.select(RestorePointRow.job_id).where(RestorePointRow.id.in_(point_ids))),
        )
    ).all()
    for job in jobs:
        if sessions.open_session(s, job.id) is None:
            sessions.start_backup(s, job, now=ctx.clock(), full=True, trigger="repair")
            text = f"job {job.name} runs, to bring back what the disks still hold"
            events.record(s, ctx.clock(), "repair.backup", text, session_id=session.id)
