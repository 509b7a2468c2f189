"""A small platform for tests of the queue: real broker, real Celery workers, real scheduler, real SQL;
in place of sessions there are task rows, in place of the data mover there is `mover.py`.
"""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import redis
import sqlalchemy as sa
import structlog

from backup_server import broker as embedded
from backup_server.config import Settings
from backup_server.db.engine import Database, open_database
from backup_server.db.states import TaskState
from backup_server.db.tables import Proxy, Task, new_id
from backup_server.errors import ForbiddenError, VmhaulError, outcome_of
from backup_server.scheduler.claims import ClaimIndex, ProxyEntry
from backup_server.scheduler.main import Scheduler
from backup_server.scheduler.needs import Timing
from backup_server.services import leases
from backup_server.services.proxy_door import ProxyDoor, server_verify_key
from proxy_worker.config import ENROLMENT_FILE, Enrolment
from proxy_worker.contracts.ids import Attempt, ProxyId, TaskId
from proxy_worker.contracts.messages import SecretsRequest, TaskKind, TaskSecrets, VsphereAccess
from proxy_worker.identity import Identity, load_or_create_identity
from tests.integration.queue.task_rows import add_repository, add_session, add_vm, backup_order

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
WAIT_S = 60.0

ON_SQLITE = pytest.mark.parametrize("migrated_url", ["sqlite"], indirect=True)
"""For tests in which the database plays no part that other tests do not show on both."""
ON_POSTGRESQL = pytest.mark.parametrize(
    "migrated_url", [pytest.param("postgresql", marks=pytest.mark.postgres)], indirect=True
)
"""For tests in which several write at the same time."""


def utc_now() -> datetime:
    return datetime.now(UTC)


def wait_for(condition: Callable[[], Any], what: str, timeout_s: float = WAIT_S) -> Any:
    """What `condition` answers once it is true."""
    until = time.monotonic() + timeout_s
    while time.monotonic() < until:
        value = condition()
        if value:
            return value
        time.sleep(0.05)
    raise AssertionError(f"{what} did not happen within {timeout_s:.0f} s")


