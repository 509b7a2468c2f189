"""Runs the machine's own programs (mkfs, losetup, mount, ...) and turns failures into errors."""

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from vmhaul_lab.errors import CommandError


def run(
    *command: str | Path,
    ok: Sequence[int] = (0,),
    timeout_s: float = 600,
) -> subprocess.CompletedProcess[str]:
    """Run `command`, return what it said; `CommandError` when its status is not in `ok`."""
    words = [str(word) for word in command]
    # Tools live in /usr/sbin, which a plain user's PATH may lack; LC_ALL because their text is read.
    path = os.environ.get("PATH", "") + ":/usr/local/sbin:/usr/sbin:/sbin"
    try:
        done = subprocess.run(
            words,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=timeout_s,
            env={**os.environ, "PATH": path, "LC_ALL": "C", "TZ": "UTC"},
        )
    except FileNotFoundError as error:
        raise CommandError(f"{words[0]} is not installed; install the package that holds it") from error
    except subprocess.TimeoutExpired as error:
        raise CommandError(f"`{' '.join(words)}` did not end within {timeout_s:.0f} s") from error
    if done.returncode not in ok:
        said = (done.stderr.strip() or done.stdout.strip())[:1500]
        raise CommandError(f"`{' '.join(words)}` ended with status {done.returncode}: {said}")
    return done
