"""Counts that survive restarts: one row of `settings` holds them all, written at most once in a transaction.

They are never reset: who reads them looks at how they grow. Reading them costs the same after years of history,
which summing the tables would not.
"""

from __future__ import annotations

import json
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.orm import Session as DbSession

from backup_server.db.tables import Setting

ROW: Final = "counters"
_PENDING: Final = "vmhaul_counts"

Counts = dict[tuple[str, tuple[str, ...]], int]
"""By name of the counter and the values of its labels, in the order that `services.figures` declares."""


def prepare(s: DbSession) -> None:
    """The row, at the server's start: two transactions must not both make it."""
    if s.get(Setting, ROW) is None:
        s.add(Setting(name=ROW, value="{}"))


def add(s: DbSession, name: str, labels: tuple[str, ...] = (), amount: int = 1) -> None:
    """Count in the caller's transaction: what is rolled back was not counted."""
    if amount <= 0:
        return
    pending: Counts | None = s.info.get(_PENDING)
    if pending is None:
        pending = s.info[_PENDING] = {}
        # Last before the commit, so that the row which all count in is locked for a moment only.
        sa.event.listen(s, "before_commit", _write)
    key = (name, labels)
    pending[key] = pending.get(key, 0) + amount


def read(s: DbSession) -> Counts:
    value = s.scalar(sa.select(Setting.value).where(Setting.name == ROW))
    return {_key(text): int(count) for text, count in json.loads(value or "{}").items()}


def _write(s: DbSession) -> None:
    if s.in_nested_transaction():
        return  # the end of a savepoint: the transaction's own end comes
    pending: Counts = s.info.get(_PENDING) or {}
    if not pending:
        return
    counts = dict(pending)
    pending.clear()
    row = s.scalar(sa.select(Setting).where(Setting.name == ROW).with_for_update())
    if row is None:
        row = Setting(name=ROW, value="{}")
        s.add(row)
    held: dict[str, Any] = json.loads(row.value)
    for key, amount in counts.items():
        text = json.dumps([key[0], *key[1]])
        held[text] = int(held.get(text, 0)) + amount
    row.value = json.dumps(held)
    s.flush()


def _key(text: str) -> tuple[str, tuple[str, ...]]:
    name, *labels = json.loads(text)
    return str(name), tuple(str(label) for label in labels)
