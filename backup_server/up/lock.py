"""One supervisor for each data directory."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from types import TracebackType
from typing import Self

from backup_server.up.options import UpError, read_json


class UpLock:
    """Holds `run/up.lock` while the supervisor lives; the kernel frees it, however that ends."""

    def __init__(self, run_dir: Path) -> None:
        self._path = run_dir / "up.lock"
        self._server_file = run_dir / "server.json"
        self._handle = -1

    def __enter__(self) -> Self:
        # Children must not inherit the lock: it has to end with this process (O_CLOEXEC is Python's rule).
        self._handle = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(self._handle, 4096).decode(errors="replace")
            os.close(self._handle)
            raise UpError(self._who(holder)) from None
        os.ftruncate(self._handle, 0)
        os.pwrite(self._handle, json.dumps({"pid": os.getpid()}).encode(), 0)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self._handle)

    def _who(self, holder: str) -> str:
        pid = json.loads(holder)["pid"] if holder.startswith("{") else "unknown"
        server = read_json(self._server_file)
        at = f" at {server['url']}" if server else ""
        return (
            f"vmhaul is up already on {self._path.parent.parent}: process {pid}{at}. "
            "Use it, stop it with Ctrl-C or SIGTERM first, or name another directory with --data"
        )
