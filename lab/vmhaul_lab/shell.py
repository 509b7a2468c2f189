"""Runs `vmhaul` as an operator does: every command is shown as typed, its output goes to the terminal."""

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vmhaul_lab.errors import CommandError

_BOLD, _PLAIN = "\033[1m", "\033[0m"


def vmhaul_program() -> Path:
    """The `vmhaul` command of this Python environment."""
    program = Path(sys.executable).parent / "vmhaul"
    if not program.is_file():
        raise CommandError(
            f"{program} is not there: install vmhaul in this environment (pip install .)"
        )
    return program


class Shell:
    """A shell in `directory` with VMHAUL_DATA set to `data` (below it)."""

    def __init__(self, directory: Path, data: Path, *, timeout_s: float = 600) -> None:
        self._directory = directory
        self._timeout_s = timeout_s
        self._environment = {**os.environ, "VMHAUL_DATA": str(data)}
        self._program = vmhaul_program()
        self._colour = sys.stdout.isatty()

    def say(self, text: str = "") -> None:
        """Print a line of the demo's own."""
        print(text, flush=True)

    def heading(self, text: str) -> None:
        """Print the title of the next part."""
        self.say(f"\n{_BOLD}== {text}{_PLAIN}" if self._colour else f"\n== {text}")

    def echo(self, *words: str | Path, stdin: str = "", suffix: str = "") -> None:
        """Show a `vmhaul` command as it would be typed."""
        typed = shlex.join(["vmhaul", *map(str, words)])
        tail = (f" < {shlex.quote(stdin)}" if stdin else "") + suffix
        self.say(f"$ {_BOLD}{typed}{_PLAIN}{tail}" if self._colour else f"$ {typed}{tail}")

    def run(self, *words: str | Path, stdin: str = "", ok: Sequence[int] = (0,)) -> int:
        """Show and run a command with its own live output.

        `stdin` names a file below the shell's directory. `CommandError` when its status is not in `ok`.
        """
        self.echo(*words, stdin=stdin)
        source = (self._directory / stdin).open("rb") if stdin else subprocess.DEVNULL
        try:
            status = subprocess.run(
                self._command(words),
                cwd=self._directory,
                env=self._environment,
                stdin=source,
                timeout=self._timeout_s,
                check=False,
            ).returncode
        except subprocess.TimeoutExpired as error:
            raise CommandError(
                f"`vmhaul {shlex.join(map(str, words))}` did not end within {self._timeout_s:.0f} s"
            ) from error
        finally:
            if not isinstance(source, int):
                source.close()
        if status not in ok:
            raise CommandError(f"`vmhaul {shlex.join(map(str, words))}` ended with status {status}")
        return status

    def ask(self, *words: str | Path) -> Any:
        """Run a command with --json, unseen, and return what it answered."""
        done = subprocess.run(
            [*self._command(words), "--json"],
            cwd=self._directory,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        # A command that follows a failed session still answers JSON, with another status.
        try:
            return json.loads(done.stdout)
        except ValueError as error:
            raise CommandError(
                f"`vmhaul {shlex.join(map(str, words))} --json` ended with status {done.returncode}: "
                f"{(done.stderr or done.stdout).strip()[:800]}"
            ) from error

    def start(self, *words: str | Path, log: Path) -> "subprocess.Popen[bytes]":
        """Show and start a command in the background, its output in a file."""
        self.echo(*words, suffix=f" > {log.name} 2>&1 &")
        with log.open("ab") as output:
            return subprocess.Popen(
                self._command(words),
                cwd=self._directory,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                # A Ctrl-C is for the demo, which ends its children in its own order.
                start_new_session=True,
            )

    def _command(self, words: Sequence[str | Path]) -> list[str]:
        return [str(self._program), *map(str, words)]
