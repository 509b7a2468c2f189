"""Figures of jobs: how their last sessions ended, and how old the youngest good points of their VMs are."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.orm import Session as DbSession

from backup_server.db.states import JobKind, Result, SessionState
from backup_server.db.tables import Job, RestorePointRow, Session, SessionVm
from backup_server.services.context import Context
from backup_server.services.figure import Figure, Sample, Samples

FIGURES: Final = tuple(
    Figure(name=f"vmhaul_job_{name}", kind="gauge", text=text, labels=("job", *more))
    for name, text, more in (
        ("enabled", "1 while its schedule counts.", ()),
        ("last_result", "1 for the result of its last session that ended.", ("result",)),
        ("last_end_timestamp_seconds", "When that session ended (Unix time).", ()),
        ("last_duration_seconds", "How long it took.", ()),
        (
            "last_success_timestamp_seconds",
            "When a session of it last ended well or with a warning (Unix time).",
            (),
        ),
        ("next_run_timestamp_seconds", "When its schedule wants it to run next (Unix time).", ()),
        (
            "oldest_point_seconds",
            "Age of the youngest good restore point of that VM of the job whose one is oldest.",
            (),
        ),
        (
            "vms_without_point",
            "VMs of its last session that was no retry of which it has no good restore point.",
            (),
        ),
    )
)
_WELL: Final = (Result.SUCCESS.value, Result.WARNING.value)


def samples(ctx: Context, s: DbSession, now: datetime) -> Samples:
    """A few statements for all jobs."""
    del ctx
    jobs = s.scalars(sa.select(Job).order_by(Job.name)).all()
    last = _last(s)
    well = _last(s, Session.result.in_(_WELL))
    whole = _last(s, Session.retry_of.is_(None), Session.started_at.is_not(None))
    points = _points(s, [one.id for one in whole.values()])
    for job in jobs:
        yield from _runs(job, last.get(job.id), well.get(job.id))
        if job.kind == JobKind.BACKUP.value and job.id in whole:
            oldest, without = points.get(job.id, (None, 0))
            if oldest is not None:
                age_s = max(0.0, (now - oldest).total_seconds())
                yield _sample(job, "oldest_point_seconds", age_s)
            yield _sample(job, "vms_without_point", without)


def _sample(job: Job, name: str, value: Any, *more: str) -> Sample:
    return Sample(f"vmhaul_job_{name}", (job.name, *more), float(value))


def _runs(job: Job, last: Any, well: Any) -> Samples:
    """`last` and `well`: its last session that ended, and the last that ended well; None: there is none."""
    yield _sample(job, "enabled", job.enabled)
    if job.enabled and job.next_run_at is not None:
        yield _sample(job, "next_run_timestamp_seconds", job.next_run_at.timestamp())
    for result in Result:
        is_it = last is not None and last.result == result.value
        yield _sample(job, "last_result", is_it, result.value)
    if last is not None and last.finished_at is not None:
        yield _sample(job, "last_end_timestamp_seconds", last.finished_at.timestamp())
        if last.started_at is not None:
            took = last.finished_at - last.started_at
            yield _sample(job, "last_duration_seconds", took.total_seconds())
    if well is not None and well.finished_at is not None:
        yield _sample(job, "last_success_timestamp_seconds", well.finished_at.timestamp())


def _last(s: DbSession, *where: sa.ColumnElement[bool]) -> dict[str, Any]:
    """The youngest finished session of each job, by the job's id: a look into the index on jobs for each."""
    newest = (
        sa.select(Session.id)
        .where(Session.job_id == Job.id, Session.state == SessionState.FINISHED.value, *where)
        .order_by(Session.created_at.desc())
        .limit(1)
        .correlate(Job)
        .scalar_subquery()
    )
    ids = sa.select(newest).select_from(Job)
    columns = (Session.id, Session.job_id, Session.result, Session.started_at, Session.finished_at)
    return {row.job_id: row for row in s.execute(sa.select(*columns).where(Session.id.in_(ids)))}


def _points(s: DbSession, session_ids: Sequence[str]) -> dict[str, tuple[datetime | None, int]]:
    """Of each job with such a session: the youngest point of the VM where it is oldest, and how many VMs have none.
    One statement; it looks at the end of the chain's index for each VM.
    """
    youngest = (
        sa.select(RestorePointRow.created_at)
        .where(
            RestorePointRow.repository_id == Job.repository_id,
            RestorePointRow.instance_uuid == SessionVm.instance_uuid,
            RestorePointRow.job_id == Job.id,
            RestorePointRow.doubt == "",
        )
        .order_by(RestorePointRow.created_at.desc())
        .limit(1)
        .correlate(SessionVm, Job)
        .scalar_subquery()
    )
    of_vm = (
        sa.select(Job.id.label("job_id"), youngest.label("at"))
        .select_from(SessionVm)
        .join(Session, Session.id == SessionVm.session_id)
        .join(Job, Job.id == Session.job_id)
        .where(SessionVm.session_id.in_(session_ids))
        .subquery()
    )
    found = s.execute(
        sa.select(
            of_vm.c.job_id,
            sa.func.min(of_vm.c.at).label("oldest"),
            (sa.func.count() - sa.func.count(of_vm.c.at)).label("without"),
        ).group_by(of_vm.c.job_id)
    )
    return {row.job_id: (row.oldest, int(row.without)) for row in found}
