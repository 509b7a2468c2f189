"""What a running site left in its directory for other commands: `lab.json`."""

import json
import os
import signal
import threading
from dataclasses import asdict, dataclass, field
from pathlib import Path

from vmhaul_lab.errors import LabError

STATE_FILE = "lab.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessMark:
    """A process that cannot be mistaken for another one that got its number later."""

    pid: int
    started: str
    """Field 22 of /proc/PID/stat: the clock tick of its start."""

    @classmethod
    def of(cls, pid: int) -> "ProcessMark":
        """The mark of a process that runs now."""
        return cls(pid=pid, started=_start_of(pid))

    def alive(self) -> bool:
        """Whether this very process still runs."""
        return bool(self.started) and _start_of(self.pid) == self.started

    def end(self, grace_s: float = 30) -> bool:
        """SIGTERM, and after `grace_s` SIGKILL; returns whether it ended by itself. May be called twice."""
        if self.alive():
            os.kill(self.pid, signal.SIGTERM)
        if self._gone_within(grace_s):
            return True
        os.kill(self.pid, signal.SIGKILL)
        self._gone_within(grace_s)
        return False

    def _gone_within(self, seconds: float) -> bool:
        pause = threading.Event()
        for _ in range(int(seconds * 10)):
            if not self.alive():
                return True
            pause.wait(0.1)
        return not self.alive()


def _start_of(pid: int) -> str:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    # The command's name is in brackets and may hold spaces; state is the first field behind it.
    fields = text.rpartition(")")[2].split()
    return "" if fields[0] == "Z" else fields[19]


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteState:
    """How to reach a running site. The password is that of a simulated vCenter; the file is mode 0600."""

    directory: str
    vcenter: str
    control: str
    user: str
    password: str
    thumbprint_sha1: str
    thumbprint_sha256: str
    process: ProcessMark
    hardware: ProcessMark | None = None
    """The process that shows proxy VMs their disks."""
    proxies: dict[str, dict[str, str]] = field(default_factory=dict)
    """Settings of vmhaul proxies that take themselves for the site's proxy VMs, by the VM's name."""
    nfs_host: str = ""

    def write(self) -> None:
        """Write it into its directory."""
        write_private(Path(self.directory) / STATE_FILE, json.dumps(asdict(self), indent=1))

    @classmethod
    def read(cls, directory: Path, *, ended_too: bool = False) -> "SiteState":
        """The state of the site in `directory`; `LabError` when there is none, or (without `ended_too`) it has ended."""
        path = directory / STATE_FILE
        try:
            values = json.loads(path.read_text())
        except FileNotFoundError as error:
            raise LabError(
                f"no site in {directory}: start one with `vmhaul-lab up --dir {directory}`"
            ) from error
        marks = {name: ProcessMark(**values[name]) for name in ("process", "hardware") if values[name]}
        state = cls(**{**values, **marks})
        if not ended_too and not state.process.alive():
            raise LabError(
                f"the site in {directory} has ended: remove the directory and start a new one"
            )
        return state


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner may read."""
    path.unlink(missing_ok=True)
    path.touch(mode=0o600)
    path.write_text(text)
