"""Pages of rows, newest first, with a cursor that stays right while rows are added."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session as DbSession

from backup_server.errors import InvalidError


def page(
    s: DbSession, query: sa.Select[Any], table: Any, *, limit: int, after: str | None
) -> tuple[list[Any], str | None]:
    """`limit` rows by created_at and id, both falling, and the cursor of the next page."""
    if after:
        at, row_id = _parse(after)
        query = query.where(
            sa.or_(
                table.created_at < at,
                sa.and_(table.created_at == at, table.id < row_id),
            )
        )
    rows = list(s.scalars(query.order_by(table.created_at.desc(), table.id.desc()).limit(limit + 1)))
    if len(rows) <= limit:
        return rows, None
    last = rows[limit - 1]
    return rows[:limit], f"{last.created_at.isoformat()}~{last.id}"


def _parse(cursor: str) -> tuple[datetime, str]:
    at, _, row_id = cursor.partition("~")
    try:
        moment = datetime.fromisoformat(at.replace(" ", "+"))  # a plus sign in a URL arrives as a blank
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None or not row_id:
        raise InvalidError(
            "the cursor is not one that a list answered", details={"after": "not a cursor"}
        )
    return moment, row_id
