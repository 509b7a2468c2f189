"""Waiting for vSphere's tasks.

Only state, error, progress and result are read: the whole of a TaskInfo cannot be decoded when the
server names a method or a kind of object that pyVmomi does not know.
"""

from __future__ import annotations

import http.client
import threading
from collections.abc import Callable
from contextlib import suppress
from time import monotonic
from typing import Any, Final

from pyVmomi import vmodl

from transports.errors import TransientTransportError
from transports.vsphere.properties import read
from transports.vsphere.session import Connection

_POLLS_S: Final = (0.05, 0.1, 0.2, 0.5)  # then 1 s
_POLL_S: Final = 1.0
# The task goes on while vCenter's front door restarts: that long we go on asking.
_PATIENCE_S: Final = 60.0


def wait(
    connection: Connection,
    task: Any,
    *,
    timeout_s: float,
    cancelled: Callable[[], bool] = lambda: False,
    progress: Callable[[int], None] = lambda _percent: None,
) -> Any:
    """The task's result; raises the task's own fault.

    When `cancelled` says so the task is asked to stop and its end is waited for: a task that succeeds
    nevertheless has made something that the caller must know of. TransientTransportError after
    `timeout_s`; the task is then still running.
    """
    pause = threading.Event()
    began = lost_since = monotonic()
    asked_to_stop = False
    for turn in range(10**9):
        try:
            seen = read(connection, task, "info.state", "info.error", "info.progress")
            state = str(seen.get("info.state", ""))
            if state == "success":
                return read(connection, task, "info.result").get("info.result")
            lost_since = monotonic()
        except (OSError, http.client.HTTPException):
            if monotonic() - lost_since > _PATIENCE_S:
                raise
            seen, state = {}, ""
        if state == "error":
            raise task_fault(seen.get("info.error"))
        if (percent := seen.get("info.progress")) is not None:
            progress(int(percent))
        if not asked_to_stop and cancelled():
            asked_to_stop = True
            _cancel(task)
        if monotonic() - began > timeout_s:
            break
        pause.wait(_POLLS_S[turn] if turn < len(_POLLS_S) else _POLL_S)
    raise TransientTransportError(
        f"vSphere's task {task._moId} has not ended after {timeout_s:.0f} s; look at it in the client"  # noqa: SLF001
    )


def task_fault(error: Any) -> vmodl.MethodFault:
    """The fault inside a task's error, with the server's words."""
    fault = getattr(error, "fault", None) or error
    if not isinstance(fault, vmodl.MethodFault):
        return vmodl.fault.SystemError(reason="unknown", msg="the task failed without saying why")
    if not fault.msg and getattr(error, "localizedMessage", None):
        fault.msg = error.localizedMessage
    return fault


def _cancel(task: Any) -> None:
    # Not every task can be cancelled, and it may have ended meanwhile.
    with suppress(vmodl.MethodFault):
        task.CancelTask()
