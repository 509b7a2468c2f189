"""Retention: which restore points of a job go, shown before it is done, and done.

It is carried out for a VM after each of its backups, and for all VMs of all enabled jobs once a day, so
that days pass also for a VM that was not backed up. Always by the rule that the job has now: whoever
saves points by a wider rule while a session runs has saved them.

A VM that its job takes no more keeps its points as they are, unless the rule's `gone_days` says when they
go. Then all of them do: that is the one way in which a rule removes the newest point of a VM.

A clock that was set forward makes everything old at once. So when the last daily pass seems to be more than
`MAX_GAP` ago, nothing is removed for a day, and an event says why.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import chain
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.orm import Session as DbSession

from backup_server.db.batches import batches
from backup_server.db.tables import Job, Repository, RestorePointRow, Setting
from backup_server.errors import VmhaulError
from backup_server.services import damage, events, protection, restore_points, session_end, steps
from backup_server.services.context import Context
from backup_server.services.retention_rules import check_retention, rule_of
from backup_server.services.shapes import by_ref, when
from backup_server.services.steps import Work
from pipeline.retention import (
    RetentionCandidate,
    RetentionDecision,
    RetentionPlan,
    plan_retention,
)

DAILY: Final = timedelta(days=1)
MAX_GAP: Final = timedelta(days=7)
"""After more time without a daily pass the clock is not believed for a day: somebody may look at it."""
_LAST_DONE: Final = "retention-done-at"
_HELD_UNTIL: Final = "retention-held-until"
_KEPT_NOT_IN_JOB: Final = "the job takes this VM no more: its points stay"


@dataclass(frozen=True, slots=True, kw_only=True)
class VmPlan:
    """What becomes of the points that a job made of one VM in one repository."""

    repository_id: str
    instance_uuid: str
    rows: Mapping[str, RestorePointRow]
    in_job: bool | None
    """None: it cannot be said."""
    plan: RetentionPlan

    @property
    def name(self) -> str:
        """The VM's name in its newest point."""
        return max(self.rows.values(), key=lambda row: (row.created_at, row.id)).vm_name


def plan_job(
    s: DbSession,
    job: Job,
    retention: Mapping[str, Any],
    *,
    now: datetime,
    backed_up: tuple[str, str] | None = None,
    vm: str | None = None,
) -> list[VmPlan]:
    """The plan for each VM that has points of the job, in order of names.

    `backed_up`: only of this VM in this repository (repository id, instance uuid), which the job takes.
    `vm`: only of those that ever had this name or have this instance uuid.
    """
    query = sa.select(RestorePointRow).where(
        RestorePointRow.job_id == job.id, RestorePointRow.deleting.is_(False)
    )
    if vm is not None:
        query = query.where(RestorePointRow.instance_uuid.in_(restore_points.uuids_of(vm)))
    if backed_up is not None:
        repository_id, uuid = backed_up
        query = query.where(
            RestorePointRow.repository_id == repository_id, RestorePointRow.instance_uuid == uuid
        )
    groups: dict[tuple[str, str], dict[str, RestorePointRow]] = {}
    for row in s.scalars(query):
        groups.setdefault((row.repository_id, row.instance_uuid), {})[row.id] = row
    of_vm = None if backed_up is None else backed_up[1]
    in_use = {one: _users(s, one, of_vm) for one in {repository_id for repository_id, _ in groups}}
    # Decoding the inventory of a large site takes a second: not after each of ten thousand backups.
    meant = protection.vms_of(s, job) if groups and backed_up is None else None
    rule = rule_of(retention, job.schedule)
    plans = []
    for (repository_id, uuid), rows in groups.items():
        in_job = None if meant is None else uuid in meant
        candidates = [_candidate(row) for row in rows.values()]
        plan = (
            _gone(candidates, retention.get("gone_days"), now, in_use[repository_id])
            if in_job is False
            else plan_retention(candidates, rule, now=now, in_use=in_use[repository_id])
        )
        plans.append(
            VmPlan(repository_id=repository_id, instance_uuid=uuid, rows=rows, in_job=in_job, plan=plan)
        )
    return sorted(plans, key=lambda one: (one.name.lower(), one.instance_uuid, one.repository_id))


def _users(s: DbSession, repository_id: str, of_vm: str | None) -> dict[str, str]:
    used = restore_points.in_use(s, repository_id, of_vm=of_vm)
    return {point_id: f"session {session_id[:8]}" for point_id, session_id in used.items()}


def _candidate(row: RestorePointRow) -> RetentionCandidate:
    return RetentionCandidate(
        id=row.id,
        created_at=row.created_at,
        is_good=not damage.is_damaged(row),
        immutable_until=row.immutable_until,
    )


