"""The runner with children that behave badly; the child is a few lines of Python each."""

from __future__ import annotations

import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import structlog

from proxy_worker.contracts.ids import Attempt, ProxyId, SessionId, TaskId
from proxy_worker.contracts.messages import (
    ProgressReport,
    RepositoryRef,
    TaskKind,
    TaskOutcome,
    TaskRequest,
    TaskSecrets,
)
from proxy_worker.errors import LeaseRefusedError, ServerUnavailableError
from proxy_worker.runner import Runner
from proxy_worker.slots import StopReason, TaskHandle
from transports.base import TransportMode

REQUEST = TaskRequest(
    kind=TaskKind.BACKUP_DISK,
    task_id=TaskId("t1"),
    session_id=SessionId("s"),
    attempt=Attempt(2),
    proxy_id=ProxyId("p"),
    expires_at_s=0.0,
    title="disk",
    mode=TransportMode.NBDSSL,
    repository=RepositoryRef(repository_id="r", location="/srv"),
)
SECRETS = TaskSecrets(task_id=TaskId("t1"), attempt=Attempt(2), repository_key="hush")
PROLOGUE = """
import json, os, signal, sys, time
order = json.loads(sys.stdin.readline())
base = {"schema_version": 1, "task_id": "t1", "attempt": 2}
def say(**values):
    print(json.dumps(values), flush=True)
def result(outcome="success", reason=""):
    say(result={**base, "outcome": outcome, "reason": reason})
def progress(done=1):
    say(progress={**base, "phase": "reading", "total_bytes": 9, "done_bytes": done, "read_bytes": 0,
        "stored_bytes": 0, "bytes_per_s": 0, "bottleneck": ""})
"""


class Stage:
    def __init__(self) -> None:
        self.handle = TaskHandle(REQUEST)
        self.progress: list[ProgressReport] = []
        self.fetched = 0
        self.refusal: Exception | None = None
        self.begun = threading.Event()

    def fetch(self, handle: TaskHandle) -> TaskSecrets:
        assert handle is self.handle
        self.fetched += 1
        if self.refusal is not None:
            raise self.refusal
        return SECRETS

    def _progress(self, report: ProgressReport) -> None:
        self.progress.append(report)
        self.begun.set()

    def run(self, body: str, kill_grace_s: float = 1.0) -> Any:
        command = (sys.executable, "-c", PROLOGUE + body)
        runner = Runner(command, kill_grace_s=kill_grace_s, log=structlog.get_logger())
        return runner.run(self.handle, SECRETS, self.fetch, self._progress)

    def stop_when_begun(self, reason: StopReason) -> None:
        def stop() -> None:
            self.begun.wait(30)
            self.handle.stop(reason)

        threading.Thread(target=stop, daemon=True).start()


@pytest.fixture
def stage() -> Stage:
    return Stage()


def test_order_in_result_out(stage: Stage) -> None:
    done = stage.run(
        "assert order['request']['title'] == 'disk'\n"
        "assert order['secrets']['repository_key'] == 'hush'\n"
        "progress(3)\nresult('warning', 'look')\n"
    )
    assert (done.outcome, done.reason) == (TaskOutcome.WARNING, "look")
    assert [report.done_bytes for report in stage.progress] == [3]


def test_secrets_are_in_neither_environment_nor_arguments(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VMHAUL_TEST_SECRET", "hush")
    done = stage.run(
        "seen = open('/proc/self/environ').read() + ' '.join(sys.argv)\n"
        "result('success' if 'hush' not in seen and 'SECRET' not in seen else 'failed')\n"
    )
    assert done.outcome is TaskOutcome.SUCCESS


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", "by signal SIGSEGV"),
        ("sys.exit(3)", "with code 3"),
        ("print('last straw', file=sys.stderr); sys.exit(1)", "last words: last straw"),
        ("say(result={'schema_version': 1})", "without a result"),
        ("say(result={**base, 'task_id': 'other', 'outcome': 'success', 'reason': ''})", "without"),
        ("print('x' * 3000000)", "without a result"),
    ],
)
def test_an_end_without_a_result_is_worth_another_attempt(stage: Stage, body: str, words: str) -> None:
    done = stage.run(body)
    assert done.outcome is TaskOutcome.RETRY
    assert words in done.reason


def test_lines_that_are_none_do_not_matter(stage: Stage) -> None:
    done = stage.run(
        "print('hello')\nprint('[1]')\nprint('{}')\nsay(progress={'odd': 1})\n"
        "say(progress={**base, 'attempt': 9})\nresult()\n"
    )
    assert done.outcome is TaskOutcome.SUCCESS
    assert stage.progress == []


