"""`python -m tests.fuzz TARGET|all [SECONDS]`: atheris, guided by what of the parser an input reaches.

An input that is found is written beside the seeds of its target as `found-...`; the run ends with status 1
and says which. Mend the parser and keep the file under a better name: from then on it is a regression test.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import atheris

MEMORY_BYTES = 3 << 30
"""Of address space for one target. A parser that trusts a length runs into it."""
LONGEST_INPUT_S = 10
PACKAGES = ["pipeline", "proxy_worker", "transports.network", "transports.vsphere", "backup_server.cli"]


def fuzz(name: str, seconds: int) -> None:
    """Never returns: libFuzzer ends the process."""
    with atheris.instrument_imports(include=PACKAGES):
        from tests.fuzz.targets import SEEDS, TARGETS

    target = TARGETS[name]
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    with tempfile.TemporaryDirectory() as corpus:
        for number, seed in enumerate(target.seeds()):
            (Path(corpus) / str(number)).write_bytes(seed)
        kept = SEEDS / name
        kept.mkdir(parents=True, exist_ok=True)
        options = [
            f"-max_total_time={seconds}",
            f"-timeout={LONGEST_INPUT_S}",
            f"-artifact_prefix={kept}{os.sep}found-",
            "-print_final_stats=1",
            "-verbosity=0",
            "-rss_limit_mb=0",
        ]
        atheris.Setup([sys.argv[0], *options, corpus], target.run)
        atheris.Fuzz()


def fuzz_all(seconds: int) -> int:
    """Each target in a process of its own. How many found something."""
    from tests.fuzz.targets import TARGETS

    failures = 0
    for name in TARGETS:
        command = [sys.executable, "-m", "tests.fuzz", name, str(seconds)]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        told = [line for line in result.stderr.splitlines() if "number_of_executed_units" in line]
        executed = told[0].split()[-1] if told else "?"
        print(
            f"{name}: {executed} inputs, {'ok' if result.returncode == 0 else 'FOUND SOMETHING'}",
            flush=True,
        )
        if result.returncode:
            failures += 1
            print(result.stdout[-3000:], result.stderr[-6000:], sep="\n", flush=True)
    return failures


if __name__ == "__main__":
    chosen = sys.argv[1] if len(sys.argv) > 1 else "all"
    length = int(sys.argv[2]) if len(sys.argv) > 2 else 60
    if chosen == "all":
        sys.exit(1 if fuzz_all(length) else 0)
    fuzz(chosen, length)
