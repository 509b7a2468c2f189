"""The real data-mover process under the real runner, restoring from a real repository to a file."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from pipeline import mover, planning
from pipeline.rawfile import RawFileReader
from pipeline.repository import KdfCost, Repository
from pipeline.storage import open_storage
from proxy_worker.config import MOVER_COMMAND
from proxy_worker.contracts.ids import Attempt, ProxyId, SessionId, TaskId
from proxy_worker.contracts.messages import (
    ProgressReport,
    RepositoryRef,
    RestoreDiskOrder,
    TaskKind,
    TaskOutcome,
    TaskRequest,
    TaskSecrets,
)
from proxy_worker.mover_lines import order_line
from proxy_worker.runner import Runner
from proxy_worker.slots import StopReason, TaskHandle
from transports.base import TransportMode

MIB = 1 << 20
CAPACITY = 8 * MIB


class Stage:
    """A repository with one disk in it and an order to restore that disk."""

    def __init__(self, directory: Path) -> None:
        self.content = random.Random(3).randbytes(CAPACITY - MIB) + bytes(MIB)
        source = directory / "source.raw"
        source.write_bytes(self.content)
        location = directory / "repository"
        self.repository = Repository.create(
            open_storage(str(location), create=True),
            "password",
            clock=time.time,
            kdf_cost=KdfCost(ops=1, memory_kib=64),
        )
        reader = RawFileReader(source)
        plan = planning.plan_backup(
            capacity_bytes=CAPACITY,
            block_size_bytes=self.repository.block_size_bytes,
            changed=None,
            allocated=None,
        )
        done = mover.backup_disk(
            repository=self.repository,
            reader=reader,
            plan=plan,
            compression="fast",
            work_id="11111111-2222-3333-4444-555555555555",
            cancel=threading.Event(),
            progress=lambda _: None,
            clock=time.time,
        )
        reader.close()
        self.target = directory / "target.raw"
        self.request = TaskRequest(
            kind=TaskKind.RESTORE_DISK_TO_FILE,
            task_id=TaskId("t1"),
            session_id=SessionId("s"),
            attempt=Attempt(1),
            proxy_id=ProxyId("p"),
            expires_at_s=0.0,
            title="restore",
            mode=TransportMode.NBDSSL,
            repository=RepositoryRef(repository_id=self.repository.id, location=str(location)),
            restore=RestoreDiskOrder(
                map_root=done.map_root,
                capacity_bytes=CAPACITY,
                expected_sha256="",
                target_path=str(self.target),
            ),
        )
        self.secrets = TaskSecrets(
            task_id=TaskId("t1"),
            attempt=Attempt(1),
            repository_key=self.repository.key_material,
        )
        self.progress: list[ProgressReport] = []

    def run(self, handle: TaskHandle | None = None, command: tuple[str, ...] = MOVER_COMMAND) -> Any:
        runner = Runner(command, kill_grace_s=2.0, log=structlog.get_logger())
        return runner.run(
            handle or TaskHandle(self.request), self.secrets, self._no_more, self.progress.append
        )

    def _no_more(self, handle: TaskHandle) -> TaskSecrets:
        raise AssertionError("a restore to a file needs no second ticket")


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    return Stage(tmp_path)


def test_a_disk_comes_out_as_it_went_in(stage: Stage) -> None:
    result = stage.run()
    assert (result.outcome, result.reason) == (TaskOutcome.SUCCESS, "")
    assert stage.target.read_bytes() == stage.content
    assert stage.progress[0].phase == "opening"
    assert stage.progress[-1].done_bytes == CAPACITY
    again = stage.run()
    assert again.outcome is TaskOutcome.FAILED
    assert "exists already" in again.reason


def test_a_key_of_another_repository_is_said_in_plain_words(stage: Stage) -> None:
    stage.secrets = TaskSecrets(task_id=TaskId("t1"), attempt=Attempt(1), repository_key="00" * 32)
    result = stage.run()
    assert result.outcome is TaskOutcome.FAILED
    assert "Traceback" not in result.reason
    assert "00" * 32 not in result.reason


def test_a_stop_before_the_start_cancels(stage: Stage) -> None:
    handle = TaskHandle(stage.request)
    handle.stop(StopReason.CANCEL)
    result = stage.run(handle)
    assert result.outcome in (TaskOutcome.CANCELLED, TaskOutcome.SUCCESS)
    assert not (set(stage.target.parent.glob(".*.part")))


def test_a_command_that_does_not_exist_and_one_that_says_nothing(stage: Stage) -> None:
    missing = stage.run(command=("/does/not/exist",))
    assert missing.outcome is TaskOutcome.RETRY
    assert "could not be started" in missing.reason
    silent = stage.run(command=(sys.executable, "-c", "raise SystemExit(7)"))
    assert silent.outcome is TaskOutcome.RETRY
    assert "with code 7 without a result" in silent.reason


def test_the_mover_dies_with_its_worker(stage: Stage) -> None:
    """Its parent is a process that only starts it and waits; SIGKILL leaves nothing behind."""
    code = (
        "import subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, '-c', sys.argv[1]], stdin=subprocess.PIPE,"
        " start_new_session=True)\n"
        "print(child.pid, flush=True)\n"
        "child.wait()\n"
    )
    child = "from transports.system import die_with_parent; import threading\n"
    child += "die_with_parent(); print('ready', flush=True); threading.Event().wait(300)"
    parent = subprocess.Popen([sys.executable, "-c", code, child], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    lines = {parent.stdout.readline().strip(), parent.stdout.readline().strip()}
    assert b"ready" in lines
    pid = int((lines - {b"ready"}).pop())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert _ends(pid)


def test_the_mover_ends_when_its_input_does(stage: Stage) -> None:
    process = subprocess.Popen(
        [*MOVER_COMMAND], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdin is not None
    process.stdin.write(order_line(stage.request, stage.secrets))
    process.communicate(timeout=60)
    assert process.returncode in (0, 1)


def test_a_mover_that_is_told_nonsense_ends_with_an_error() -> None:
    done = subprocess.run([*MOVER_COMMAND], input=b"{}\n", capture_output=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stdout == b""


def _ends(pid: int) -> bool:
    for _ in range(200):
        try:
            status = Path(f"/proc/{pid}/stat").read_text()
        except FileNotFoundError:
            return True
        if status.rpartition(")")[2].split()[0] == "Z":
            return True
        time.sleep(0.05)
    os.kill(pid, signal.SIGKILL)
    return False
