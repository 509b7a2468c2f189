"""What an operator waits for on a large site: every reading command, page and figure, with its statements.

    python -m bench.bench_views [--vms 10000] [--days 90] [--task-days 10] [--only TEXT] [--directory DIR]

The job database is made up (`views_site`): a night of three disks for each VM under way, and the history of `--days`
nights of all VMs. API, console and metrics are asked in a server of one process over HTTP; commands are processes,
so their time holds the start of Python as well. A DIRECTORY that was filled before is asked again. Prints a table of
time and of CPU (of the server, and of the command where there is one); ends with 1 when something takes more than a
second of CPU, which does not depend on what else the machine does.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import httpx
import sqlalchemy as sa
import structlog
import uvicorn

from backup_server.config import Settings
from backup_server.db.tables import Session, Task
from backup_server.main import create_app, load_or_create_token
from backup_server.services import unfinished
from backup_server.services.bootstrap import open_context
from backup_server.services.context import Context
from backup_server.services.vcenter_pool import VsphereDoor
from bench import views_site
from bench.fleet_site import Size
from bench.views_site import NIGHT, NIGHT_JOB, History
from transports import vsphere

MOST_S: Final = 1.0
_ROUNDS: Final = 2
_SLOTS: Final = 8
_PROXIES_OF_VMS: Final = 50


def utc_now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Names:
    """What there is to ask for."""

    waiting: str
    running: str
    past: str
    vm: str
    proxy: str = "proxy-000"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    what: str
    seconds: float
    cpu_s: float
    statements: int | None
    answer_bytes: int


class Statements:
    def __init__(self, engine: sa.Engine) -> None:
        self.count = 0
        sa.event.listen(engine, "before_cursor_execute", self._one)

    def _one(self, *_: Any) -> None:
        self.count += 1


def api_paths(names: Names) -> list[str]:
    lists = (
        "sessions jobs proxies repositories restore-points datastores traffic-rules servers operations"
    )
    return [
        *(f"/api/v1/{name}" for name in lists.split()),
        "/api/v1/sessions?limit=1000",
        f"/api/v1/sessions?job={NIGHT_JOB}",
        f"/api/v1/sessions/{NIGHT}",
        f"/api/v1/sessions/{NIGHT}/events",
        f"/api/v1/sessions/{names.past}",
        f"/api/v1/tasks/{names.waiting}/why",
        f"/api/v1/tasks/{names.running}/why",
        f"/api/v1/jobs/{NIGHT_JOB}",
        "/api/v1/jobs/job-01/retention",
        f"/api/v1/restore-points?vm={names.vm}",
        f"/api/v1/proxies/{names.proxy}",
        "/api/v1/metrics",
    ]


def console_paths(names: Names) -> list[str]:
    return [
        "/",
        "/fragments/overview",
        "/jobs",
        f"/jobs/{NIGHT_JOB}",
        "/jobs/job-01/retention",
        "/sessions",
        f"/sessions/{NIGHT}",
        f"/fragments/sessions/{NIGHT}",
        f"/sessions/{names.past}",
        f"/tasks/{names.waiting}",
        "/restore-points",
        "/proxies",
        f"/proxies/{names.proxy}",
        "/repositories",
        "/traffic",
    ]


def commands(names: Names) -> list[str]:
    return [
        "--version",
        "session list",
        "session show latest",
        f"session show {NIGHT[:8]}",
        f"session show {names.past}",
        f"session log {NIGHT}",
        f"task why {names.waiting[:8]}",
        "job list",
        f"job show {NIGHT_JOB}",
        "job retention job-01",
        "proxy list",
        f"proxy show {names.proxy}",
        "server list",
        "operation list",
        "datastore list",
        "traffic list",
        "repository list",
        f"restore-point list --vm {names.vm}",
        f"restore-point show {names.vm}@latest",
        "restore-point list",
    ]


def choose(ctx: Context) -> Names:
    with ctx.db.read() as s:
        by_state = sa.select(Task.id).where(Task.session_id == NIGHT)
        waiting = s.scalars(by_state.where(Task.state == "pending").limit(1)).one()
        running = s.scalars(by_state.where(Task.state == "running").limit(1)).one()
        past = s.scalars(
            sa.select(Session.id).where(Session.state == "finished").order_by(Session.id).limit(1)
        ).one()
    return Names(waiting=waiting, running=running, past=past, vm="vm-00007")


@contextmanager
def serving(ctx: Context) -> Iterator[str]:
    """The application on a free port of loopback, and run/server.json as `vmhaul up` writes it."""
    token = load_or_create_token(ctx.settings.data_dir / "api-token")
    listener = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    config = uvicorn.Config(create_app(ctx, token), log_level="warning", lifespan="on")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    path = ctx.settings.run_dir / "server.json"
    path.write_text(json.dumps({"url": url, "token": token.reveal()}))
    try:
        yield url
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


def measure(ctx: Context, names: Names, only: str) -> Iterator[Row]:
    statements = Statements(ctx.db.engine)

    def asked(what: str, ask: Any) -> Row:
        """The better of two: the first fills caches of the database that a site has full."""
        best, best_cpu, count, size_bytes = float("inf"), float("inf"), 0, 0
        for _ in range(_ROUNDS):
            statements.count = 0
            began, cpu_began = time.perf_counter(), _cpu_s()
            size_bytes = ask()
            best = min(best, time.perf_counter() - began)
            best_cpu = min(best_cpu, _cpu_s() - cpu_began)
            count = statements.count
        return Row(what=what, seconds=best, cpu_s=best_cpu, statements=count, answer_bytes=size_bytes)

    with serving(ctx) as url:
        token = load_or_create_token(ctx.settings.data_dir / "api-token").reveal()
        with httpx.Client(base_url=url, timeout=600, trust_env=False) as client:
            client.post("/login", data={"token": token})
            headers = {"Authorization": f"Bearer {token}"}

            def get(path: str) -> int:
                answer = client.get(path, headers=headers)
                if answer.status_code != httpx.codes.OK:
                    raise SystemExit(f"{path}: {answer.status_code} {answer.text[:300]}")
                return len(answer.content)

            for path in (*api_paths(names), *console_paths(names)):
                if re.search(only, path):
                    yield asked(path, lambda path=path: get(path))
            for line in commands(names):
                if re.search(only, line):
                    yield asked("vmhaul " + line, lambda line=line: _run(ctx, line))
        if re.search(only, "needed_work"):
            yield asked("needed_work", lambda: _needed(ctx))


def _cpu_s() -> float:
    """Of this process and of those that it waited for."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def _run(ctx: Context, line: str) -> int:
    done = subprocess.run(
        [sys.executable, "-m", "backup_server.cli", *line.split()],
        env={**os.environ, "VMHAUL_DATA": str(ctx.settings.data_dir), "COLUMNS": "200"},
        capture_output=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"vmhaul {line}: {done.returncode} {done.stderr.decode()[-500:]}")
    return len(done.stdout)


