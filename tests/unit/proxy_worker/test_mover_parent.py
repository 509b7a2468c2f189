"""Questions of a data mover to its worker, and answers that come when nobody waits any more."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from pipeline.errors import CancelledError
from proxy_worker import mover_process
from proxy_worker.clocks import uptime_s
from proxy_worker.contracts.ids import Attempt, ProxyId, SessionId, TaskId
from proxy_worker.contracts.messages import RateLimit, RepositoryRef, TaskKind, TaskRequest, TaskSecrets
from proxy_worker.mover_lines import STOP_LINE, line, order_line, rate_line
from proxy_worker.mover_process import Parent
from proxy_worker.progress import phase_report
from transports.base import TransportMode
from transports.errors import TransientTransportError

REQUEST = TaskRequest(
    kind=TaskKind.BACKUP_DISK,
    task_id=TaskId("t1"),
    session_id=SessionId("s"),
    attempt=Attempt(1),
    proxy_id=ProxyId("p"),
    expires_at_s=0.0,
    title="disk",
    mode=TransportMode.HOTADD,
    repository=RepositoryRef(repository_id="r", location="/srv"),
)
SECRETS = TaskSecrets(task_id=TaskId("t1"), attempt=Attempt(1), repository_key="hush")


class Worker:
    """Answers when the test says so."""

    def __init__(self, ended: threading.Event) -> None:
        ours, theirs = os.pipe(), os.pipe()
        self._source = os.fdopen(ours[0], "rb")
        self._to_mover = os.fdopen(ours[1], "wb", buffering=0)
        self._said = os.fdopen(theirs[0], "rb")
        self._sink = os.fdopen(theirs[1], "wb")
        self._ended = ended
        self.cancel = threading.Event()
        self.parent = Parent(self._source, self._sink, self.cancel)
        self._to_mover.write(order_line(REQUEST, SECRETS))
        self.parent.read_order()

    def tell(self, data: bytes) -> None:
        self._to_mover.write(data)

    def answer(self, **values: Any) -> None:
        self._to_mover.write(line(**values))

    def heard(self) -> dict[str, Any]:
        """What the mover said next."""
        said: dict[str, Any] = json.loads(self._said.readline())
        return said

    def ask(self, number: int) -> dict[str, Any]:
        """A question that is answered at once."""
        self.answer(answer=number)
        return self.parent.ask(present=number)

    def end(self) -> None:
        self._to_mover.close()
        assert self._ended.wait(60)
        for pipe in (self._source, self._said, self._sink):
            pipe.close()


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> Iterator[Worker]:
    ended = threading.Event()
    # A mover does not outlive its worker; this process does.
    monkeypatch.setattr(os, "_exit", lambda _: ended.set())
    monkeypatch.setattr(mover_process, "_POLL_S", 0.05)
    worker = Worker(ended)
    yield worker
    worker.end()


def test_a_late_answer_is_not_taken_for_that_to_the_next_question(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as hurry:
        hurry.setattr(mover_process, "_SECRETS_WAIT_S", 0.1)
        for number in (1, 2):
            with pytest.raises(TransientTransportError, match="did not answer"):
                worker.parent.ask(present=number)
    worker.answer(answer=1)
    worker.answer(answer=2)
    assert worker.ask(3) == {"answer": 3}
    assert worker.ask(4) == {"answer": 4}


def test_what_a_cancelled_renewal_would_have_been_told_is_dropped(worker: Worker) -> None:
    worker.cancel.set()
    with pytest.raises(CancelledError):
        worker.parent.renew_access()
    worker.answer(refused="too late")
    assert worker.ask(1) == {"answer": 1}


def test_a_lease_that_is_told_opens_the_fence(worker: Worker) -> None:
    worker.answer(lease=uptime_s() + 3600)
    worker.parent.fence.pass_through()  # returns: the line was not taken for an answer
    assert worker.ask(1) == {"answer": 1}


def test_cancelling_ends_waiting_for_a_lease(worker: Worker) -> None:
    worker.answer(lease=uptime_s() - 1)
    worker.cancel.set()
    with pytest.raises(CancelledError, match="lease"):
        worker.parent.fence.pass_through()


def test_a_rate_that_comes_unasked_is_no_answer(worker: Worker) -> None:
    slow = RateLimit(bytes_per_s=5, source=True, target=False)
    worker.tell(rate_line(slow))
    assert worker.ask(1) == {"answer": 1}
    assert worker.parent.throttle.limit == slow
    worker.tell(rate_line(None))
    assert worker.ask(2) == {"answer": 2}
    assert worker.parent.throttle.limit is None


def test_a_worker_without_signals_stops_its_mover_by_a_line(worker: Worker) -> None:
    assert not worker.cancel.is_set()
    worker.tell(STOP_LINE)
    assert worker.cancel.wait(60)
    assert worker.ask(3) == {"answer": 3}


def test_a_new_rate_is_confirmed_with_the_last_progress(worker: Worker) -> None:
    worker.parent.progress(phase_report(REQUEST, "reading"))
    assert worker.heard()["progress"]["rate_bytes_per_s"] == 0
    worker.tell(rate_line(RateLimit(bytes_per_s=5, source=True, target=False)))
    told = worker.heard()["progress"]
    assert (told["rate_bytes_per_s"], told["phase"]) == (5, "reading")
    worker.tell(rate_line(None))
    assert worker.heard()["progress"]["rate_bytes_per_s"] == 0
