"""A real `vmhaul up` on a data directory of its own, driven through the command line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

VMHAUL = Path(sys.executable).with_name("vmhaul")


def run(
    *args: str, stdin: str = "", env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """One command, to its end."""
    return subprocess.run(
        [str(VMHAUL), *args],
        input=stdin,
        text=True,
        capture_output=True,
        timeout=120,
        env={**os.environ, "NO_COLOR": "1", **(env or {})},
        check=False,
    )


def wait_for(what: str, probe: Callable[[], Any], timeout_s: float = 60) -> Any:
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        if answer := probe():
            return answer
        time.sleep(0.1)
    raise AssertionError(f"waited in vain: {what}")


class Up:
    """Context manager: up and ready inside, and nothing left of it afterwards."""

    def __init__(self, data: Path, *options: str) -> None:
        self.data = data
        self._options = options
        self._log = data.with_name("up.log")
        self.process: subprocess.Popen[bytes] | None = None
        self.seen: dict[int, psutil.Process] = {}

    def __enter__(self) -> Self:
        self._log.parent.mkdir(parents=True, exist_ok=True)
        options = self._options or ("--no-flower",)
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [str(VMHAUL), "up", "--data", str(self.data), "--listen", "127.0.0.1:0", *options],
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        try:
            wait_for("vmhaul up says that it is up", self._is_up)
        except AssertionError:
            self.stop(signal.SIGKILL)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.process is not None and self.process.poll() is None:
            self.stop()

    def _is_up(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, f"vmhaul up ended:\n{self.output}"
        return "vmhaul is up" in self.output and "broker  " in self.output

    @property
    def output(self) -> str:
        return self._log.read_text()

    @property
    def url(self) -> str:
        return str(json.loads((self.data / "run" / "server.json").read_text())["url"])

    @property
    def token(self) -> str:
        return str(json.loads((self.data / "run" / "server.json").read_text())["token"])

    def tree(self) -> list[psutil.Process]:
        """Supervisor and all that it started, at any depth."""
        assert self.process is not None
        supervisor = psutil.Process(self.process.pid)
        found = [supervisor, *supervisor.children(recursive=True)]
        self.seen |= {process.pid: process for process in found}
        return found

    def child(self, *words: str) -> psutil.Process | None:
        """The child whose command line holds all words."""
        for process in self.tree()[1:]:
            try:
                line = " ".join(process.cmdline())
            except psutil.NoSuchProcess:
                continue
            if all(word in line for word in words):
                return process
        return None

    def stop(self, number: signal.Signals = signal.SIGINT) -> int:
        """Stop by a signal; answers the exit code."""
        assert self.process is not None
        self.tree()
        self.process.send_signal(number)
        return self.process.wait(90)

    def left_over(self) -> list[psutil.Process]:
        """Processes of this `up` that still run, a moment after it ended."""
        _, alive = psutil.wait_procs(list(self.seen.values()), timeout=20)
        return alive

    def vmhaul(self, *args: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        return run(*args, stdin=stdin, env={"VMHAUL_DATA": str(self.data)})

    def json(self, *args: str, stdin: str = "") -> Any:
        done = self.vmhaul(*args, "--json", stdin=stdin)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def proxy_is_online(self, name: str) -> bool:
        return any(
            item["name"] == name and item["state"] == "online"
            for item in self.json("proxy", "list")["items"]
        )
