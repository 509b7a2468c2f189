"""The server's part of the simulation, in a process of its own: scheduler, dispatcher, reports, outbox, reaper, and the
door at which proxies ask for secrets. There is no vSphere, so there is no session engine.

    python -m bench.fleet_server DIRECTORY

DIRECTORY holds server.json. Writes door.json when it answers, statistics.json at SIGTERM.
"""

from __future__ import annotations

import http.server
import json
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
import structlog

from backup_server.config import Settings
from backup_server.db.engine import Database, open_database
from backup_server.errors import ForbiddenError, VmhaulError, outcome_of
from backup_server.scheduler.main import Scheduler
from backup_server.services import leases
from backup_server.services.proxy_door import ProxyDoor
from proxy_worker.contracts.ids import Attempt, TaskId
from proxy_worker.contracts.messages import SecretsRequest, TaskSecrets

_NAMED: Final = 80


def utc_now() -> datetime:
    return datetime.now(UTC)


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


@dataclass(slots=True)
class Statements:
    """What went to the database: round trips, and rows that they were executed for."""

    trips: int = 0
    executions: int = 0
    by_text: Counter[str] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def listen(self, engine: sa.Engine) -> None:
        sa.event.listen(engine, "before_cursor_execute", self._count)

    def _count(
        self, _connection: Any, _cursor: Any, text: str, parameters: Any, _context: Any, many: bool
    ) -> None:
        if text.startswith("BEGIN"):
            return
        with self.lock:
            self.trips += 1
            self.executions += len(parameters) if many else 1
            self.by_text[" ".join(text.split())[:_NAMED]] += 1


@dataclass(slots=True)
class Steps:
    """How long the steps of one loop took that did something: those of nothing but waiting are short or asleep."""

    seconds: list[float] = field(default_factory=list)

    def of(self, step: Callable[[], bool]) -> Callable[[], bool]:
        def timed() -> bool:
            began = time.monotonic()
            again = step()
            self.seconds.append(time.monotonic() - began)
            return again

        return timed

    def summary(self) -> dict[str, float]:
        ordered = sorted(self.seconds) or [0.0]
        return {
            "count": len(self.seconds),
            "total_s": round(sum(ordered), 1),
            "p50_s": round(ordered[len(ordered) // 2], 3),
            "p99_s": round(ordered[int(0.99 * len(ordered))], 3),
            "max_s": round(ordered[-1], 3),
        }


class Door:
    """The one HTTP route that workers call."""

    def __init__(self, ctx: LightContext) -> None:
        door = ProxyDoor(ctx, redeem=_redeem)  # type: ignore[arg-type]

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                try:
                    status, answer = 200, door.answer(body, SecretsRequest).encode()
                except VmhaulError as error:
                    text = {"error": {"code": "x", "message": str(error), "details": {}}}
                    status, answer = outcome_of(error).http_status, json.dumps(text).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - its name
                pass

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 512

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def _redeem(ctx: Any, proxy_id: str, task_id: str, attempt: int) -> TaskSecrets:
    with ctx.db.read() as s:
        if not leases.holds_attempt(s, proxy_id, task_id, attempt):
            raise ForbiddenError("not held")
    return TaskSecrets(task_id=TaskId(task_id), attempt=Attempt(attempt), repository_key="0" * 64)


def main() -> int:
    place = Path(sys.argv[1])
    given = json.loads((place / "server.json").read_text())
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(30))
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    settings = Settings(data_dir=place / "s", database=given["database"], **given["settings"])
    settings.make_directories()
    db = open_database(settings.database_url)
    statements = Statements()
    statements.listen(db.engine)
    ctx = LightContext(settings=settings, db=db)
    door = Door(ctx)
    scheduler = Scheduler(ctx, given["broker"])
    steps: dict[str, Steps] = {}
    for loop in scheduler._loops:  # noqa: SLF001 - the product has no use for it
        steps[loop.health.name] = Steps()
        loop._step = steps[loop.health.name].of(loop._step)  # noqa: SLF001
    scheduler.start()
    (place / "door.part").write_text(json.dumps({"url": door.url}))
    (place / "door.part").rename(place / "door.json")
    began = time.monotonic()
    stop.wait()
    scheduler.stop()
    door.close()
    health = [
        {"name": one.name, "failures": one.failures, "problem": one.problem}
        for one in scheduler.health()
    ]
    (place / "statistics.json").write_text(
        json.dumps(
            {
                "seconds": time.monotonic() - began,
                "trips": statements.trips,
                "executions": statements.executions,
                "by_text": dict(statements.by_text.most_common(40)),
                "loops": health,
                "steps": {name: found.summary() for name, found in steps.items()},
            }
        )
    )
    db.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
