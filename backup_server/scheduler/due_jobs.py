"""Starts the runs that the jobs' schedules ask for, each due time once."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError as DuplicateError
from sqlalchemy.orm import Session as DbSession

from backup_server.db.tables import Job, JobRun
from backup_server.errors import VmhaulError
from backup_server.scheduler.needs import SchedulerContext
from backup_server.services import counters, events, job_windows

StartBackup = Callable[[DbSession, Job, datetime], str]
"""Makes a session of a job in the caller's transaction and answers its id; ConflictError when one of the
job is running."""


class DueJobs:
    """One for the process; `step` runs on one thread."""

    def __init__(
        self, ctx: SchedulerContext, start_backup: StartBackup, leading: Callable[[], bool]
    ) -> None:
        self._ctx = ctx
        self._start_backup = start_backup
        self._leading = leading
        self._last_step: datetime | None = None

    def step(self) -> bool:
        if not self._leading():
            return False
        now = self._ctx.clock()
        if self._last_step is None or now < self._last_step:
            self._after_clock_change(now)
        self._last_step = now
        with self._ctx.db.read() as s:
            due = s.scalars(
                sa.select(Job.id).where(
                    Job.enabled.is_(True), Job.next_run_at.is_not(None), Job.next_run_at <= now
                )
            ).all()
        for job_id in due:
            self._run(job_id, now)
        return False

    def _after_clock_change(self, now: datetime) -> None:
        """No job waits for a time that was reckoned while the clock was ahead."""
        with self._ctx.db() as s:
            for job in s.scalars(sa.select(Job).where(Job.next_run_at > now).with_for_update()):
                due = job_windows.next_start(job.schedule, job.window, now)
                if due is not None and job.next_run_at is not None and due < job.next_run_at:
                    job.next_run_at = due

    def _run(self, job_id: str, now: datetime) -> None:
        try:
            with self._ctx.db() as s:
                started = self._fire(s, job_id, now)
        except DuplicateError:
            # Another server fired this very time, or a person started the job at the same moment. The
            # next step sees what that one wrote.
            return
        if started:
            self._ctx.wake_engine.set()

    def _fire(self, s: DbSession, job_id: str, now: datetime) -> bool:
        job = s.get(Job, job_id, with_for_update=True)
        if job is None or not job.enabled or job.next_run_at is None or job.next_run_at > now:
            return False
        if job.schedule is None:
            job.next_run_at = None
            return False
        due = job_windows.due_starts(job.schedule, job.window, job.next_run_at, now)
        for missed in due.missed:
            self._record(s, job, missed, "missed", None)
        if due.missed:
            counters.add(s, "job_runs_missed", (job.name, "away"), len(due.missed))
            events.record(
                s,
                now,
                "job.missed",
                f"{job.name}: {len(due.missed)} runs were missed",
                level=events.WARNING,
            )
        job.next_run_at = job_windows.following_start(job.schedule, job.window, due, now)
        if due.fire is None:
            return False
        outcome, session_id = "started", None
        try:
            session_id = self._start_backup(s, job, now)
        except VmhaulError as error:
            outcome = str(error)
            counters.add(s, "job_runs_missed", (job.name, "refused"))
            text = f"{job.name} was due and was not started: {error}"
            events.record(s, now, "job.not-started", text, level=events.WARNING)
        self._record(s, job, due.fire, outcome, session_id)
        return session_id is not None

    @staticmethod
    def _record(s: DbSession, job: Job, due_at: datetime, outcome: str, session_id: str | None) -> None:
        if s.get(JobRun, (job.id, due_at)) is None:
            s.add(JobRun(job_id=job.id, due_at=due_at, outcome=outcome, session_id=session_id))
            s.flush()