def _needed(ctx: Context) -> int:
    with ctx.db.read() as s:
        return len(unfinished.needed_work(s, "repository-0", ctx.clock()))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--vms", type=int, default=10_000)
    parser.add_argument("--days", type=int, default=90)
    parser.add_argument("--task-days", type=int, default=10)
    parser.add_argument("--only", default="", help="a regular expression: measure what it finds")
    parser.add_argument("--directory", type=Path)
    given = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    with tempfile.TemporaryDirectory(prefix="views-") as scratch:
        place = given.directory or Path(scratch)
        settings = Settings(data_dir=place / "data", flower=False)
        is_new = not settings.server_key_file.exists()
        door = VsphereDoor(connect=vsphere.connect, probe=vsphere.probe)
        ctx = open_context(settings, clock=utc_now, vsphere=door)
        try:
            if is_new:
                _fill(ctx, place, given)
            rows = []
            for row in measure(ctx, choose(ctx), given.only):
                rows.append(row)
                _print(row)
        finally:
            ctx.close()
    slow = [row.what for row in rows if row.cpu_s > MOST_S]
    print(
        f"{len(slow)} of {len(rows)} take more than {MOST_S:.0f} s of CPU: {', '.join(slow) or 'none'}"
    )
    return 1 if slow else 0


def _fill(ctx: Context, place: Path, given: argparse.Namespace) -> None:
    size = Size(
        vms=given.vms,
        disks=3 * given.vms,
        proxies=max(2, given.vms // _PROXIES_OF_VMS),
        slots=_SLOTS,
        compress=1,
    )
    history = History(days=given.days, task_days=min(given.days, given.task_days), point_days=14)
    began = time.perf_counter()
    views_site.make(ctx.db, place, size, history, ctx.clock())
    print(f"made in {time.perf_counter() - began:.0f} s", flush=True)


def _print(row: Row) -> None:
    mark = "  SLOW" if row.cpu_s > MOST_S else ""
    count = "" if row.statements is None else f"{row.statements}"
    print(
        f"{row.seconds:8.3f} s {row.cpu_s:7.2f} s CPU {count:>6} statements {row.answer_bytes:>10} bytes  {row.what}{mark}",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
