"""Child processes: started, watched, started again with back-off, stopped."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

_PR_SET_PDEATHSIG: Final = 1  # linux/prctl.h
BACKOFF_FIRST_S: Final = 1.0
BACKOFF_MAX_S: Final = 30.0
STEADY_AFTER_S: Final = 30.0
AT_ONCE_S: Final = 5.0
MEND_AFTER: Final = 2
"""So many ends in a row right after the start are no accident."""
"""A child that lived this long starts again with the first back-off."""
LOG_KEEP_BYTES: Final = 16 * 1024 * 1024

_SETTINGS: Final = ("VMHAUL_", "PG")
"""How variables begin that tell the server's settings; those of PostgreSQL's client may hold a password, too."""

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildSpec:
    """How to run one child."""

    name: str
    argv: Sequence[str]
    stop_s: float
    """How long it may take to end after SIGTERM."""
    ready: Callable[[], bool] | None = None
    has_settings: bool = False
    """The server's settings may stand in its environment. Passwords are among them, so others do not get these."""
    mend: Callable[[], str] | None = None
    """What may help when it ends at once after every start; answers what was done, empty for nothing."""


@dataclass(slots=True, kw_only=True)
class Child:
    """One child and its history. Times are of the supervisor's monotonic clock."""

    spec: ChildSpec
    log_dir: Path
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    restart_at: float | None = None
    backoff_s: float = BACKOFF_FIRST_S
    restarts: int = field(default=0)
    ends_at_once: int = field(default=0)
    """In a row."""

    @property
    def log_file(self) -> Path:
        return self.log_dir / f"{self.spec.name}.log"

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def start(self, now: float) -> None:
        """Start the process; its output goes to the end of its log."""
        _turn_over(self.log_file)
        supervisor = os.getpid()

        def in_child() -> None:
            # Children end when the supervisor ends, also by SIGKILL; checked after, since it may be
            # gone already.
            _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
            if os.getppid() != supervisor:
                os._exit(1)

        handle = os.open(self.log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            self.process = subprocess.Popen(
                list(self.spec.argv),
                stdin=subprocess.DEVNULL,
                env=None if self.spec.has_settings else _without_settings(os.environ),
                stdout=handle,
                stderr=subprocess.STDOUT,
                # Not in the terminal's foreground group: Ctrl-C reaches the supervisor, which stops
                # the children in their order.
                start_new_session=True,
                preexec_fn=in_child,  # noqa: PLW1509 - the supervisor has one thread
            )
        finally:
            os.close(handle)
        self.started_at = now
        self.restart_at = None

    def plan_restart(self, now: float) -> float:
        """After an end that was not asked for: when to start again, in seconds from now."""
        if now - self.started_at >= STEADY_AFTER_S:
            self.backoff_s = BACKOFF_FIRST_S
        self.ends_at_once = self.ends_at_once + 1 if now - self.started_at < AT_ONCE_S else 0
        wait_s = self.backoff_s
        self.restart_at = now + wait_s
        self.backoff_s = min(BACKOFF_MAX_S, self.backoff_s * 2)
        self.restarts += 1
        return wait_s

    def cut_log(self) -> None:
        """Move what a running child wrote into the older log, when it is much.

        The child appends to the file that it has open, so the file is emptied and not renamed.
        """
        if self.running and self.log_file.stat().st_size > LOG_KEEP_BYTES:
            shutil.copyfile(self.log_file, self.log_file.with_suffix(".log.1"))
            os.truncate(self.log_file, 0)

    def terminate(self) -> None:
        if self.running and self.process is not None:
            self.process.terminate()

    def wait_or_kill(self, timeout_s: float) -> bool:
        """True when it ended by itself in time; otherwise it and its group are killed."""
        if self.process is None:
            return True
        try:
            self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            return False
        return True

    def last_lines(self, count: int) -> str:
        """The end of its log, to show why it did not start."""
        with contextlib.suppress(OSError):
            return "\n".join(self.log_file.read_text(errors="replace").splitlines()[-count:])
        return ""


def _without_settings(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: text for name, text in environment.items() if not name.startswith(_SETTINGS)}


def _turn_over(path: Path) -> None:
    """Keep one older log beside a new one, so that logs do not grow for ever."""
    with contextlib.suppress(FileNotFoundError):
        if path.stat().st_size > LOG_KEEP_BYTES:
            path.replace(path.with_suffix(".log.1"))
