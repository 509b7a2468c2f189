"""The data mover beside what it could be at best, and beside its peers, in one run.

    python -m bench.bench_mover [--quick] [--rounds 3] [--peer-rounds 2] [--size-mib 3072] [--source /usr]
                                [--directory DIR] [--results FILE]

Builds a disk image with this machine's own files and its next day (bench/images.py) and one with a
PostgreSQL database and its next day (bench/database.py), runs every tool in processes of their own, prints
wall time, CPU, memory and bytes, and the aims; writes all of it to bench/results.json. The rounds of all
tools take turns; of several the best counts. Images are read once before, so that every tool finds them in
the page cache. `--quick`: one round on small disks, for a look; its figures prove nothing.

vmhaul, restic and borg sync what they store, and vmhaul what it restores; the others leave that to the
kernel. So results are synced and the time for it is added before tools are compared. Tools that are not
installed are left out.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench import bench_modes
from bench.aims import BORG, BORG_FIXED, aims_of, best_rows, key_of
from bench.database import SCALE, build_database_images, programs
from bench.images import Images, build_images, changed_extents
from bench.measure import run
from bench.tools import (
    DATABASE_DISK,
    HUGE_DISK,
    OS_DISK,
    Bench,
    Row,
    borg,
    qemu_img,
    restic,
    rooflines,
    settings,
    unchanged_huge_disk,
    vmhaul,
    zstd,
)

RESULTS = Path(__file__).with_name("results.json")
FIXED_BLOCKS = ["--chunker-params", "fixed,1048576", "--sparse"]
QUICK_MIB = 512
QUICK_MILLIONS = 1.0
INDEX_BENCHES = {"bench.bench_index": 100.0, "bench.bench_scale": 10.0}
"""Benches of large repositories, and with how many million blobs; each has rows() and aims()."""


def measure_os_disk(bench: Bench, rounds: int, peer_rounds: int) -> None:
    for number in range(rounds):
        rooflines(bench)
        vmhaul(bench, compare=number == 0)
        if shutil.which("zstd"):
            zstd(bench)
        if number >= peer_rounds:
            continue
        if shutil.which("qemu-img"):
            qemu_img(bench)
        repositories(bench)
        if shutil.which("borg"):
            borg(bench, BORG, [])


def measure_database_disk(bench: Bench) -> None:
    vmhaul(bench, compare=True)
    repositories(bench)


def repositories(bench: Bench) -> None:
    if shutil.which("borg"):
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
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--size-mib", type=int, default=3072)
    parser.add_argument("--source", type=Path, default=Path("/usr"))
    parser.add_argument("--directory", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peer-rounds", type=int, default=2)
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    if args.quick:
        args.size_mib, args.rounds, args.peer_rounds = min(QUICK_MIB, args.size_mib), 1, 1
    began_s = time.monotonic()
    facts = machine()
    work = Path(tempfile.mkdtemp(prefix="vmhaul-bench-", dir=args.directory))
    work.chmod(0o711)  # the database's server runs as another user
    rows: list[Row] = []
    try:
        facts["disks"] = measure_all(args, work, rows)
        index_rows, index_aims = measure_index(work, quick=args.quick)
        mode_rows = measure_modes(work, quick=args.quick)
    finally:
        shutil.rmtree(work)
    facts["load_after"] = [round(load, 1) for load in os.getloadavg()]
    facts["took_s"] = round(time.monotonic() - began_s)
    aims = [asdict(aim) for aim in aims_of(rows)] + index_aims + bench_modes.aims(mode_rows)
    report(rows, {"index": index_rows, "modes": mode_rows}, facts, aims, args.results)
    return 0


def measure_all(args: argparse.Namespace, work: Path, rows: list[Row]) -> dict[str, Any]:
    """Facts of the disks."""
    facts = {}
    print(f"building two images of {args.size_mib} MiB from {args.source}", flush=True)
    bench = disk(
        OS_DISK,
        build_images(empty(work / "os-images"), args.source, args.size_mib),
        work / OS_DISK,
        rows,
    )
    facts[OS_DISK] = describe(bench)
    measure_os_disk(bench, args.rounds, args.peer_rounds)
    if not args.quick:
        settings(bench)
    unchanged_huge_disk(Bench(HUGE_DISK, bench.images, [], empty(work / "huge"), rows))
    if programs() is not None:
        print("building two images with a PostgreSQL database", flush=True)
        scale = SCALE // 6 if args.quick else SCALE
        images = build_database_images(empty(work / "database-images"), scale=scale)
        bench = disk(DATABASE_DISK, images, work / DATABASE_DISK, rows)
        facts[DATABASE_DISK] = describe(bench)
        measure_database_disk(bench)
    return facts


def empty(directory: Path) -> Path:
    directory.mkdir()
    return directory


def disk(name: str, images: Images, work: Path, rows: list[Row]) -> Bench:
    return Bench(name, images, changed_extents(images.day_one, images.day_two), empty(work), rows)


def describe(bench: Bench) -> dict[str, int]:
    facts = {
        "size_bytes": bench.images.day_one.stat().st_size,
        "allocated_bytes": bench.images.day_one.stat().st_blocks * 512,
        "changed_bytes": sum(extent.length for extent in bench.changed),
    }
    print(facts, flush=True)
    return facts


def measure_index(work: Path, *, quick: bool) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows and aims of the index, of check and of prune."""
    rows, aims = [], []
    for name, millions in INDEX_BENCHES.items():
        if importlib.util.find_spec(name) is None:
            continue
        bench = importlib.import_module(name)
        print(f"{name}: {QUICK_MILLIONS if quick else millions} million blobs", flush=True)
        found = bench.rows(QUICK_MILLIONS if quick else millions, work)
        rows += found
        aims += bench.aims(found)
    return rows, aims


def measure_modes(work: Path, *, quick: bool) -> list[dict[str, Any]]:
    """Rows of the transport modes; none where they cannot be measured."""
    if os.geteuid() or shutil.which("ganesha.nfsd") is None:
        print("no transport modes: they need root and nfs-ganesha")
        return []
    print("bench.bench_modes", flush=True)
    return bench_modes.rows(256 if quick else 768, 1 if quick else 5, work)


def report(
    rows: list[Row],
    others: dict[str, list[dict[str, Any]]],
    facts: dict[str, Any],
    aims: list[dict[str, Any]],
    path: Path,
) -> None:
    for aim in aims:
        print(
            f"{'holds ' if aim['holds'] else 'MISSED'} {aim['name']}: {aim['value']} (aim {aim['aim']})"
        )
    best = best_rows(rows)
    rounds = {key: sum(key_of(row) == key for row in rows) for key in best}
    rounded = [
        {
            name: round(value, 3) if isinstance(value, float) else value
            for name, value in {**asdict(row), "rounds": rounds[key]}.items()
        }
        for key, row in best.items()
    ]
    content = {"machine": facts, "rows": rounded, **others, "aims": aims}
    path.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
