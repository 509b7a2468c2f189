"""The beginning of a backup session: the job's selection becomes the session's VMs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session as DbSession

from backup_server.db.states import Result, SessionState, VmState, change_state
from backup_server.db.tables import Job, Session, SessionVm, Vcenter, new_id
from backup_server.services import counters, events, vcenters
from backup_server.services.context import Context
from backup_server.services.selection import ChosenVm, Selected, select


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    """A VM's row before it is written."""

    name: str
    moref: str
    instance_uuid: str
    details: dict[str, Any]
    failure: str = ""


def begin(ctx: Context, session_id: str) -> None:
    """Queued to running, with the session's VMs in the same transaction.

    Errors of transports.errors when the inventory cannot be read; the session stays queued then.
    """
    with ctx.db.read() as s:
        session = s.get_one(Session, session_id)
        job = s.get(Job, session.job_id) if session.job_id else None
    if job is None or session.vcenter_id is None:
        with ctx.db() as s:
            refuse(s, session_id, "the job was deleted before its session began", ctx.clock())
        return
    inventory = vcenters.load_inventory(ctx, session.vcenter_id, max_age_s=0)
    chosen = select(job.selection, inventory)
    with ctx.db() as s:
        rows, warnings = _rows(s, session, chosen)
        change_state(
            s,
            Session,
            session.id,
            SessionState.QUEUED,
            SessionState.RUNNING,
            started_at=ctx.clock(),
            options={
                **session.options,
                # The session goes on with what it began with, whatever becomes of the job.
                "job": {
                    "options": job.options,
                    "retention": job.retention,
                    "selection": job.selection,
                },
                "vcenter_uuid": s.get_one(Vcenter, session.vcenter_id).instance_uuid,
            },
            report={
                **session.report,
                "warnings": warnings,
                "skipped": [
                    {"name": vm.name, "reason": vm.reason, "expected": vm.expected}
                    for vm in chosen.skipped
                ],
            },
        )
        for position, row in enumerate(rows):
            s.add(_session_vm(ctx, session.id, position, row))
        text = f"job {job.name}: {len(rows)} VMs"
        events.record(s, ctx.clock(), "session.started", text, session_id=session.id)
        for text in warnings:
            events.record(
                s, ctx.clock(), "session.warning", text, session_id=session.id, level=events.WARNING
            )


def refuse(s: DbSession, session_id: str, reason: str, now: datetime) -> None:
    """End a session that cannot begin."""
    change_state(
        s,
        Session,
        session_id,
        SessionState.QUEUED,
        SessionState.FINISHED,
        result=Result.FAILED.value,
        reason=reason,
        finished_at=now,
    )
    kind = s.get_one(Session, session_id).kind
    counters.add(s, "sessions_ended", (kind, Result.FAILED.value))


def _rows(s: DbSession, session: Session, chosen: Selected) -> tuple[list[_Row], list[str]]:
    warnings = list(chosen.warnings)
    warnings += [f"VM {vm.name!r} skipped: {vm.reason}" for vm in chosen.skipped if not vm.expected]
    wanted = failed_vms(s, session.retry_of) if session.options.get("only_failed") else None
    if session.options.get("only_left"):
        wanted = left_vms(s, session.retry_of) | failed_vms(s, session.retry_of)
    rows: list[_Row] = []
    seen: dict[str, str] = {}
    for one in chosen.vms:
        if wanted is not None and one.vm.instance_uuid not in wanted:
            continue
        twin = seen.setdefault(one.vm.instance_uuid, one.vm.name)
        if twin != one.vm.name or any(row.instance_uuid == one.vm.instance_uuid for row in rows):
            warnings.append(
                f"VM {one.vm.name!r} skipped: it has the same instance uuid as {twin!r}; "
                "give the copy a new one"
            )
            continue
        rows.append(_Row(
            name=one.vm.name,
            moref=one.vm.moref,
            instance_uuid=one.vm.instance_uuid,
            details=_details(one),
        ))  # fmt: skip
    rows += [_missing(name) for name in chosen.missing if wanted is None]
    if wanted is not None:
        for uuid, name in wanted.items():
            if uuid not in seen:
                rows.append(_missing(name, uuid))
    first = left_vms(s, stopped_before(s, session))
    # Stable: within both the job's order stays.
    rows.sort(key=lambda row: row.instance_uuid not in first)
    return rows, warnings


def stopped_before(s: DbSession, session: Session) -> str | None:
    """The job's last session that began, when it was stopped in order: what it left comes first now."""
    last = s.scalar(
        sa.select(Session)
        .where(
            Session.job_id == session.job_id,
            Session.kind == session.kind,
            Session.id != session.id,
            Session.started_at.is_not(None),
        )
        .order_by(Session.created_at.desc(), Session.id)
        .limit(1)
    )
    return last.id if last is not None and last.stop_reason else None


def left_vms(s: DbSession, session_id: str | None) -> dict[str, str]:
    """Instance uuid -> name of the VMs that a session which was stopped did not end."""
    found = s.scalars(
        sa.select(SessionVm).where(
            SessionVm.session_id == session_id, SessionVm.result == Result.CANCELLED.value
        )
    )
    return {vm.instance_uuid: vm.name for vm in found}


def failed_vms(s: DbSession, session_id: str | None) -> dict[str, str]:
    """Instance uuid -> name of the VMs that failed in a session and may be tried again."""
    found = s.scalars(
        sa.select(SessionVm).where(
            SessionVm.session_id == session_id, SessionVm.result == Result.FAILED.value
        )
    )
    return {vm.instance_uuid: vm.name for vm in found if not vm.details.get("missing")}


def _details(one: ChosenVm) -> dict[str, Any]:
    return {
        "datastores": sorted({disk.datastore for disk in one.disks}),
        "disk_count": len(one.disks),
        "capacity_bytes": sum(disk.capacity_bytes for disk in one.disks),
        "skipped_disks": [f"{disk.label}: {disk.reason}" for disk in one.skipped_disks],
    }


def _missing(name: str, instance_uuid: str = "") -> _Row:
    return _Row(
        name=name,
        moref="",
        instance_uuid=instance_uuid or f"missing:{name}",
        details={"missing": True},
        failure="the job names this VM but vCenter has none of that name: it was deleted or renamed; "
        "edit the job's selection",
    )


def _session_vm(ctx: Context, session_id: str, position: int, row: _Row) -> SessionVm:
    state, result = (VmState.DONE, Result.FAILED.value) if row.failure else (VmState.PENDING, None)
    return SessionVm(
        id=new_id(),
        session_id=session_id,
        position=position,
        moref=row.moref,
        instance_uuid=row.instance_uuid,
        name=row.name,
        state=state.value,
        result=result,
        reason=row.failure,
        warnings=[],
        restore_point_id=None if row.failure else new_id(),
        details=row.details,
        vm_config=None,
        nvram=None,
        snapshot_at=None,
        snapshot_removed_at=None,
        started_at=None,
        finished_at=ctx.clock() if row.failure else None,
    )


def busy_vms(s: DbSession, states: Sequence[VmState]) -> list[tuple[str, str, dict[str, Any]]]:
    """(session id, instance uuid, details) of the backup VMs in these states, in all sessions."""
    rows = s.execute(
        sa.select(SessionVm.session_id, SessionVm.instance_uuid, SessionVm.details).where(
            SessionVm.state.in_([state.value for state in states])
        )
    )
    return [(row.session_id, row.instance_uuid, row.details) for row in rows]
