"""Supervises the data mover of one task: a child process in its own session.

A crash in native code costs one disk, and cancelling is ending a process group. Whatever the child does,
`Runner.run` answers with a result: the child's own, or one that says how it ended.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import threading
from collections.abc import Callable, Sequence
from typing import IO, Any, Final, Protocol

from proxy_worker.contracts.codec import MessageError, from_json, to_json
from proxy_worker.contracts.events import EventName
from proxy_worker.contracts.logs import task_ids
from proxy_worker.contracts.messages import (
    PresentAnswer,
    PresentRequest,
    ProgressReport,
    ResultReport,
    TaskKind,
    TaskOutcome,
    TaskRequest,
    TaskSecrets,
    WithdrawAnswer,
    WithdrawRequest,
)
from proxy_worker.errors import LeaseRefusedError, NotPresentedError, ServerUnavailableError
from proxy_worker.mover_lines import STOP_LINE, line, order_line, rate_line
from proxy_worker.slots import StopReason, TaskHandle
from transports import system
from transports.registry import ModeOptions

FetchSecrets = Callable[[TaskHandle], TaskSecrets]
OnProgress = Callable[[ProgressReport], None]

_MAX_LINE_BYTES: Final = 1 << 20
_LOG_LINES: Final = 2000
_KEPT_LINES: Final = 5
_TELLS: Final = 16
"""Lines on their way to a child that does not read; later ones are left out."""
_END: Final = None


class Presentations(Protocol):
    """Who makes disks reachable: the backup server. Errors as those of `server_api.ServerClient`."""

    def present(self, question: PresentRequest) -> PresentAnswer: ...
    def withdraw(self, question: WithdrawRequest) -> WithdrawAnswer: ...


class Runner:
    """One for the process; `run` is called by one thread for each task."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        kill_grace_s: float,
        log: Any,
        presentations: Presentations | None = None,
        options: ModeOptions | None = None,
        count: Callable[[str], None] = lambda _: None,
    ) -> None:
        """`count` is told of movers that "started", and of those that "crashed"."""
        self._count = count
        self._command = tuple(command)
        self._kill_grace_s = kill_grace_s
        self._log = log
        self._presentations = presentations
        self._options = options

    def run(
        self,
        handle: TaskHandle,
        secrets: TaskSecrets,
        fetch_secrets: FetchSecrets,
        on_progress: OnProgress,
    ) -> ResultReport:
        """Blocks until the child and everything in its session ended."""
        request = handle.request
        try:
            child = _Child(self._command, request, self._log)
        except OSError as error:
            return end_of(request, TaskOutcome.RETRY, f"the data mover could not be started: {error}")
        self._count("started")
        self._log.info(
            EventName.MOVER_STARTED,
            text=request.title,
            pid=child.pid,
            **task_ids(request),
        )
        try:
            child.write(order_line(request, secrets, self._options))
            handle.follow_rate(lambda rate: child.tell(rate_line(rate)))
            return self._follow(child, handle, fetch_secrets, on_progress)
        finally:
            handle.follow_rate(None)
            child.end()

    def _follow(
        self,
        child: _Child,
        handle: TaskHandle,
        fetch_secrets: FetchSecrets,
        on_progress: OnProgress,
    ) -> ResultReport:
        result: ResultReport | None = None
        stopper = _Stopper(child, handle, self._kill_grace_s)
        stopper.start()
        if handle.request.kind is TaskKind.RESTORE_DISK_TO_VM:
            handle.follow_lease(lambda until_s: child.tell(line(lease=until_s)))
        try:
            for message in child.messages():
                if "progress" in message:
                    _forward(message["progress"], handle.request, on_progress)
                elif "need" in message:
                    self._renew_secrets(child, handle, fetch_secrets)
                elif "present" in message or "withdraw" in message:
                    child.write(self._present(handle, message))
                elif "result" in message:
                    result = _own(message["result"], handle.request)
            code = child.wait()
        finally:
            handle.follow_lease(None)
            stopper.finish()
        return self._judge(handle, child, code, result)

    @staticmethod
    def _renew_secrets(child: _Child, handle: TaskHandle, fetch_secrets: FetchSecrets) -> None:
        try:
            answer = line(secrets=to_json(fetch_secrets(handle)))
        except LeaseRefusedError as error:
            handle.stop(StopReason.REFUSED)
            answer = line(refused=str(error))
        except ServerUnavailableError as error:
            answer = line(refused=str(error))
        child.write(answer)

    def _present(self, handle: TaskHandle, message: dict[str, Any]) -> bytes:
        """The line that answers a mover's question about its disk's presentation."""
        if self._presentations is None:
            return line(refused="this worker cannot ask the server for disks", other_mode=True)
        try:
            answer: PresentAnswer | WithdrawAnswer
            if "present" in message:
                question = from_json(PresentRequest, message["present"])
                _check_own(question, handle.request)
                answer = self._presentations.present(question)
            else:
                closing = from_json(WithdrawRequest, message["withdraw"])
                _check_own(closing, handle.request)
                answer = self._presentations.withdraw(closing)
        except LeaseRefusedError as error:
            handle.stop(StopReason.REFUSED)
            return line(refused=str(error), other_mode=False)
        except NotPresentedError as error:
            return line(refused=str(error), other_mode=True)
        except (ServerUnavailableError, MessageError) as error:
            return line(refused=str(error), other_mode=False)
        return line(answer=to_json(answer))

    def _judge(
        self, handle: TaskHandle, child: _Child, code: int, result: ResultReport | None
    ) -> ResultReport:
        request = handle.request
        finished = result is not None and result.outcome in (
            TaskOutcome.SUCCESS,
            TaskOutcome.WARNING,
            TaskOutcome.FAILED,
        )
        if result is not None and (finished or handle.reason is StopReason.NONE):
            return result
        if handle.reason is StopReason.CANCEL:
            return end_of(request, TaskOutcome.CANCELLED, "cancelled")
        if handle.reason is StopReason.REFUSED:
            # Said all the same: a task that is being cancelled ends by it, for any other it changes nothing.
            return end_of(request, TaskOutcome.RETRY, "the server answers for this attempt no more")
        if handle.reason is not StopReason.NONE:
            return end_of(request, TaskOutcome.RETRY, "the worker was stopped")
        tail = child.last_words()
        self._count("crashed")
        self._log.error(
            EventName.MOVER_CRASHED,
            text=request.title,
            exit_code=code,
            last_words=tail,
            **task_ids(request),
        )
        how = f"by signal {signal.Signals(-code).name}" if code < 0 else f"with code {code}"
        said = f"; its last words: {tail}" if tail else ""
        return end_of(request, TaskOutcome.RETRY, f"the data mover ended {how} without a result{said}")


