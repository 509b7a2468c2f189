"""The guests' database: one SQLite file whose pages change at random places."""

import random
import sqlite3
from contextlib import closing
from pathlib import Path

FILE_NAME = "orders.sqlite"
PATH = f"var/lib/orders/{FILE_NAME}"
"""Where it lies on its volume."""
_NOTE_BYTES = 1500
_ROW_BYTES = _NOTE_BYTES + 60  # row and index entry as SQLite stores them, about


def _note(rng: random.Random) -> str:
    return rng.randbytes(_NOTE_BYTES // 2).hex()


def create(path: Path, budget_bytes: int, rng: random.Random) -> int:
    """Make a database of about `budget_bytes`; returns the size of the file."""
    with closing(sqlite3.connect(path)) as link:
        link.execute("PRAGMA page_size = 8192")
        link.execute("PRAGMA journal_mode = MEMORY")
        link.execute("PRAGMA synchronous = OFF")
        link.execute("CREATE TABLE orders (id INTEGER PRIMARY KEY, customer INTEGER, note TEXT)")
        rows = max(budget_bytes // _ROW_BYTES, 10)
        link.executemany(
            "INSERT INTO orders (customer, note) VALUES (?, ?)",
            ((rng.randrange(10_000), _note(rng)) for _ in range(rows)),
        )
        link.execute("CREATE INDEX orders_customer ON orders (customer)")
        link.commit()
    return path.stat().st_size


def work(path: Path, rows: int, rng: random.Random) -> None:
    """Update `rows` random rows in place and add a few, as one day's orders do."""
    with closing(sqlite3.connect(path)) as link:
        link.execute("PRAGMA journal_mode = MEMORY")
        link.execute("PRAGMA synchronous = OFF")
        (last,) = link.execute("SELECT max(id) FROM orders").fetchone()
        for _ in range(rows):
            link.execute(
                "UPDATE orders SET note = ? WHERE id = ?", (_note(rng), rng.randrange(1, last + 1))
            )
        link.executemany(
            "INSERT INTO orders (customer, note) VALUES (?, ?)",
            ((rng.randrange(10_000), _note(rng)) for _ in range(max(rows // 10, 1))),
        )
        link.commit()


def check(path: Path) -> str:
    """`ok`, or what SQLite's own integrity check says is wrong."""
    with closing(sqlite3.connect(f"file:{path}?mode=ro&immutable=1", uri=True)) as link:
        rows = link.execute("PRAGMA integrity_check").fetchall()
    return "; ".join(str(row[0]) for row in rows)
