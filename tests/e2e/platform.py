"""The whole product on one machine, driven from outside: `vmhaul up` in a data directory of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from tests.support.ports import free_port

VMHAUL = Path(sys.executable).with_name("vmhaul")
# Loopback is never reached through a proxy, whatever the environment says.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def wait_until(what: str, probe: Callable[[], Any], timeout_s: float = 60, pause_s: float = 0.1) -> Any:
    """The first true answer of `probe`; an assertion that names `what` when there is none in time."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        if answer := probe():
            return answer
        time.sleep(pause_s)
    raise AssertionError(f"waited {timeout_s:g} s in vain: {what}")


class CliError(AssertionError):
    def __init__(self, done: subprocess.CompletedProcess[str]) -> None:
        super().__init__(
            f"{' '.join(done.args)} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
        )
        self.done = done


class Platform:
    """`vmhaul up` and its command line."""

    def __init__(
        self,
        data: Path,
        *,
        database: str = "",
        broker: str = "",
        slots: int = 4,
        options: Sequence[str] = (),
    ) -> None:
        """`options`: further ones of `vmhaul up`."""
        self.data = data
        self.database = database
        self.broker = broker
        self.slots = slots
        self.options = list(options)
        self.process: subprocess.Popen[bytes] | None = None
        self.log = data.with_name(data.name + "-up.log")

    def start(self) -> None:
        command = [str(VMHAUL), "up", "--data", str(self.data), "--listen", f"127.0.0.1:{free_port()}"]
        command += ["--no-flower", "--slots", str(self.slots), *self.options]
        if self.database:
            command += ["--database", self.database]
        if self.broker:
            # A file, since it holds a password: the command line is for everybody to read.
            file = self.data.with_name(self.data.name + "-broker-url")
            file.write_text(self.broker)
            command += ["--broker", f"@{file}"]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True
            )
        wait_until("vmhaul up answers and its proxy is online", self._ready, 60)

    def _ready(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, f"vmhaul up ended:\n{self.log.read_text()[-3000:]}"
        try:
            proxies = self.ask("/proxies")["items"]
        except (OSError, ValueError):
            return False
        return any(proxy["state"] == "online" for proxy in proxies)

    def stop(self) -> None:
        if self.process is None:
            return
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.kill_tree()
            raise
        finally:
            self.process = None

    def kill_tree(self) -> None:
        assert self.process is not None
        with suppress(psutil.NoSuchProcess):
            tree = psutil.Process(self.process.pid)
            for process in [*tree.children(recursive=True), tree]:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
        self.process.wait(20)

    # ---- the command line

    def run(
        self, *args: str, stdin: str = "", check: bool = True, timeout_s: float = 180
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [str(VMHAUL), *args],
            input=stdin,
            text=True,
            capture_output=True,
            timeout=timeout_s,
            env={**os.environ, "VMHAUL_DATA": str(self.data), "NO_COLOR": "1"},
            check=False,
        )
        if check and done.returncode != 0:
            raise CliError(done)
        return done

    def json(self, *args: str, stdin: str = "", check: bool = True) -> Any:
        done = self.run(*args, "--json", stdin=stdin, check=check)
        return json.loads(done.stdout)

    def background(self, *args: str) -> threading.Thread:
        """A command whose end nobody waits for here."""
        thread = threading.Thread(target=self.run, args=args, kwargs={"check": False}, daemon=True)
        thread.start()
        return thread

    # ---- what is running

    def processes(self, *words: str) -> list[psutil.Process]:
        """Children of `vmhaul up`, at any depth, whose command line holds all of `words`."""
        assert self.process is not None
        found = []
        for child in psutil.Process(self.process.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                line = " ".join(child.cmdline())
                if all(word in line for word in words):
                    found.append(child)
        return found

    # ---- sessions

    def ask(self, path: str) -> Any:
        """What the API answers to a GET: for looking often, where a process for each look costs too
        much. OSError or ValueError while the server is not there.
        """
        return self.call("GET", path)

    def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """What the API answers, as `ask`; for steps that other tests take by the command line."""
        server = json.loads((self.data / "run" / "server.json").read_text())
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{server['url']}/api/v1{path}", data, method=method)
        request.add_header("Authorization", f"Bearer {server['token']}")
        request.add_header("Content-Type", "application/json")
        with _OPENER.open(request, timeout=30) as answer:
            return json.load(answer)

    def session(self, session_id: str) -> dict[str, Any]:
        answer: dict[str, Any] = self.ask(f"/sessions/{session_id}")
        return answer

    def start_job(self, name: str, *options: str) -> str:
        session: dict[str, Any] = self.json("job", "run", name, "--no-follow", *options)
        return str(session["id"])

    def wait_for(self, session_id: str, timeout_s: float = 120) -> dict[str, Any]:
        def ended() -> dict[str, Any] | None:
            with suppress(OSError, ValueError):
                session = self.session(session_id)
                return session if session["state"] == "finished" else None
            return None

        session: dict[str, Any] = wait_until(f"session {session_id} ends", ended, timeout_s, 0.3)
        return session

    def backup(self, name: str, *options: str, result: str = "success") -> dict[str, Any]:
        session = self.wait_for(self.start_job(name, *options))
        assert session["result"] == result, explain(session)
        return session

    def wait_for_progress(self, session_id: str, timeout_s: float = 60) -> dict[str, Any]:
        """Until some task of the session has read guest data and is still running."""

        def moving() -> dict[str, Any] | None:
            session = self.session(session_id)
            assert session["state"] != "finished", explain(session)
            for vm in session["vms"]:
                for task in vm["tasks"]:
                    if task["state"] == "running" and (task["progress"] or {}).get("read_bytes", 0) > 0:
                        return session
            return None

        session: dict[str, Any] = wait_until("a task reads", moving, timeout_s)
        return session


def explain(session: dict[str, Any]) -> str:
    lines = [f"session {session['id']} {session['state']} {session['result']}: {session['reason']}"]
    for vm in session.get("vms", []):
        lines.append(f"  {vm['name']} {vm['state']} {vm['result']}: {vm['reason']}")
        lines += [
            f"    {t['label']} {t['state']} {t['result']} attempt {t['attempt']}: {t['reason']}"
            for t in vm["tasks"]
        ]
    return "\n".join(lines)


@contextmanager
def platform(data: Path, *, database: str = "", broker: str = "", slots: int = 4) -> Iterator[Platform]:
    running = Platform(data, database=database, broker=broker, slots=slots)
    try:
        running.start()
        yield running
    finally:
        if running.process is not None:
            running.stop()
