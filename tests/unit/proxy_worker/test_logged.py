"""A worker whose host keeps nothing of what it says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from proxy_worker.logged import LOG_KEEP_BYTES


def _run(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "proxy_worker.logged", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def test_what_it_says_goes_to_its_log(tmp_path: Path) -> None:
    log = tmp_path / "proxy.log"
    with log.open("wb") as file:
        file.truncate(LOG_KEEP_BYTES + 1)
    done = _run("--data", str(tmp_path))
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "")
    assert "not enrolled yet" in log.read_text()
    assert (tmp_path / "proxy.log.1").stat().st_size == LOG_KEEP_BYTES + 1
    assert _run("--data", str(tmp_path)).returncode == 1
    assert log.read_text().count("not enrolled yet") == 2


def test_without_a_directory_it_says_how() -> None:
    done = _run("--help")
    assert (done.returncode, "usage" in done.stderr) == (2, True)
