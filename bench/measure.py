"""Wall time, CPU and memory of one process and its children."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

LAUNCHER = """
import json, os, sys, time
began = time.perf_counter()
child = os.spawnvp(os.P_NOWAIT, sys.argv[2], sys.argv[2:])
_, status, usage = os.wait4(child, 0)
figures = [time.perf_counter() - began, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024]
os.write(int(sys.argv[1]), json.dumps(figures).encode())
sys.exit(os.waitstatus_to_exitcode(status))
"""
"""A small process between this one and the measured one: the peak memory that the kernel tells of a
process begins with what the process that started it had.
"""


@dataclass(frozen=True, slots=True)
class Measured:
    wall_s: float
    cpu_s: float
    peak_bytes: int
    output: str


class StepError(Exception):
    """A measured program ended with an error."""


def run(
    command: Sequence[str | Path],
    *,
    cwd: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> Measured:
    """Raises StepError with what the program said."""
    figures_in, figures_out = os.pipe()
    launcher = [sys.executable, "-I", "-S", "-c", LAUNCHER, str(figures_out)]
    try:
        done = subprocess.run(
            [*launcher, *command],
            cwd=cwd,
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=[figures_out],
            check=False,
        )
    finally:
        os.close(figures_out)
    with os.fdopen(figures_in) as pipe:
        figures = pipe.read()
    output = done.stdout.decode(errors="replace")
    if done.returncode:
        raise StepError(f"{' '.join(map(str, command))} ended with {done.returncode}: {output[-2000:]}")
    wall_s, cpu_s, peak_bytes = json.loads(figures)
    return Measured(wall_s, cpu_s, peak_bytes, output)


def synced(path: Path) -> float:
    """Sync a file, or all files below a directory; how many seconds that took."""
    began = time.perf_counter()
    for file in [path] if path.is_file() else filter(Path.is_file, path.rglob("*")):
        fd = os.open(file, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)
    return time.perf_counter() - began


def bytes_under(directory: Path) -> int:
    """Sizes of all files below a directory, or of a file."""
    if directory.is_file():
        return directory.stat().st_size
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


def own_peak_bytes() -> int:
    """Peak of this process's resident memory. Not `ru_maxrss`: that begins with the memory of whoever
    started the process, kept over exec (https://man7.org/linux/man-pages/man2/getrusage.2.html).
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) << 10
    raise OSError("/proc/self/status has no VmHWM")
