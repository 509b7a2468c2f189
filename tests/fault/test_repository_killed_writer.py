"""kill -9 of a process that backs a disk up into a directory, at random moments, again and again."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from pipeline.errors import StorageFullError
from pipeline.mover import MoverOptions
from pipeline.rawfile import RawFileReader
from pipeline.repository import Repository
from pipeline.storage import open_storage
from pipeline.testing.builders import CHEAP_KDF, PASSWORD, Workbench, disk_point, restore_point

KILLS = 6
MIB = 1 << 20
BLOCK_SIZE_BYTES = 64 << 10

WRITER = """
import sys, threading, time
from pipeline.mover import MoverOptions, backup_disk
from pipeline.planning import plan_backup
from pipeline.rawfile import RawFileReader
from pipeline.repository import Repository
from pipeline.storage import open_storage

place, image, key = sys.argv[1:4]
repository = Repository.open_with_key(open_storage(place), key, expected_id=None, clock=time.time)
repository.pack_target_bytes = 1 << 20

class Slow(RawFileReader):
    def read_into(self, offset, buffer):
        threading.Event().wait(0.002)
        super().read_into(offset, buffer)

reader = Slow(image)
plan = plan_backup(
    capacity_bytes=reader.size_bytes, block_size_bytes=repository.block_size_bytes,
    changed=None, allocated=None,
)
print("begun", flush=True)
backup_disk(
    repository=repository, reader=reader, plan=plan, compression="fast", work_id="task-1",
    cancel=threading.Event(), progress=lambda p: None, clock=time.time,
    options=MoverOptions(workers=2, checkpoint_every_s=0.02),
)
print("done", flush=True)
"""


def test_killed_and_killed_again_it_ends_right(tmp_path: Path) -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    image = tmp_path / "disk.raw"
    image.write_bytes(rng.randbytes(24 * MIB) + bytes(4 * MIB) + b"text" * MIB)
    place = tmp_path / "repository"
    storage = open_storage(str(place), create=True)
    repository = Repository.create(
        storage, PASSWORD, clock=time.time, block_size_bytes=BLOCK_SIZE_BYTES, kdf_cost=CHEAP_KDF
    )
    bench = Workbench(storage, time.time, repository=repository)
    command = [
        sys.executable, "-c", WRITER, str(place), str(image), repository.key_material,
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    killed = 0
    for _ in range(KILLS):
        with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as writer:
            assert writer.stdout is not None
            assert writer.stdout.readline() == b"begun\n"
            try:
                writer.wait(rng.uniform(0.0, 0.5))
            except subprocess.TimeoutExpired:
                writer.kill()
                killed += 1
        assert bench.problems() == ()
    assert killed > 0
    reads: list[int] = []

    class Counting(RawFileReader):
        def read_into(self, offset: int, buffer: memoryview) -> None:
            reads.append(len(buffer))
            super().read_into(offset, buffer)

    reader = Counting(image)
    backup = bench.backup(reader, work_id="task-1", options=MoverOptions(workers=2))
    assert sum(reads) < reader.size_bytes, "the attempts before were not for nothing"
    bench.commit(restore_point(disk_point(backup.map_root, reader.size_bytes)))
    assert bench.restored(backup.map_root, reader.size_bytes) == image.read_bytes()
    repository.prune(keep_work_ids=(), min_age_s=0)
    assert bench.problems() == ()
    assert list((place / "tmp").iterdir()) == [], "what the dead writers left was cleaned up"
    assert list(storage.list("work/")) == []
    reader.close()


@pytest.mark.lab
def test_a_file_system_that_runs_full(tmp_path: Path) -> None:
    """A real one: a small tmpfs."""
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(place)], check=True)
    try:
        storage = open_storage(str(place))
        bench = Workbench(
            storage, time.time, block_size_bytes=BLOCK_SIZE_BYTES, pack_target_bytes=2 * MIB
        )
        first = random.Random(1).randbytes(3 * MIB)
        kept = bench.backup(first)
        point = bench.commit(restore_point(disk_point(kept.map_root, len(first))))
        second = random.Random(2).randbytes(5 * MIB)
        with pytest.raises(StorageFullError, match="free space"):
            bench.backup(second, work_id="task-1")
        assert bench.problems() == ()
        assert bench.restored(kept.map_root, len(first)) == first
        bench.repository.forget([point.id])
        bench.repository.prune(keep_work_ids=["task-1"], min_age_s=0)
        # The running work holds doomed packs back; when it is given up, the space comes free.
        threading.Event().wait(0.01)
        bench.repository.prune(keep_work_ids=(), min_age_s=0)
        again = bench.backup(second, work_id="task-2")
        assert bench.restored(again.map_root, len(second)) == second
        storage.close()
    finally:
        subprocess.run(["umount", str(place)], check=True)
