"""How many statements went to a database, and how many rows of a table were read from it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa


@dataclass(slots=True)
class Cost:
    statements: int = 0
    rows: int = 0


@contextmanager
def counted(engine: sa.Engine, *tables: type[Any]) -> Iterator[Cost]:
    """Statements on the engine, and rows of those tables that became objects."""
    cost = Cost()

    def statement(*_: Any) -> None:
        cost.statements += 1

    def row(*_: Any) -> None:
        cost.rows += 1

    sa.event.listen(engine, "before_cursor_execute", statement)
    for table in tables:
        sa.event.listen(table, "load", row)
    try:
        yield cost
    finally:
        sa.event.remove(engine, "before_cursor_execute", statement)
        for table in tables:
            sa.event.remove(table, "load", row)
