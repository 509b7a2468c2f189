"""Every block size that a repository can have, from a disk to a file, within the memory of a task slot."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import json, random, sys, threading, time
from pathlib import Path
from pipeline.mover import MoverOptions, backup_disk
from pipeline.planning import plan_backup
from pipeline.rawfile import RawFileReader, RawFileWriter
from pipeline.repository import KdfCost, Repository
from pipeline.restore import restore_disk
from pipeline.storage import open_storage
from transports.base import Extent, ReaderCapabilities

MIB = 1 << 20
block_size, directory = int(sys.argv[1]), Path(sys.argv[2])
rng = random.Random(block_size)
capacity = 96 * MIB + 512
image = directory / "image.raw"
with image.open("wb") as out:
    out.truncate(capacity)
    for number in range(80):
        out.seek(number * MIB)
        out.write(rng.randbytes(MIB * 3 // 4))

class Busy(RawFileReader):
    # Many requests at a time and answers out of order, as over a network.
    @property
    def capabilities(self):
        known = super().capabilities
        return ReaderCapabilities(mode=known.mode, allocated_extents=known.allocated_extents,
                                  requests_in_flight=16, max_request_bytes=MIB)
    def read_many(self, requests):
        waiting = []
        for request in requests:
            waiting.append(request)
            if len(waiting) == 16:
                yield self.answer(waiting.pop(rng.randrange(16)))
        while waiting:
            yield self.answer(waiting.pop())
    def answer(self, request):
        self.read_into(request.offset, request.buffer)
        return request

repository = Repository.create(
    open_storage(str(directory / "repository"), create=True), "pw", clock=time.time,
    block_size_bytes=block_size, kdf_cost=KdfCost(ops=1, memory_kib=64),
)

def back_up(work_id, previous, changed):
    reader = Busy(image)
    plan = plan_backup(capacity_bytes=capacity, block_size_bytes=block_size, previous_map_root=previous,
                       changed=changed, allocated=None)
    return backup_disk(
        repository=repository, reader=reader, plan=plan, compression="fast", work_id=work_id,
        cancel=threading.Event(), progress=lambda p: None, clock=time.time, options=MoverOptions(workers=2),
    )

full = back_up("full", "", None)
changed = []
with image.open("r+b") as out:
    for _ in range(60):
        extent = Extent(offset=rng.randrange(capacity // 512) * 512, length=512)
        changed.append(extent)
        out.seek(extent.offset)
        out.write(rng.randbytes(512))
increment = back_up("increment", full.map_root, changed)
writer = RawFileWriter.create(directory / "restored.raw", capacity)
restore_disk(
    repository=repository, map_root=increment.map_root, capacity_bytes=capacity, writer=writer,
    skip_zeros=True, cancel=threading.Event(), progress=lambda p: None, clock=time.time,
)
writer.close()
status = Path("/proc/self/status").read_text()
print(json.dumps({
    "peak_mib": int(status.split("VmHWM:")[1].split()[0]) / 1024,
    "full": full.stats.stored_bytes, "increment": increment.stats.stored_bytes,
    "same": (directory / "restored.raw").read_bytes() == image.read_bytes(),
    "problems": repository.check(read_data=True).problems,
}))
"""


@pytest.mark.parametrize("size_kib", [256, 512, 1024, 4096])
def test_every_block_size_within_the_memory_of_a_slot(tmp_path: Path, size_kib: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(size_kib << 10), str(tmp_path)],
        check=True,
        capture_output=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        timeout=240,
    )
    answer = json.loads(done.stdout)
    print(answer)
    assert answer["same"]
    assert answer["problems"] == []
    assert answer["increment"] < answer["full"]
    assert answer["peak_mib"] < 256