def test_fresh_secrets_on_request(stage: Stage) -> None:
    done = stage.run(
        "say(need='secrets')\nanswer = json.loads(sys.stdin.readline())\n"
        "result('success', answer['secrets']['repository_key'])\n"
    )
    assert (done.outcome, done.reason, stage.fetched) == (TaskOutcome.SUCCESS, "hush", 1)


def test_refused_secrets_are_told_to_the_mover(stage: Stage) -> None:
    body = "say(need='secrets')\nresult('retry', json.loads(sys.stdin.readline())['refused'])\n"
    stage.refusal = ServerUnavailableError("away")
    assert stage.run(body).reason == "away"
    assert stage.handle.reason is StopReason.NONE
    stage.handle = TaskHandle(REQUEST)
    stage.refusal = LeaseRefusedError("not yours")
    done = stage.run(body)
    assert stage.handle.reason is StopReason.REFUSED
    assert done.outcome is TaskOutcome.RETRY


@pytest.mark.parametrize(
    ("reason", "outcome"),
    [
        (StopReason.CANCEL, TaskOutcome.CANCELLED),
        (StopReason.SHUTDOWN, TaskOutcome.RETRY),
        (StopReason.LOST, TaskOutcome.RETRY),
    ],
)
def test_a_stop_ends_the_mover_in_order(stage: Stage, reason: StopReason, outcome: TaskOutcome) -> None:
    stage.stop_when_begun(reason)
    done = stage.run(
        "def end(*_):\n    result('cancelled', 'told to')\n    os._exit(0)\n"
        "signal.signal(signal.SIGTERM, end)\nprogress()\ntime.sleep(60)\n",
        kill_grace_s=30,
    )
    assert done.outcome is outcome


def test_a_deaf_mover_is_killed(stage: Stage) -> None:
    stage.stop_when_begun(StopReason.CANCEL)
    done = stage.run(
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nprogress()\ntime.sleep(60)\n", kill_grace_s=0.2
    )
    assert done.outcome is TaskOutcome.CANCELLED


def test_a_result_that_was_ready_counts_more_than_a_stop(stage: Stage) -> None:
    stage.stop_when_begun(StopReason.CANCEL)
    done = stage.run("result()\nprogress()\ntime.sleep(60)\n", kill_grace_s=5)
    assert done.outcome is TaskOutcome.SUCCESS


def test_nothing_of_the_movers_group_is_left(stage: Stage) -> None:
    done = stage.run(
        "import subprocess\nchild = subprocess.Popen(['sleep', '600'])\nresult('success', str(child.pid))\n"
    )
    pid = int(done.reason)
    for _ in range(100):
        if _is_gone(pid):
            return
        time.sleep(0.05)
    raise AssertionError(f"process {pid} is still there")


def _is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_descriptors_do_not_pile_up(stage: Stage) -> None:
    stage.run("result()\n")
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        stage.handle = TaskHandle(REQUEST)
        assert stage.run("result()\n").outcome is TaskOutcome.SUCCESS
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_restore_to_a_vm_hears_how_long_its_lease_lasts() -> None:
    stage = Stage()
    stage.handle = TaskHandle(replace(REQUEST, kind=TaskKind.RESTORE_DISK_TO_VM))
    stage.handle.leased(10.5)
    stage.handle.leased(9.0)  # the answer to an earlier heartbeat, late

    def renew() -> None:
        stage.begun.wait(30)
        stage.handle.leased(20.0)

    thread = threading.Thread(target=renew)
    thread.start()
    told = """
first = json.loads(sys.stdin.readline())["lease"]
progress()
second = json.loads(sys.stdin.readline())["lease"]
result("warning", f"{first} {second}")
"""
    result = stage.run(told)
    thread.join()
    assert result.reason == "10.5 20.0"


def test_a_child_that_does_not_read_holds_nobody_up() -> None:
    stage = Stage()
    stage.handle = TaskHandle(replace(REQUEST, kind=TaskKind.RESTORE_DISK_TO_VM))

    def renew() -> None:
        stage.begun.wait(30)
        for number in range(20_000):  # far more than a pipe holds
            stage.handle.leased(float(number))
        stage.handle.stop(StopReason.CANCEL)

    thread = threading.Thread(target=renew)
    thread.start()
    result = stage.run("progress()\ntime.sleep(600)")
    thread.join(60)
    assert not thread.is_alive()
    assert result.outcome is TaskOutcome.CANCELLED
