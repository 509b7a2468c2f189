"""Passwords and tokens come from a terminal or from standard input, never from the command line."""

from __future__ import annotations

import getpass
import sys

from backup_server.cli.exits import CliError, Exit
from backup_server.deploy.said import harmless


def read_secret(what: str, *, from_stdin: bool, option: str, confirm: bool = False) -> str:
    """The secret, without its line end. CliError when there is nobody to ask."""
    if from_stdin:
        try:
            text = sys.stdin.readline().rstrip("\r\n")
            text.encode()
        except UnicodeError:
            # Not with its cause, which holds what was given.
            raise CliError(
                f"{option}: what standard input holds is not text in UTF-8: give the {what} so encoded"
            ) from None
        if not text:
            raise CliError(f"{option}: standard input held no {what}")
        return text
    if not sys.stdin.isatty():
        raise CliError(f"no terminal to ask for the {what}: give it with {option}", Exit.USAGE)
    text = getpass.getpass(f"{what}: ")
    if not text:
        raise CliError(f"an empty {what} is not accepted")
    if confirm and getpass.getpass(f"{what}, once more: ") != text:
        raise CliError(f"the two entries of the {what} differ: nothing was changed")
    return text


def confirm(question: str, *, assume_yes: bool, option: str) -> None:
    """Ask yes or no; CliError when the answer is no or there is nobody to ask."""
    if assume_yes:
        return
    if not sys.stdin.isatty():
        raise CliError(f"no terminal to ask '{question}': confirm with {option}", Exit.USAGE)
    print(f"{harmless(question)} [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in {"y", "yes"}:
        raise CliError("not confirmed: nothing was changed")
