"""Retention: old restore points of a VM are forgotten after a new one was committed."""

from __future__ import annotations

import sqlalchemy as sa

from backup_server.db.tables import RestorePointRow
from backup_server.services import restore_points, steps
from backup_server.services.context import Context
from backup_server.services.steps import Work
from pipeline.retention import KeepDays, KeepLast, RetentionCandidate, plan_retention


def apply(ctx: Context, work: Work) -> int:
    """Mark and forget what the job's rule no longer keeps of this VM; answers how many.

    Only points that this job made are looked at. Errors of the repository agent pass through; what is
    marked then is forgotten by whoever comes next.
    """
    rule = work.job["retention"]
    keep = KeepLast(count=rule["keep"]) if "keep" in rule else KeepDays(days=rule["days"])
    repository_id = work.session.repository_id or ""
    with ctx.db() as s:
        rows = s.scalars(
            sa.select(RestorePointRow).where(
                RestorePointRow.repository_id == repository_id,
                RestorePointRow.instance_uuid == work.vm.instance_uuid,
                RestorePointRow.job_id == work.session.job_id,
                RestorePointRow.deleting.is_(False),
            )
        ).all()
        plan = plan_retention(
            [RetentionCandidate(id=row.id, created_at=row.created_at) for row in rows],
            keep,
            now=ctx.clock(),
            in_use=set(restore_points.in_use(s, repository_id)),
        )
        for gone in plan.remove:
            s.execute(
                sa.update(RestorePointRow).where(RestorePointRow.id == gone.id).values(deleting=True)
            )
            text = f"restore point {gone.id[:8]} goes, as the job keeps no more: {gone.reason}"
            steps.note(s, ctx, work, "retention.forget", text)
        if plan.remove:
            steps.remember(s, work.vm.id, forgotten=len(plan.remove))
    restore_points.forget_marked(ctx, repository_id)
    return len(plan.remove)
