"""What the index costs: made from a repository of made-up index objects, opened again, asked, refreshed.

    python -m bench.bench_index [--millions 10] [--directory DIR]

Each step runs in a process of its own and tells its peak of resident memory. Prints JSON.
"""

from __future__ import annotations

import os
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.apart import step_apart, steps_main

LOOKUPS = 20_000
MEMORY_AIM_BYTES = 256 << 20


def step_build(blobs: int, cache: Path) -> dict[str, Any]:
    from bench.made_up import KEYRING, MadeUpStorage
    from pipeline.repository.index import IndexLoader

    storage = MadeUpStorage(blobs)
    began = time.perf_counter()
    IndexLoader(storage, KEYRING, cache).refresh()
    wall_s = time.perf_counter() - began
    files_bytes = sum(each.stat().st_size for each in cache.iterdir())
    return {"wall_s": wall_s - storage.making_s, "making_s": storage.making_s, "bytes": files_bytes}


def step_use(blobs: int, cache: Path) -> dict[str, Any]:
    """As a task does: open, look blocks up, see what others wrote, write."""
    from bench.made_up import KEYRING, MadeUpStorage, blob_id
    from pipeline.crypto.aead import Aead
    from pipeline.repository.index import BlobEntry, IndexLoader, PackSegment, write_index_object

    storage = MadeUpStorage(blobs)
    began = time.perf_counter()
    loader = IndexLoader(storage, KEYRING, cache)
    index = loader.refresh()
    open_s = time.perf_counter() - began
    rng = random.Random(1)
    known = [blob_id(rng.randrange(storage.blobs)) for _ in range(LOOKUPS)]
    unknown = [os.urandom(32) for _ in range(LOOKUPS)]
    result = {"open_s": open_s}
    for name, ids in (("known", known), ("unknown", unknown), ("known_again", known)):
        began = time.perf_counter()
        found = sum(each in index for each in ids)
        result[f"{name}_us"] = (time.perf_counter() - began) / LOOKUPS * 1e6
        if found != (0 if name == "unknown" else LOOKUPS):
            raise SystemExit(f"{found} of {LOOKUPS} {name} blobs were found")
    entries = tuple(BlobEntry(os.urandom(32), 48 + n * 1000, 1000, 4096, 1, 1) for n in range(128))
    write_index_object(
        storage, KEYRING, Aead.AEGIS_256, [PackSegment(os.urandom(16), 200_000, entries)]
    )
    began = time.perf_counter()
    loader.follow()
    result["follow_s"] = time.perf_counter() - began
    if entries[0].blob_id not in index:
        raise SystemExit("what another writer stored was not seen")
    return result


def rows(millions: float, directory: Path | None = None) -> list[dict[str, Any]]:
    """One row for each step."""
    blobs = int(millions * 1e6)
    with tempfile.TemporaryDirectory(prefix="index-", dir=directory) as cache:
        return [
            {"step": step, "blobs": blobs, **step_apart("bench.bench_index", step, blobs, Path(cache))}
            for step in ("build", "use")
        ]


def aims(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For `bench/results.json`."""
    return [
        {
            "name": f"memory with {row['blobs'] / 1e6:.0f} million blobs in the repository: "
            f"{'making the index' if row['step'] == 'build' else 'a task that uses it'}, MiB",
            "value": round(row["peak_bytes"] / (1 << 20), 1),
            "aim": MEMORY_AIM_BYTES >> 20,
            "holds": row["peak_bytes"] <= MEMORY_AIM_BYTES,
        }
        for row in found
    ]


def main() -> int:
    return steps_main(__doc__ or "", {"build": step_build, "use": step_use}, rows, aims)


if __name__ == "__main__":
    sys.exit(main())
