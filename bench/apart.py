"""Benches of made-up repositories: each step in a process of its own, which tells its peak of memory."""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bench.measure import own_peak_bytes

Step = Callable[[int, Path], dict[str, Any]]
Rows = list[dict[str, Any]]


def step_apart(module: str, step: str, blobs: int, directory: Path) -> dict[str, Any]:
    """Figures of one step of a module whose main() is steps_main()."""
    done = subprocess.run(
        [sys.executable, "-m", module, "--step", step, str(blobs), str(directory)],
        check=True,
        stdout=subprocess.PIPE,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def steps_main(
    description: str,
    steps: Mapping[str, Step],
    rows: Callable[[float, Path | None], Rows],
    aims: Callable[[Rows], Rows],
) -> int:
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--millions", type=float, default=10)
    parser.add_argument("--directory", type=Path)
    parser.add_argument("--step", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.step:
        step, blobs, directory = given.step
        found = steps[step](int(blobs), Path(directory))
        used = resource.getrusage(resource.RUSAGE_SELF)
        cpu_s = round(used.ru_utime + used.ru_stime, 1)
        print(json.dumps({**found, "cpu_s": cpu_s, "peak_bytes": own_peak_bytes()}))
        return 0
    found_rows = rows(given.millions, given.directory)
    print(json.dumps({"rows": found_rows, "aims": aims(found_rows)}, indent=1))
    return 0
