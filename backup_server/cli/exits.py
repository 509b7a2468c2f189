"""Exit codes, the same for every command."""

from __future__ import annotations

from enum import IntEnum
from typing import Any, Final


class Exit(IntEnum):
    OK = 0
    ERROR = 1
    USAGE = 2
    WARNING = 3
    FAILED = 4
    UNREACHABLE = 5
    CANCELLED = 6
    INTERRUPTED = 130


MEANINGS: Final[dict[Exit, str]] = {
    Exit.OK: "success",
    Exit.ERROR: "the server or this command refused: the message says why",
    Exit.USAGE: "the command line was not understood",
    Exit.WARNING: "the session ended with warnings",
    Exit.FAILED: "the session, a check or a part of it failed",
    Exit.UNREACHABLE: "the server could not be reached",
    Exit.CANCELLED: "the session was cancelled",
    Exit.INTERRUPTED: "interrupted with Ctrl-C; a session that was followed goes on",
}


def help_text() -> str:
    """The table of exit codes as `vmhaul --help` shows it."""
    return "\n\n".join(f"{code.value:>3}  {meaning}" for code, meaning in MEANINGS.items())


def of_session(session: dict[str, Any]) -> Exit:
    """Exit code of a command that saw a session end."""
    return {
        "success": Exit.OK,
        "warning": Exit.WARNING,
        "failed": Exit.FAILED,
        "cancelled": Exit.CANCELLED,
    }.get(str(session.get("result")), Exit.FAILED)


class CliError(Exception):
    """Ends the command with a message on standard error. The message says what to do now."""

    def __init__(self, message: str, code: Exit = Exit.ERROR) -> None:
        super().__init__(message)
        self.code = code
