"""Every line of every process about a task has its ids, and none has a secret."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from backup_server.db.states import TaskState
from proxy_worker.contracts.logs import set_up_logging
from tests.integration.queue.rig import ON_SQLITE, Rig, wait_for

pytestmark = [pytest.mark.timeout(120), ON_SQLITE]
IDS = {"session_id", "task_id", "attempt", "proxy"}


@pytest.fixture
def server_log() -> Iterator[io.StringIO]:
    stream = io.StringIO()
    set_up_logging(form="json", stream=stream)
    yield stream
    structlog.reset_defaults()


def lines_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_ids_follow_a_disk_through_every_process(server_log: io.StringIO, rig: Rig) -> None:
    rig.start_proxy("px1")
    ids = rig.add_tasks(["ok sleep=0.2", "crash=1 need-secrets", "bad outcome=failed"])
    rows = rig.wait_state(ids, TaskState.DONE)
    assert [row.attempt for row in rows] == [1, 2, 1]

    def worker_lines() -> list[dict[str, Any]]:
        return lines_of((rig.directory / "px1.log").read_text())

    wait_for(
        lambda: len([x for x in worker_lines() if x["event"] == "task.finished"]) == 4,
        "the worker's last line",
    )
    said = [*lines_of(server_log.getvalue()), *worker_lines()]
    about = [
        line
        for line in said
        if "task_id" in line or line["event"].startswith(("task.", "mover.", "lease."))
    ]
    assert [line for line in about if not line.keys() >= IDS] == []
    names = {line["event"] for line in about}
    assert names >= {
        "task.placed",
        "task.sent",
        "task.started",
        "mover.started",
        "mover.log",
        "mover.crashed",
        "task.finished",
        "task.retried",
    }
    crashed = [line for line in about if line["task_id"] == ids[1]]
    assert {line["attempt"] for line in crashed} == {1, 2}
    assert {line["proxy"] for line in crashed} == {"px1"}
    assert {line["session_id"] for line in about} == {rows[0].session_id}
    assert "key-1" not in server_log.getvalue() + (rig.directory / "px1.log").read_text()


def test_a_line_about_a_change_that_was_rolled_back_is_never_written(
    server_log: io.StringIO, rig: Rig
) -> None:
    from backup_server.services import events

    def attempt(fail: bool) -> None:
        with rig.db() as s:
            events.record(s, rig.ctx.clock(), "test.line", "said" if not fail else "unsaid")
            if fail:
                raise RuntimeError("rolled back")

    with pytest.raises(RuntimeError):
        attempt(fail=True)
    attempt(fail=False)
    with rig.db() as s, s.begin_nested():
        events.record(s, rig.ctx.clock(), "test.line", "in a savepoint")
    texts = [line["text"] for line in lines_of(server_log.getvalue()) if line["event"] == "test.line"]
    assert texts == ["said", "in a savepoint"]
