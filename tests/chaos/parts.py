"""The processes of a round: started, killed, frozen, and kept alive as a supervisor would."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil
import psycopg

from tests.chaos.patience import PATIENCE
from tests.support.postgres import find_programs

END_S = 45.0
"""How long a part may take to end when it is asked to."""
_BACK_S = 1.0


def pids_of(module: str) -> list[int]:
    """Processes of this round that run that module, oldest first: nobody else's are to be seen here."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if module in process.cmdline() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
    return sorted(found)


def mover_pids() -> list[int]:
    return pids_of("proxy_worker.mover_process")


class FalseClock:
    """What a process takes for the time of day (see false_clock.c); timers go on as ever."""

    def __init__(self, file: Path, library: Path) -> None:
        self._file = file
        self._library = library
        self._file.write_bytes(bytes(16))

    def right(self) -> None:
        self._tell(0, 0)

    def shift(self, by_s: float) -> None:
        self._tell(int(by_s * 1e9), 0)

    def stand_still(self) -> None:
        self._tell(0, time.time_ns())

    def _tell(self, shift_ns: int, still_ns: int) -> None:
        # In place: the processes have the file mapped.
        with self._file.open("r+b", buffering=0) as file:
            file.write(struct.pack("<qq", shift_ns, still_ns))

    def environment(self) -> dict[str, str]:
        return {"LD_PRELOAD": str(self._library), "CHAOS_CLOCK": str(self._file)}


class Part:
    """One process of the stand. Methods are for one thread at a time, but for `keep`."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        log: Path,
        *,
        answers: Callable[[], bool] = lambda: True,
        environment: Mapping[str, str] | None = None,
        user: str = "",
    ) -> None:
        self.name = name
        self.log = log
        self.clock: FalseClock | None = None
        self.ends: list[int] = []
        """Exit codes of ends that nobody asked for."""
        self._command = list(command)
        self._answers = answers
        self._environment = dict(environment or {})
        self._user = user
        self._process: subprocess.Popen[bytes] | None = None
        self._wanted = False
        self._lock = threading.RLock()
        self._ended_at = 0.0
        self._out = False

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def answers(self) -> bool:
        return self.running and self._answers()

    def start(self) -> None:
        with self._lock:
            self._wanted = True
            if self.running or self._out:
                return
            clean = {n: v for n, v in os.environ.items() if not n.startswith(("VMHAUL_", "PYTEST_"))}
            clock = {} if self.clock is None else self.clock.environment()
            as_user = {}
            if self._user:
                identity = pwd.getpwnam(self._user)
                as_user = {"user": identity.pw_uid, "group": identity.pw_gid, "extra_groups": []}
            with self.log.open("ab") as log:
                self._process = subprocess.Popen(
                    self._command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env={**clean, **self._environment, **clock},
                    start_new_session=True,
                    **as_user,  # type: ignore[arg-type]
                )

    def keep(self) -> None:
        """Start it again when it has ended by itself, as `vmhaul up` and systemd do."""
        with self._lock:
            if not self._wanted or self._out or self._process is None or self.running:
                return
            now = time.monotonic()
            if not self._ended_at:
                self._ended_at = now
                self.ends.append(self._process.returncode)
            elif now - self._ended_at >= _BACK_S:
                self._ended_at = 0.0
                self.start()

    def kill(self) -> None:
        """As kill -9 does; it stays down until `start`."""
        with self._lock:
            self._wanted = False
            self._ended_at = 0.0
            if self._process is not None:
                with suppress(ProcessLookupError):
                    self._process.kill()
                self._process.wait()

    def take_out(self) -> None:
        """Killed, and not started by anybody until it is put back."""
        with self._lock:
            self._out = True
            self.kill()

    def put_back(self) -> None:
        with self._lock:
            self._out = False
            self.start()

    def freeze(self) -> None:
        with self._lock:
            if self.running:
                os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        with self._lock:
            if self.running:
                os.kill(self.pid, signal.SIGCONT)

    def end(self) -> bool:
        """Ask it to end; False when it had to be killed."""
        with self._lock:
            self._wanted = False
            if self._process is None:
                return True
            self._process.terminate()
            until = PATIENCE.now_s() + END_S
            while self._process.poll() is None:
                if PATIENCE.now_s() > until:
                    self._process.kill()
                    self._process.wait()
                    return False
                time.sleep(0.05)
            return True


class Redis(Part):
    """The broker, outside of the product as an external one is."""

    def __init__(self, directory: Path, address: str, port: int = 6379) -> None:
        directory.mkdir()
        self._directory = directory
        conf = directory / "redis.conf"
        conf.write_text(
            f"bind {address}\nport {port}\nprotected-mode no\ndir {directory}\nappendonly yes\n"
            'appendfsync everysec\nsave ""\nmaxmemory-policy noeviction\n'
        )
        self.url = f"redis://{address}:{port}/0"
        program = shutil.which("redis-server") or shutil.which("valkey-server")
        assert program, "redis-server: run tools/setup.sh test"

        def ping() -> bool:
            try:
                with socket.create_connection((address, port), 2) as connection:
                    connection.sendall(b"PING\r\n")
                    return connection.recv(64).startswith(b"+PONG")
            except OSError:
                return False

        super().__init__("redis", [program, str(conf)], directory.with_name("redis.log"), answers=ping)

    def lose_files(self) -> None:
        """While it is down."""
        shutil.rmtree(self._directory / "appendonlydir", ignore_errors=True)
        (self._directory / "appendonly.aof").unlink(missing_ok=True)


class Postgres(Part):
    """The job database, on a copy of a cluster that has it already."""

    DATABASE = "vmhaul"

    def __init__(self, directory: Path, template: Path, address: str, port: int = 5432) -> None:
        subprocess.run(["cp", "-a", str(template), str(directory)], check=True)
        with (directory / "pg_hba.conf").open("a") as file:
            file.write("host all all 10.0.0.0/8 trust\n")
        programs = find_programs()
        assert programs, "PostgreSQL's programs: run tools/setup.sh test"
        self.url = f"postgresql+psycopg://vmhaul@{address}:{port}/{self.DATABASE}"
        self._directory = directory

        def connects() -> bool:
            try:
                with psycopg.connect(
                    host=address, port=port, user="vmhaul", dbname="postgres", connect_timeout=2
                ):
                    return True
            except psycopg.OperationalError:
                return False

        command = [
            str(programs / "postgres"), "-D", str(directory), "-h", address, "-p", str(port), "-k", "",
            "-c", "fsync=off", "-c", "shared_buffers=16MB", "-c", "max_connections=100",
        ]  # fmt: skip
        log = directory.with_name("postgres.log")
        super().__init__("postgres", command, log, answers=connects, user="postgres")

    def kill(self) -> None:
        super().kill()
        # Its children see the death of the first process and end; until then another cannot start.
        until = time.monotonic() + 20
        while time.monotonic() < until and self._others():
            time.sleep(0.05)

    def _others(self) -> bool:
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.name() == "postgres" and process.status() != psutil.STATUS_ZOMBIE:
                    return True
        return False


def server_command(inside: Sequence[str], data_dir: Path, settings: Path) -> list[str]:
    words = [*inside, sys.executable, "-m", "backup_server.main"]
    return [*words, "--data", str(data_dir), "--settings", str(settings)]


def worker_command(inside: Sequence[str], data_dir: Path) -> list[str]:
    return [*inside, sys.executable, "-m", "proxy_worker", "--data", str(data_dir)]


class Keeper:
    """Watches the parts and starts again what ended by itself."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self._parts = parts
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="keeper", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.2):
            for part in self._parts:
                part.keep()