class Broker:
    """The embedded broker as a child, which can be killed and started with or without its data."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.start()

    def start(self) -> None:
        self.how = embedded.prepare(self._directory / "b", self._directory / "r")
        self._log = (self._directory / "broker.log").open("ab")
        self._process = subprocess.Popen(self.how.command, stdout=self._log, stderr=self._log)
        wait_for(self.how.answers, "the broker's start")

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        self._log.close()

    def forget(self) -> None:
        """Remove what it kept on the disk."""
        for path in sorted((self._directory / "b").rglob("*"), reverse=True):
            if path.is_file():
                path.unlink()
            else:
                path.rmdir()

    def client(self) -> redis.Redis:
        client: redis.Redis = redis.Redis.from_url(self.how.redis_url, decode_responses=True)
        return client


@dataclass(frozen=True, kw_only=True)
class LightContext:
    settings: Settings
    db: Database
    server_id: str = "11111111-1111-1111-1111-111111111111"
    clock: Callable[[], datetime] = utc_now
    log: Any = field(default_factory=structlog.get_logger)
    wake_engine: threading.Event = field(default_factory=threading.Event)
    wake_dispatcher: threading.Event = field(default_factory=threading.Event)
    wake_janitor: threading.Event = field(default_factory=threading.Event)


class SecretsDoor:
    """The one HTTP route that workers call."""

    def __init__(self, ctx: LightContext) -> None:
        self.door = ProxyDoor(ctx, redeem=_redeem)  # type: ignore[arg-type]
        self.away = False
        self.refused = 0
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                status, answer = outer.answer(body)
                self.send_response(status)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - its name
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    def answer(self, body: bytes) -> tuple[int, bytes]:
        if self.away:
            self.refused += 1
            return 503, b""
        try:
            return 200, self.door.answer(body, SecretsRequest).encode()
        except VmhaulError as error:
            text = json.dumps({"error": {"code": "x", "message": str(error), "details": {}}})
            return outcome_of(error).http_status, text.encode()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def _redeem(ctx: Any, proxy_id: str, task_id: str, attempt: int) -> TaskSecrets:
    with ctx.db.read() as s:
        if not leases.holds_attempt(s, proxy_id, task_id, attempt):
            raise ForbiddenError("not held")
    return TaskSecrets(
        task_id=TaskId(task_id),
        attempt=Attempt(attempt),
        repository_key=f"key-{attempt}",
        storage_secrets=f'{{"password": "storage-secret-{attempt}"}}',
        vsphere=VsphereAccess(
            host="vcenter.example",
            port=443,
            thumbprint_sha256="AB" * 32,
            clone_ticket=f"clone-ticket-{attempt}",
        ),
    )


class Worker:
    """A proxy's worker process."""

    def __init__(self, data_dir: Path, marks: Path, log: Path) -> None:
        self._log = log.open("ab")
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "worker.py"), str(data_dir), str(marks)],
            stdout=self._log,
            stderr=self._log,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self._log.close()

    def terminate(self, timeout_s: float = 30) -> int:
        self.process.terminate()
        code = self.process.wait(timeout_s)
        self._log.close()
        return code

    def freeze(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    @property
    def running(self) -> bool:
        return self.process.poll() is None


SETTINGS: dict[str, Any] = {
    "lease_s": 2.5,
    "proxy_offline_after_s": 2.0,
    "order_ttl_s": 20.0,
    "task_retry_wait_s": 0.1,
    "dispatch_interval_s": 0.1,
    "reaper_interval_s": 0.2,
    "host_nfc_streams": 50,
}
TIMING = Timing(
    leader_ttl_s=2.0,
    report_batch_s=0.05,
    report_block_s=0.2,
    outbox_idle_s=0.1,
    audit_s=1.0,
    spill_s=0.2,
)


class Rig:
    def __init__(
        self, directory: Path, database_url: str, settings: dict[str, Any] | None = None
    ) -> None:
        self.directory = directory
        self.settings = Settings(
            data_dir=directory / "s", database=database_url, **{**SETTINGS, **(settings or {})}
        )
        self.settings.make_directories()
        self.db = open_database(self.settings.database_url)
        self.ctx = LightContext(settings=self.settings, db=self.db)
        self.broker = Broker(directory)
        self.door = SecretsDoor(self.ctx)
        self.scheduler: Scheduler | None = None
        self.workers: list[Worker] = []
        self.marks_file = directory / "marks"
        self.marks_file.touch()
        with self.db() as s:
            self.repository_id = add_repository(s, utc_now())

    # -- the server

    def start_scheduler(self, timing: Timing = TIMING) -> Scheduler:
        self.scheduler = Scheduler(self.ctx, self.broker.how.celery_url, timing=timing)
        self.scheduler.start()
        return self.scheduler

    def stop_scheduler(self) -> None:
        assert self.scheduler is not None
        self.scheduler.stop()
        self.scheduler = None

    def close(self) -> None:
        for worker in self.workers:
            if worker.running:
                worker.kill()
        if self.scheduler is not None:
            self.stop_scheduler()
        self.door.close()
        self.broker.kill()
        self.db.close()

    # -- rows

    def add_proxy(self, name: str, slots: int = 2) -> str:
        """An enrolled proxy with its data directory; the worker is not started."""
        directory = self.directory / name
        directory.mkdir()
        identity = load_or_create_identity(directory)
        row_id = new_id()
        with self.db() as s:
            s.add(
                Proxy(
                    id=row_id,
                    name=name,
                    local=True,
                    slots=slots,
                    signing_key=identity.signing_public,
                    sealing_key=identity.sealing_public,
                    created_at=utc_now(),
                )
            )
        enrolment = Enrolment(
            proxy_id=ProxyId(row_id),
            name=name,
            server_url=self.door.url,
            server_key=server_verify_key(self.ctx),  # type: ignore[arg-type]
            broker_url=self.broker.how.celery_url,
        )
        (directory / ENROLMENT_FILE).write_text(json.dumps(asdict(enrolment)))
        (directory / "proxy.toml").write_text(
            "heartbeat_s = 0.5\nresend_s = 1.0\nstop_grace_s = 0.2\nkill_grace_s = 1.0\n"
            "max_tasks = 8\nprogress_s = 0.1\nsecrets_timeout_s = 10.0\n"
        )
        return row_id

    def identity(self, name: str) -> Identity:
        return load_or_create_identity(self.directory / name)

    def start_worker(self, name: str) -> Worker:
        worker = Worker(self.directory / name, self.marks_file, self.directory / f"{name}.log")
        self.workers.append(worker)
        return worker

    def start_proxy(self, name: str, slots: int = 2) -> tuple[str, Worker]:
        """A proxy whose worker is known to be online."""
        row_id = self.add_proxy(name, slots)
        worker = self.start_worker(name)
        self.wait_online(row_id)
        return row_id, worker

    def wait_online(self, proxy_id: str, boot_id: str | None = None) -> None:
        def online() -> bool:
            row = self.proxy(proxy_id)
            return row.last_seen_at is not None and row.boot_id != boot_id

        wait_for(online, "the worker's first heartbeat")

    def proxy(self, proxy_id: str) -> Proxy:
        with self.db.read() as s:
            return s.get_one(Proxy, proxy_id)

    def add_session(self) -> str:
        with self.db() as s:
            return add_session(s, utc_now(), "backup")

    def add_tasks(self, titles: list[str], session_id: str | None = None, **values: Any) -> list[str]:
        """Pending tasks of one VM; answers their ids."""
        session_id = session_id or self.add_session()
        ids = []
        with self.db() as s:
            vm_id = add_vm(s, session_id)
            for position, title in enumerate(titles):
                row = Task(
                    id=new_id(),
                    session_id=session_id,
                    session_vm_id=vm_id,
                    kind=TaskKind.BACKUP_DISK.value,
                    title=title,
                    position=position,
                    disk_key=2000 + position,
                    disk_label=f"Hard disk {position + 1}",
                    disk_path="[ds] db01/db01.vmdk",
                    capacity_bytes=1 << 30,
                    datastore="vc/ds",
                    repository_id=self.repository_id,
                    order=backup_order(2000 + position),
                    priority=1,
                    state=TaskState.PENDING.value,
                    created_at=utc_now(),
                )
                for name, value in values.items():
                    setattr(row, name, value)
                s.add(row)
                ids.append(row.id)
        self.ctx.wake_dispatcher.set()
        return ids

    def task(self, task_id: str) -> Task:
        with self.db.read() as s:
            return s.get_one(Task, task_id)

    def tasks(self, ids: list[str]) -> list[Task]:
        with self.db.read() as s:
            rows = {row.id: row for row in s.scalars(sa.select(Task).where(Task.id.in_(ids)))}
        return [rows[task_id] for task_id in ids]

    def wait_state(self, ids: list[str], state: TaskState, timeout_s: float = WAIT_S) -> list[Task]:
        try:
            wait_for(
                lambda: all(row.state == state.value for row in self.tasks(ids)),
                f"{state.value} of all tasks",
                timeout_s,
            )
        except AssertionError as error:
            shown = [(r.title, r.state, r.result, r.attempt, r.reason) for r in self.tasks(ids)]
            raise AssertionError(f"{error}: {shown}\n{self.logs()}") from None
        return self.tasks(ids)

    def marks(self) -> list[tuple[str, int, int]]:
        """Task, attempt and process id of every mover that began, in order."""
        lines = self.marks_file.read_text().splitlines()
        return [(task, int(attempt), int(pid)) for task, attempt, pid in map(str.split, lines)]

    def wait_begun(self, task_id: str, attempt: int = 1) -> int:
        """Process id of the mover of that attempt."""

        def pid() -> int:
            found = [p for t, a, p in self.marks() if (t, a) == (task_id, attempt)]
            return found[0] if found else 0

        return int(wait_for(pid, f"the start of attempt {attempt}"))

    def logs(self) -> str:
        texts = []
        for path in sorted(self.directory.glob("*.log")):
            with contextlib.suppress(OSError):
                texts.append(f"--- {path.name}\n" + path.read_text(errors="replace")[-3000:])
        return "\n".join(texts)


def is_gone(pid: int) -> bool:
    """Whether that process is gone or only waits to be reaped by somebody."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return True
    return status.rpartition(")")[2].split()[0] == "Z"


@contextlib.contextmanager
def running(rig: Rig) -> Iterator[Rig]:
    try:
        yield rig
    finally:
        rig.close()


def tell_of_proxy(index: ClaimIndex, entry: ProxyEntry, ranks: dict[str, int]) -> None:
    """A proxy with all that it reaches: place -> rank."""
    index.remove_proxies([entry.proxy_id])
    index.set_proxies([entry])
    index.set_places({place: {entry.proxy_id: rank} for place, rank in ranks.items()}, [entry.proxy_id])