def end_of(request: TaskRequest, outcome: TaskOutcome, reason: str) -> ResultReport:
    return ResultReport(
        task_id=request.task_id, attempt=request.attempt, outcome=outcome, reason=reason
    )


def _forward(data: Any, request: TaskRequest, on_progress: OnProgress) -> None:
    with contextlib.suppress(MessageError):  # progress is never needed
        report = from_json(ProgressReport, data)
        if (report.task_id, report.attempt) == (request.task_id, request.attempt):
            on_progress(report)


def _check_own(question: PresentRequest | WithdrawRequest, request: TaskRequest) -> None:
    if (question.task_id, question.attempt) != (request.task_id, request.attempt):
        raise MessageError("the mover asked about another task")


def _own(data: Any, request: TaskRequest) -> ResultReport | None:
    try:
        report = from_json(ResultReport, data)
    except MessageError:
        return None
    same = (report.task_id, report.attempt) == (request.task_id, request.attempt)
    return report if same else None


class _Stopper:
    """Ends the child when its task is to stop: asks it to, and kills the group after the grace."""

    def __init__(self, child: _Child, handle: TaskHandle, kill_grace_s: float) -> None:
        self._child = child
        self._handle = handle
        self._kill_grace_s = kill_grace_s
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="vmhaul-stopper", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def finish(self) -> None:
        self._over.set()
        self._handle.over()
        self._thread.join()

    def _run(self) -> None:
        self._handle.stop_requested.wait()
        if self._over.is_set():
            return
        self._child.ask_to_end()
        if not self._over.wait(self._kill_grace_s):
            self._child.kill()