def _gone(
    points: Sequence[RetentionCandidate],
    gone_days: int | None,
    now: datetime,
    in_use: Mapping[str, str],
) -> RetentionPlan:
    """For a VM that the job takes no more: all stay, or all go when the newest is old enough."""
    newest_first = sorted(points, key=lambda point: (point.created_at, point.id), reverse=True)
    if gone_days is None or newest_first[0].created_at >= now - timedelta(days=gone_days):
        reason = _KEPT_NOT_IN_JOB
        if gone_days is not None:
            until = newest_first[0].created_at + timedelta(days=gone_days)
            reason = f"the job takes this VM no more: its points stay until {until:%Y-%m-%d}"
        kept = tuple(RetentionDecision(id=point.id, reason=reason) for point in newest_first)
        return RetentionPlan(keep=kept, remove=())
    keep: list[RetentionDecision] = []
    remove: list[RetentionDecision] = []
    for point in newest_first:
        if point.id in in_use:
            keep.append(RetentionDecision(id=point.id, reason=f"in use by {in_use[point.id]}"))
        elif point.immutable_until is not None and point.immutable_until > now:
            text = f"immutable until {point.immutable_until:%Y-%m-%d %H:%M} UTC"
            keep.append(RetentionDecision(id=point.id, reason=text))
        else:
            text = f"the job takes this VM no more, its last backup is over {gone_days} days old"
            remove.append(RetentionDecision(id=point.id, reason=text))
    return RetentionPlan(keep=tuple(keep), remove=tuple(remove))


# ---- shown ----------------------------------------------------------------------------------------


def preview(
    ctx: Context, ref: str, retention: Mapping[str, Any] | None = None, *, vm: str | None = None
) -> dict[str, Any]:
    """What the job's rule, or `retention` in its place, would do now. Changes nothing.

    `vm`: only that one, by name or instance uuid. InvalidError for a rule that cannot be accepted.
    """
    now = ctx.clock()
    with ctx.db.read() as s:
        job = by_ref(s, Job, ref)
        rule = job.retention if retention is None else _accepted(retention)
        plans = plan_job(s, job, rule, now=now, vm=vm)
        repositories = {
            row.id: row.name for row in s.execute(sa.select(Repository.id, Repository.name))
        }
    shown = [one for one in plans if vm is None or vm in (one.name, one.instance_uuid)]
    gone = [one.rows[decision.id] for one in shown for decision in one.plan.remove]
    return {
        "job": job.name,
        "retention": dict(rule),
        "at": when(now),
        "vms": [_vm_shape(one, repositories) for one in shown],
        "keep": sum(len(one.plan.keep) for one in shown),
        "remove": len(gone),
        "remove_bytes": sum(row.size_bytes for row in gone),
    }


def _accepted(retention: Mapping[str, Any]) -> dict[str, Any]:
    from backup_server.errors import InvalidError

    try:
        return check_retention(retention)
    except ValueError as error:
        raise InvalidError(f"retention {error}", details={"retention": str(error)}) from error


def _vm_shape(one: VmPlan, repositories: Mapping[str, str]) -> dict[str, Any]:
    decisions = [*((d, "keep") for d in one.plan.keep), *((d, "remove") for d in one.plan.remove)]
    decisions.sort(key=lambda pair: (one.rows[pair[0].id].created_at, pair[0].id), reverse=True)
    return {
        "vm": one.name,
        "instance_uuid": one.instance_uuid,
        "repository": repositories.get(one.repository_id),
        "in_job": one.in_job,
        "points": [_point_shape(one.rows[d.id], d, action) for d, action in decisions],
    }


def _point_shape(row: RestorePointRow, decision: RetentionDecision, action: str) -> dict[str, Any]:
    return {
        "id": row.id,
        "created_at": when(row.created_at),
        "kind": row.kind,
        "size_bytes": row.size_bytes,
        "action": action,
        "reason": decision.reason,
        "marks": list(decision.marks),
    }


def newly_removed(
    s: DbSession, job: Job, retention: Mapping[str, Any], *, now: datetime
) -> tuple[int, int]:
    """How many points of how many VMs `retention` would remove now that the job's rule keeps."""
    before = {d.id for one in plan_job(s, job, job.retention, now=now) for d in one.plan.remove}
    points = vms = 0
    for one in plan_job(s, job, retention, now=now):
        more = sum(decision.id not in before for decision in one.plan.remove)
        points, vms = points + more, vms + (more > 0)
    return points, vms


