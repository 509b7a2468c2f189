"""Commands on a machine, as root. Each is a list of words; a word is never more than a word to a shell."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from backup_server.deploy.said import clean
from backup_server.errors import ConflictError, UnavailableError

COMMAND_S: Final = 60.0
_SHOWN_LINES: Final = 6
_SHOWN_CHARS: Final = 600
_PUT: Final = 'umask 077; cat > "$1.new" && chmod "$2" "$1.new" && mv -f "$1.new" "$1"'
_FOR_ALL: Final = 'umask 022; exec "$@"'


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """How a command ended."""

    status: int
    output: str
    errors: str

    @property
    def ok(self) -> bool:
        return self.status == 0

    def why(self) -> str:
        """The end of what it said, for a message."""
        text = self.errors.strip() or self.output.strip() or f"exit status {self.status}"
        return " / ".join(line.strip() for line in text.splitlines()[-_SHOWN_LINES:])[-_SHOWN_CHARS:]


class Machine(Protocol):
    """One machine, for as long as its connection lasts. Raises UnavailableError when it does not answer."""

    @property
    def name(self) -> str: ...

    def run(self, words: Sequence[str], *, stdin: bytes = b"", timeout_s: float = COMMAND_S) -> Ran: ...


class StepError(ConflictError):
    """A step could not be done; the message says which machine, why, and what to do."""


def must(
    machine: Machine,
    words: Sequence[str],
    what: str,
    *,
    advice: str = "",
    stdin: bytes = b"",
    timeout_s: float = COMMAND_S,
) -> str:
    """Its output. StepError with `what` was to be done, and `advice`, when it fails."""
    ran = machine.run(words, stdin=stdin, timeout_s=timeout_s)
    if not ran.ok:
        tail = f"; {advice}" if advice else ""
        raise StepError(f"{machine.name}: {what} failed: {ran.why()}{tail}")
    return ran.output


def put(machine: Machine, path: str, content: bytes, *, mode: int = 0o644) -> None:
    """A file of root's, replaced as a whole."""
    must(
        machine,
        ["sh", "-c", _PUT, "sh", path, f"{mode:o}"],
        f"writing {path}",
        advice="look at free space and rights there",
        stdin=content,
        timeout_s=600,
    )


def for_all(words: Sequence[str]) -> list[str]:
    """The command, whose files and directories everybody may read, also where root's own umask keeps them to root: the
    worker is another user.
    """
    return ["sh", "-c", _FOR_ALL, "sh", *words]


class ThisMachine:
    """The one that this process runs on."""

    name = "this machine"

    def __init__(self) -> None:
        """ConflictError when this process is not root's."""
        if os.geteuid() != 0:
            raise ConflictError(
                "installing a proxy with a user and a service of its own takes root: run this with sudo, "
                "or name a directory with --data to join without installing"
            )

    def run(self, words: Sequence[str], *, stdin: bytes = b"", timeout_s: float = COMMAND_S) -> Ran:
        try:
            done = subprocess.run(
                list(words),
                input=stdin,
                capture_output=True,
                timeout=timeout_s,
                check=False,
                env={**os.environ, "LC_ALL": "C"},
                cwd="/",
            )
        except FileNotFoundError:
            return Ran(status=127, output="", errors=f"{words[0]}: not found")
        except subprocess.TimeoutExpired as error:
            raise UnavailableError(f"'{words[0]}' did not end within {timeout_s:.0f} s") from error
        return Ran(
            status=done.returncode,
            output=clean(done.stdout),
            errors=clean(done.stderr),
        )
