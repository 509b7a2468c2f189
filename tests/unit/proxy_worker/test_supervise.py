"""The supervisor of machines without systemd, as a process of its own."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from proxy_worker import supervise
from proxy_worker.supervise import running_pid

COUNT = 'echo "$$" >> "$0"; exec sleep 1000'


def _supervise(directory: Path, *words: str) -> subprocess.CompletedProcess[str]:
    files = ["--pid-file", str(directory / "pid"), "--log-file", str(directory / "log")]
    return subprocess.run(
        [sys.executable, "-m", "proxy_worker.supervise", *files, *words],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def _wait(what: str, probe: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while not probe():
        assert time.monotonic() < until, what
        time.sleep(0.05)


def _started(directory: Path) -> list[int]:
    file = directory / "started"
    return [int(line) for line in file.read_text().split()] if file.exists() else []


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_what_ends_is_started_again_until_it_is_stopped(tmp_path: Path) -> None:
    command = ["sh", "-c", COUNT, str(tmp_path / "started")]
    assert _supervise(tmp_path, "status").returncode == 3
    assert _supervise(tmp_path, "start", "--", *command).returncode == 0
    try:
        _wait("it runs", lambda: len(_started(tmp_path)) == 1)
        assert _supervise(tmp_path, "status").returncode == 0
        # A second start finds the first.
        assert _supervise(tmp_path, "start", "--", *command).returncode == 0
        os.kill(_started(tmp_path)[0], signal.SIGKILL)
        _wait("it runs again", lambda: len(_started(tmp_path)) == 2)
    finally:
        assert _supervise(tmp_path, "stop").returncode == 0
    assert running_pid(tmp_path / "pid") is None
    assert [_alive(pid) for pid in _started(tmp_path)] == [False, False]
    assert "ended with -9" in (tmp_path / "log").read_text()
    assert _supervise(tmp_path, "stop").returncode == 0


def test_a_number_that_another_process_has_now_is_not_taken_for_it(tmp_path: Path) -> None:
    (tmp_path / "pid").write_text(f"{os.getpid()}\n")
    assert running_pid(tmp_path / "pid") is None
    assert _supervise(tmp_path, "stop").returncode == 0
    assert _supervise(tmp_path, "status").stdout == "not running\n"


@pytest.mark.parametrize("what", ["nothing", "a place that is not there"])
def test_a_start_that_cannot_be_says_so(tmp_path: Path, what: str) -> None:
    directory = tmp_path if what == "nothing" else tmp_path / "missing"
    words = [] if what == "nothing" else ["--", "sleep", "1000"]
    done = _supervise(directory, "start", *words)
    assert done.returncode != 0
    assert ("start needs a command" if what == "nothing" else str(directory / "pid")) in done.stderr


def test_a_command_that_is_not_there_is_named_in_the_log(tmp_path: Path) -> None:
    assert _supervise(tmp_path, "start", "--", "no-such-program").returncode == 0
    _wait("the reason is written", lambda: "no-such-program" in (tmp_path / "log").read_text())
    _wait("it has ended", lambda: running_pid(tmp_path / "pid") is None)


def test_a_log_that_grows_while_the_command_runs_is_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervise, "LOG_KEEP_BYTES", 1000)
    log, stopping = tmp_path / "proxy.log", threading.Event()
    log.write_bytes(b"x" * 500)
    ticks = itertools.count(step=supervise.LOG_LOOK_S)
    command = ["sh", "-c", 'head -c 5000 /dev/zero >> "$0"; exec sleep 1000', str(log)]
    thread = threading.Thread(
        target=supervise.keep_running, args=(command, stopping, lambda: next(ticks), log)
    )
    thread.start()
    try:
        kept = tmp_path / "proxy.log.1"
        _wait("what was in it is kept", lambda: kept.exists() and kept.stat().st_size == 5500)
        _wait("it is empty", lambda: log.stat().st_size == 0)
        assert kept.stat().st_mode & 0o777 == 0o600
    finally:
        stopping.set()
        thread.join(60)
    assert not thread.is_alive()
