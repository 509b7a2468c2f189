"""Jobs: what to protect, where to, when and how."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError as DuplicateError
from sqlalchemy.orm import Session as DbSession

from backup_server.db.states import JobKind, SessionState
from backup_server.db.tables import Job, JobRun, Proxy, Repository, Session, Vcenter, new_id
from backup_server.errors import ConflictError, NotFoundError
from backup_server.services import (
    chains,
    copy_jobs,
    job_plan,
    job_windows,
    retention,
    sessions,
    tracking,
    windows,
)
from backup_server.services.context import Context
from backup_server.services.job_windows import IGNORE_WINDOW, next_start
from backup_server.services.proxies import check_modes
from backup_server.services.retention_rules import DEFAULT_RETENTION, MAX_KEEP, check_retention
from backup_server.services.schedule import check_schedule
from backup_server.services.selection import check_selection
from backup_server.services.shapes import Fields, by_ref, when
from backup_server.services.vcenters import as_server_error
from proxy_worker.contracts.messages import CompressionLevel
from transports.errors import TransportError

_MISSED_SHOWN: Final = 10
QUIESCE: Final = ("off", "try", "require")
COMPRESSION: Final = tuple(level.value for level in CompressionLevel)
MAX_RETRIES: Final = 20
MAX_RETRY_WAIT_S: Final = 86_400
DEFAULT_RETRIES: Final = {"count": 3, "wait_s": 600}
STANDARD_WAY: Final = {"storage_snapshots": False, "storage_failover": True}
_READ_ONLY: Final = ("id", "next_run_at", "last_session", "created_at", "updated_at", "missed_runs")


def list_all(ctx: Context) -> list[dict[str, Any]]:
    with ctx.db.read() as s:
        rows = s.scalars(sa.select(Job).order_by(Job.name)).all()
        known = _known(s, rows)
        return [_shape(s, row, known) for row in rows]


def get(ctx: Context, ref: str) -> dict[str, Any]:
    """One job, with the newest of the due times at which nothing ran."""
    with ctx.db.read() as s:
        row = by_ref(s, Job, ref)
        missed = s.scalars(
            sa.select(JobRun)
            .where(JobRun.job_id == row.id, JobRun.session_id.is_(None))
            .order_by(JobRun.due_at.desc())
            .limit(_MISSED_SHOWN)
        )
        shown = [{"due_at": when(one.due_at), "why": one.outcome} for one in missed]
        return {**_shape(s, row), "missed_runs": shown}


def create(ctx: Context, data: Mapping[str, Any]) -> dict[str, Any]:
    """A new job; InvalidError names every field that cannot be accepted."""
    now = ctx.clock()
    try:
        with ctx.db() as s:
            values = _values(s, data, {}, None)
            row = Job(
                id=new_id(),
                created_at=now,
                updated_at=now,
                next_run_at=_next_start(values, now),
                **values,
            )
            s.add(row)
    except DuplicateError:
        raise _taken(data) from None
    return get(ctx, row.id)


def edit(
    ctx: Context, ref: str, changes: Mapping[str, Any], *, confirm_removal: bool = False
) -> dict[str, Any]:
    """Change any fields. A running session goes on with what it began with.

    A retention that would remove restore points which the one before keeps needs `confirm_removal`;
    without it ConflictError tells how many.
    """
    now = ctx.clock()
    try:
        with ctx.db() as s:
            row = by_ref(s, Job, ref)
            timing = (row.schedule, row.enabled, row.window)
            new = _values(s, changes, _shape(s, row), row.id)
            if new["retention"] != row.retention and not confirm_removal:
                _refuse_removal(s, row, new["retention"], now)
            for name, value in new.items():
                setattr(row, name, value)
            row.updated_at = now
            if (row.schedule, row.enabled, row.window) != timing:
                row.next_run_at = _next_start(new, now)
            if row.window != timing[2]:
                job_windows.reschedule(s, row, now)
            s.flush()
    except DuplicateError:
        raise _taken(changes) from None
    ctx.wake_engine.set()
    return get(ctx, row.id)


def _next_start(values: Mapping[str, Any], now: datetime) -> datetime | None:
    return next_start(values["schedule"], values["window"], now) if values["enabled"] else None


def _refuse_removal(s: DbSession, job: Job, wanted: Mapping[str, Any], now: datetime) -> None:
    points, vms = retention.newly_removed(s, job, wanted, now=now)
    if points:
        raise ConflictError(
            f"with this retention job {job.name!r} keeps {points} restore points of {vms} VMs no more; "
            f"`vmhaul job retention {job.name}` with the same options shows them, confirm their removal "
            "with --yes (API: confirm_removal)",
            details={"confirm": "confirm_removal", "points": points, "vms": vms},
        )


def set_enabled(ctx: Context, ref: str, enabled: bool) -> dict[str, Any]:
    return edit(ctx, ref, {"enabled": enabled})


def remove(ctx: Context, ref: str) -> None:
    """Delete the job; its sessions and restore points stay. Refused while it runs."""
    with ctx.db() as s:
        row = by_ref(s, Job, ref)
        running = sessions.open_session(s, row.id)
        if running is not None:
            raise ConflictError(
                f"job {row.name!r} is running (session {running.id}); wait for it or cancel it first",
                details={"session": running.id},
            )
        # PostgreSQL and SQLite set job_id NULL in what is kept; the name was kept beside it.
        s.delete(row)


def run(
    ctx: Context,
    ref: str,
    *,
    full: bool = False,
    only_failed: bool = False,
    ignore_window: bool = False,
) -> dict[str, Any]:
    """Begin a session now. ConflictError when one is open, and outside of the job's window unless that is to
    be ignored: the session then runs to its end whatever the window says.
    """
    now = ctx.clock()
    with ctx.db() as s:
        job = by_ref(s, Job, ref)
        if not ignore_window and not windows.is_open(job.window, now):
            opens = when(windows.next_open(job.window, now))
            raise ConflictError(
                f"the window of job {job.name!r} is closed until {opens}; wait for it, or run it all the same "
                "with --ignore-window (API: ignore_window)",
                details={"opens_at": opens},
            )
        more = {IGNORE_WINDOW: True} if ignore_window and job.window else {}
        session = sessions.start_backup(s, job, now=now, full=full, only_failed=only_failed, more=more)
    ctx.wake_engine.set()
    return sessions.get(ctx, session.id)


def plan(ctx: Context, ref: str) -> dict[str, Any]:
    """What the next run would take, from the inventory as it is now. Changes nothing."""
    with ctx.db.read() as s:
        job = by_ref(s, Job, ref)
        if job.kind == JobKind.COPY.value:
            return copy_jobs.plan(s, job, ctx.clock())
    try:
        return job_plan.preview(ctx, job)
    except TransportError as error:
        raise as_server_error(error) from error


def _taken(data: Mapping[str, Any]) -> ConflictError:
    return ConflictError(f"a job named {data.get('name')!r} exists already; give another name")


def _values(
    s: DbSession, data: Mapping[str, Any], old: Mapping[str, Any], job_id: str | None
) -> dict[str, Any]:
    """Columns from a request, with `old` (the job's shape) for what it does not name."""
    given = Fields({**{k: v for k, v in old.items() if k not in _READ_ONLY}, **data})
    copies = copy_jobs.is_copy(given)
    values: dict[str, Any] = {
        "kind": JobKind.COPY.value if copies else JobKind.BACKUP.value,
        "name": given.path_name(),
        "description": given.text("description", default="", empty=True),
        "enabled": given.flag("enabled", default=True),
        "repository_id": _reference(s, given, "repository", Repository),
        "schedule": given.checked("schedule", lambda v: None if v is None else check_schedule(v)),
        "retention": given.checked("retention", check_retention, default=DEFAULT_RETENTION),
    }
    shared = {
        "compression": given.one_of("compression", COMPRESSION, default="balanced"),
        "retries": given.checked("retries", check_retries, default=DEFAULT_RETRIES),
        "proxies": given.checked("proxies", lambda v: _proxy_ids(s, v), default=[]),
    }
    zone = (values["schedule"] or {}).get("time_zone", "UTC")
    values["window"] = given.checked("window", lambda v: _window(v, zone))
    values["after_job_id"] = _reference(s, given, "after_job", Job) or None
    shared[chains.AFTER_RESULT] = given.one_of(
        chains.AFTER_RESULT, chains.AFTER_RESULTS, default=chains.GOOD
    )
    values |= _copy_values(s, given, shared) if copies else _backup_values(s, given, shared)
    if values["after_job_id"] and not given.problems:
        round_ = chains.circle(s, job_id, values)
        if round_:
            given.wrong("after_job", f"these jobs would start each other for ever: {', '.join(round_)}")
    if copies:
        copy_jobs.check_ends(given, values["source_repository_id"], values["repository_id"])
    given.finish("the job", ignore=_READ_ONLY)
    return values


def _backup_values(s: DbSession, given: Fields, shared: dict[str, Any]) -> dict[str, Any]:
    copy_jobs.refuse_copy_fields(given)
    return {
        "vcenter_id": _reference(s, given, "vcenter", Vcenter),
        "selection": given.checked("selection", check_selection),
        "options": {
            **shared,
            "quiesce": given.one_of("quiesce", QUIESCE, default="try"),
            "change_tracking": given.flag("change_tracking", default=True),
            "full_every_days": given.checked("full_every_days", _check_days),
            "sample_blocks": given.checked(
                "sample_blocks", _check_sample, default=tracking.DEFAULT_SAMPLE_BLOCKS
            ),
            "modes": given.checked("modes", check_modes, default=[]),
            "storage_snapshots": given.flag("storage_snapshots", default=False),
            "storage_failover": given.flag("storage_failover", default=True),
            "failover_to_network": given.flag("failover_to_network", default=True),
        },
    }


def _copy_values(s: DbSession, given: Fields, shared: dict[str, Any]) -> dict[str, Any]:
    return {
        "source_repository_id": _reference(s, given, "source_repository", Repository),
        "selection": copy_jobs.selection(given),
        "options": copy_jobs.options(given, shared),
    }


def _window(value: Any, time_zone: str) -> dict[str, Any] | None:
    """A window in its full form; without a zone of its own it has the schedule's."""
    if value is None:
        return None
    if isinstance(value, Mapping) and not value.get("time_zone"):
        value = {**value, "time_zone": time_zone}
    return windows.check_window(value)


def _reference(s: DbSession, given: Fields, name: str, table: type[Vcenter | Repository | Job]) -> str:
    if table is Job and not given.data.get(name):
        given.take(name)
        return ""
    ref = given.text(name)
    if not ref:
        return ""
    try:
        return by_ref(s, table, ref).id
    except NotFoundError as error:
        given.wrong(name, str(error))
        return ""


def _proxy_ids(s: DbSession, value: Any) -> list[str]:
    if not isinstance(value, list | tuple) or any(not isinstance(ref, str) for ref in value):
        raise ValueError("must be a list of names of proxies; empty for any")
    try:
        return [by_ref(s, Proxy, ref).id for ref in value]
    except NotFoundError as error:
        raise ValueError(str(error)) from error


def check_retries(value: Any) -> dict[str, int]:
    """{"count": n, "wait_s": n}; ValueError with the reason."""
    if isinstance(value, Mapping) and not set(value) - {"count", "wait_s"}:
        count = value.get("count", DEFAULT_RETRIES["count"])
        wait_s = value.get("wait_s", DEFAULT_RETRIES["wait_s"])
        whole = all(isinstance(n, int) and not isinstance(n, bool) for n in (count, wait_s))
        if whole and 0 <= count <= MAX_RETRIES and 0 <= wait_s <= MAX_RETRY_WAIT_S:
            return {"count": count, "wait_s": wait_s}
    raise ValueError(
        f"must be {{count: 0 to {MAX_RETRIES}, wait_s: 0 to {MAX_RETRY_WAIT_S}}}, whole numbers"
    )


def _check_days(value: Any) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_KEEP:
        raise ValueError(f"must be null or a whole number of days from 1 to {MAX_KEEP}")
    return value


def _check_sample(value: Any) -> int:
    most = tracking.MAX_SAMPLE_BLOCKS
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
        raise ValueError(f"must be a whole number of blocks from 0 (none) to {most}")
    return value


@dataclass(frozen=True, slots=True, kw_only=True)
class _Known:
    """What jobs refer to, read once for all of them."""

    places: Sequence[Repository | Vcenter]
    """Held so that the session does not forget them: `get_one` asks nothing then."""
    proxies: Mapping[str, str]
    """Names by ids, as those below."""
    jobs: Mapping[str, str]
    last: Mapping[str, Session]
    """By the job's id."""


def _known(s: DbSession, rows: Sequence[Job]) -> _Known:
    newest = (
        sa.select(Session.id)
        .where(Session.job_id == Job.id)
        .order_by(Session.created_at.desc(), Session.id.desc())
        .limit(1)
        .correlate(Job)
        .scalar_subquery()
    )
    ids = sa.select(newest).select_from(Job).where(Job.id.in_([row.id for row in rows]))
    last = s.scalars(sa.select(Session).where(Session.id.in_(ids)))
    repositories, vcenters = s.scalars(sa.select(Repository)).all(), s.scalars(sa.select(Vcenter)).all()
    return _Known(
        places=[*repositories, *vcenters],
        proxies={row.id: row.name for row in s.execute(sa.select(Proxy.id, Proxy.name))},
        jobs={row.id: row.name for row in s.execute(sa.select(Job.id, Job.name))},
        last={str(row.job_id): row for row in last},
    )


def _shape(s: DbSession, row: Job, known: _Known | None = None) -> dict[str, Any]:
    known = known or _known(s, [row])
    proxy_ids = row.options.get("proxies", [])
    last = known.last.get(row.id)
    return {
        "id": row.id,
        "name": row.name,
        "description": row.description,
        "enabled": row.enabled,
        **copy_jobs.shape(s, row),
        "vcenter": s.get_one(Vcenter, row.vcenter_id).name if row.vcenter_id else None,
        "repository": s.get_one(Repository, row.repository_id).name,
        "selection": row.selection,
        "schedule": row.schedule,
        "window": None if row.window is None else {**row.window, "text": windows.describe(row.window)},
        "after_job": known.jobs.get(row.after_job_id or ""),
        chains.AFTER_RESULT: chains.GOOD,  # jobs of earlier releases do not say
        "retention": row.retention,
        "sample_blocks": 0 if row.kind == JobKind.COPY.value else tracking.DEFAULT_SAMPLE_BLOCKS,
        **STANDARD_WAY,  # jobs that an earlier release made, and copies, say nothing of it
        # Jobs of earlier releases do not have it in their options.
        "failover_to_network": row.kind == JobKind.BACKUP.value,
        **{name: value for name, value in row.options.items() if name not in {"after_backup", "first"}},
        "proxies": [known.proxies[one] for one in proxy_ids if one in known.proxies],
        "next_run_at": when(row.next_run_at),
        "last_session": None if last is None else _last_session(last),
        "created_at": when(row.created_at),
        "updated_at": when(row.updated_at),
    }


def _last_session(row: Session) -> dict[str, Any]:
    return {
        "id": row.id,
        "state": row.state,
        "result": row.result,
        "reason": row.reason,
        "running": row.state != SessionState.FINISHED.value,
        "started_at": when(row.started_at),
        "finished_at": when(row.finished_at),
    }
