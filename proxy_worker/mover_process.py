"""The data-mover process: `python -m proxy_worker.mover_process`, started by a worker for one task.

It is told and tells in lines (`mover_lines`). SIGTERM, or the line `stop`, means: make durable what was read, say CANCELLED,
end. It holds secrets of one task, in memory only.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import sys
import threading
import time
import traceback
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, Final, NoReturn

from pipeline.errors import CancelledError
from proxy_worker.cache_argument import cache_dir_of
from proxy_worker.clocks import uptime_s
from proxy_worker.contracts.codec import MessageError, from_json, to_json
from proxy_worker.contracts.messages import (
    PresentAnswer,
    PresentRequest,
    ProgressReport,
    ResultReport,
    TaskRequest,
    TaskSecrets,
    VsphereAccess,
    WithdrawRequest,
)
from proxy_worker.disk_work import Tools, carry_out
from proxy_worker.mover_lines import line, parse_order, parse_rate
from proxy_worker.outcomes import is_expected, outcome_of, reason_of
from proxy_worker.runner import end_of
from proxy_worker.throttle import Throttle
from proxy_worker.vsphere_session import connect_with_ticket
from transports import system
from transports.base import Presented, TransportMode
from transports.errors import TransientTransportError, TransportUnavailableError
from transports.fence import Fence
from transports.registry import ModeOptions

_SECRETS_WAIT_S: Final = 180.0
_POLL_S: Final = 0.5


class Parent:
    """The worker at the other end of the pipes. Safe for threads."""

    def __init__(self, source: IO[bytes], sink: IO[bytes], cancel: threading.Event) -> None:
        self._source = source
        self._sink = sink
        self._cancel = cancel
        self._lock = threading.Lock()
        self._asking = threading.Lock()
        self._answers: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self.fence = Fence(uptime_s, self._end_when_cancelled)
        self.throttle = Throttle(cancelled=cancel.is_set)
        self._progress: ProgressReport | None = None
        self._late = 0
        """Answers that nobody waits for any more. The worker answers every question, in their order."""

    def read_order(self) -> tuple[TaskRequest, TaskSecrets, ModeOptions]:
        """KeyError, ValueError or MessageError when the first line is no order."""
        order = parse_order(json.loads(self._source.readline()))
        self.throttle.set(order[0].rate)
        threading.Thread(target=self._read, name="parent", daemon=True).start()
        return order

    def _read(self) -> None:
        for data in self._source:
            told = json.loads(data)
            if "stop" in told:
                self._cancel.set()
            elif "lease" in told:
                self.fence.open_until(float(told["lease"]))
            elif "rate" in told:
                self.throttle.set(parse_rate(told))
                with contextlib.suppress(
                    OSError
                ):  # of a worker that is gone the end of the lines tells
                    self._say_progress()  # so that the server learns that the rate holds
            else:
                self._answers.put(told)
        # The worker is gone: nobody can use a result, and another attempt may begin at any moment.
        os._exit(1)

    def _end_when_cancelled(self, pause_s: float) -> None:
        if self._cancel.wait(pause_s):
            raise CancelledError("cancelled while the lease was not known to last")

    def say(self, **values: Any) -> None:
        with self._lock:
            self._write(**values)

    def _write(self, **values: Any) -> None:
        self._sink.write(line(**values))
        self._sink.flush()

    def progress(self, report: ProgressReport) -> None:
        """With the rate that holds at this moment."""
        self._say_progress(report)

    def _say_progress(self, report: ProgressReport | None = None) -> None:
        """Without a report the last one, when there was one."""
        # The rate is read with the lock held: what is said last is what holds.
        with self._lock:
            report = report or self._progress
            if report is None:
                return
            limit = self.throttle.limit
            held = 0 if limit is None else limit.bytes_per_s
            self._progress = replace(report, rate_bytes_per_s=held)
            self._write(progress=to_json(self._progress))

    def result(self, report: ResultReport) -> None:
        self.say(result=to_json(report))

    def renew_access(self) -> VsphereAccess:
        """A fresh clone ticket. TransientTransportError when the server has none now."""
        with self._asking:
            self.say(need="secrets")
            answer = self._wait()
        if "refused" in answer:
            raise TransientTransportError(f"no new vCenter session: {answer['refused']}")
        try:
            access = from_json(TaskSecrets, answer.get("secrets")).vsphere
        except MessageError as error:
            raise TransientTransportError(f"no new vCenter session: {error}") from None
        if access is None:
            raise TransientTransportError("no new vCenter session: the server gave no access")
        return access

    def ask(self, **question: Any) -> dict[str, Any]:
        """The worker's answer to one question, also when the task is being cancelled: what was presented is to be
        withdrawn.
        """
        with self._asking:
            self.say(**question)
            return self._wait(cancellable=False)

    def _wait(self, *, cancellable: bool = True) -> dict[str, Any]:
        for _ in range(int(_SECRETS_WAIT_S / _POLL_S)):
            try:
                answer = self._answers.get(timeout=_POLL_S)
            except queue.Empty:
                if cancellable and self._cancel.is_set():
                    self._late += 1
                    raise CancelledError("cancelled while waiting for a new session") from None
                continue
            if not self._late:
                return answer
            self._late -= 1
        self._late += 1
        raise TransientTransportError("the worker did not answer a question; another attempt may do")


class ServerPresenter:
    """A Presenter that asks the backup server, by way of the worker."""

    def __init__(self, parent: Parent, request: TaskRequest) -> None:
        self._parent = parent
        self._request = request

    def present(self, mode: TransportMode, *, write: bool) -> Presented:
        request = self._request
        question = PresentRequest(
            task_id=request.task_id, attempt=request.attempt, mode=mode, write=write
        )
        answer = self._parent.ask(present=to_json(question))
        if "refused" in answer:
            kind = TransportUnavailableError if answer.get("other_mode") else TransientTransportError
            raise kind(str(answer["refused"]))
        try:
            return from_json(PresentAnswer, answer.get("answer")).presented
        except MessageError as error:
            raise TransientTransportError(f"the server's answer is not to be used: {error}") from None

    def withdraw(self, mode: TransportMode) -> None:
        request = self._request
        question = WithdrawRequest(task_id=request.task_id, attempt=request.attempt, mode=mode)
        try:
            answer = self._parent.ask(withdraw=to_json(question))
        except TransientTransportError as error:
            answer = {"refused": str(error)}
        if "refused" in answer:
            # The server undoes it when the attempt has ended.
            print(f"not withdrawn: {answer['refused']}", file=sys.stderr)  # noqa: T201 - as above


def run(
    source: IO[bytes], sink: IO[bytes], cancel: threading.Event, cache_dir: Path | None = None
) -> None:
    """One order from `source`, its result to `sink`."""
    parent = Parent(source, sink, cancel)
    request, secrets, options = parent.read_order()
    tools = Tools(
        clock=time.time,  # noqa: TID251 - composition root
        cancel=cancel,
        progress=parent.progress,
        renew=parent.renew_access,
        connect=connect_with_ticket,
        presenter=ServerPresenter(parent, request),
        options=options,
        cache_dir=cache_dir,
        fence=parent.fence if request.lease_s else None,
        throttle=parent.throttle,
    )
    try:
        result = carry_out(request, secrets, tools)
    except Exception as error:  # noqa: BLE001 - becomes the result
        if is_expected(error):
            print(reason_of(error), file=sys.stderr)  # noqa: T201 - the worker's log reads it
        else:
            traceback.print_exc()
        ended = end_of(request, outcome_of(error), reason_of(error))
        result = replace(ended, failovers=tuple(tools.left))
    parent.result(result)


def main() -> NoReturn:
    system.die_with_parent()
    cancel = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: cancel.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sink = sys.stdout.buffer
    # What libraries print must not come between the lines.
    sys.stdout = sys.stderr
    run(sys.stdin.buffer, sink, cancel, cache_dir_of(sys.argv))
    sys.stderr.flush()
    # Not by way of the interpreter's end: that would wait for the lock of standard input, in which our
    # reading thread sleeps.
    os._exit(0)


if __name__ == "__main__":
    main()