class _Child:
    """The process, its pipes, and the threads that read them."""

    def __init__(self, command: Sequence[str], request: TaskRequest, log: Any) -> None:
        # Its lines are read by threads of their own, which inherit no context.
        self._log = log.bind(**task_ids(request))
        self._messages: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._last_words: list[str] = []
        # A mover needs no more of the environment, and what it does not have it cannot give away.
        passed_on = {name: os.environ[name] for name in system.ENVIRONMENT if name in os.environ}
        self._group = system.Child(command, passed_on)
        self._process = self._group.process
        self._readers = [
            threading.Thread(target=self._read_stdout, name="vmhaul-mover-out", daemon=True),
            threading.Thread(target=self._read_stderr, name="vmhaul-mover-err", daemon=True),
        ]
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._reaped = False
        self._watcher = threading.Thread(target=self._watch, name="vmhaul-mover-end", daemon=True)
        self._tells: queue.Queue[bytes | None] = queue.Queue(_TELLS)
        self._teller = threading.Thread(target=self._pass_on, name="vmhaul-mover-in", daemon=True)
        for thread in (*self._readers, self._watcher):
            thread.start()
        if not self._group.CAN_ASK_PIPES:
            self._teller.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def write(self, data: bytes) -> None:
        """A child that is gone does not mind; how it ended is told elsewhere. From any thread."""
        stdin = _pipe(self._process.stdin)
        with self._writing, contextlib.suppress(BrokenPipeError):
            stdin.write(data)
            stdin.flush()

    def tell(self, data: bytes) -> None:
        """Write a line that a later one replaces. Never waits: what a child that does not read would not take is
        left out.
        """
        if not self._group.CAN_ASK_PIPES:
            with contextlib.suppress(queue.Full):
                self._tells.put_nowait(data)
            return
        stdin = _pipe(self._process.stdin)
        if not self._writing.acquire(blocking=False):
            return
        try:
            with contextlib.suppress(OSError, ValueError):
                if self._group.takes_now(stdin):
                    stdin.write(data)
                    stdin.flush()
        finally:
            self._writing.release()

    def messages(self) -> Any:
        """Lines of the child as objects, until it closes its output."""
        return iter(self._messages.get, _END)

    def wait(self) -> int:
        """Exit code; the group is gone then."""
        self._watcher.join()
        with self._lock:
            self._reaped = True
            return self._process.wait()

    def ask_to_end(self) -> None:
        """Let the mover make durable what it has, and end."""
        with self._lock:
            # Until it is reaped the number is the child's own and cannot mean another group.
            if not self._reaped:
                self._group.ask_to_end(lambda: self.tell(STOP_LINE))

    def kill(self) -> None:
        """The whole group, unless it is gone."""
        with self._lock:
            if not self._reaped:
                self._group.kill()

    def end(self) -> None:
        """Nothing of it stays: group killed, child reaped, pipes closed."""
        self.kill()
        self.wait()
        for reader in self._readers:
            reader.join()
        if self._teller.ident is not None:
            self._end_teller()
        with contextlib.suppress(BrokenPipeError):
            _pipe(self._process.stdin).close()
        for pipe in (self._process.stdout, self._process.stderr):
            _pipe(pipe).close()
        self._group.release()

    def _pass_on(self) -> None:
        """Write what `tell` was given, where a pipe does not say whether it takes a line."""
        stdin = _pipe(self._process.stdin)
        for data in iter(self._tells.get, _END):
            with self._writing, contextlib.suppress(OSError, ValueError):
                stdin.write(data)
                stdin.flush()

    def _end_teller(self) -> None:
        """The child is gone, so that no write lasts: there is room for the end soon."""
        self._tells.put(_END)
        self._teller.join()

    def _watch(self) -> None:
        """Wait for the child without reaping it, then end what it left in its group: that would hold
        the pipes open, and us with them.
        """
        self._group.await_end()
        self.kill()

    def last_words(self) -> str:
        self._readers[1].join(1.0)
        return " | ".join(self._last_words)

    def _read_stdout(self) -> None:
        stdout = _pipe(self._process.stdout)
        try:
            while data := stdout.readline(_MAX_LINE_BYTES):
                try:
                    message = json.loads(data)
                except ValueError:
                    continue  # something printed; the result alone counts
                if isinstance(message, dict):
                    self._messages.put(message)
        finally:
            self._messages.put(_END)

    def _read_stderr(self) -> None:
        stderr = _pipe(self._process.stderr)
        count = 0
        while data := stderr.readline(_MAX_LINE_BYTES):
            text = data.decode(errors="replace").rstrip()[:2000]
            if not text:
                continue
            self._last_words = [*self._last_words, text][-_KEPT_LINES:]
            count += 1
            if count <= _LOG_LINES:
                self._log.info("mover.log", text=text)


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    assert pipe is not None
    return pipe
