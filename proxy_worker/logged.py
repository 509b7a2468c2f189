"""`python -m proxy_worker.logged --data DIR`: the worker, for hosts that keep nothing of what a program says.

What it says goes to `proxy.log` in its directory. A scheduled task of Windows starts it so. The log of before is kept
once as `proxy.log.1` when it has grown.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

LOG_KEEP_BYTES: Final = 16 << 20


def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] != ["--data"] or len(words) < 2:  # noqa: PLR2004 - the option and its value
        sys.stderr.write("usage: python -m proxy_worker.logged --data DIR [...]\n")
        return 2
    say_to(Path(words[1]) / "proxy.log")
    from proxy_worker.__main__ import main as worker

    return worker(words)


def say_to(log_file: Path) -> None:
    """Standard output and errors of this process and its children go to the end of that file from now on."""
    if log_file.exists() and log_file.stat().st_size > LOG_KEEP_BYTES:
        log_file.replace(log_file.with_name(f"{log_file.name}.1"))
    log = os.open(log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for target, source in ((0, nothing), (1, log), (2, log)):
        os.dup2(source, target)
    for handle in (log, nothing):
        if handle > 2:  # noqa: PLR2004 - not one of the three that it is now
            os.close(handle)


if __name__ == "__main__":
    sys.exit(main())
