"""Verification: checks of a repository by schedule, that read its data in turns.

A repository's settings hold {"schedule": {cron, time_zone, missed}, "sample_share": share or None,
"read_data": bool}. Each check reads one share of the packs and the next one goes on where it ended, so that
nothing is read twice before all was read once; without a share of its own it is chosen so that all data
are read every `ALL_READ_DAYS` days.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.orm import Session as DbSession

from backup_server.db.states import SessionKind, SessionState
from backup_server.db.tables import Repository, Session
from backup_server.errors import ConflictError, InvalidError
from backup_server.services import sessions
from backup_server.services.context import Context
from backup_server.services.schedule import check_schedule, next_run
from backup_server.services.shapes import by_ref

ALL_READ_DAYS: Final = 30
SETTING: Final = "verification"
POSITION: Final = "verification_position"
"""Where in the packs' order, 0 to 1, the next check begins to read."""


def check_verification(value: Any) -> dict[str, Any] | None:
    """Settings in their full form, None for no schedule; ValueError with the reason."""
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise ValueError("must be {schedule, sample_share, read_data} or null")  # noqa: TRY004 - the doors expect ValueError
    unknown = set(value) - {"schedule", "sample_share", "read_data"}
    if unknown:
        raise ValueError(f"has no field {min(map(str, unknown))!r}")
    read_data = value.get("read_data", True)
    if not isinstance(read_data, bool):
        raise ValueError("read_data must be true or false")  # noqa: TRY004 - as above
    return {
        "schedule": check_schedule(value.get("schedule")),
        "sample_share": check_share(value.get("sample_share")),
        "read_data": read_data,
    }


def check_share(value: Any) -> float | None:
    """A share above 0 and up to 1, or None; ValueError with the reason."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
        raise ValueError("sample_share must be above 0 and up to 1, or null")
    return float(value)


def next_check(settings: Mapping[str, Any], after: datetime) -> datetime | None:
    """When the repository's next verification is due; None without a schedule."""
    verification = settings.get(SETTING)
    return next_run(verification["schedule"], after) if verification else None


def share_of(settings: Mapping[str, Any], now: datetime) -> float:
    """Which share of the packs one verification reads; 0 when it is to look at the structure alone."""
    verification = settings.get(SETTING) or {}
    if not verification.get("read_data", True):
        return 0.0
    if verification.get("sample_share"):
        return float(verification["sample_share"])
    schedule = verification.get("schedule")
    first = next_run(schedule, now) if schedule else None
    second = next_run(schedule, first) if first else None
    between = second - first if first and second else timedelta(days=1)
    return min(1.0, between / timedelta(days=ALL_READ_DAYS))


def start(
    ctx: Context, ref: str, *, sample_share: float | None = None, read_data: bool = False
) -> dict[str, Any]:
    """Begin a verification now, as the schedule would; answers the Session.

    `sample_share` in place of the repository's own; `read_data`: all data.
    """
    try:
        share = check_share(sample_share)
    except ValueError as error:
        raise InvalidError(str(error), details={"sample_share": str(error)}) from error
    with ctx.db() as s:
        row = by_ref(s, Repository, ref)
        wanted = share or (1.0 if read_data else None)
        session = begin(s, row, now=ctx.clock(), share=wanted, trigger="manual")
    ctx.wake_engine.set()
    return sessions.get(ctx, session.id)


def begin(
    s: DbSession, row: Repository, *, now: datetime, share: float | None = None, trigger: str
) -> Session:
    """A queued check in the caller's transaction. ConflictError when one is under way."""
    refuse_second(s, row, SessionKind.CHECK)
    wanted = share_of(row.settings, now) if share is None else share
    options: dict[str, Any] = {
        "read_data": wanted > 0,
        "sample_share": wanted,
        "trigger": trigger,
        "verification": True,
    }
    if 0 < wanted < 1:
        options["sample_start"] = float(row.settings.get(POSITION, 0.0))
    return sessions.insert(s, SessionKind.CHECK, now=now, repository_id=row.id, options=options)


def refuse_second(s: DbSession, row: Repository, kind: SessionKind) -> None:
    """ConflictError when a session of that kind of the repository is under way."""
    open_one = s.scalar(
        sa.select(Session.id)
        .where(
            Session.repository_id == row.id,
            Session.kind == kind.value,
            Session.state != SessionState.FINISHED.value,
        )
        .limit(1)
    )
    if open_one is not None:
        raise ConflictError(
            f"a {kind.value} of repository {row.name!r} is under way: session {open_one}",
            details={"session": open_one},
        )


def advance(s: DbSession, session: Session) -> None:
    """The session's share was read: the next one begins where it ended."""
    start_at = session.options.get("sample_start")
    # Locked: what another server writes into the settings meanwhile must not be undone.
    row = (
        s.get(Repository, session.repository_id, with_for_update=True, populate_existing=True)
        if session.repository_id
        else None
    )
    if start_at is None or row is None:
        return
    position = (float(start_at) + float(session.options["sample_share"])) % 1.0
    row.settings = {**row.settings, POSITION: position}
