"""One child `python -m proxy_worker.agent`: requests and answers as lines of JSON.

Secrets go through the child's standard input only; its environment is a short list of harmless names.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, Final, Protocol

from backup_server.errors import (
    ConflictError,
    IntegrityError,
    UnavailableError,
    VmhaulError,
    WrongKeyError,
)
from proxy_worker.contracts.agent import WRONG_KEY

_PASSED_ON: Final = ("PATH", "PYTHONPATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH", "TZ")
_STOP_WAIT_S: Final = 10.0


class AgentLink(Protocol):
    """A way to one repository agent. Used by one thread at a time."""

    def call(self, call: str, args: dict[str, Any], *, timeout_s: float) -> dict[str, Any]:
        """The `ok` part of the answer. UnavailableError when the agent died, did not answer in time
        or reported a transient failure; IntegrityError and ConflictError as it reported.
        """

    @property
    def alive(self) -> bool: ...

    def close(self) -> None:
        """End the agent. MAY be called twice."""


StartAgent = Callable[[], AgentLink]


def error_from(answer: dict[str, Any]) -> VmhaulError:
    """The server's error for an agent's `error` part."""
    message = str(answer.get("message") or "the repository agent failed without a reason")
    match answer.get("kind"):
        case "transient":
            return UnavailableError(message)
        case "integrity":
            return IntegrityError(message)
        case _ if answer.get("reason") == WRONG_KEY:
            return WrongKeyError(message)
        case _:
            return ConflictError(message)


class AgentProcess:
    """The real link: a child process in its own session, so that Ctrl-C at the terminal reaches only
    the supervisor and a commit that has begun is not torn down. It ends when its standard input does.
    """

    def __init__(
        self,
        log_file: Path | None = None,
        command: list[str] | None = None,
        *,
        cache_dir: Path | None = None,
    ) -> None:
        """`cache_dir`: where the agent keeps caches of indexes; None: in memory."""
        argv = command or [sys.executable, "-m", "proxy_worker.agent"]
        if cache_dir is not None:
            argv = [*argv, "--cache", str(cache_dir)]
        with contextlib.ExitStack() as stack:
            stderr: IO[bytes] | int = subprocess.DEVNULL
            if log_file is not None:
                stderr = stack.enter_context(log_file.open("ab"))
            self._process = subprocess.Popen(
                argv,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env={name: os.environ[name] for name in _PASSED_ON if name in os.environ},
                start_new_session=True,
            )
        self._answers: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._number = 0
        self._reader = threading.Thread(target=self._read, name="agent-reader", daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def _read(self) -> None:
        stdout = self._process.stdout
        assert stdout is not None
        with contextlib.suppress(ValueError, OSError):  # closed under us: the end as well
            for line in stdout:
                self._answers.put(line)
        self._answers.put(b"")

    def call(self, call: str, args: dict[str, Any], *, timeout_s: float) -> dict[str, Any]:
        self._number += 1
        line = json.dumps({"id": self._number, "call": call, "args": args}) + "\n"
        stdin = self._process.stdin
        assert stdin is not None
        try:
            stdin.write(line.encode())
            stdin.flush()
            answer_line = self._answers.get(timeout=timeout_s)
        except (OSError, ValueError) as error:
            raise self._lost(call, "ended before it could be asked") from error
        except queue.Empty:
            raise self._lost(call, f"did not answer within {timeout_s:.0f} s") from None
        if not answer_line:
            raise self._lost(call, "ended before it answered")
        return self._decode(call, answer_line)

    def _decode(self, call: str, line: bytes) -> dict[str, Any]:
        try:
            answer = json.loads(line)
            number, ok, error = answer["id"], answer.get("ok"), answer.get("error")
        except (ValueError, KeyError, TypeError, AttributeError) as problem:
            raise self._lost(call, "answered something that is not an answer") from problem
        if number != self._number:
            raise self._lost(call, f"answered request {number} instead of {self._number}")
        if isinstance(error, dict):
            raise error_from(error)
        if not isinstance(ok, dict):
            raise self._lost(call, "answered neither a result nor an error")
        return ok

    def _lost(self, call: str, what: str) -> UnavailableError:
        # Whatever it does now, its next line would answer an old question.
        self.close(wait_s=0)
        return UnavailableError(
            f"the repository agent {what} (call {call}, exit code {self._process.poll()}); "
            "it is started again with the next call, its log says more"
        )

    def close(self, wait_s: float = _STOP_WAIT_S) -> None:
        with contextlib.suppress(OSError):
            if self._process.stdin is not None:
                self._process.stdin.close()
        try:
            self._process.wait(wait_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join()
        if self._process.stdout is not None:
            self._process.stdout.close()
