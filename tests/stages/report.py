"""What a stage says: each step when it begins, how long it took, and in the end that all went well, or what did not."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from tests.stages.engine import NoEngineError

EXIT_OK: Final = 0
EXIT_FAILED: Final = 1
EXIT_NO_ENGINE: Final = 77
"""The stage did not run, which is neither success nor failure."""


class StageError(Exception):
    """What the stage was to show did not happen."""


class Report:
    def __init__(self, stage: str) -> None:
        self.stage = stage
        self._began_s = time.monotonic()

    def say(self, text: str) -> None:
        print(f"[{time.monotonic() - self._began_s:6.1f} s] {text}", flush=True)

    @contextmanager
    def step(self, text: str) -> Iterator[None]:
        self.say(f"{text} ...")
        began_s = time.monotonic()
        yield
        self.say(f"{text}: done in {time.monotonic() - began_s:.1f} s")

    def run(self, body: Callable[[Report], None]) -> int:
        """The exit status. What `body` started it has to stop by itself, whatever happens."""
        try:
            body(self)
        except NoEngineError as error:
            line = "#" * 78
            print(
                f"{line}\n{self.stage}: NOT RUN: no Docker engine could be started on this machine.\n{error}\n{line}",
                file=sys.stderr,
            )
            return EXIT_NO_ENGINE
        except (StageError, TimeoutError) as error:
            print(f"{self.stage}: FAILED {error}", flush=True)
            return EXIT_FAILED
        self.say(f"{self.stage}: OK")
        return EXIT_OK


def until(what: str, holds: Callable[[], bool], *, limit_s: float, every_s: float = 0.5) -> None:
    """Wait for a condition; StageError names it when it does not come."""
    end_s = time.monotonic() + limit_s
    while not holds():
        if time.monotonic() > end_s:
            raise StageError(f"not within {limit_s:.0f} s: {what}")
        time.sleep(every_s)
