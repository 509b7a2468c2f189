"""Starts the children in their order, keeps them alive, follows the list of local proxies, stops all."""

from __future__ import annotations

import http.client
import ipaddress
import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from backup_server.up.children import MEND_AFTER, Child, ChildSpec
from backup_server.up.options import UP_FILE, UpError, UpOptions, read_json, write_private

TICK_S: Final = 0.25
START_LIMIT_S: Final = 60.0
SERVER_STOP_S: Final = 30.0
WORKER_STOP_S: Final = 30.0
FLOWER_STOP_S: Final = 5.0
PROXIES_FILE: Final = "local-proxies.json"
SERVER_FILE: Final = "server.json"


@dataclass(slots=True, kw_only=True)
class Supervisor:
    """The life of one `vmhaul up`."""

    options: UpOptions
    broker: ChildSpec | None
    """None: the broker runs elsewhere."""
    clock: Callable[[], float]
    """Monotonic seconds."""
    say: Callable[[str], None]
    stopping: threading.Event = field(default_factory=threading.Event)
    children: list[Child] = field(default_factory=list)
    """In the order of starting."""

    def run(self) -> None:
        """Until a signal comes. UpError when a child does not become ready at first."""
        write_private(self.options.run_dir / UP_FILE, self.options.settings())
        (self.options.run_dir / SERVER_FILE).unlink(missing_ok=True)
        try:
            self._start_all()
            while not self.stopping.wait(TICK_S):
                self.tick()
        finally:
            self._stop_all()

    def _start_all(self) -> None:
        if self.broker is not None:
            self._start(self.broker)
        self._start(self._server_spec())
        self._match_local_proxies()
        if self.options.flower:
            self._start(_flower_spec(self.options))
        if not self.stopping.is_set():
            self._banner()

    def _start(self, spec: ChildSpec) -> None:
        """Start a child and wait until it is ready."""
        if self.stopping.is_set():
            return
        child = Child(spec=spec, log_dir=self.options.log_dir)
        self.children.append(child)
        child.start(self.clock())
        if spec.ready is None:
            return
        until = self.clock() + START_LIMIT_S
        mended = False
        while not spec.ready():
            if self.stopping.wait(0.05):
                return
            if not child.running and not mended and self._mend(child):
                mended = True
                child.start(self.clock())
            elif not child.running:
                raise UpError(
                    f"the {spec.name} did not start; the end of {child.log_file}:\n{child.last_lines(8)}"
                )
            if self.clock() > until:
                raise UpError(
                    f"the {spec.name} was not ready after {START_LIMIT_S:.0f} s; see {child.log_file}"
                )

    def _server_spec(self) -> ChildSpec:
        options = self.options
        return ChildSpec(
            name="server",
            argv=[sys.executable, "-m", "backup_server.main", *_where(options)],
            stop_s=SERVER_STOP_S,
            has_settings=True,
            ready=lambda: (
                (options.run_dir / SERVER_FILE).exists() and answers(options.host, options.port)
            ),
        )

    def tick(self) -> None:
        """Once in a while: restart what ended, follow the list of local proxies."""
        now = self.clock()
        for child in self.children:
            if child.running:
                child.cut_log()
                continue
            if child.restart_at is None:
                wait_s = child.plan_restart(now)
                code = child.process.returncode if child.process else None
                self.say(
                    f"{child.spec.name} ended ({_how(code)}); it starts again in {wait_s:.0f} s. "
                    f"See {child.log_file}"
                )
                if child.ends_at_once >= MEND_AFTER:
                    self._mend(child)
            elif now >= child.restart_at:
                child.start(now)
        self._match_local_proxies()

    def _mend(self, child: Child) -> bool:
        """Whether something was done that may let it start."""
        done = child.spec.mend() if child.spec.mend is not None else ""
        if done:
            self.say(f"{child.spec.name} cannot start: {done}")
        return bool(done)

    def _match_local_proxies(self) -> None:
        """Workers for exactly the local proxies that the server wrote down."""
        wanted = self._wanted_proxies()
        if wanted is None:
            return
        prefix = "proxy-"
        for child in [c for c in self.children if c.spec.name.startswith(prefix)]:
            if child.spec.name.removeprefix(prefix) not in wanted:
                self.say(f"{child.spec.name} is no longer wanted here: stopping it")
                self.children.remove(child)
                child.terminate()
                child.wait_or_kill(child.spec.stop_s)
        known = {child.spec.name for child in self.children}
        for name in wanted:
            if prefix + name not in known and not self.stopping.is_set():
                child = Child(spec=self._worker_spec(name), log_dir=self.options.log_dir)
                # Behind the server and in front of Flower, so that stopping goes Flower, workers, server.
                at = next(
                    (i for i, c in enumerate(self.children) if c.spec.name == "flower"),
                    len(self.children),
                )
                self.children.insert(at, child)
                child.start(self.clock())

    def _wanted_proxies(self) -> list[str] | None:
        value = read_json(self.options.run_dir / PROXIES_FILE)
        return None if value is None else [str(item["name"]) for item in value["proxies"]]

    def _worker_spec(self, name: str) -> ChildSpec:
        directory = self.options.data_dir / "proxies" / name
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        return ChildSpec(
            name=f"proxy-{name}",
            argv=[sys.executable, "-m", "proxy_worker", "--data", str(directory)],
            stop_s=WORKER_STOP_S,
        )

    def _stop_all(self) -> None:
        """In the reverse order of starting: what reports ends before what is reported to."""
        workers = [c for c in self.children if c.spec.name.startswith("proxy-")]
        for child in reversed(self.children):
            # Workers end at the same time: each may have disks to bring to a checkpoint.
            for other in workers if child in workers else [child]:
                other.terminate()
            if not child.wait_or_kill(child.spec.stop_s):
                self.say(
                    f"{child.spec.name} did not end within {child.spec.stop_s:.0f} s and was killed"
                )
        for name in (SERVER_FILE, UP_FILE):
            (self.options.run_dir / name).unlink(missing_ok=True)

    def _banner(self) -> None:
        options = self.options
        server: dict[str, Any] = read_json(options.run_dir / SERVER_FILE) or {}
        url = str(server.get("url", f"http://{options.host}:{options.port}"))
        lines = [
            ("console", _login_link(url, server) or url),
            ("API", f"{url}/api/v1"),
            ("Flower", f"http://127.0.0.1:{options.flower_port}" if options.flower else "off"),
            ("data", str(options.data_dir)),
            ("database", "elsewhere" if options.database else "SQLite in the data directory"),
            ("broker", "elsewhere" if options.broker else "embedded, on a Unix socket"),
        ]
        if options.proxies_host:
            ports = f"port {options.proxies_port}"
            if not options.broker:
                ports += f" and port {options.proxies_broker_port} (broker)"
            lines.append(("proxies", f"{options.proxies_host}, {ports}, TLS"))
        self.say("vmhaul is up. Ctrl-C stops it.")
        for name, value in lines:
            self.say(f"  {name:<9} {value}")
        if not is_loopback(options.host):
            self.say(
                "  note      API and console speak plain HTTP and are open to the network: "
                "put a TLS proxy in front of them"
            )


