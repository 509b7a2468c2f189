"""How often a proxy tells of progress: about once in a while, however many tasks it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import structlog

from proxy_worker.contracts.ids import Attempt, TaskId
from proxy_worker.contracts.messages import ProgressReport, ResultReport, TaskOutcome
from proxy_worker.outbox import ResultOutbox
from proxy_worker.reporter import Reporter


class Link:
    def __init__(self) -> None:
        self.sent: list[Any] = []

    def send(self, report: Any) -> None:
        self.sent.append(report)


def progress(task: str, phase: str = "reading") -> ProgressReport:
    return ProgressReport(
        task_id=TaskId(task),
        attempt=Attempt(1),
        phase=phase,
        total_bytes=10,
        done_bytes=1,
        read_bytes=1,
        stored_bytes=1,
        bytes_per_s=1.0,
        bottleneck="source",
    )


@pytest.mark.parametrize(("tasks", "most"), [(1, 101), (4, 105), (8, 110), (64, 704)])
def test_a_proxy_sends_about_one_report_a_second(tasks: int, most: int, tmp_path: Path) -> None:
    now = 1000.0
    link = Link()
    outbox = ResultOutbox(tmp_path / "outbox.db")
    reporter = Reporter(
        link,  # type: ignore[arg-type]
        outbox,
        lambda: now,
        progress_s=1.0,
        resend_s=10.0,
        log=structlog.get_logger(),
    )
    for _ in range(400):  # 100 s
        for number in range(tasks):
            reporter.progress(progress(str(number)))
        now += 0.25
    # 64 tasks wait no longer than 10 s each
    assert most * 0.8 <= len(link.sent) <= most + tasks
    before = len(link.sent)
    reporter.progress(progress("0", "finishing"))
    assert len(link.sent) == before + 1
    for number in range(1, tasks):
        reporter.result(
            ResultReport(
                task_id=TaskId(str(number)), attempt=Attempt(1), outcome=TaskOutcome.SUCCESS, reason=""
            )
        )
    before = len(link.sent)
    now += 1.0
    reporter.progress(progress("0", "finishing"))
    assert len(link.sent) == before + 1
    outbox.close()
