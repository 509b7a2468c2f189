"""Disks made reachable for proxies: what a transport mode needs changed in vSphere or on a storage system.

Each mode that needs it has a pair of functions here, which write an intent before they change anything.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from backup_server.db.tables import Task
from backup_server.errors import ConflictError, ForbiddenError
from backup_server.log import about_task
from backup_server.services import attachments, leases, storage_exposures
from backup_server.services.context import Context
from proxy_worker.contracts.messages import (
    PresentAnswer,
    PresentRequest,
    WithdrawAnswer,
    WithdrawRequest,
)
from transports.base import Presented, TransportMode


@dataclass(frozen=True, slots=True, kw_only=True)
class PresentingMode:
    """How the server presents disks of one mode. Both may be called again for the same task."""

    present: Callable[[Context, Task, PresentRequest], Presented]
    """ConflictError: another mode may do. UnavailableError: another try may."""
    withdraw: Callable[[Context, Task, WithdrawRequest], None]


_MODES: Final[Mapping[TransportMode, PresentingMode]] = {
    TransportMode.HOTADD: PresentingMode(present=attachments.present, withdraw=attachments.withdraw),
    TransportMode.STORAGE_SNAPSHOT: PresentingMode(
        present=storage_exposures.present, withdraw=storage_exposures.withdraw
    ),
}


def present(ctx: Context, proxy_id: str, question: PresentRequest) -> PresentAnswer:
    """ForbiddenError when the proxy does not hold that attempt."""
    task = _task(ctx, proxy_id, question.task_id, question.attempt)
    mode = _MODES.get(question.mode)
    if mode is None:
        raise ConflictError(f"disks are not presented in mode {question.mode}")
    # As a proxy asks, vSphere is changed: only in a way in which the task was given to it.
    if question.mode.value not in {task.mode, *(task.decision or {}).get("fallbacks", ())}:
        raise ConflictError(
            f"task {task.id} was not given to the proxy by {question.mode.value}; placement chose {task.mode}"
        )
    with about_task(task):
        presented = mode.present(ctx, task, question)
    return PresentAnswer(task_id=question.task_id, attempt=question.attempt, presented=presented)


def withdraw(ctx: Context, proxy_id: str, question: WithdrawRequest) -> WithdrawAnswer:
    """As present(); a task that is being cancelled may still withdraw."""
    task = _task(ctx, proxy_id, question.task_id, question.attempt, cancelled_too=True)
    mode = _MODES.get(question.mode)
    if mode is not None:
        with about_task(task):
            mode.withdraw(ctx, task, question)
    return WithdrawAnswer(task_id=question.task_id, attempt=question.attempt)


def _task(
    ctx: Context, proxy_id: str, task_id: str, attempt: int, *, cancelled_too: bool = False
) -> Task:
    with ctx.db.read() as s:
        if not leases.holds_attempt(s, proxy_id, task_id, attempt, cancelled_too=cancelled_too):
            raise ForbiddenError(
                f"the proxy does not hold attempt {attempt} of task {task_id} now; stop working on it"
            )
        return s.get_one(Task, task_id)
