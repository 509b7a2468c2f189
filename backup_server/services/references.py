"""Rows by the beginning of their id, as people type it."""

from __future__ import annotations

from typing import Final, TypeVar

import sqlalchemy as sa
from sqlalchemy.orm import Session as DbSession

from backup_server.db.tables import Base
from backup_server.errors import NotFoundError

R = TypeVar("R", bound=Base)

MIN_PREFIX_CHARS: Final = 4
_OF_IDS: Final = frozenset("0123456789abcdef-")
_NAMED: Final = 5


def by_prefix(
    s: DbSession, table: type[R], ref: str, noun: str, where: str, *only: sa.ColumnElement[bool]
) -> R:
    """Row by its id, or by a beginning of it that names one, among those that `only` admits.

    NotFoundError names several that begin so, else `where` to look ("`vmhaul session list` shows them").
    """
    ids = table.__table__.c.id
    row = s.scalar(sa.select(table).where(ids == ref, *only))
    if row is not None:
        return row
    start = ref.lower()
    if len(start) < MIN_PREFIX_CHARS or set(start) - _OF_IDS:
        raise NotFoundError(
            f"there is no {noun} {ref!r}; {where}, {MIN_PREFIX_CHARS} characters of an id are enough"
        )
    # The range is a look into the index; a database's order of text may pass over hyphens, hence the comparison.
    begins = (ids >= start, ids < start + "g", sa.func.substr(ids, 1, len(start)) == start)
    found = s.scalars(sa.select(ids).where(*begins, *only).order_by(ids).limit(_NAMED + 1)).all()
    if len(found) == 1:
        return s.get_one(table, found[0])
    if not found:
        raise NotFoundError(f"no {noun} has an id that begins with {ref!r}; {where}")
    more = " and more" if len(found) > _NAMED else ""
    raise NotFoundError(
        f"several {noun}s have an id that begins with {ref!r}: {', '.join(found[:_NAMED])}{more}"
    )
