"""Server processes on one database, and what becomes of the lead."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from backup_server.db.engine import Database
from backup_server.db.tables import Leader
from tests.support.ports import free_port

TAKEOVER_S = 30.0
KEYS = ("server.key", "server-signing.key")


def wait_for(what: str, condition: Callable[[], Any], timeout_s: float = 90.0) -> Any:
    until = time.monotonic() + timeout_s
    while time.monotonic() < until:
        if answer := condition():
            return answer
        time.sleep(0.1)
    raise AssertionError(f"waited in vain: {what}")


class Server:
    """One server process with a data directory of its own, without broker and proxies."""

    def __init__(
        self, directory: Path, database: str, *, environment: Mapping[str, str] | None = None
    ) -> None:
        """`environment`: further variables of the process."""
        self._environment = {**os.environ, **(environment or {})}
        self.data = directory
        self.data.mkdir(mode=0o700)
        self._settings = directory / "settings.json"
        self._settings.write_text(
            json.dumps(
                {
                    "database": database,
                    # Nobody is there: each loop goes on trying, and what stands in SQL goes its way.
                    "broker": f"redis+socket://{directory}/none.sock",
                    "port": free_port(),
                    "flower": False,
                }
            )
        )
        self._log = (directory / "out.log").open("ab")
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.begin()
        wait_for("the server's start", lambda: self.is_up)

    def begin(self) -> None:
        """Start the process, and wait for nothing."""
        (self.data / "run" / "server.json").unlink(missing_ok=True)
        command = [sys.executable, "-m", "backup_server.main", "--data", str(self.data)]
        self.process = subprocess.Popen(
            [*command, "--settings", str(self._settings)],
            stdout=self._log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            env=self._environment,
        )

    @property
    def is_up(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.log
        return (self.data / "run" / "server.json").exists()

    @property
    def log(self) -> str:
        return (self.data / "out.log").read_text()

    def leads(self) -> bool:
        """Whether the last that it said of the lead is that it has it."""
        lines = self.log.splitlines()
        starts = [at for at, line in enumerate(lines) if "Started server process" in line]
        said = [line for line in lines[starts[-1] if starts else 0 :] if "leads" in line]
        return bool(said) and "this server leads" in said[-1]

    def close(self) -> None:
        self._log.close()

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        os.kill(self.process.pid, number)

    def end(self, number: signal.Signals) -> int:
        assert self.process is not None
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid, signal.SIGCONT)
            self.signal(number)
        return self.process.wait(60)


def leader(database: Database) -> tuple[str, int]:
    with database.read() as s:
        row = s.get_one(Leader, "scheduler")
        return row.owner, row.fence


def takeover_s(database: Database, before: str) -> float:
    """How long it took until another owner had the row."""
    began = time.monotonic()
    wait_for("another leader", lambda: leader(database)[0] != before)
    return time.monotonic() - began
