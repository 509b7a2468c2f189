"""What an error of the data mover means for its task. One table, the nearest class counts."""

from __future__ import annotations

from typing import Final

from pipeline.errors import (
    CancelledError,
    IntegrityError,
    NewerEpochError,
    PermanentPipelineError,
    StorageMissingError,
    TransientPipelineError,
)
from proxy_worker.contracts.messages import TaskOutcome
from transports.errors import (
    ChangeTrackingUnusableError,
    PermanentTransportError,
    TransientTransportError,
    TransportUnavailableError,
)

OUTCOMES: Final[dict[type[BaseException], TaskOutcome]] = {
    CancelledError: TaskOutcome.CANCELLED,
    IntegrityError: TaskOutcome.FAILED,
    NewerEpochError: TaskOutcome.RETRY,  # the data key was changed; the next attempt gets the new one
    TransientPipelineError: TaskOutcome.RETRY,
    PermanentPipelineError: TaskOutcome.FAILED,
    StorageMissingError: TaskOutcome.RETRY,  # not mounted here, now; another proxy may have it
    TransientTransportError: TaskOutcome.RETRY,
    PermanentTransportError: TaskOutcome.FAILED,
    TransportUnavailableError: TaskOutcome.RETRY,  # out of reach from here
    ChangeTrackingUnusableError: TaskOutcome.RETRY,
    OSError: TaskOutcome.RETRY,
    MemoryError: TaskOutcome.RETRY,
}


def outcome_of(error: BaseException) -> TaskOutcome:
    for kind in type(error).__mro__:
        if kind in OUTCOMES:
            return OUTCOMES[kind]
    # A defect of ours: the same order may meet it again or not; attempts are counted.
    return TaskOutcome.RETRY


def is_expected(error: BaseException) -> bool:
    """Whether the error is one of the table, and no defect."""
    return any(kind in OUTCOMES for kind in type(error).__mro__)


def reason_of(error: BaseException) -> str:
    """For people."""
    text = str(error).strip()
    if text and is_expected(error):
        return text
    kind = type(error).__name__
    return f"{kind}: {text}" if text else kind
