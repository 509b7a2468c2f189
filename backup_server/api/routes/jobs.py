"""Jobs."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from backup_server.api import answers
from backup_server.api.deps import DEFAULT_LIMIT, Ctx, Cursor, Limit, page
from backup_server.api.schemas import JobBody, JobEdit, NothingBody, RetentionPreviewBody, RunBody
from backup_server.services import jobs, retention

router = APIRouter(prefix="/jobs", tags=["jobs"])


@router.get("", responses=answers.ok(answers.Page[answers.Job]))
def list_jobs(ctx: Ctx, limit: Limit = DEFAULT_LIMIT, cursor: Cursor = None) -> Any:
    return page(jobs.list_all(ctx), limit, cursor)


@router.post("", responses=answers.ok(answers.Job, 404, 409, 422))
def create_job(ctx: Ctx, body: JobBody) -> Any:
    return jobs.create(ctx, body.given())


@router.get("/{ref}", responses=answers.ok(answers.Job, 404))
def get_job(ctx: Ctx, ref: str) -> Any:
    return jobs.get(ctx, ref)


@router.patch("/{ref}", responses=answers.ok(answers.Job, 404, 409, 422))
def edit_job(ctx: Ctx, ref: str, body: JobEdit) -> Any:
    """409 with `details.points` when a new retention needs `confirm_removal`."""
    changes = body.given()
    changes.pop("confirm_removal", None)
    return jobs.edit(ctx, ref, changes, confirm_removal=body.confirm_removal)


@router.delete("/{ref}", status_code=204, responses={404: {"model": answers.ErrorAnswer}})
def remove_job(ctx: Ctx, ref: str) -> None:
    """Delete it; its restore points stay."""
    jobs.remove(ctx, ref)


@router.post("/{ref}/run", responses=answers.ok(answers.Session, 404, 409, 422))
def run_job(ctx: Ctx, ref: str, body: RunBody | None = None) -> Any:
    """Start a session; 409 with its id in `details.session` while one is running, or with `details.opens_at`
    while the job's window is closed.
    """
    asked = body or RunBody()
    return jobs.run(
        ctx,
        ref,
        full=asked.full,
        only_failed=asked.only_failed,
        ignore_window=asked.ignore_window,
    )


@router.get("/{ref}/plan", responses=answers.ok(dict[str, Any], 404, 503))
def plan_job(ctx: Ctx, ref: str) -> Any:
    """Which VMs and disks the next run takes, what is left out, and why."""
    return jobs.plan(ctx, ref)


@router.get("/{ref}/retention", responses=answers.ok(answers.RetentionPreview, 404))
def show_retention(ctx: Ctx, ref: str, vm: str | None = None) -> Any:
    """Which restore points stay, which go, and why, by the rule as it is."""
    return retention.preview(ctx, ref, vm=vm)


@router.post("/{ref}/retention/preview", responses=answers.ok(answers.RetentionPreview, 404, 422))
def preview_retention(ctx: Ctx, ref: str, body: RetentionPreviewBody) -> Any:
    """The same by another rule; changes nothing."""
    wanted = None if body.retention is None else body.retention.given()
    return retention.preview(ctx, ref, wanted, vm=body.vm)


@router.post("/{ref}/retention/apply", responses=answers.ok(answers.RetentionDone, 404, 503))
def apply_retention(ctx: Ctx, ref: str, body: NothingBody | None = None) -> Any:
    """Remove now what the rule keeps no more, for all VMs of the job."""
    del body
    return retention.apply_job(ctx, ref)
