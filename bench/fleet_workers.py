"""The proxies' part of the simulation: one real Celery worker for each proxy, forked from one process so that they
share their memory. Only the data mover is played: it sleeps for as long as the task's title says, reports progress
and succeeds. Each worker writes down when its tasks came, began and ended.

    python -m bench.fleet_workers DIRECTORY

DIRECTORY holds proxies.json. Ends its workers at SIGTERM.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from proxy_worker.app import run_worker
from proxy_worker.config import ProxyConfig, ProxySettings, load_enrolment
from proxy_worker.contracts.codec import from_json
from proxy_worker.contracts.messages import (
    ConnectionsReport,
    ProgressReport,
    ResultReport,
    TaskOutcome,
    TaskSecrets,
)
from proxy_worker.discovery import Discovery
from proxy_worker.runner import FetchSecrets, OnProgress, Runner, end_of
from proxy_worker.service import ProxyService
from proxy_worker.slots import StopReason, TaskHandle
from transports.base import TransportMode

PROGRESS_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PlayedConfig(ProxyConfig):
    played_modes: tuple[TransportMode, ...] = ()

    def modes(self) -> tuple[TransportMode, ...]:
        return self.played_modes


class Record:
    """One line for each task, written when it ended."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", buffering=1)
        self.local = threading.local()

    def came(self) -> None:
        self.local.came = time.time()

    def ended(self, handle: TaskHandle, began: float) -> None:
        request = handle.request
        line = {
            "task": request.task_id,
            "attempt": request.attempt,
            "mode": request.mode.value,
            "came": self.local.came,
            "began": began,
            "ended": time.time(),
        }
        self._file.write(json.dumps(line) + "\n")


class SleepingRunner(Runner):
    def __init__(self, record: Record) -> None:
        super().__init__((), kill_grace_s=1.0, log=structlog.get_logger())
        self._record = record

    def run(
        self,
        handle: TaskHandle,
        secrets: TaskSecrets,
        fetch_secrets: FetchSecrets,
        on_progress: OnProgress,
    ) -> ResultReport:
        del secrets, fetch_secrets
        request = handle.request
        began = time.time()
        total_s = float(request.title.rpartition("sleep=")[2])
        while True:
            spent_s = time.time() - began
            if spent_s >= total_s or handle.stop_requested.wait(min(PROGRESS_S, total_s - spent_s)):
                break
            on_progress(_progress(handle, spent_s / total_s))
        self._record.ended(handle, began)
        if handle.reason is StopReason.NONE:
            return end_of(request, TaskOutcome.SUCCESS, "")
        outcome = TaskOutcome.CANCELLED if handle.reason is StopReason.CANCEL else TaskOutcome.RETRY
        return end_of(request, outcome, "stopped")


def _progress(handle: TaskHandle, share: float) -> ProgressReport:
    total = 40 << 30
    done = min(total, int(total * share))
    return ProgressReport(
        task_id=handle.request.task_id,
        attempt=handle.request.attempt,
        phase="reading",
        total_bytes=total,
        done_bytes=done,
        read_bytes=done,
        stored_bytes=done // 2,
        bytes_per_s=1e8,
        bottleneck="source",
        mode=handle.request.mode,
    )


class PlayedDiscovery(Discovery):
    """Tells what the site gave the proxy."""

    def start(self) -> None:
        pass

    def now(self) -> None:
        pass

    def stop(self, timeout_s: float) -> None:
        pass


class PlayedService(ProxyService):
    def __init__(self, config: ProxyConfig, report: ConnectionsReport, record: Record) -> None:
        super().__init__(config, time.time, structlog.get_logger())
        self._runner = SleepingRunner(record)
        self._record = record
        self._discovery = PlayedDiscovery(
            proxy_id=report.proxy_id,
            options=config.settings.mode_options(),
            datastores=self._server.datastores,
            send=lambda _: None,
            log=structlog.get_logger(),
        )

    def execute(self, envelope: str, on_progress: OnProgress) -> None:
        self._record.came()
        super().execute(envelope, on_progress)


def play(place: Path, one: dict[str, Any]) -> int:
    directory = Path(one["directory"])
    enrolment = load_enrolment(directory)
    assert enrolment is not None
    config = PlayedConfig(
        data_dir=directory,
        enrolment=enrolment,
        settings=ProxySettings(log_level="error"),
        played_modes=tuple(TransportMode(mode) for mode in one["modes"]),
    )
    report = from_json(ConnectionsReport, one["report"])
    record = Record(place / "records" / f"{one['name']}.jsonl")
    return run_worker(
        config, time.time, structlog.get_logger(), service=PlayedService(config, report, record)
    )


def main() -> int:
    place = Path(sys.argv[1])
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    (place / "records").mkdir(exist_ok=True)
    children = []
    gc.collect()
    gc.freeze()
    for one in json.loads((place / "proxies.json").read_text()):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                code = play(place, one)
            finally:
                os._exit(code)
        children.append(pid)
        time.sleep(0.05)  # 200 of them at once would all miss each other's first heartbeat

    def end(*_: Any) -> None:
        for pid in children:
            os.kill(pid, signal.SIGTERM)

    signal.signal(signal.SIGTERM, end)
    codes = [os.waitpid(pid, 0)[1] for pid in children]
    return int(any(codes))


if __name__ == "__main__":
    sys.exit(main())
