"""The server's errors, by what the caller can do about them, and the one table of their outcomes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final


class VmhaulError(Exception):
    """Root of the server's errors. The message says what, which object, and what to do now."""

    def __init__(self, message: str, *, details: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.details: dict[str, Any] = dict(details or {})


class BadRequestError(VmhaulError):
    """The request could not be read at all."""


class UnauthorizedError(VmhaulError):
    """No token, a wrong one, or one that was used or expired."""


class ForbiddenError(VmhaulError):
    """Known, but not allowed to do this."""


class NotFoundError(VmhaulError):
    """No object of that id or name."""


class ConflictError(VmhaulError):
    """The object's present state forbids it; later, or after another step, it may work."""


class WrongKeyError(ConflictError):
    """No key of the repository opens with this password."""


class InvalidError(VmhaulError):
    """Understood, but some values cannot be accepted: `details` names each field and why."""


class UnavailableError(VmhaulError):
    """Something that is needed does not answer now; the same request may succeed later."""


class IntegrityError(VmhaulError):
    """Stored data is not what it should be. Never retried, never swallowed."""


class SettingsError(VmhaulError):
    """The installation's settings or files do not allow a start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What an error becomes at the API; the command line has exit codes of its own (`cli.exits`)."""

    http_status: int
    code: str


INTERNAL: Final = Outcome(http_status=500, code="internal")

OUTCOMES: Final[dict[type[VmhaulError], Outcome]] = {
    BadRequestError: Outcome(http_status=400, code="bad-request"),
    UnauthorizedError: Outcome(http_status=401, code="unauthorized"),
    ForbiddenError: Outcome(http_status=403, code="forbidden"),
    NotFoundError: Outcome(http_status=404, code="not-found"),
    ConflictError: Outcome(http_status=409, code="conflict"),
    WrongKeyError: Outcome(http_status=409, code="conflict"),
    InvalidError: Outcome(http_status=422, code="unprocessable"),
    UnavailableError: Outcome(http_status=503, code="unavailable"),
    IntegrityError: Outcome(http_status=500, code="internal"),
    SettingsError: Outcome(http_status=500, code="internal"),
}


def outcome_of(error: BaseException) -> Outcome:
    """The table's row for the nearest class of `error`; INTERNAL for what is not ours."""
    for kind in type(error).__mro__:
        if kind in OUTCOMES:
            return OUTCOMES[kind]
    return INTERNAL
