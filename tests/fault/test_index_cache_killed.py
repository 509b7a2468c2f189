"""kill -9 of a process that makes an index cache; and how much memory making it takes."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

from pipeline.crypto.aead import Aead
from pipeline.crypto.keyring import Keyring
from pipeline.repository.index import BlobEntry, IndexLoader, PackSegment, write_index_object
from pipeline.storage import open_storage

KEYRING = Keyring(bytes(32), bytes(16))
MEMORY_BYTES = 256 << 20
OPENER = """
import sys
from pathlib import Path
from pipeline.crypto.keyring import Keyring
from pipeline.repository import index_loader
from pipeline.storage import open_storage
index_loader.BULK_BYTES = 1
index_loader.RUN_RECORDS = 300
print("begins", flush=True)
loader = index_loader.IndexLoader(open_storage(sys.argv[1]), Keyring(bytes(32), bytes(16)), Path(sys.argv[2]))
loader.refresh()
print("made", flush=True)
"""


def test_a_maker_that_is_killed_leaves_a_cache_that_can_be_used(tmp_path: Path) -> None:
    rng = random.Random(1)
    location, cache = tmp_path / "storage", tmp_path / "cache"
    storage = open_storage(str(location), create=True)
    wanted = []
    for _ in range(60):
        entries = tuple(
            BlobEntry(rng.randbytes(32), 48 + n * 1000, 1000, 4096, 1, 1) for n in range(100)
        )
        wanted.append(entries[0].blob_id)
        segment = PackSegment(rng.randbytes(16), 200_000, entries)
        write_index_object(storage, KEYRING, Aead.XCHACHA20_POLY1305, [segment])
    for files in (0, 3, 6, 12, 20):
        child = subprocess.Popen(
            [sys.executable, "-c", OPENER, str(location), str(cache)], stdout=subprocess.PIPE
        )
        assert child.stdout is not None
        assert child.stdout.readline() == b"begins\n"
        # Somewhere in the middle of its work: when so many files are there, or it is done.
        while child.poll() is None and (
            not cache.exists() or len(os.listdir(cache)) < files  # noqa: PTH208 - only how many
        ):
            pass
        if child.poll() is None:
            os.kill(child.pid, signal.SIGKILL)
        child.wait(60)
        child.stdout.close()
        index = IndexLoader(storage, KEYRING, cache).refresh()
        assert all(blob_id in index for blob_id in wanted)
        assert len(index) == 6000


def test_making_the_cache_takes_bounded_memory(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bench.bench_index", "--step", "build", "1500000", str(tmp_path)],
        check=True,
        stdout=subprocess.PIPE,
        timeout=240,
    )
    assert json.loads(done.stdout)["peak_bytes"] < MEMORY_BYTES
