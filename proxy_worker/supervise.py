"""`python -m proxy_worker.supervise`: keeps one command running where no systemd does.

`start` goes to the background and starts the command again whenever it ends, `stop` ends both, `status` tells. The
supervisor holds a lock on its PID file, so that a number which the system gave to another process is not taken for it.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

BACKOFF_FIRST_S: Final = 1.0
BACKOFF_MAX_S: Final = 30.0
STEADY_AFTER_S: Final = 30.0
STOP_S: Final = 60.0
LOG_KEEP_BYTES: Final = 16 << 20
LOG_LOOK_S: Final = 60.0
"""How often the length of the log is looked at while the command runs, which it may for months."""
_NOT_RUNNING: Final = 3  # what status scripts answer
_POLL_S: Final = 0.1


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m proxy_worker.supervise", description=__doc__)
    parser.add_argument("--pid-file", type=Path, required=True)
    parser.add_argument("--log-file", type=Path, default=Path(os.devnull))
    parser.add_argument("do", choices=("start", "stop", "status"))
    parser.add_argument("command", nargs="*")
    given = parser.parse_args(argv)
    running = running_pid(given.pid_file)
    if given.do == "status":
        print(f"running as {running}" if running else "not running")  # noqa: T201 - the answer
        return 0 if running else _NOT_RUNNING
    if given.do == "stop":
        return _stop(given.pid_file, running)
    if running:
        return 0
    if not given.command:
        parser.error("start needs a command")
    return _start(given.pid_file, given.log_file, given.command)


def running_pid(pid_file: Path) -> int | None:
    """Of the supervisor that holds the file; None when none does."""
    try:
        with pid_file.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                text = file.read().strip()
                return int(text) if text.isdigit() else None
    except FileNotFoundError:
        return None
    return None


def _stop(pid_file: Path, running: int | None) -> int:
    if running is None:
        return 0
    with contextlib.suppress(ProcessLookupError):
        os.kill(running, signal.SIGTERM)
    pause = threading.Event()
    until = time.monotonic() + STOP_S + 15
    while running_pid(pid_file) is not None:
        if time.monotonic() > until:
            print(f"process {running} did not end", file=sys.stderr)  # noqa: T201 - for who asked
            return 1
        pause.wait(_POLL_S)
    return 0


def _start(pid_file: Path, log_file: Path, command: Sequence[str]) -> int:
    """Answers when the supervisor holds its file; it goes on as a process of its own."""
    read_end, write_end = os.pipe()
    if os.fork():
        os.close(write_end)
        with os.fdopen(read_end, "rb") as pipe:
            said = pipe.read()
        return 0 if said == b"ok" else 1
    os.close(read_end)
    os.setsid()
    if os.fork():
        os._exit(0)
    # Never back into the caller's code, whatever happens here.
    try:
        _detached(pid_file, log_file, command, write_end)
    except OSError as error:
        # To whoever asked, as long as nothing runs; to the log from then on.
        print(f"supervisor: it ends: {error}", file=sys.stderr, flush=True)  # noqa: T201 - see above
    finally:
        os._exit(0)


def _detached(pid_file: Path, log_file: Path, command: Sequence[str], ready: int) -> None:
    os.chdir("/")
    handle = os.open(pid_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.ftruncate(handle, 0)
    os.write(handle, f"{os.getpid()}\n".encode())
    log = os.open(log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for target, source in ((0, nothing), (1, log), (2, log)):
        os.dup2(source, target)
    os.write(ready, b"ok")
    os.close(ready)
    stopping = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    keep_running(command, stopping, time.monotonic, log_file)


def keep_running(
    command: Sequence[str],
    stopping: threading.Event,
    clock: Callable[[], float],
    log_file: Path | None = None,
) -> None:
    """Until `stopping`; then the command is told to end, and killed when it does not."""
    backoff_s = BACKOFF_FIRST_S
    while not stopping.is_set():
        _cut(log_file)
        started_at = looked_at = clock()
        # A group of its own: what the worker started ends with it when it has to be killed.
        child = subprocess.Popen(list(command), stdin=subprocess.DEVNULL, start_new_session=True)
        while child.poll() is None and not stopping.wait(_POLL_S):
            if clock() - looked_at >= LOG_LOOK_S:
                looked_at = clock()
                _cut(log_file)
        if child.returncode is None:
            _end(child)
            return
        # Movers of a worker that was killed must not go on beside those of the next.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)
        if clock() - started_at >= STEADY_AFTER_S:
            backoff_s = BACKOFF_FIRST_S
        print(f"supervisor: the command ended with {child.returncode}", file=sys.stderr, flush=True)  # noqa: T201 - its log
        stopping.wait(backoff_s)
        backoff_s = min(BACKOFF_MAX_S, backoff_s * 2)


def _end(child: subprocess.Popen[bytes]) -> None:
    child.terminate()
    try:
        child.wait(STOP_S)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def _cut(log_file: Path | None) -> None:
    """Empty a log that has become long, and keep what was in it once; it is appended to, so it goes on where it is. A
    line that is written at this very moment may be lost.
    """
    if log_file is None or not log_file.is_file() or log_file.stat().st_size <= LOG_KEEP_BYTES:
        return
    try:
        kept = os.open(
            log_file.with_suffix(".log.1"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600
        )
        with os.fdopen(kept, "wb") as target, log_file.open("rb") as source:
            shutil.copyfileobj(source, target)
    except OSError as error:
        # A full disk most likely, and this is what fills it.
        print(f"supervisor: the old log is not kept: {error}", file=sys.stderr, flush=True)  # noqa: T201 - its log
    os.truncate(log_file, 0)


if __name__ == "__main__":
    sys.exit(main())
