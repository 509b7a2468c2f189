"""Child processes of the lab: built, started, watched until ready, and ended by their own id."""

import fcntl
import json
import os
import signal
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path
from queue import Empty, Queue
from typing import Any

from vmhaul_lab.commands import run
from vmhaul_lab.errors import LabError

LAB_ROOT = Path(__file__).resolve().parents[1]


def labvc_binary() -> Path:
    """The site's server program, built from `lab/labvc` when it is missing or older than its source.

    `VMHAUL_LABVC` names another one. Two callers at a time build it once.
    """
    named = os.environ.get("VMHAUL_LABVC")
    if named:
        return Path(named)
    source = LAB_ROOT / "labvc"
    script = source / "build.sh"
    if not script.is_file():
        raise LabError(
            f"{script} is not there: install vmhaul-lab from its checkout (pip install -e ./lab)"
        )
    binary = LAB_ROOT / "build" / "labvc"
    binary.parent.mkdir(exist_ok=True)
    with (binary.parent / "labvc.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not binary.exists() or binary.stat().st_mtime < _newest(source):
            # Built beside and moved: a running site keeps its old program.
            fresh = binary.with_name("labvc.new")
            run(script, fresh, timeout_s=900)
            fresh.replace(binary)
    return binary


def _newest(source: Path) -> float:
    parts = (
        path for path in source.rglob("*") if path.suffix in {".go", ".sh"} or path.name == "go.mod"
    )
    return max(path.stat().st_mtime for path in parts)


class Child:
    """A child process that prints one JSON line when it is ready and ends on SIGTERM.

    Its standard input is a pipe that closes when this process dies (not when `detached`), its standard
    error goes to a file.
    """

    def __init__(self, command: Sequence[str | Path], log: Path, *, detached: bool = False) -> None:
        self._name = Path(command[0]).name
        self._log = log
        self._lines: Queue[str] = Queue()
        with log.open("ab") as errors:
            self.process = subprocess.Popen(
                [str(word) for word in command],
                stdin=subprocess.DEVNULL if detached else subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                # A Ctrl-C in the terminal is for us; we end the child in our own order.
                start_new_session=True,
            )
        self._reader = threading.Thread(target=self._read, name=f"{self._name}-output", daemon=True)
        self._reader.start()

    def _read(self) -> None:
        output = self.process.stdout
        if output is not None:
            for line in output:
                self._lines.put(line.decode(errors="replace"))
        self._lines.put("")

    def ready(self, timeout_s: float = 60) -> dict[str, Any]:
        """Wait for the ready line; `LabError` with the end of the log when it does not come."""
        try:
            line = self._lines.get(timeout=timeout_s)
        except Empty:
            line = ""
        if not line.strip():
            self.stop()
            said = self._log.read_text(errors="replace")[-1500:]
            raise LabError(
                f"{self._name} did not get ready within {timeout_s:.0f} s; {self._log} ends with:\n{said}"
            )
        answer: dict[str, Any] = json.loads(line)
        return answer

    def stop(self, grace_s: float = 10) -> int:
        """End the process (by its id, in the end by force) and return its status. May be called twice."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(timeout=grace_s)
            except subprocess.TimeoutExpired:
                self.process.kill()
        status = self.process.wait()
        self._reader.join(timeout=grace_s)
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()
        return status
