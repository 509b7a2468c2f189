"""What a repository holds, as last asked: kept in its row, so that lists and pages need not ask again.

`settings["facts"]`: at, packs, stored_bytes (of all packs), features, key_epoch, keys, aead, and from the
catalogue logical_bytes (what all restore points would fill when restored) and read_bytes (what was read
of guests to make them).
"""

from __future__ import annotations

from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.orm import Session as DbSession

from backup_server.db.states import SessionKind, SessionState
from backup_server.db.tables import Repository, RestorePointRow, Session
from backup_server.errors import VmhaulError
from backup_server.services.context import Context
from backup_server.services.shapes import when

FACTS: Final = "facts"
_ROWS_AT_ONCE: Final = 1000


def refresh(ctx: Context, repository_id: str) -> None:
    """Ask the agent for space and contents and store both. Errors of the agent pass through."""
    agent = ctx.agents.get(repository_id)
    space = agent.space()
    facts = agent.facts()
    with ctx.db.read() as s:
        facts |= _catalogue_sums(s, repository_id)
    now = ctx.clock()
    with ctx.db() as s:
        row = s.get(Repository, repository_id, with_for_update=True)
        if row is None:
            return
        row.total_bytes, row.free_bytes, row.space_at = space.total_bytes, space.free_bytes, now
        row.settings = {**row.settings, FACTS: {**facts, "at": when(now)}}


def refresh_after(ctx: Context, repository_id: str | None) -> None:
    """The same after a session; what fails is tried again by the next one."""
    if repository_id is None:
        return
    try:
        refresh(ctx, repository_id)
    except VmhaulError as error:
        ctx.log.warning("repository.facts-failed", repository=repository_id, reason=str(error))


def _catalogue_sums(s: DbSession, repository_id: str) -> dict[str, int]:
    query = sa.select(RestorePointRow.disks).where(
        RestorePointRow.repository_id == repository_id, RestorePointRow.deleting.is_(False)
    )
    logical = read = 0
    for disks in s.scalars(query.execution_options(yield_per=_ROWS_AT_ONCE)):
        logical += sum(int(disk["capacity_bytes"]) for disk in disks)
        read += sum(int(disk.get("read_bytes") or 0) for disk in disks)
    return {"logical_bytes": logical, "read_bytes": read}


def last_sessions(s: DbSession, kind: SessionKind) -> dict[str, Session]:
    """Repository id -> its newest finished session of that kind."""
    newest = (
        sa.select(Session.repository_id, sa.func.max(Session.finished_at).label("at"))
        .where(Session.kind == kind.value, Session.state == SessionState.FINISHED.value)
        .group_by(Session.repository_id)
        .subquery()
    )
    rows = s.scalars(
        sa.select(Session)
        .join(
            newest,
            sa.and_(
                newest.c.repository_id == Session.repository_id,
                newest.c.at == Session.finished_at,
            ),
        )
        .where(Session.kind == kind.value)
    )
    return {str(row.repository_id): row for row in rows}


def session_facts(row: Session | None) -> dict[str, Any] | None:
    """What the doors say of a repository's last check or prune."""
    if row is None:
        return None
    report = row.report
    return {
        "session": row.id,
        "finished_at": when(row.finished_at),
        "result": row.result,
        "reason": row.reason,
        "read_data": bool(row.options.get("read_data")),
        "sample_share": float(row.options.get("sample_share") or 0.0),
        "confidence": str(report.get("confidence") or ""),
        "problems": len(report.get("problems") or []),
        "removed_bytes": report.get("removed_bytes"),
    }
