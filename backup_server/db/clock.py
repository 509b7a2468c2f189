"""The database's time, for what several servers must judge alike whatever their own clocks show."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta

import sqlalchemy as sa
from sqlalchemy.orm import Session as DbSession

from backup_server.db.fenced import FENCED
from backup_server.db.tables import UtcDateTime

DatabaseTime = Callable[[DbSession, timedelta], sa.ColumnElement[datetime]]
"""The database's time plus an offset, as a part of a statement."""


def database_time(clock: Callable[[], datetime]) -> DatabaseTime:
    """PostgreSQL's own clock; `clock` where the database is a file of this machine."""

    def after(s: DbSession, offset: timedelta) -> sa.ColumnElement[datetime]:
        if s.get_bind().dialect.name != FENCED:
            return sa.literal(clock() + offset, UtcDateTime)
        # Not now(): that is when the transaction began, which may have waited for a row since.
        now = sa.func.clock_timestamp(type_=sa.DateTime(timezone=True))
        return sa.type_coerce(now + sa.literal(offset, sa.Interval), UtcDateTime)

    return after
