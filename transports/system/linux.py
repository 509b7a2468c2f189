"""The calls of Linux. Where its own function is what is wanted it stands here by itself, without a layer."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import select
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Final

assert sys.platform != "win32"

NAME: Final = "Linux"
OPEN_FLAGS: Final = os.O_CLOEXEC
"""Belong to every os.open()."""
ENVIRONMENT: Final = ("PATH", "PYTHONPATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH", "TZ")
"""Variables without which a Python process does not run as its parent does."""
_PR_SET_PDEATHSIG: Final = 1  # linux/prctl.h

pread = os.pread


def lock_file(fd: int) -> bool:
    """Whether this open file is now the one that holds the lock; never waits. Closing it gives the lock back."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def unlock_file(fd: int) -> None:
    """Before it is closed, where closing gives the lock back only after a while."""
    del fd


def read_file(path: Path) -> bytes:
    """The whole of a file that others replace meanwhile: the old content or the new. OSError."""
    return path.read_bytes()


def replace_file(source: Path, target: Path) -> None:
    """Give a file the name of another, which may be open. OSError."""
    source.replace(target)


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable. OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make_private_directory(path: Path) -> None:
    """With its parents; one that is there stays as it is, and files are made so that only their owner reads them."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)


def others_may_read(path: Path) -> str:
    """By what it shows that not the owner alone may read a file, as "mode 0644"; empty: he alone may."""
    mode = stat.S_IMODE(path.stat().st_mode)
    return f"mode {mode:04o}" if mode & 0o077 else ""


def usable_cpus() -> int:
    """Processors on which this process may run."""
    return len(os.sched_getaffinity(0))


def memory_bytes() -> int:
    """Of this machine."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def uptime_s() -> float:
    """Seconds since the machine started, those included in which it slept; the same in every process."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def die_with_parent() -> None:
    """Ask the kernel for SIGKILL when the parent ends.

    A parent that ended before the call is noticed by what everybody here watches besides: standard
    input that ends.

    "Parent" is the thread that started us, so a worker's pool threads have to live as long as their
    movers: they do, each waits for its own.
    """
    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)  # it ended just before the call


class Child:
    """A child process in a session of its own, with pipes to its standard streams."""

    CAN_ASK_PIPES: Final = True
    """`takes_now` knows."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        """OSError when it cannot be started."""
        # The child asks the kernel itself to die with us (`die_with_parent`): a hook between fork and exec
        # is not safe in a process with threads.
        self.process = subprocess.Popen(
            list(command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=dict(environment),
            start_new_session=True,
        )

    def ask_to_end(self, tell: Callable[[], None]) -> None:
        """SIGTERM to the session. `tell` is for systems that have no such thing. Not after it was reaped."""
        del tell
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """Everything in the session, at once. Not after it was reaped."""
        self._signal(signal.SIGKILL)

    def await_end(self) -> None:
        """Wait for the process without reaping it: until then its number is its own."""
        os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT)

    def takes_now(self, pipe: IO[bytes]) -> bool:
        """Whether a short line can be written without waiting."""
        return bool(select.select([], [pipe], [], 0)[1])

    def release(self) -> None:
        """What was held for it goes; it has ended."""

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)
