"""Figures of jobs: how their last sessions ended, and how old the youngest good points of their VMs are."""

from __future__ import annotations

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
    del ctx
    for job in s.scalars(sa.select(Job).order_by(Job.name)):
        yield from _job(s, job, now)


def _job(s: DbSession, job: Job, now: datetime) -> Samples:
    def sample(name: str, value: Any, *more: str) -> Sample:
        return Sample(f"vmhaul_job_{name}", (job.name, *more), float(value))

    yield sample("enabled", job.enabled)
    if job.enabled and job.next_run_at is not None:
        yield sample("next_run_timestamp_seconds", job.next_run_at.timestamp())
    last = _last(s, job.id)
    for result in Result:
        yield sample("last_result", last is not None and last.result == result.value, result.value)
    if last is not None and last.finished_at is not None:
        yield sample("last_end_timestamp_seconds", last.finished_at.timestamp())
        if last.started_at is not None:
            yield sample("last_duration_seconds", (last.finished_at - last.started_at).total_seconds())
    well = _last(s, job.id, Session.result.in_(_WELL))
    if well is not None and well.finished_at is not None:
        yield sample("last_success_timestamp_seconds", well.finished_at.timestamp())
    if job.kind != JobKind.BACKUP.value:
        return
    whole = _last(s, job.id, Session.retry_of.is_(None), Session.started_at.is_not(None))
    if whole is None:
        return
    oldest, without = _points(s, job, whole.id)
    if oldest is not None:
        yield sample("oldest_point_seconds", max(0.0, (now - oldest).total_seconds()))
    yield sample("vms_without_point", without)


def _last(s: DbSession, job_id: str, *where: sa.ColumnElement[bool]) -> Any:
    """The job's youngest finished session; its index on the job makes that a look at the job's own."""
    return s.execute(
        sa.select(Session.id, Session.result, Session.started_at, Session.finished_at)
        .where(Session.job_id == job_id, Session.state == SessionState.FINISHED.value, *where)
        .order_by(Session.created_at.desc())
        .limit(1)
    ).first()


def _points(s: DbSession, job: Job, session_id: str) -> tuple[datetime | None, int]:
    """The youngest point of the VM where it is oldest, and how many VMs have none: one aggregate, a look into
    the chain's index for each VM.
    """
    youngest = (
        sa.select(sa.func.max(RestorePointRow.created_at))
        .where(
            RestorePointRow.repository_id == job.repository_id,
            RestorePointRow.instance_uuid == SessionVm.instance_uuid,
            RestorePointRow.job_id == job.id,
            RestorePointRow.doubt == "",
        )
        .correlate(SessionVm)
        .scalar_subquery()
    )
    of_vm = sa.select(youngest.label("at")).where(SessionVm.session_id == session_id).subquery()
    oldest, all_of_them, with_point = s.execute(
        sa.select(sa.func.min(of_vm.c.at), sa.func.count(), sa.func.count(of_vm.c.at)).select_from(
            of_vm
        )
    ).one()
    return oldest, int(all_of_them) - int(with_point)
