"""The data mover beside what it could be at best, and beside its peers, in one run.

    python -m bench.bench_mover [--size-mib 3072] [--source /usr] [--rounds 3] [--peer-rounds 1]
                                [--directory DIR] [--results FILE]

Builds a disk image with this machine's own files and its next day (bench/images.py), runs every tool in
processes of their own, prints wall time, CPU, memory and bytes, and the aims; writes all of it to
bench/results.json. The rounds of all tools take turns; of several the best counts. Images are read once
before, so that every tool finds them in the page cache.

vmhaul, restic and borg sync what they store, and vmhaul what it restores; the others leave that to the
kernel. So results are synced and the time for it is added before tools are compared. Tools that are not installed are left out.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.aims import BORG, BORG_FIXED, aims_of, best_rows
from bench.images import build_images, changed_extents
from bench.measure import run
from bench.tools import Bench, borg, qemu_img, restic, rooflines, vmhaul, zstd

RESULTS = Path(__file__).with_name("results.json")
FIXED_BLOCKS = ["--chunker-params", "fixed,1048576", "--sparse"]


def measure(bench: Bench, rounds: int, peer_rounds: int) -> None:
    for number in range(rounds):
        rooflines(bench)
        vmhaul(bench, compare=number == 0)
        if shutil.which("zstd"):
            zstd(bench)
        if number >= peer_rounds:
            continue
        if shutil.which("qemu-img"):
            qemu_img(bench)
        if shutil.which("borg"):
            borg(bench, BORG, [])
            borg(bench, BORG_FIXED, FIXED_BLOCKS)
        if shutil.which("restic"):
            restic(bench)


def machine() -> dict[str, Any]:
    models = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    commands = {"restic": ["version"], "borg": ["--version"], "qemu-img": ["--version"], "zstd": ["-V"]}
    return {
        "cpu": models[0] if models else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load": [round(load, 1) for load in os.getloadavg()],
        "tools": {
            name: run([name, *arguments]).output.splitlines()[0].strip()
            for name, arguments in commands.items()
            if shutil.which(name)
        },
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size-mib", type=int, default=3072)
    parser.add_argument("--source", type=Path, default=Path("/usr"))
    parser.add_argument("--directory", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peer-rounds", type=int, default=1)
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="vmhaul-bench-", dir=args.directory))
    try:
        print(f"building two images of {args.size_mib} MiB from {args.source}", flush=True)
        images = build_images(work, args.source, args.size_mib)
        bench = Bench(images, changed_extents(images.day_one, images.day_two), work)
        facts = describe(bench)
        print(facts)
        measure(bench, args.rounds, args.peer_rounds)
    finally:
        shutil.rmtree(work)
    report(bench, {**machine(), "image": facts}, args.results)
    return 0


def describe(bench: Bench) -> dict[str, int]:
    return {
        "size_bytes": bench.images.day_one.stat().st_size,
        "allocated_bytes": bench.images.day_one.stat().st_blocks * 512,
        "changed_bytes": sum(extent.length for extent in bench.changed),
    }


def report(bench: Bench, facts: dict[str, Any], path: Path) -> None:
    aims = aims_of(bench.rows)
    for aim in aims:
        print(f"{'holds ' if aim.holds else 'MISSED'} {aim.name}: {aim.value} (aim {aim.aim})")
    rounds = {
        key: sum((row.tool, row.step) == key for row in bench.rows) for key in best_rows(bench.rows)
    }
    rows = [{**asdict(row), "rounds": rounds[key]} for key, row in best_rows(bench.rows).items()]
    rounded = [
        {name: round(value, 3) if isinstance(value, float) else value for name, value in row.items()}
        for row in rows
    ]
    content = {"machine": facts, "rows": rounded, "aims": [asdict(aim) for aim in aims]}
    path.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