def _where(options: UpOptions) -> list[str]:
    return ["--data", str(options.data_dir), "--settings", str(options.run_dir / UP_FILE)]


def _flower_spec(options: UpOptions) -> ChildSpec:
    return ChildSpec(
        name="flower",
        argv=[sys.executable, "-m", "backup_server.up.flower", *_where(options)],
        stop_s=FLOWER_STOP_S,
    )


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def answers(host: str, port: int) -> bool:
    """Whether the API says that it is well."""
    connection = http.client.HTTPConnection(host, port, timeout=5)
    try:
        connection.request("GET", "/api/v1/health")
        return connection.getresponse().status in {200, 503}
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _login_link(url: str, server: dict[str, Any]) -> str | None:
    """A link that opens the console without typing the token; works once."""
    host, _, port = url.removeprefix("http://").rpartition(":")
    connection = http.client.HTTPConnection(host.strip("[]"), int(port), timeout=5)
    try:
        headers = {
            "Authorization": f"Bearer {server.get('token', '')}",
            "Content-Type": "application/json",
        }
        connection.request("POST", "/api/v1/console-links", body="{}", headers=headers)
        response = connection.getresponse()
        body = response.read()
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
    if response.status != 200:  # noqa: PLR2004 - HTTP's OK
        return None
    return url + str(json.loads(body)["path"])


def _how(code: int | None) -> str:
    if code is None:
        return "never started"
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def make_directories(data_dir: Path) -> None:
    """The parts of the data directory that the supervisor needs, for its owner only."""
    for path in (data_dir, data_dir / "run", data_dir / "log", data_dir / "proxies"):
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise UpError(
                f"{path} cannot be created: {error.strerror}; name another with --data"
            ) from error
        if not os.access(path, os.W_OK | os.X_OK):
            raise UpError(f"{path} may not be written by this user; name another with --data")
