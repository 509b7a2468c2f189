"""The windows of jobs: which sessions may run now, and when a job's next start is."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.orm import Session as DbSession

from backup_server.db.states import SessionState
from backup_server.db.tables import Job, Session
from backup_server.services import schedule, windows
from backup_server.services.schedule import Due
from backup_server.services.windows import Window

IGNORE_WINDOW: Final = "ignore_window"
"""Option of a session that was begun by hand, to run whatever the job's window says."""
_WAIT_FOR_WINDOW: Final = ("window", "chain", "session")
"""Triggers of sessions that wait for the window alone: what it cut off, and what follows another session."""
_MAX_STARTS: Final = 1000
_ON_TIME_S: Final = 60.0


# ---- of sessions ----------------------------------------------------------------------------------


def window_of(s: DbSession, session: Session) -> Window | None:
    """The window that holds for the session; None: none does. As the job has it now: somebody may want to
    give a session that runs more time.
    """
    if session.job_id is None or session.options.get(IGNORE_WINDOW):
        return None
    return s.scalar(sa.select(Job.window).where(Job.id == session.job_id))


def windows_of(s: DbSession, sessions: Collection[Session]) -> dict[str, Window]:
    """The windows that hold for sessions, by the sessions' ids. One statement, however many they are."""
    job_ids = {one.job_id for one in sessions if one.job_id and not one.options.get(IGNORE_WINDOW)}
    if not job_ids:
        return {}
    found = s.execute(sa.select(Job.id, Job.window).where(Job.id.in_(job_ids)))
    of_job = {row.id: row.window for row in found if row.window}
    return {
        one.id: of_job[one.job_id]
        for one in sessions
        if one.job_id in of_job and not one.options.get(IGNORE_WINDOW)
    }


def opens_at(s: DbSession, session: Session, now: datetime) -> datetime | None:
    """When the session's window opens again; None while it is open, or there is none."""
    window = window_of(s, session)
    return None if windows.is_open(window, now) else windows.next_open(window, now)


def session_opens_at(s: DbSession, session_id: str, now: datetime) -> datetime | None:
    """The same for a task's session, in one statement."""
    row = s.execute(
        sa.select(Job.window, Session.options)
        .join(Job, Job.id == Session.job_id)
        .where(Session.id == session_id)
    ).one_or_none()
    if row is None or row.options.get(IGNORE_WINDOW) or windows.is_open(row.window, now):
        return None
    return windows.next_open(row.window, now)


def closed_ids(s: DbSession, session_ids: Collection[str], now: datetime) -> set[str]:
    """Of these sessions those whose window is closed: no task of theirs may be handed out. One statement."""
    found = s.execute(
        sa.select(Session.id, Session.options, Job.window)
        .join(Job, Job.id == Session.job_id)
        .where(Session.id.in_(session_ids))
    )
    return {
        row.id
        for row in found
        if row.window and not row.options.get(IGNORE_WINDOW) and not windows.is_open(row.window, now)
    }


def closed(s: DbSession, sessions: Iterable[Session], now: datetime) -> set[str]:
    """Ids of those whose window is closed. One statement, however many they are."""
    found = s.execute(sa.select(Job.id, Job.window))
    state = {row.id: windows.is_open(row.window, now) for row in found if row.window}
    return {
        session.id
        for session in sessions
        if not state.get(session.job_id or "", True) and not session.options.get(IGNORE_WINDOW)
    }


def until_open(window: Window | None, now: datetime) -> dict[str, Any]:
    """Options of a session that waits for the window; none while it is open. A scheduled run may take the
    place of a session that waits.
    """
    opens = windows.next_open(window, now)
    return {"not_before": opens.isoformat()} if opens > now else {}


def reschedule(s: DbSession, job: Job, now: datetime) -> None:
    """What waits for nothing but the job's window waits for the one that it has now. A retry has a time of its own,
    and finds the window there when that has come.
    """
    waiting = s.scalars(
        sa.select(Session)
        .where(Session.job_id == job.id, Session.state == SessionState.QUEUED.value)
        .with_for_update()
    )
    for session in waiting:
        if session.options.get("trigger") in _WAIT_FOR_WINDOW and "not_before" in session.options:
            opens = windows.next_open(job.window, now)
            session.options = {**session.options, "not_before": opens.isoformat()}


# ---- of schedules ---------------------------------------------------------------------------------


def next_start(
    wanted: Mapping[str, Any] | None, window: Window | None, after: datetime
) -> datetime | None:
    """First time after `after` when the schedule starts the job: its due time, or when the window opens
    after it. None without a schedule.
    """
    due = schedule.next_run(wanted, after)
    return None if due is None else windows.next_open(window, due)


def due_starts(wanted: Mapping[str, Any], window: Window | None, first: datetime, now: datetime) -> Due:
    """What to do about the starts from `first` on, up to now: as `schedule.due_runs`.

    Due times of one closed stretch have one start, its end. What is to run once and finds the window closed
    waits for it: nothing fires, and `following_start` tells when it opens.
    """
    starts = [first]
    while len(starts) < _MAX_STARTS:
        following = next_start(wanted, window, starts[-1])
        if following is None or following > now:
            break
        starts.append(following)
    newest = starts[-1]
    on_time = (now - newest).total_seconds() <= _ON_TIME_S
    if not windows.is_open(window, now):
        waits = _runs_once(wanted)
        return Due(fire=None, missed=tuple(starts[:-1] if waits else starts))
    if on_time or _runs_once(wanted):
        return Due(fire=newest, missed=tuple(starts[:-1]))
    return Due(fire=None, missed=tuple(starts))


def following_start(
    wanted: Mapping[str, Any], window: Window | None, due: Due, now: datetime
) -> datetime | None:
    """When the job starts after `due` was acted on."""
    if due.fire is None and _runs_once(wanted) and not windows.is_open(window, now):
        return windows.next_open(window, now)
    return next_start(wanted, window, now)


def _runs_once(wanted: Mapping[str, Any]) -> bool:
    return bool(wanted.get("missed", schedule.RUN_ONCE) == schedule.RUN_ONCE)
