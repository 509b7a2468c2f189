"""Jobs that run when a session of another job has ended.

The start is part of the transaction that ends the session, so it happens once for each, whatever crashes and
whoever leads. A session whose failed VMs are tried again is not the end: the last retry is. While the job that
is to follow runs, its own end starts it again, once for all that ended meanwhile.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.orm import Session as DbSession

from backup_server.db.states import JobKind, Result, SessionState
from backup_server.db.tables import Job, Session
from backup_server.services import events, job_windows, sessions

GOOD: Final = "good"
ANY: Final = "any"
AFTER_RESULTS: Final = (GOOD, ANY)
AFTER_RESULT: Final = "after_result"
"""Option of a job: after which results it follows."""
AGAIN: Final = "then_again"
"""Option of a session: what ended while it ran, so that its job is to run again."""
TRIGGER: Final = "chain"
_FOLLOWED: Final[Mapping[str, frozenset[str]]] = {
    GOOD: frozenset({Result.SUCCESS.value, Result.WARNING.value}),
    # A cancelled one was ended by a person, who would not want more to begin.
    ANY: frozenset({Result.SUCCESS.value, Result.WARNING.value, Result.FAILED.value}),
}


def start_followers(s: DbSession, session: Session, result: Result, now: datetime) -> list[str]:
    """Queue the jobs that follow the session's, in the transaction that ends it; their names."""
    if session.job_id is None:
        return []
    s.flush()
    named = s.scalars(sa.select(Job).where(Job.after_job_id == session.job_id).order_by(Job.name))
    followers = [job for job in named if result.value in _FOLLOWED[job.options.get(AFTER_RESULT, GOOD)]]
    own = s.get(Job, session.job_id)
    if own is not None and session.options.get(AGAIN) and own not in followers:
        if result is Result.CANCELLED:
            # Whoever ended it would not want it to begin again at once.
            text = f"{own.name} was cancelled: what ended while it ran starts it no more"
            events.record(s, now, "session.chain", text, session_id=session.id)
        else:
            followers.append(own)
    return [job.name for job in followers if _start(s, job, session, now)]


def _start(s: DbSession, job: Job, ended: Session, now: datetime) -> bool:
    if not job.enabled:
        text = f"{job.name} follows this job and is disabled"
        events.record(s, now, "session.chain", text, session_id=ended.id)
        return False
    # With the row locked: two sessions that end at the same time must not both find it idle.
    s.execute(sa.select(Job.id).where(Job.id == job.id).with_for_update())
    running = sessions.open_session(s, job.id)
    if running is not None and not sessions.gives_way(running):
        if running.state == SessionState.QUEUED.value:
            return False  # it has not begun, and will find what this one made
        running.options = {**running.options, AGAIN: ended.id}
        text = f"{job.name} is running: it follows once more when it has ended"
        events.record(s, now, "session.chain", text, session_id=ended.id)
        return False
    more: dict[str, Any] = {"after_session": ended.id, **job_windows.until_open(job.window, now)}
    sessions.start_backup(s, job, now=now, trigger=TRIGGER, more=more)
    text = f"{job.name} follows" + (" when its window opens" if "not_before" in more else "")
    events.record(s, now, "session.chain", text, session_id=ended.id)
    return True


def circle(s: DbSession, job_id: str | None, values: Mapping[str, Any]) -> list[str]:
    """Names of the jobs that would start each other for ever if a job were saved with these columns; empty
    when none would. A copy job that runs after each backup into its source follows the jobs that write there.
    """
    jobs = {job.id: _Node.of(job) for job in s.scalars(sa.select(Job))}
    own_id = job_id or "-"
    jobs[own_id] = _Node(
        name=str(values["name"]),
        after=values.get("after_job_id"),
        writes=str(values["repository_id"]),
        reads=values.get("source_repository_id") if values["options"].get("after_backup") else None,
        is_copy=values["kind"] == JobKind.COPY.value,
    )
    path: list[str] = []
    seen: set[str] = set()

    def leads_back(at: str) -> bool:
        """Depth first along "what runs before": two copies to and fro end by themselves, so a circle of copies
        alone is none.
        """
        for before in _befores(jobs, at):
            if before == own_id and not all(jobs[one].is_copy for one in (*path, own_id)):
                return True
            if before in seen or before not in jobs:
                continue
            seen.add(before)
            path.append(before)
            if leads_back(before):
                return True
            path.pop()
        return False

    if not leads_back(own_id):
        return []
    return [jobs[one].name for one in reversed(path)] + [jobs[own_id].name]


class _Node:
    """A job as the search for circles sees it."""

    def __init__(
        self, *, name: str, after: str | None, writes: str, reads: str | None, is_copy: bool
    ) -> None:
        self.name = name
        self.after = after
        self.writes = writes
        self.reads = reads
        self.is_copy = is_copy

    @classmethod
    def of(cls, job: Job) -> _Node:
        return cls(
            name=job.name,
            after=job.after_job_id,
            writes=job.repository_id,
            reads=job.source_repository_id if job.options.get("after_backup") else None,
            is_copy=job.kind == JobKind.COPY.value,
        )


def _befores(jobs: Mapping[str, _Node], job_id: str) -> list[str]:
    """Jobs whose end starts this one."""
    node = jobs[job_id]
    found = [node.after] if node.after else []
    if node.reads:
        found += [one for one, other in jobs.items() if other.writes == node.reads]
    return found
