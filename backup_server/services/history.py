"""The past of the job database: sessions that ended so long ago that nobody asks for them any more go.

A night of 30,000 disks leaves a hundred megabytes of rows. `history_days` says how long they stay. Restore points are
none of this: they stay as long as their job's retention wants, and no longer name a session that is gone. What is said
of a job or a repository as it is now stays however old: a job's newest session, its newest that ended well and its
newest that was no retry, a repository's newest check, prune and the like; and sessions of which something is left in a
vCenter or on a storage system.

A visit deletes a bounded number of rows, in short transactions, oldest sessions first: what is left goes with the next.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.orm import Session as DbSession

from backup_server.db.batches import BATCH, batches
from backup_server.db.states import IntentState, Result, SessionState
from backup_server.db.tables import (
    Event,
    Intent,
    Job,
    JobRun,
    RestorePointRow,
    Session,
    SessionVm,
    Task,
)
from backup_server.services import retention
from backup_server.services.context import Context

SESSIONS_AT_ONCE: Final = 50
MOST_BATCHES: Final = 100
"""Of tasks and events in one visit: some ten seconds."""
_WELL: Final = (Result.SUCCESS.value, Result.WARNING.value)


def forget(ctx: Context) -> int:
    """Delete what is older than `history_days`; answers how many sessions went. 0 days: nothing ever goes."""
    now = ctx.clock()
    days = ctx.settings.history_days
    if not days:
        return 0
    before = now - timedelta(days=days)
    with ctx.db.read() as s:
        # A clock that was set forward makes everything old at once.
        if retention.held_until(s, now) is not None:
            return 0
        ids = _over(s, before)
    left, gone = MOST_BATCHES, 0
    for session_id in ids:
        left = _empty(ctx, session_id, left)
        if left <= 0 or ctx.stopping.is_set():
            break
        _delete(ctx, session_id)
        gone += 1
    if gone:
        ctx.log.info("history.deleted", text=f"{gone} sessions of before {before:%Y-%m-%d} are deleted")
    _forget_rest(ctx, before, left)
    return gone


def _over(s: DbSession, before: datetime) -> list[str]:
    """Sessions that may go, oldest first."""
    # By the index of `created_at`: what ended before then began before then.
    old = sa.and_(Session.state == SessionState.FINISHED.value, Session.created_at < before)
    if s.scalar(sa.select(Session.id).where(old).limit(1)) is None:
        return []
    return list(
        s.scalars(
            sa.select(Session.id)
            .where(old, Session.finished_at < before, Session.id.not_in(_kept(s)))
            .order_by(Session.created_at, Session.id)
            .limit(SESSIONS_AT_ONCE)
        )
    )


def _kept(s: DbSession) -> set[str]:
    """What is shown of jobs and repositories as they are now, and what is not undone yet."""
    kept: set[str] = set()
    in_job = Session.job_id.in_(sa.select(Job.id))
    for group, which in (
        ((Session.job_id,), (in_job,)),
        ((Session.job_id,), (in_job, Session.result.in_(_WELL))),
        ((Session.job_id,), (in_job, Session.retry_of.is_(None), Session.started_at.is_not(None))),
        ((Session.repository_id, Session.kind), (Session.job_id.is_(None),)),
    ):
        place = sa.func.row_number().over(
            partition_by=group, order_by=(Session.created_at.desc(), Session.id)
        )
        newest = sa.select(Session.id, place.label("place")).where(*which).subquery()
        kept.update(s.scalars(sa.select(newest.c.id).where(newest.c.place == 1)))
    kept.update(
        session_id
        for session_id in s.scalars(
            sa.select(Intent.session_id).where(Intent.state == IntentState.OPEN.value)
        )
        if session_id is not None
    )
    return kept


def _empty(ctx: Context, session_id: str, left: int) -> int:
    """Delete the rows of a session that are many, intents that are closed among them; answers how many batches may
    follow.
    """
    for table in (Task, Event, Intent, SessionVm):
        while left > 0:
            with ctx.db() as s:
                ids = s.scalars(
                    sa.select(table.id).where(table.session_id == session_id).limit(BATCH)
                ).all()
                _delete_rows(s, table, ids)
            if not ids:
                break
            left -= 1
    return left


def _delete(ctx: Context, session_id: str) -> None:
    with ctx.db() as s:
        s.execute(
            sa.update(RestorePointRow)
            .where(RestorePointRow.session_id == session_id)
            .values(session_id=None)
        )
        s.execute(sa.delete(Session).where(Session.id == session_id))


def _forget_rest(ctx: Context, before: datetime, left: int) -> None:
    """Events of no session, and due times of jobs."""
    while left > 0:
        left -= 1
        with ctx.db() as s:
            # In the order in which they were written: what is young ends the search.
            lines = s.execute(
                sa.select(Event.id, Event.at)
                .where(Event.session_id.is_(None))
                .order_by(Event.id)
                .limit(BATCH)
            ).all()
            old = [line.id for line in lines if line.at < before]
            _delete_rows(s, Event, old)
            if len(old) < BATCH:
                s.execute(sa.delete(JobRun).where(JobRun.due_at < before))
                return


def _delete_rows(s: DbSession, table: Any, ids: Any) -> None:
    for some in batches(ids):
        s.execute(sa.delete(table).where(table.id.in_(some)))