# ---- done -----------------------------------------------------------------------------------------


def apply(ctx: Context, work: Work) -> int:
    """After a backup: mark and forget what the job keeps no more of this VM; answers how many.

    Only points that this job made are looked at; those of a job that was deleted stay. Errors of the
    repository agent pass through; what is marked then is forgotten by whoever comes next.
    """
    repository_id = work.session.repository_id or ""
    count = 0
    with ctx.db() as s:
        job = s.get(Job, work.session.job_id) if work.session.job_id else None
        if job is None:
            return 0
        now = ctx.clock()
        if held_until(s, now) is not None:
            return 0
        here = (repository_id, work.vm.instance_uuid)
        for one in plan_job(s, job, job.retention, now=now, backed_up=here):
            _mark(s, one.plan.remove)
            for gone in one.plan.remove:
                text = f"restore point {gone.id[:8]} goes, as the job keeps no more: {gone.reason}"
                steps.note(s, ctx, work, "retention.forget", text)
            count += len(one.plan.remove)
        if count:
            steps.remember(s, work.vm.id, forgotten=count)
    restore_points.forget_marked(ctx, repository_id)
    return count


def apply_job(ctx: Context, ref: str) -> dict[str, Any]:
    """Carry out the job's rule now for all VMs that have points of it; answers {removed, vms}."""
    with ctx.db() as s:
        job = by_ref(s, Job, ref)
        plans = [one for one in plan_job(s, job, job.retention, now=ctx.clock()) if one.plan.remove]
        _mark_all(ctx, s, job, plans)
    _forget(ctx, plans)
    return {"removed": sum(len(one.plan.remove) for one in plans), "vms": len(plans)}


def daily(ctx: Context) -> bool:
    """Carry out the rules of all enabled jobs, when that was last done a day ago; False: not yet due.

    A repository that cannot be reached keeps what is marked; the janitor forgets it later.
    """
    now = ctx.clock()
    with ctx.db() as s:
        last = _time_of(s, _LAST_DONE)
        # A time that is yet to come was written with a wrong clock.
        if last is not None and timedelta(0) <= now - last < DAILY:
            return False
        held = held_until(s, now)
        s.merge(Setting(name=_LAST_DONE, value=now.isoformat()))
        if last is not None and held is not None:
            s.merge(Setting(name=_HELD_UNTIL, value=held.isoformat()))
            text = (
                f"restore points were last looked at for deletion {(now - last).days} days ago, by this server's "
                f"clock: none goes before {held:%Y-%m-%d %H:%M} UTC; look whether the clock is right"
            )
            events.record(s, now, "retention.held", text, level=events.WARNING)
            return True
        job_ids = s.scalars(sa.select(Job.id).where(Job.enabled.is_(True)).order_by(Job.name)).all()
    for job_id in job_ids:
        try:
            apply_job(ctx, job_id)
        except VmhaulError as error:  # the next job's repository may answer
            ctx.log.warning("retention.failed", job_id=job_id, reason=str(error))
    return True


def _time_of(s: DbSession, name: str) -> datetime | None:
    row = s.get(Setting, name)
    return None if row is None else datetime.fromisoformat(row.value)


def held_until(s: DbSession, now: datetime) -> datetime | None:
    """Until when nothing is removed, because the clock may have been set forward."""
    last, held = _time_of(s, _LAST_DONE), _time_of(s, _HELD_UNTIL)
    if last is not None and now - last > MAX_GAP:
        return now + DAILY
    return held if held is not None and timedelta(0) < held - now <= DAILY else None


def _mark(s: DbSession, remove: Iterable[RetentionDecision]) -> None:
    ids = [gone.id for gone in remove]
    for some in batches(ids):
        s.execute(sa.update(RestorePointRow).where(RestorePointRow.id.in_(some)).values(deleting=True))


def _mark_all(ctx: Context, s: DbSession, job: Job, plans: Sequence[VmPlan]) -> None:
    _mark(s, chain.from_iterable(one.plan.remove for one in plans))
    for one in plans:
        for gone in one.plan.remove:
            text = f"{job.name}: restore point {gone.id[:8]} of {one.name} goes: {gone.reason}"
            events.record(s, ctx.clock(), "retention.forget", text)


def _forget(ctx: Context, plans: Sequence[VmPlan]) -> None:
    for repository_id in sorted({one.repository_id for one in plans}):
        restore_points.forget_marked(ctx, repository_id)
        with ctx.db() as s:
            session_end.queue_prune(ctx, s, repository_id, {"trigger": "retention"})
    if plans:
        ctx.wake_engine.set()
