"""Memory of the data mover does not grow with the disk, and what is not allocated costs nothing.

Each measurement is a process of its own, so that the peak is its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

TIB = 1 << 40
MIB = 1 << 20
MARGIN_MIB = 24
"""Allocator noise between two runs of the same program."""

PROGRAM = """
import json, os, random, sys, threading, time
from pathlib import Path
from pipeline.mover import MoverOptions, backup_disk
from pipeline.planning import plan_backup
from pipeline.rawfile import RawFileReader
from pipeline.repository import KdfCost, Repository
from pipeline.storage import open_storage

capacity, data_mib, directory = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
image = directory / "image.raw"
with image.open("wb") as out:
    out.truncate(capacity)
    rng = random.Random(1)
    for number in range(data_mib):
        out.seek(number * (capacity // max(1, data_mib) // 4096) * 4096)
        out.write(rng.randbytes(1 << 19) + bytes([number % 251]) * (1 << 19))

class Counting(RawFileReader):
    read_bytes = 0
    def read_into(self, offset, buffer):
        Counting.read_bytes += len(buffer)
        super().read_into(offset, buffer)

def peak_mib():
    # Of this program alone: getrusage's figure begins with what the process that started it had.
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024

storage = open_storage(str(directory / "repository"), create=True)
repository = Repository.create(storage, "pw", clock=time.time, kdf_cost=KdfCost(ops=1, memory_kib=64))

def run(work_id, previous, changed):
    reader = Counting(image)
    Counting.read_bytes = 0
    began = time.monotonic()
    plan = plan_backup(
        capacity_bytes=capacity, block_size_bytes=repository.block_size_bytes,
        previous_map_root=previous, changed=changed,
        allocated=reader.allocated_extents(0, capacity) if changed is None else None,
    )
    backup = backup_disk(
        repository=repository, reader=reader, plan=plan, compression="fast", work_id=work_id,
        cancel=threading.Event(), progress=lambda p: None, clock=time.time,
        options=MoverOptions(workers=2),
    )
    return {
        "root": backup.map_root, "read": Counting.read_bytes, "wall_s": time.monotonic() - began,
        "stored": backup.stats.stored_bytes,
        "written": sum(f.stat().st_size for f in (directory / "repository").rglob("*") if f.is_file()),
        "peak_mib": peak_mib(),
    }

full = run("full", "", None)
unchanged = run("unchanged", full["root"], [])
print(json.dumps([full, unchanged]))
"""


def measured(capacity: int, data_mib: int, directory: Path) -> list[dict[str, Any]]:
    directory.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(capacity), str(data_mib), str(directory)],
        check=True,
        capture_output=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        timeout=240,
    )
    answer: list[dict[str, Any]] = json.loads(done.stdout)
    return answer


def test_a_sparse_disk_of_two_tib_is_nothing(tmp_path: Path) -> None:
    full, unchanged = measured(2 * TIB, 0, tmp_path / "empty")
    assert full["root"] == unchanged["root"] == "0" * 64
    for run in (full, unchanged):
        assert run["read"] == run["stored"] == 0
        assert run["wall_s"] < 30, "seconds, not hours; measured: 0.05 s"


def test_an_unchanged_disk_of_two_tib_is_not_read(tmp_path: Path) -> None:
    full, unchanged = measured(2 * TIB, 8, tmp_path / "sparse")
    assert full["read"] < 32 * MIB
    assert unchanged["root"] == full["root"] != "0" * 64
    assert unchanged["read"] == unchanged["stored"] == 0
    assert unchanged["written"] - full["written"] < 64 << 10
    assert unchanged["wall_s"] < 30


def test_memory_does_not_grow_with_the_disk(tmp_path: Path) -> None:
    small = measured(64 * MIB, 48, tmp_path / "small")[0]
    more_data = measured(512 * MIB, 400, tmp_path / "more")[0]
    larger_disk = measured(2 * TIB, 48, tmp_path / "large")[0]
    assert small["read"] >= 48 * MIB
    assert more_data["peak_mib"] < small["peak_mib"] + MARGIN_MIB
    assert larger_disk["peak_mib"] < small["peak_mib"] + MARGIN_MIB
    assert more_data["peak_mib"] < 256
