"""What the job database promises when the power is lost: a commit that was answered is on the disk."""

from __future__ import annotations

from pathlib import Path

from backup_server.db.engine import create_engine

FULL = 2  # of SQLite's PRAGMA synchronous


def test_sqlite_syncs_each_commit_on_every_connection(tmp_path: Path) -> None:
    engine = create_engine(f"sqlite:///{tmp_path / 'jobs.db'}")
    connections = [engine.raw_connection() for _ in range(2)]  # both at once: two of the pool
    for connection in connections:
        cursor = connection.cursor()
        for pragma, value in (("journal_mode", "wal"), ("synchronous", FULL), ("foreign_keys", 1)):
            cursor.execute(f"PRAGMA {pragma}")
            assert cursor.fetchone() == (value,)
        connection.close()
    engine.dispose()
