"""Results that the server has not acknowledged, on the disk until it does.

The broker may lose messages and the server may be away for hours; what a finished disk cost must not be
lost with them.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from pathlib import Path

from proxy_worker.contracts.codec import MessageError, canonical_json, from_json, to_json
from proxy_worker.contracts.ids import Attempt, TaskId
from proxy_worker.contracts.messages import ResultReport, RunningTask
from proxy_worker.errors import SetupError


class ResultOutbox:
    """Safe for threads. What `add` returned from is durable."""

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        try:
            self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
            path.chmod(0o600)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.execute(
                "CREATE TABLE IF NOT EXISTS results (task_id TEXT, attempt INTEGER, body TEXT NOT NULL, "
                "PRIMARY KEY (task_id, attempt))"
            )
        except sqlite3.DatabaseError as error:
            raise SetupError(
                f"the result outbox {path} cannot be opened ({error}); move it away: its tasks are "
                "then handed out once more"
            ) from error

    def add(self, report: ResultReport) -> None:
        """Keep a result; the first one of an attempt stays."""
        with self._lock:
            self._db.execute(
                "INSERT OR IGNORE INTO results VALUES (?, ?, ?)",
                (report.task_id, report.attempt, canonical_json(to_json(report)).decode()),
            )

    def acknowledge(self, task_id: TaskId, attempt: Attempt) -> None:
        with self._lock:
            self._db.execute(
                "DELETE FROM results WHERE task_id = ? AND attempt = ?", (task_id, attempt)
            )

    def waiting(self) -> list[ResultReport]:
        """Oldest first. What an earlier release wrote and this one cannot read is dropped."""
        with self._lock:
            rows = self._db.execute(
                "SELECT task_id, attempt, body FROM results ORDER BY rowid"
            ).fetchall()
        reports: list[ResultReport] = []
        for task_id, attempt, body in rows:
            try:
                reports.append(from_json(ResultReport, json.loads(body)))
            except (MessageError, ValueError):
                self.acknowledge(task_id, attempt)
        return reports

    def attempts(self) -> list[RunningTask]:
        """Attempts whose results wait: their leases must live on until the server has heard."""
        with self._lock:
            rows = self._db.execute("SELECT task_id, attempt FROM results ORDER BY rowid").fetchall()
        return [RunningTask(task_id=TaskId(t), attempt=Attempt(a)) for t, a in rows]

    def close(self) -> None:
        with self._lock:
            self._db.close()
